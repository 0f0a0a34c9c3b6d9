"""Whether a server answers: python serve/health.py [--ready] [HOST:PORT of its HTTP endpoint]

Exit code 0 or 1, and one line. Sends one small generated image through one segmenter, the one that was asked longest
ago, because Triton calls itself ready while a network hangs, and before 26.04 while a model's process is dead. Where an
image takes more than a second, or where the server is so busy that it refuses this one, an answer that somebody got a
short time ago counts as well.

With --ready it costs no image where Triton asks the processes of its models itself, from 2.67 (container 26.03) on:
every model behind a segmenter has to call itself ready. With an older Triton it is as without.

Standard library alone: it runs inside the container.
"""

from __future__ import annotations

import http.client
import json
import struct
import sys
import time
import zlib
from typing import Any

DEFAULT = "127.0.0.1:8000"
# An answer is waited for so many times what an image takes, and at least SECONDS.
SECONDS, IMAGES = 20.0, 5.0
# An image that takes longer is not sent while the last answer is younger than so many times what it takes, unless
# somebody waits for one.
DEAR_SECONDS, FRESH_IMAGES = 1.0, 30.0
SIDE = 8
# From this version on a model's process is asked whether it is ready.
_READY = (2, 67)
_FULL = "Exceeds maximum queue size"


def main(argv: list[str]) -> int:
    address = next((word for word in argv if word != "--ready"), DEFAULT)
    try:
        found = _ready(address) if "--ready" in argv else _answer(address)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        print(f"unhealthy: {error!r}", file=sys.stderr)
        return 1
    if found is None:
        print("unhealthy: no segmenter is ready", file=sys.stderr)
        return 1
    print(f"healthy: {found}")
    return 0


def _ready(address: str) -> str | None:
    """As `_answer`, without an image where Triton asks the processes itself."""
    version = tuple(int(number) for number in _asked(address, "GET", "/v2")["version"].split(".")[:2])
    if version < _READY:
        return _answer(address)
    names = [each["name"] for each in _asked(address, "GET", "/v2/models/stats")["model_stats"]]
    configs = [_asked(address, "GET", f"/v2/models/{name}/config") for name in sorted(set(names))]
    steps = [step for config in configs for step in config.get("ensemble_scheduling", {}).get("step", [])]
    for model, wanted in {(step["model_name"], int(step.get("model_version", -1))) for step in steps}:
        path = f"/v2/models/{model}" + (f"/versions/{wanted}" if wanted > 0 else "")
        _asked(address, "GET", f"{path}/ready")
    return "every model is ready" if steps else None


def _answer(address: str) -> str | None:
    """Which segmenter answered, or when one did; None where none is ready, ValueError where it answers wrongly."""
    # The statistics name the models that are ready; the index would want the key.
    models = _asked(address, "GET", "/v2/models/stats")["model_stats"]
    last = {each["name"]: int(each["last_inference"]) / 1000 for each in models}
    answered = last.get("was", 0.0)
    decoded = max((at for name, at in last.items() if name.startswith(("preprocess", "segmenters"))), default=0.0)
    for model in sorted(models, key=lambda each: int(each["last_inference"])):
        name, config = model["name"], _asked(address, "GET", f"/v2/models/{model['name']}/config")
        given = _given(address, config)
        if given is None:
            continue
        seconds, silent = _image_seconds(model, config), time.time() - answered
        is_waiting = decoded > answered and silent > IMAGES * seconds
        if seconds > DEAR_SECONDS and silent < FRESH_IMAGES * seconds and not is_waiting:
            return f"answered {silent:.0f} s ago"
        try:
            mask = _infer(address, name, given, "MASK", max(SECONDS, IMAGES * seconds))
        except ValueError as error:
            if _FULL in str(error) and silent < max(SECONDS, FRESH_IMAGES * seconds):
                return f"answered {silent:.0f} s ago, and is full"
            raise
        if mask["shape"] != [SIDE, SIDE]:
            raise ValueError(f"{name}: got a mask of shape {mask['shape']}, expected {[SIDE, SIDE]}")
        return str(name)
    return None


def _image_seconds(model: dict[str, Any], config: dict[str, Any]) -> float:
    """What the model's configuration says that an image takes, or what its requests took on average; 0 for unknown."""
    if told := config.get("parameters", {}).get("image_seconds"):
        return float(told["string_value"])
    done = model["inference_stats"]["success"]
    return int(done["ns"]) / 1e9 / int(done["count"]) if int(done.get("count", 0)) else 0.0


def _given(address: str, config: dict[str, Any]) -> dict[str, bytes] | None:
    """What a segmenter, or segmenters that share one network, are asked with; None for a model that is none."""
    if config.get("platform") != "ensemble":
        return None
    if "SEGMENTER" not in [each["name"] for each in config["input"]]:
        return {"IMAGE": _png()}
    segmenter = _shared(address, config["name"])
    return {"IMAGE": _png(), "SEGMENTER": segmenter.encode()} if segmenter else None


def _shared(address: str, ensemble: str) -> str | None:
    """The name of one of its segmenters; None where it has none."""
    for name in _described(address, ""):
        if _described(address, name)["model"] == ensemble:
            return str(name)
    return None


def _described(address: str, name: str) -> Any:
    """What `segmenters` says of one; of an empty name, the list of all."""
    return json.loads(_infer(address, "segmenters", {"SEGMENTER": name.encode()}, "DESCRIPTION")["data"][0])


def _infer(address: str, model: str, given: dict[str, bytes], wanted: str, timeout: float = SECONDS) -> dict[str, Any]:
    data = {name: struct.pack("<I", len(value)) + value for name, value in given.items()}
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(value)}}
        for name, value in data.items()
    ]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": wanted}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = _asked(address, "POST", f"/v2/models/{model}/infer", head + b"".join(data.values()), headers, timeout)
    output: dict[str, Any] = answer["outputs"][0]
    return output


def _asked(
    address: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = SECONDS,
) -> dict[str, Any]:
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content: dict[str, Any] = json.loads(answer.read() or b"{}")
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
