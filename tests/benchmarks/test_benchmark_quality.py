"""The benchmarks of quality: results with a tiny backbone and two steps (nothing is run twice, nothing is shown
that was not run), and the whole path of one segmenter with a single step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.quality import accuracy, one_shot, upsampling, video
from benchmarks.quality import laboratory as laboratory_module
from benchmarks.quality.laboratory import Job, Laboratory, Trial
from benchmarks.quality.results import TABLES, jobs, main
from benchmarks.quality.study import GAPS, Measurement, Optimisation, differences, sections
from benchmarks.quality.tables import MEAN, NOT_RUN, page
from benchmarks.quality.tables import PAPER as PAPERS
from PIL import Image
from safetensors.torch import load_file, save_file

import backbones
from painting import ROOT
from slime_backbone.scene import KINDS, parts_of
from slime_optimize import Segmenter
from slime_optimize.evaluation import Data, confusions
from slime_optimize.method.losses import Stepper
from slime_optimize.method.prediction import Predictor
from slime_optimize.metrics import Ints
from slime_optimize.presets import preset

PAPER = Optimisation(preset="paper")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbones.build(tmp_path_factory.mktemp("sd15") / "sd15")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: the scenes are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def laboratory(cache: Path, backbone: Path) -> Laboratory:
    return Laboratory(cache=cache, backbone_name=str(backbone), trial=Trial(steps=2, images=2))


def forbid(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def called(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, called)


def test_everything_is_done_once(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    was, cross = Measurement(), Measurement(use_was=False)
    job = Job(kind="car", seed=5, optimisation=PAPER, measurements=(was,))
    assert laboratory.measured(job, was) is None
    laboratory.work(job)
    measured = laboratory.measured(job, was)
    assert measured is not None and measured["images"] == 2 and list(measured["iou"]) == list(parts_of("car"))
    forbid(monkeypatch, laboratory_module, "learn")
    laboratory.work(Job(kind="car", seed=5, optimisation=PAPER, measurements=(was, cross)))  # the segmenter is there
    assert laboratory.measured(job, cross) is not None
    forbid(monkeypatch, laboratory_module, "confusions")
    laboratory.work(Job(kind="car", seed=5, optimisation=PAPER, measurements=(was, cross)))
    with pytest.raises(AssertionError, match="learn was called"):
        laboratory.work(Job(kind="car", seed=6, optimisation=PAPER, measurements=(was,)))


def test_another_backbone_or_setting_is_another_run(laboratory: Laboratory, tmp_path: Path) -> None:
    job = Job(kind="car", seed=7, optimisation=PAPER, measurements=(Measurement(),))
    laboratory.work(job)
    other = backbones.build(tmp_path / "other", seed=1)
    elsewhere = Laboratory(cache=laboratory.cache, backbone_name=str(other), trial=laboratory.trial)
    changed = Job(kind="car", seed=7, optimisation=Optimisation(changes={"alpha": 0.0}))
    assert laboratory.learned(laboratory.run(job)) is not None
    assert elsewhere.learned(elsewhere.run(job)) is None
    assert laboratory.learned(laboratory.run(changed)) is None
    assert laboratory.measured(job, Measurement(changes={"t_test": 7})) is None


def test_a_timestep_needs_no_optimisation(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, later = Measurement(), Measurement(changes={"t_test": 900, "noise_samples": 2})
    job = Job(kind="horse", optimisation=PAPER, measurements=(plain,))
    laboratory.work(job)
    forbid(monkeypatch, laboratory_module, "learn")
    used: list[Segmenter] = []

    def noticed(predictor: Predictor, data: Data, *, use_was: bool) -> list[Ints]:
        used.append(predictor.segmenter)
        return confusions(predictor, data, use_was=use_was)

    monkeypatch.setattr(laboratory_module, "confusions", noticed)
    laboratory.work(Job(kind="horse", optimisation=PAPER, measurements=(plain, later)))
    (segmenter,) = used
    assert (segmenter.settings.t_test, segmenter.noise.shape[0]) == (900, 2)
    assert laboratory.measured(job, later) is not None


def test_a_stopped_optimisation_goes_on_from_its_checkpoint(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(kind="face", optimisation=PAPER)
    with monkeypatch.context() as stopped:
        stopped.setattr(Segmenter, "save", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            laboratory.work(job)
    assert laboratory.learned(laboratory.run(job)) is None
    forbid(monkeypatch, Stepper, "losses")  # both steps were made before
    laboratory.work(job)
    assert laboratory.learned(laboratory.run(job)) is not None


def test_ten_images_are_chosen_between_by_another_one(laboratory: Laboratory) -> None:
    run = laboratory.run(Job(kind="car", optimisation=Optimisation(shots=10)))
    assert run.validation is not None and (len(run.examples), len(run.validation.examples)) == (10, 1)
    assert laboratory.run(Job(kind="car", optimisation=PAPER)).validation is None


def test_jobs_are_merged_over_the_tables() -> None:
    tables = sections({})
    planned = list(jobs(tables, TABLES, list(KINDS), [0, 1]))
    keys = [json.dumps([job.kind, job.seed, vars(job.optimisation)]) for job in planned]
    assert len(keys) == len(set(keys))
    (paper,) = [job for job in planned if job.optimisation == PAPER and (job.kind, job.seed) == ("car", 0)]
    assert {m.changes.get("t_test") for m in paper.measurements} > {None, 5, 20, 400}
    assert Measurement(use_was=False) in paper.measurements and Measurement(split="validation") in paper.measurements
    assert len(list(jobs(tables, ["presets"], ["car"], [0]))) == 4
    assert [job.optimisation for job in jobs(tables, ["bounds"], ["car", "face"], [0, 1])] == [None, None]


def test_a_table_of_one_seed_plans_and_shows_that_one() -> None:
    tables = sections({})
    assert {job.seed for job in jobs(tables, ["ablation"], ["car"], [3, 4])} == {3}
    assert {job.seed for job in jobs(tables, ["ablation", "presets"], ["car"], [3, 4])} == {3, 4}
    both = {("ablation", "`best`"): [20.0, 80.0], ("presets", "`best`"): [20.0, 80.0]}
    text = page(results(both))
    titles = (tables["presets"].title, tables["ablation"].title)
    assert [rows_of(text, title)["`best`"][0] for title in titles] == ["50.0 ± 30.0", "20.0"]


def test_ablation_takes_back_every_choice_of_best_and_no_other() -> None:
    paper, best = preset("paper"), preset("best")
    rows = sections({})["ablation"].variants
    changes = [dict(row.optimisation.changes) | dict(row.measurement.changes) for row in rows[1:-1]]
    assert {name: value for change in changes for name, value in change.items()} == differences(paper, best)
    assert all(len(change) == 1 for change in changes) and best.changed(differences(paper, best)) == paper


def report(parts: tuple[str, ...], value: float) -> dict[str, Any]:
    each = {part: value + index for index, part in enumerate(parts)}
    return {"images": 50, "mean_iou": value, "iou": each, "dataset_mean_iou": value + 1, "dataset_iou": each}


def results(given: dict[tuple[str, str], list[float]] | None = None) -> dict[str, Any]:
    """Return what is kept, with figures for the variants that are given, a value for each seed."""
    kinds, found = ("car", "horse"), sections({})
    rows = [
        {
            "section": name,
            "label": variant.label,
            "paper": variant.paper,
            "figures": {
                kind: {
                    str(seed): report(parts_of(kind), values[seed])
                    if (values := (given or {}).get((name, variant.label)))
                    else None
                    for seed in range(section.seeds or 2)
                }
                for kind in kinds
            },
        }
        for name, section in found.items()
        for variant in section.variants
    ]
    return {
        "command": "python -m benchmarks.quality.results",
        "trial": None,
        "machine": "a machine",
        "device": "cpu",
        "date": "2030-01-01",
        "versions": {"torch": "9"},
        "backbone": {"id": "embedded", "hash": "0123456789abcdef"},
        "seeds": [0, 1],
        "smallest_third": {"car": ["light", "plate"], "horse": ["tail"]},
        "sections": {name: {"title": of.title, "text": of.text, "paper": of.paper} for name, of in found.items()},
        "rows": rows,
        "bounds": {},
    }


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """The table under a heading, by its first column."""
    block = text.split(f"## {heading}\n")[1].split("\n\n## ")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for line in lines if (cells := [cell.strip() for cell in line.strip("|").split("|")])}


def test_page_tells_means_and_gaps() -> None:
    given = {("presets", "`paper`"): [40.0, 42.0], ("presets", "`best`"): [45.0, 49.0]}
    text = page(results(given))
    presets = rows_of(text, "Presets")
    # Light and plate are the parts 2 and 3 of a car, the tail is part 4 of a horse: 3 above the value on average.
    assert presets["`paper`"] == ["41.0 ± 1.0", "41.0 ± 1.0", "41.0 ± 1.0", "44.0 ± 1.0", "42.0 ± 1.0"]
    assert presets["`reference`"] == [NOT_RUN] * 5
    short = rows_of(text, "In short")
    assert short["`best` above `paper`, 1-shot"] == ["47.0 ± 2.0", "41.0 ± 1.0", "6.0", "3 or more"]
    assert short["the same on the smallest third of the parts"][2:] == ["6.0", "5 or more"]
    assert short["10-shot above 1-shot, `best`"] == [NOT_RUN] * 3 + ["4 or more"]


def test_a_row_of_fewer_seeds_says_so() -> None:
    made = results({("presets", "`paper`"): [40.0, 42.0], ("presets", "`best`"): [45.0, 49.0]})
    (best,) = (row for row in made["rows"] if (row["section"], row["label"]) == ("presets", "`best`"))
    best["figures"]["horse"]["1"] = None
    presets = rows_of(page(made), "Presets")
    assert presets["`best` (1 seed)"][2:4] == ["45.0", "48.0"] and "`paper`" in presets


def test_page_without_a_run_invents_nothing() -> None:
    text = page(results())
    assert "±" not in text.split("## In short")[1].split("## One image")[0]
    for heading in ("Losses", "Presets", "The timestep at test time"):
        for label, cells in rows_of(text, heading).items():
            if label != "mean IoU, %" and not label.startswith(":"):
                assert cells[:5] == [NOT_RUN] * 5
    assert "other data" in text and "PASCAL-Part" in text and "a machine" in text


def test_papers_figures_are_those_of_its_tables() -> None:
    for shots, averages in ((1, (61.6, 56.4, 69.6)), (10, (68.3, 63.3, 75.7))):
        for kind, average in zip(("car", "horse", "face"), averages, strict=True):
            of = PAPERS["figures"][str(shots)][kind]
            figures = {part: float(text.split(" ± ")[0]) for part, text in of.items()}
            assert list(figures) == [*parts_of(kind), MEAN]
            mean = figures.pop(MEAN)
            assert mean == average == pytest.approx(sum(figures.values()) / len(figures), abs=0.3)


def test_gaps_name_rows_that_there_are() -> None:
    known = {(name, variant.label) for name, section in sections({}).items() for variant in section.variants}
    assert {place for gap in GAPS for place in (gap.upper, gap.lower)} <= known


def test_labels_of_a_table_differ() -> None:
    for section in sections({}).values():
        labels = [variant.label for variant in section.variants]
        assert len(labels) == len(set(labels))


@pytest.mark.slow
def test_as_a_command_in_two_processes(cache: Path, backbone: Path, tmp_path: Path) -> None:
    words = ["--kinds", "car", "--seeds", "0", "--only", "presets", "--steps", "2", "--images", "2", "--jobs", "2"]
    places = ["--cache", str(cache), "--out", str(tmp_path / "docs"), "--backbone", str(backbone)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality.results", *words, *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "[4/4]" in done.stdout
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "A trial (2 steps, 2 images)" in text
    presets = rows_of(text, "Presets")
    assert all(NOT_RUN not in presets[f"`{name}`"] for name in ("paper", "reference", "best"))
    written = json.loads((tmp_path / "docs" / "results.json").read_text())
    (best,) = [row for row in written["rows"] if (row["section"], row["label"]) == ("presets", "`best`")]
    assert list(best["figures"]["car"]["0"]["iou"]) == list(parts_of("car"))
    assert written["backbone"]["hash"] and written["paper_on_other_data"]["figures"]["1"]["car"]["mean"] == "61.6 ± 0.5"


@pytest.mark.slow
def test_a_failed_run_is_told_and_the_page_stands(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = backbones.build(tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1e30 for name, tensor in load_file(weights).items()}, weights)
    words = ["--kinds", "car", "--seeds", "0", "--steps", "2", "--cache", str(cache), "--out", str(tmp_path)]
    assert main([*words, "--backbone", str(broken), "--only", "losses"]) == 1
    told = capsys.readouterr().out
    assert told.count("failed: loss: is nan at step 1") == 3 and "[3/3]" in told
    assert set(rows_of((tmp_path / "results.md").read_text(), "Losses")["all three losses"][:4]) == {NOT_RUN}


def test_upsampling(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ways on the first images; a speck's pixels touch along their sides."""
    monkeypatch.setattr(Laboratory, "of", lambda options: laboratory)
    assert upsampling.main(["--kinds", "car"]) == 0
    bilinear, guided, truth = capsys.readouterr().out.splitlines()[1:4]
    assert ("bilinear" in bilinear, "joint bilateral" in guided, "the truth" in truth) == (True, True, True)
    assert float(bilinear.split()[-3]) != float(guided.split()[-3])
    mask = np.zeros((8, 8), np.uint8)
    mask[0, :5], mask[4, :6], mask[6, 0], mask[7, 1] = 1, 1, 2, 2
    assert upsampling.specks(mask) == 4  # (7, 0) is cut off, too


