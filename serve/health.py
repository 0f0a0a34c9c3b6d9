"""Whether a server answers: python serve/health.py [HOST:PORT of its HTTP endpoint]. Exit code 0 or 1, and one line.

Sends one small generated image through every segmenter, because Triton calls itself ready while the Python process
behind a model is dead. Standard library alone: it runs inside the container.
"""

from __future__ import annotations

import http.client
import json
import struct
import sys
import zlib
from typing import Any

DEFAULT = "127.0.0.1:8000"
SECONDS = 20
SIDE = 8


def main(argv: list[str]) -> int:
    address = argv[0] if argv else DEFAULT
    try:
        asked = [ensemble for ensemble in _ready(address) if _segments(address, ensemble)]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        print(f"unhealthy: {error!r}", file=sys.stderr)
        return 1
    if not asked:
        print("unhealthy: no segmenter is ready", file=sys.stderr)
        return 1
    print(f"healthy: {', '.join(asked)}")
    return 0


def _ready(address: str) -> list[str]:
    """Models of which a version is. The statistics name them; the index would want the key."""
    statistics = _asked(address, "GET", "/v2/models/stats")
    return sorted({each["name"] for each in statistics["model_stats"]})


def _segments(address: str, model: str) -> bool:
    """Whether it is a segmenter, or segmenters that share one network; ValueError where it does not answer rightly."""
    config = _asked(address, "GET", f"/v2/models/{model}/config")
    if config.get("platform") != "ensemble":
        return False
    given = {"IMAGE": _png()}
    if "SEGMENTER" in [each["name"] for each in config["input"]]:
        segmenter = _shared(address, model)
        if segmenter is None:
            return False
        given["SEGMENTER"] = segmenter.encode()
    mask = _infer(address, model, given, "MASK")
    if mask["shape"] != [SIDE, SIDE]:
        raise ValueError(f"{model}: got a mask of shape {mask['shape']}, expected {[SIDE, SIDE]}")
    return True


def _shared(address: str, ensemble: str) -> str | None:
    """The name of one of its segmenters; None where it has none."""
    for name in _described(address, ""):
        if _described(address, name)["model"] == ensemble:
            return str(name)
    return None


def _described(address: str, name: str) -> Any:
    """What `segmenters` says of one; of an empty name, the list of all."""
    return json.loads(_infer(address, "segmenters", {"SEGMENTER": name.encode()}, "DESCRIPTION")["data"][0])


def _infer(address: str, model: str, given: dict[str, bytes], wanted: str) -> dict[str, Any]:
    data = {name: struct.pack("<I", len(value)) + value for name, value in given.items()}
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(value)}}
        for name, value in data.items()
    ]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": wanted}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = _asked(address, "POST", f"/v2/models/{model}/infer", head + b"".join(data.values()), headers)
    output: dict[str, Any] = answer["outputs"][0]
    return output


def _asked(
    address: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    connection = http.client.HTTPConnection(address, timeout=SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content: dict[str, Any] = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"{path}: {answer.status} {content.get('error')}")
    return content


def _png() -> bytes:
    """SIDE x SIDE black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    rows = zlib.compress((b"\0" + bytes(3 * SIDE)) * SIDE)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
