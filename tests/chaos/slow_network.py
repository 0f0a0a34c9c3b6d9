"""A toy segmenter whose encoder takes its time: it sleeps for each image of a batch, as a large network computes."""

from __future__ import annotations

import shutil
from pathlib import Path

from slime_repository.config import as_text, parsed

_MODEL = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, "PIXELS").as_numpy()
        time.sleep({seconds} * len(pixels))
        pooled = pixels.reshape(len(pixels), 3, 8, 4, 8, 4).mean((3, 5))
        latents = np.concatenate([pooled, pooled[:, :1]], 1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LATENTS", latents.astype(np.float32))])
"""


def with_slow_encoder(repository: Path, folder: Path, *, seconds: float) -> Path:
    """A copy of the toy repository in ``folder`` whose encoder sleeps for so many seconds for each image."""
    copy = Path(shutil.copytree(repository, folder / "repository"))
    encoder = copy / "vae_encoder"
    config = type(parsed(""))()
    config.CopyFrom(parsed((encoder / "config.pbtxt").read_text()))
    config.backend = "python"
    del config.model_warmup[1:]
    (encoder / "config.pbtxt").write_text(as_text(config))
    (encoder / "1" / "model.onnx").unlink()
    (encoder / "1" / "model.py").write_text(_MODEL.replace("{seconds}", str(seconds)))
    return copy
