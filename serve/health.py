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
        asked = [name for name in _ready(address) if _asks_for_an_image(address, name)]
        for segmenter in asked:
            _segment(address, segmenter)
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


def _asks_for_an_image(address: str, model: str) -> bool:
    config = _asked(address, "GET", f"/v2/models/{model}/config")
    return config.get("platform") == "ensemble" and [each["name"] for each in config["input"]] == ["IMAGE"]


def _segment(address: str, segmenter: str) -> None:
    picture = _png()
    data = struct.pack("<I", len(picture)) + picture
    image = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [image], "outputs": [{"name": "MASK"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    (mask,) = _asked(address, "POST", f"/v2/models/{segmenter}/infer", head + data, headers)["outputs"]
    if mask["shape"] != [SIDE, SIDE]:
        raise ValueError(f"{segmenter}: got a mask of shape {mask['shape']}, expected {[SIDE, SIDE]}")


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
