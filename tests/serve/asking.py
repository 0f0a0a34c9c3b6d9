"""Pictures to ask a server of the toy segmenter with, and what it has to answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

import slime_image
import slime_was
from serving import Served, png

Pixels = npt.NDArray[np.uint8]


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Large random patches, so that the mask has several parts."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR))


def in_process(
    repository: Path, image: Pixels, segmenter: str = "toy", channel_order: str = "rgb"
) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Mask and scores by the same two networks and packages, without a server."""

    def run(model: str, data: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        session = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx")
        names = [output.name for output in session.get_outputs()]
        return list(session.run(names, {session.get_inputs()[0].name: data}))

    (vector,) = run(f"{segmenter}_unet", np.zeros((1, 4, 8, 8), np.float32))[2]
    postprocess = slime_was.Postprocess.from_vector(vector)
    fitted = slime_image.fit(image, 32, channel_order)
    pixels = slime_image.cropped(fitted, postprocess.crops, postprocess.crop_side)
    cross, self_, _ = run(f"{segmenter}_unet", run("vae_encoder", pixels)[0])
    scores = slime_was.scores(cross, self_, postprocess)
    guided = slime_was.sharpened(scores, postprocess, fitted)
    return slime_was.segment(guided, *image.shape[:2]), scores


def refused(server: Served, data: bytes, segmenter: str = "toy") -> tuple[str, str]:
    """Status and message of a request that must fail; the server must serve on."""
    with pytest.raises(InferenceServerException) as caught:
        server.infer(segmenter, data)
    assert server.segment("toy", png(picture(20, 30))).shape == (20, 30)
    message = caught.value.message()
    assert "\n" not in message
    assert "model.py" not in message
    assert "/" not in message
    return str(caught.value.status()), message