def test_video(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One clip for choosing and one for testing: figures, the page with plot and animated picture, made again alone."""
    ways = {name: of_name[:2] for name, of_name in video.grid().items()}
    monkeypatch.setattr(Laboratory, "of", lambda options: laboratory)
    monkeypatch.setattr(video, "grid", lambda: ways)
    kept, page_file = tmp_path / "video.json", tmp_path / "video.md"
    words = ["--kinds", "car", "--clips", "1", "--frames", "17", "--parts", "quality"]
    assert video.main([*words, "--json", str(kept), "--page", str(page_file)]) == 0
    found = json.loads(kept.read_text())
    assert [row["way"] for row in found["tried"]] == ["single frames", "mean", "mean", "flow", "flow"]
    truth, single = (found["rows"][name]["mean"] for name in (video.TRUTH, video.SINGLE))
    assert truth["miou"] == truth["j"] == truth["f"] == truth["vc8"] == 100 and truth["false_flicker"] == 0
    assert 80 < truth["tc"] < 100 and 0 < single["miou"] < 100
    text = page_file.read_text()
    assert text == video.page(found, "video.png") and "A trial" in text and "![" in text
    assert text.count("| car ") == len(found["rows"]) - 1 and "nan" not in text
    assert (tmp_path / "video.png").stat().st_size > 1000
    with Image.open(tmp_path / "video.webp") as picture:
        assert (picture.size, getattr(picture, "n_frames", 1)) == ((4 * 192, 192), 17)


def test_the_chosen_way_keeps_the_mean_iou() -> None:
    """Of those above single frames in every class, the stillest; where there is none, that of the highest mean IoU."""

    def row(miou: float, vc16: float, least: float = 0.1) -> video.Figures:
        return {"miou": miou, "tc": 90.0, "vc16": vc16, "least": least}

    assert video.best([row(50, 99), row(60, 80), row(61, 85), row(60.1, 90), row(62, 88, -0.1)], floor=60) == 2
    assert video.best([row(50, 99), row(55, 80)], floor=60) == 1


def test_mistakes(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "0", "--backbone", str(backbone)]) == 2
    assert "--jobs: got 0, expected 1 or more" in capsys.readouterr().err
    assert main(["--only", "--backbone", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.triton
def test_one_shot_and_accuracy(tmp_path: Path) -> None:
    """On the embedded backbone: one segmenter over gRPC, then in int8's place beside the tiny encoder's."""
    kept, again = tmp_path / "one-shot.json", tmp_path / "performance.json"
    words = ["--kinds", "car", "--seeds", "0", "--steps", "1", "--cache", str(tmp_path / "cache")]
    place = ["--repository", str(tmp_path / "served" / "repository")]
    assert one_shot.main([*words, *place, "--skip-random", "--json", str(kept)]) == 0
    (row,) = json.loads(kept.read_text())["rows"]["car"]
    assert row["pixels_as_pytorch"] > 0.999 and row["images"] == 50
    more = ["--forms", "weighted", "tiny", "--work", str(tmp_path / "work"), "--json", str(again)]
    assert accuracy.main([*words, *more]) == 0
    found = json.loads(again.read_text())["embedded"]["accuracy"]
    assert found["miou"]["weighted"]["car"] == pytest.approx(row["mean_iou"], abs=0.1)
    assert "car" in found["lost"]["tiny"]
