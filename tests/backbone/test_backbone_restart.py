"""Training goes on from weights alone, at the step they were written, and never over a training that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slime_backbone.saving import begin, pipeline_of
from slime_backbone.training import TrainingError, read_state
from slime_optimize.backbone import embedded_folder


def test_begin_from_the_shipped_weights(tmp_path: Path) -> None:
    step = begin(embedded_folder(), tmp_path)
    stored = read_state(tmp_path / "diffusion.pt")
    assert step == stored["step"] > 0
    again, shipped = pipeline_of(tmp_path), embedded_folder()
    assert len(again.tokenizer) == again.text_encoder.config.vocab_size
    unet = type(again.unet).from_pretrained(shipped / "unet", torch_dtype=torch.float32)
    for ours, theirs in zip(again.unet.parameters(), unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(TrainingError, match="already holds a training"):
        begin(shipped, tmp_path)


def test_weights_of_another_make(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"training\.json"):
        begin(tmp_path / "weights", tmp_path / "state")
