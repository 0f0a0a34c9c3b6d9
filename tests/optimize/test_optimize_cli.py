"""optimize/run.py and evaluate.py from the command line: end to end, and every mistake with its line and code."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import backbones
from painting import PARTS, ROOT, Files, Main, paint
from slime_image import fit, load
from slime_optimize import Segmenter, training_image


@pytest.fixture
def options(files: Files, folders: dict[str, Path], tmp_path: Path) -> dict[str, list[str]]:
    return {
        "--image": [str(files.image)],
        "--mask": [str(files.mask)],
        "--parts": list(PARTS),
        "--backbone": [str(folders["sd15"])],
        "--out": [str(tmp_path / "out")],
        "--steps": ["2"],
    }


def line(options: dict[str, list[str]], **changes: object) -> list[str]:
    changed = {name: value if isinstance(value, list) else [str(value)] for name, value in changes.items()}
    merged = options | {f"--{name}": value for name, value in changed.items()}
    return [word for flag, values in merged.items() for word in (flag, *map(str, values))]


def dataset(folder: Path, count: int = 3) -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image, mask = paint(index)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "parts.json").write_text(json.dumps(list(PARTS)))
    return folder


@pytest.mark.parametrize("kind", sorted(backbones.KINDS))
def test_optimise_then_evaluate(
    kind: str,
    run: Main,
    evaluate: Main,
    options: dict[str, list[str]],
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(line(options, backbone=folders[kind])) == 0
    assert "3 parts, mean IoU on the training data" in capsys.readouterr().out
    out = tmp_path / "out"
    written = ["preview.png", "report.html", "segmenter.json", "segmenter.safetensors", "training.png"]
    assert sorted(p.name for p in out.iterdir()) == written
    with Image.open(out / "preview.png") as preview:
        assert preview.width == 3 * 264 + 8
    data = dataset(tmp_path / "data")
    assert evaluate([str(out), "--data", str(data), "--json", str(tmp_path / "deep" / "iou.json")]) == 0
    shown = capsys.readouterr()
    assert "3 images, masks from WAS" in shown.out and "evaluating" in shown.err
    figures = json.loads((tmp_path / "deep" / "iou.json").read_text())
    assert figures["images"] == 3 and list(figures["iou"]) == list(PARTS)
    assert evaluate([str(out), "--data", str(data), "--no-was", "--quiet"]) == 0
    assert "masks from cross-attention alone" in capsys.readouterr().out


def test_progress_shows_three_losses(
    run: Main, options: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line(options)) == 0
    shown = capsys.readouterr().err
    assert all(name in shown for name in ("optimising", "2/2", "ce=", "was=", "diffusion="))


def test_flags_beat_the_backbones_own_settings(
    run: Main, options: dict[str, list[str]], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["sd15"], tmp_path / "tuned"))
    (folder / "slime.json").write_text(json.dumps({"every": {"t_test": 200, "threshold": 0.0, "steps": 50}}))
    words = line(options, backbone=folder, **{"t-opt": [1, 9], "threshold": 0.1})
    assert run([*words, "--quiet"]) == 0
    settings = Segmenter.load(tmp_path / "out").settings
    assert (settings.t_test, settings.t_opt, settings.threshold, settings.steps) == (200, (1, 9), 0.1, 2)


def test_several_images(run: Main, options: dict[str, list[str]], files: Files, tmp_path: Path) -> None:
    two = {"image": [files.image, files.image], "mask": [files.mask, files.mask]}
    assert run(line(options, **two)) == 0
    made = Segmenter.load(tmp_path / "out")
    assert len(made.training_images) == 2
    kept = training_image.find(tmp_path / "out")
    assert kept is not None and kept.shape == (made.image_size, made.image_size, 3)
    # Bytes again, so half a step of 255 at most.
    assert np.abs(fit(kept, made.image_size) - fit(load(files.image), made.image_size)).max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.slow
def test_as_a_command(options: dict[str, list[str]], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "optimize" / "run.py"), *line(options, seed=5)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr
    assert Segmenter.load(tmp_path / "out").seed == 5


def save(array: object, path: Path) -> Path:
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def fails(run: Main, words: list[str], capsys: pytest.CaptureFixture[str], expected: str) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    assert run(words) == 2
    shown = capsys.readouterr()
    errors = [text for text in shown.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and shown.err.splitlines()[-1] == errors[0]
    assert expected in errors[0] and shown.out == ""


MISTAKES = {
    "missing image": ("image", "nowhere.png", "nowhere.png: cannot be read"),
    "missing mask": ("mask", "nowhere.png", "no such file"),
    "folder for a mask": ("mask", ".", "not a readable picture"),
    "unknown backbone": ("backbone", "no-such-thing", "neither a folder nor a hub id"),
    "missing backbone folder": ("backbone", "/no/such/folder", "no such folder"),
    "folder that is no backbone": ("backbone", ".", "expected a folder in diffusers layout"),
    "part without a pixel": ("parts", ["background", "red", "green", "blue"], "no pixel of 'blue' (id 3)"),
    "mask ids beyond the parts": ("parts", ["background", "red"], "has the part ids 2, expected 0 to 1"),
    "one part": ("parts", ["background"], "got 1 names, expected 2 to 77"),
    "78 parts": ("parts", [f"p{i}" for i in range(78)], "got 78 names, expected 2 to 77"),
    "part named twice": ("parts", ["background", "red", "red "], "'red' is named twice"),
    "empty part": ("parts", ["background", "red", " "], "name 2 is empty"),
    "learning rate": ("learning-rate", -1, "learning_rate: got -1.0"),
    "timesteps": ("t-opt", [100, 5], "t_opt: got"),
    "device": ("device", "abacus", "device 'abacus'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    mistake: str,
    run: Main,
    options: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, value, expected = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    fails(run, line(options, **{name: value}), capsys, expected)
    assert not (tmp_path / "out").exists()


def test_unusable_pictures(
    run: Main, options: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = paint()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    fails(run, line(options, image=broken), capsys, "broken.png")
    fails(run, line(options, mask=broken), capsys, "not a readable picture")
    small = save(mask[:-1], tmp_path / "small.png")
    fails(run, line(options, mask=small), capsys, "is 90x69, expected 90x70")
    fails(run, line(options, mask=save(image, tmp_path / "rgb.png")), capsys, "PNG of mode RGB")
    fails(run, line(options, mask=save(mask, tmp_path / "mask.jpg")), capsys, "is a JPEG")
    fails(run, line(options, mask=save(mask * 100, tmp_path / "grey.png")), capsys, "part ids 100, 200")
    two = {"image": options["--image"] * 2}
    fails(run, line(options, **two), capsys, "got 2 images and 1 masks")


def test_backbone_of_another_shape(
    run: Main,
    options: dict[str, list[str]],
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(folders["sd15"], tmp_path / "xl"))
    backbones.edit_config(folder, "unet", addition_embed_type="text_time")
    fails(run, line(options, backbone=folder), capsys, "as SDXL; expected Stable Diffusion 1.x or 2.x")


def test_out_that_cannot_be_written(
    run: Main,
    options: dict[str, list[str]],
    files: Files,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails(run, line(options, out=files.image), capsys, "is a file, expected a folder")
    fails(run, line(options, out=files.image / "deep" / "out"), capsys, f"{files.image} is a file, expected a folder")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    fails(run, line(options, out=files.image.parent / "new"), capsys, "nothing can be written into")


def test_a_finished_run_is_not_run_again(
    run: Main, options: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless its input or settings have changed, or it is asked for; no report of other weights stays beside them."""
    words, file, page = line(options), tmp_path / "out" / "segmenter.json", tmp_path / "out" / "report.html"
    assert run(words) == 0 and page.is_file()
    made = file.read_text()
    capsys.readouterr()
    assert run(words) == 0
    assert "this run has finished already; add --restart" in capsys.readouterr().out
    assert file.read_text() == made and page.is_file()
    for more in (["--seed", "1", "--no-report"], ["--seed", "1", "--no-report", "--restart"]):
        assert run([*words, *more]) == 0
        assert "finished already" not in capsys.readouterr().out and not page.exists()


