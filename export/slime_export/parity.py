"""Proves exported models equal to PyTorch: both run on the same fresh images, in ONNX Runtime and through Predictor.

PyTorch's side is the unmodified backbone, as training and evaluation use it; nothing of the traced wrapper takes
part. Each model is compared on the same input, and the masks end to end, from pixels on.

Shape suffixes: B batch, P parts, S image side, h x w the maps, N = h*w.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import slime_was
from slime_export.errors import ParityError
from slime_image import fit
from slime_optimize.files import write_text
from slime_optimize.predict import Predictor
from slime_was.contract import ACCUMULATED, CROSS, LATENTS, PIXELS, SELF, WEIGHTING

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
BATCHES = (1, 2, 3)
FILE = "parity.json"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Past either, nothing is published."""

    relative: float = 1e-3  # fp32 sums in another order give about 1e-5
    mask_agreement: float = 0.999  # of pixels; what the served masks are held to


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest and mean absolute difference of two tensors, as shares of the reference's largest value."""

    largest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One batch: a Difference for each tensor, and the share of mask pixels that agree, 0 to 1."""

    batch: int
    tensors: Mapping[str, Difference]
    mask_agreement: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `compare` found; `failures` is empty where everything is within tolerance."""

    comparisons: tuple[Comparison, ...]
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def failures(self) -> list[str]:
        found = []
        for each in self.comparisons:
            for name, difference in each.tensors.items():
                # Written so that NaN fails.
                if not difference.largest <= self.tolerance.relative:
                    found.append(f"{name} at batch {each.batch} differs by {difference.largest:.2g}")
            if not each.mask_agreement >= self.tolerance.mask_agreement:
                found.append(f"masks at batch {each.batch} agree on {100 * each.mask_agreement:.3f} % of pixels")
        return found

    def require(self) -> None:
        """Raises ParityError, naming the first failure, unless everything is within tolerance."""
        if self.failures:
            raise ParityError(
                f"parity: {self.failures[0]}, expected at most {self.tolerance.relative:g} of the largest value and "
                f"{100 * self.tolerance.mask_agreement:g} % equal pixels; nothing was published"
            )

    def table(self) -> str:
        """One line for each tensor and batch, for people."""
        lines = ["batch  tensor      largest    mean"]
        for each in self.comparisons:
            for name, difference in each.tensors.items():
                lines.append(f"{each.batch:>5}  {name:<9}  {difference.largest:.2e}  {difference.mean:.2e}")
            lines.append(f"{each.batch:>5}  masks      {100 * each.mask_agreement:.3f} % of pixels agree")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes parity.json into `folder`, which must exist."""
        write_text(folder / FILE, json.dumps(asdict(self) | {"failures": self.failures}, indent=2) + "\n")


class OnnxModel:
    """One ONNX file on the CPU, with as many threads as PyTorch has."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name -> outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))


def compare(
    predictor: Predictor,
    encoder: OnnxModel,
    unet: OnnxModel,
    *,
    image: Image | None = None,
    seed: int = 0,
    tolerance: Tolerance | None = None,
) -> Report:
    """Both ONNX models against `predictor` at batch 1, 2 and 3, on images drawn from `seed`.

    `image`, the one the segmenter was learned from, takes the place of the first.
    """
    generator = np.random.default_rng(seed)
    images = [random_images(generator, batch, predictor.backbone.image_size) for batch in BATCHES]
    if image is not None:
        images[0][0] = image
    comparisons = [_compared(predictor, encoder, unet, each) for each in images]
    return Report(comparisons=tuple(comparisons), tolerance=tolerance or Tolerance())


def random_images(generator: np.random.Generator, count: int, size: int) -> list[Image]:
    """Coloured clouds, uint8 (size, size, 3): coarse noise enlarged, because no image is white noise."""
    coarse = [generator.integers(0, 256, (side, side, 3), np.uint8) for side in generator.integers(4, 33, count)]
    fitted = [fit(each, size).transpose(1, 2, 0) for each in coarse]
    return [np.clip((each + 1) * 127.5, 0, 255).astype(np.uint8) for each in fitted]


def difference(got: Array, expected: Array) -> Difference:
    """Raises ParityError for another shape."""
    if got.shape != expected.shape:
        raise ParityError(f"parity: got shape {got.shape}, expected {expected.shape}; nothing was published")
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    gap = np.abs(got - expected)
    return Difference(largest=float(gap.max()) / scale, mean=float(gap.mean()) / scale)


def _compared(predictor: Predictor, encoder: OnnxModel, unet: OnnxModel, images: list[Image]) -> Comparison:
    fitted_B3SS = predictor.pixels(images)
    pixels_C3SS = predictor.crops(fitted_B3SS)
    got_latents = encoder({PIXELS: pixels_C3SS})[LATENTS]
    served = unet({LATENTS: got_latents})
    expected = _expected(predictor, images, weighted=ACCUMULATED in served)
    got = unet({LATENTS: expected[LATENTS]}) | {LATENTS: got_latents}
    masks = zip(_masks(served, fitted_B3SS), predictor.masks(images), strict=True)
    return Comparison(
        batch=len(images),
        tensors={name: difference(got[name], expected[name]) for name in expected},
        mask_agreement=float(np.mean([(one == other).mean() for one, other in masks])),
    )


def _expected(predictor: Predictor, images: list[Image], weighted: bool) -> dict[str, Array]:
    """PyTorch's latents and maps of `images`."""
    latents_B4hw = predictor.latents(images)
    cross_BPhw, attended = (predictor.maps if weighted else predictor.full_maps)(latents_B4hw)
    tensors = {LATENTS: latents_B4hw, CROSS: cross_BPhw, ACCUMULATED if weighted else SELF: attended}
    weighting = predictor.segmenter.settings.weighting(predictor.backbone.image_size).vector()
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    return arrays | {WEIGHTING: np.repeat(weighting[np.newaxis], len(latents_B4hw), axis=0)}


def _masks(maps: Mapping[str, Array], fitted_B3SS: Array) -> list[Image]:
    """The maps of a batch to masks as the server makes them, one image at a time."""
    weighting = slime_was.Weighting.from_vector(maps[WEIGHTING][0])
    size, crops = fitted_B3SS.shape[-1], len(weighting.crops)
    attended = maps[ACCUMULATED] if ACCUMULATED in maps else maps[SELF]
    masks = []
    for turn, fitted_3SS in enumerate(fitted_B3SS):
        own = slice(turn * crops, (turn + 1) * crops)
        scores_Phw = slime_was.scores(maps[CROSS][own], attended[own], weighting)
        guided_PGG = slime_was.sharpened(scores_Phw, weighting, fitted_3SS)
        masks.append(slime_was.segment(guided_PGG, size, size))
    return masks
