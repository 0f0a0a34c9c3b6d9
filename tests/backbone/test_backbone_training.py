"""A run that is killed goes on as if it had not been; a corpus knows no masks and no number of workers."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from painting import ROOT
from slime_backbone import training
from slime_backbone.autoencoder import encode_all, known_scale, train_vae
from slime_backbone.corpus import CHUNK, COLOURINGS, Corpus, corpus
from slime_backbone.diffusion import LOW, Recipe, timesteps
from slime_backbone.grounding import WATCHED, effective_tokens
from slime_backbone.models import WIDTH, build_unet
from slime_backbone.scene import KINDS, colourings
from slime_backbone.shards import thin
from slime_backbone.training import LossOf, Run, TrainingError, trapezoid

STEPS = 12


def new_run(path: Path, *, fused: bool = False) -> Run:
    torch.manual_seed(0)
    modules = nn.ModuleDict({"layer": nn.Linear(3, 2)})
    optimiser = torch.optim.AdamW(modules.parameters(), lr=0.1, fused=fused)
    return Run(modules=modules, optimiser=optimiser, path=path, peak_rate=0.1, warmup=3, decay=0.9)


def loss_for(run: Run, dies_at: int | None = None) -> LossOf:
    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == dies_at:
            raise KeyboardInterrupt
        inputs = torch.from_numpy(np.random.default_rng(step).standard_normal((4, 3), np.float32))
        return (run.modules["layer"](inputs) - 1).square().mean(), {}

    return loss_of


def finished(run: Run) -> dict[str, torch.Tensor]:
    return {**run.modules.state_dict(), **{f"average.{k}": v for k, v in run.average.items()}}


@pytest.mark.parametrize("dies_at", [1, 7, STEPS - 1])
def test_killed_and_resumed_is_uninterrupted(dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new_run(tmp_path / "whole.pt")
    whole.go(STEPS, loss_for(whole))
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    killed = new_run(tmp_path / "killed.pt")
    with pytest.raises(KeyboardInterrupt):
        killed.go(STEPS, loss_for(killed, dies_at))
    resumed = new_run(tmp_path / "killed.pt")
    assert resumed.step == dies_at
    resumed.go(STEPS, loss_for(resumed))
    for name, value in finished(whole).items():
        torch.testing.assert_close(finished(resumed)[name], value, rtol=0, atol=0)
    assert resumed.history == whole.history
    assert [(s["first"], s["last"]) for s in resumed.sessions] == [(0, dies_at), (dies_at, STEPS)]
    assert {path.name for path in tmp_path.iterdir()} == {"whole.pt", "killed.pt"}


def test_a_state_of_another_optimiser_implementation_goes_on(tmp_path: Path) -> None:
    first = new_run(tmp_path / "run.pt", fused=True)
    first.go(4, loss_for(first))
    plain = new_run(tmp_path / "run.pt")
    assert plain.optimiser.param_groups[0]["fused"] is False
    plain.go(8, loss_for(plain))
    assert plain.step == 8


def test_without_moments_the_rate_warms_up_again(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    first = new_run(path)
    first.go(20, loss_for(first))
    state = training.read_state(path)
    del state["optimiser"]
    training.write_state(state, path)
    afresh = new_run(path)
    assert (afresh.step, afresh.fresh_since) == (20, 20)
    afresh.go(21, loss_for(afresh))
    assert afresh.optimiser.param_groups[0]["lr"] < 0.1 / 2
    assert new_run(path).fresh_since == 20


def test_an_older_state_without_sessions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    first = new_run(path)
    first.go(5, loss_for(first))
    state = training.read_state(path)
    for key in ("sessions", "fresh_since"):
        del state[key]
    training.write_state(state, path)
    old = new_run(path)
    assert (old.step, old.fresh_since, old.sessions) == (5, 0, [])


def test_a_time_budget_ends_the_run_with_a_low_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(now)))
    run = new_run(tmp_path / "run.pt")
    run.go(10_000, loss_for(run), seconds=100)
    assert 10 < run.step < 100
    assert run.optimiser.param_groups[0]["lr"] < 0.1 / 4
    assert training.read_state(run.path)["step"] == run.step


def test_no_time_left_trains_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run.pt")
    run.go(10, loss_for(run), seconds=-1)
    assert run.step == 0 and not run.path.exists()


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_state(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run.pt")
    run.go(3, loss_for(run))

    def broken(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        return run.modules["layer"](torch.zeros(1, 3)).sum() * math.nan, {}

    with pytest.raises(TrainingError, match="the loss is nan at step 4"):
        run.go(5, broken)
    assert new_run(tmp_path / "run.pt").step == 3


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"no state"), lambda p: p.write_bytes(p.read_bytes()[:500])])
def test_an_unreadable_state_is_one_line(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    new_run(tmp_path / "run.pt").save()
    spoil(tmp_path / "run.pt")
    with pytest.raises(TrainingError, match="cannot be read") as failed:
        new_run(tmp_path / "run.pt")
    assert "\n" not in str(failed.value)


def test_rate_rises_stays_and_falls() -> None:
    assert trapezoid(1.0, 0.01) == 0.01
    assert trapezoid(0.5, 5.0) == 1.0
    assert trapezoid(0.125, 5.0) == 0.5
    assert trapezoid(0.0, 5.0) == 0.02


def test_timesteps_are_timesteps() -> None:
    chance = torch.Generator().manual_seed(0)
    times = timesteps(*torch.rand(2, 2000, generator=chance), torch.randn(2000, generator=chance))
    assert times.dtype == torch.int64 and times.min() >= 0 and times.max() < 1000
    assert 0.5 < ((times >= LOW[0]) & (times < LOW[1])).float().mean() < 0.75


def test_recipe_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch"):
        Recipe(batch=0)
    assert Recipe.for_device(torch.device("cpu")) == Recipe()
    assert Recipe.for_device(torch.device("cuda")).batch == 256


def test_corpus_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    count = CHUNK + 9  # two chunks
    one, two = (corpus(tmp_path / str(n), count, workers=n) for n in (1, 2))
    np.testing.assert_array_equal(one.images, two.images)
    assert one.captions == two.captions
    drawing = (count - 1) // COLOURINGS
    last = colourings(list(KINDS)[drawing % 3], drawing // 3, COLOURINGS)
    for turn, drawn in enumerate(last):
        place = drawing * COLOURINGS + turn
        np.testing.assert_array_equal(one.images[place], drawn.image)
        assert one.captions[place] == drawn.caption


def test_a_vae_that_made_latents_is_final(tmp_path: Path) -> None:
    rng, device = np.random.default_rng(0), torch.device("cpu")
    pictures = Corpus(images=rng.integers(0, 255, (2, 128, 128, 3), np.uint8), captions=["", ""])
    vae = train_vae(pictures, tmp_path, 1, device)
    latents = encode_all(vae, pictures, tmp_path, device)
    assert latents.shape == (2, 4, 32, 32) and latents.dtype == np.float16
    assert latents.std() == pytest.approx(1, abs=0.02)
    before = training.read_state(tmp_path / "vae.pt")
    train_vae(pictures, tmp_path, 5, device)
    assert training.read_state(tmp_path / "vae.pt")["step"] == before["step"] == 1
    more = dataclasses.replace(pictures, images=pictures.images[:1])
    encode_all(vae, more, tmp_path, device)
    assert float(np.load(tmp_path / "latents-1.npz")["scale"]) == known_scale(tmp_path)


def test_no_mask_reaches_the_training() -> None:
    """Only corpus.py draws scenes for it, it never touches `.mask`, and what it gives has no place for one."""
    assert {f.name for f in dataclasses.fields(Corpus)} == {"images", "captions"}
    package = ROOT / "backbone" / "slime_backbone"
    trained_with = [
        "training",
        "autoencoder",
        "diffusion",
        "grounding",
        "models",
        "corpus",
        "saving",
        "shards",
        "distillation",
    ]
    for path in [*(package / f"{name}.py" for name in trained_with), ROOT / "backbone" / "train.py"]:
        tree = ast.parse(path.read_text())
        reads = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not reads & {"mask", "masks"}, path
        imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imports & {"slime_backbone.dataset", "slime_backbone.bounds"}, path
        assert ("slime_backbone.scene" in imports) == (path.stem == "corpus"), path


def test_attention_is_measured_between_one_token_and_all() -> None:
    torch.manual_seed(0)
    unet = build_unet().eval()
    found = effective_tokens(unet, torch.randn(1, 4, 32, 32), torch.tensor([300]), torch.randn(1, 77, WIDTH))
    assert set(found) == {"attn1-up3.0", "attn1-up3.1", "attn2-up2.2"} and len(found) == len(WATCHED)
    for name, tokens in found.items():
        assert 1 <= tokens <= (1024 if name.startswith("attn1") else 77)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_history_is_thinned_without_losing_its_figures() -> None:
    history: list[dict[str, float]] = [{"step": i + 1, "loss": float(i % 2)} for i in range(100)]
    history[40]["attn1"] = 9.0
    short = thin(history, 10)
    assert len(short) == 10 and short[-1]["step"] == 100
    assert {h["loss"] for h in short} == {0.5}
    assert [h["attn1"] for h in short if "attn1" in h] == [9.0]
    assert thin(history, 100) == history
    json.dumps(short)