def test_parts_named_beside_the_mask(
    run: Main, options: dict[str, list[str]], files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del options["--parts"]
    fails(run, line(options), capsys, "nothing names the parts, expected --parts, --legend, or parts.json in")
    (files.mask.parent / "parts.json").write_text(json.dumps(list(PARTS)))
    assert run(line(options)) == 0
    assert Segmenter.load(tmp_path / "out").parts == PARTS


def test_palette_masks_are_read_by_index(run: Main, options: dict[str, list[str]], tmp_path: Path) -> None:
    picture = Image.fromarray(paint()[1]).convert("P")
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "palette.png")
    assert run(line(options, mask=tmp_path / "palette.png")) == 0


def test_evaluate_mistakes(
    run: Main, evaluate: Main, options: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = str(tmp_path / "out"), dataset(tmp_path / "data")
    fails(evaluate, [out, "--data", str(data)], capsys, "has no segmenter.json")
    assert run([*line(options), "--quiet"]) == 0
    capsys.readouterr()
    fails(evaluate, [out, "--data", str(tmp_path / "nowhere")], capsys, "no such file or folder")
    (data / "parts.json").write_text(json.dumps(["background", "green", "plate"]))
    fails(
        evaluate, [out, "--data", str(data)], capsys, "has the name 'plate', expected one of the parts background, red"
    )
    (data / "parts.json").write_text(json.dumps(list(PARTS)))
    (data / "masks" / "1.png").unlink()
    fails(evaluate, [out, "--data", str(data), "--quiet"], capsys, "1.png: no such file")
    shutil.rmtree(data / "images")
    fails(evaluate, [out, "--data", str(data)], capsys, "there is no image for it")


@pytest.mark.parametrize("command", ["run", "evaluate", "prepare", "import_reference", "import_checkpoint"])
def test_usage_has_the_name_that_was_typed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"slime_optimize.commands.{command}").main
    with pytest.raises(SystemExit) as left:
        main(["--help"], prog=f"slime {command}")
    assert left.value.code == 0 and capsys.readouterr().out.startswith(f"usage: slime {command} ")
    with pytest.raises(SystemExit) as left:
        main(["--no-such-option"], prog=f"slime {command}")
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith("error: ") and f"slime {command} --help" in line


@pytest.mark.parametrize("command", ["run", "evaluate", "import_reference"])
def test_researchers_options_are_shown_by_help_all(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"slime_optimize.commands.{command}").main
    shown = []
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main([option])
        shown.append(set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)))
    assert shown[0] < shown[1] and "--help-all" in shown[0]
    hidden = {"run": "--validate-every", "evaluate": "--squash", "import_reference": "--cross-layers"}[command]
    assert hidden in shown[1] - shown[0]
