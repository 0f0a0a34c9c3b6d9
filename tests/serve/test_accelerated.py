"""The real server reads configurations with an accelerator; those for a GPU it refuses to run elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import toy

from serving import first_line, launch, png, served, stop_and_read
from slime_export.graph.accelerators import KINDS, accelerator
from slime_repository import contract
from slime_repository.config import CPU

pytestmark = pytest.mark.triton

SIZES = {"latent_channels": toy.CHANNELS, "latent_size": toy.SIDE}


def accelerated(folder: Path, kind: str) -> Path:
    """The toy's repository with both networks on a GPU."""
    repository = toy.build_repository(folder)
    pixels, latents = (3, toy.IMAGE_SIZE, toy.IMAGE_SIZE), (toy.CHANNELS, toy.SIDE, toy.SIDE)
    on_gpu = {
        name: accelerator(kind, precision="fp16", inputs={name: dims})
        for name, dims in (("PIXELS", pixels), ("LATENTS", latents))
    }
    encoder = contract.vae_encoder_config(
        backbone="toy", image_size=toy.IMAGE_SIZE, accelerator=on_gpu["PIXELS"], **SIZES
    )
    unet = contract.unet_config(segmenter="toy", parts=toy.PARTS, accelerator=on_gpu["LATENTS"], **SIZES)
    for model, config in (("vae_encoder", encoder), ("toy_unet", unet)):
        (repository / model / "config.pbtxt").write_text(config)
    return repository


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != CPU])
def test_triton_reads_what_an_accelerator_says(tmp_path: Path, kind: str) -> None:
    repository = accelerated(tmp_path / "repository", kind)
    for config in repository.glob("*/config.pbtxt"):  # all is read, but the stand-in runs on the CPU
        config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    with served(repository) as server:
        mask_HW = server.segment("toy", png(np.zeros((20, 30, 3), np.uint8)))
    assert mask_HW.shape == (20, 30)


def test_what_is_for_the_cpu_runs_there(tmp_path: Path) -> None:
    repository = accelerated(tmp_path / "repository", CPU)
    for model in ("vae_encoder", "toy_unet"):
        config = (repository / model / "config.pbtxt").read_text()
        assert "KIND_CPU" in config and "optimization" not in config
    with served(repository) as server:
        assert server.segment("toy", png(np.zeros((20, 30, 3), np.uint8))).shape == (20, 30)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_the_server_says_so(tmp_path: Path) -> None:
    launcher = launch(accelerated(tmp_path / "repository", "cuda"))
    assert first_line(launcher) == ""
    assert "kind KIND_GPU but no GPUs are available" in stop_and_read(launcher)
