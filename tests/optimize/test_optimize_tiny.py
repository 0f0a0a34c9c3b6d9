"""The tiny encoder: what it answers, who uses it, and which is refused with which line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

import backbones
from painting import PARTS, Files, Main, paint
from slime_optimize import BackboneError, InputError, Settings, load_backbone
from slime_optimize.backbone import content_hash
from slime_optimize.data.annotations import Example
from slime_optimize.method.augmentation import views
from slime_optimize.method.prediction import Predictor, load_predictor
from slime_optimize.method.run import Run
from slime_optimize.method.training import optimise
from slime_optimize.segmenter import Segmenter

TINY = Settings(encoder="tiny", steps=2, threshold=0.0)


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Path:
    """A backbone without a tiny encoder."""
    return folders["sd15"]


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """The same one with a tiny encoder inside, to be spoilt."""
    made = Path(shutil.copytree(plain, tmp_path / "backbone"))
    backbones.build_tiny(made / "tiny_vae")
    return made


def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_answers_as_diffusers_own(folder: Path) -> None:
    backbone = load_backbone(folder)
    latents = backbone.encode(pixels(), encoder="tiny")
    theirs = AutoencoderTiny.from_pretrained(folder / "tiny_vae")
    with torch.no_grad():
        expected = theirs.encode(pixels()).latents
        inside = theirs.encoder.layers((pixels() + 1) / 2)
    torch.testing.assert_close(latents, 0.8 * expected)
    torch.testing.assert_close(expected, inside)  # [0, 1] is what the network itself wants
    assert latents.shape == (2, 4, 16, 16)
    assert not torch.allclose(latents, backbone.encode(pixels()))


def test_the_backbones_hash_knows_nothing_of_it(plain: Path, folder: Path) -> None:
    backbone = load_backbone(folder)
    assert backbone.hash == content_hash(plain) == load_backbone(plain).hash
    assert backbone.tiny_name("vae") is None
    named = backbone.tiny_name("tiny")
    assert named is not None and named.id is None


def test_its_own_hash_is_of_the_content_wherever_it_lies(plain: Path, folder: Path, tmp_path: Path) -> None:
    inside = load_backbone(folder).tiny_name("tiny")
    elsewhere = Path(shutil.copytree(folder / "tiny_vae", tmp_path / "elsewhere"))
    apart = load_backbone(plain, tiny=str(elsewhere)).tiny_name("tiny")
    within = load_backbone(plain, tiny=str(folder)).tiny_name("tiny")
    other = load_backbone(folder, tiny=str(backbones.build_tiny(tmp_path / "other", seed=1))).tiny_name("tiny")
    assert inside and apart and within and other
    assert inside.hash == apart.hash == within.hash != other.hash
    assert apart.id == str(elsewhere.resolve())


def test_views_and_predictions_are_encoded_by_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(folder)
    monkeypatch.setattr(backbone.vae, "encode", None)  # whoever calls it fails
    segmenter = optimise(backbone, [painted()], PARTS, TINY, progress=False)
    assert segmenter.tiny == backbone.tiny_name("tiny")
    latents, _ = next(views(backbone, [painted()], TINY, 0, 1))
    assert latents.shape == (1, 4, 16, 16)
    predictor = Predictor(segmenter, backbone)
    fitted = torch.from_numpy(predictor.pixels([painted().image_HW3]))
    torch.testing.assert_close(
        predictor.latents([painted().image_HW3]), backbone.encode(fitted, encoder="tiny"), rtol=0, atol=0
    )
    with pytest.raises(TypeError):  # and the other encoder is used where it is asked for
        next(views(backbone, [painted()], replace(TINY, encoder="vae"), 0, 1))


def test_a_segmenter_remembers_it(folder: Path, plain: Path, tmp_path: Path) -> None:
    elsewhere = backbones.build_tiny(tmp_path / "elsewhere", seed=1)
    made = optimise(load_backbone(plain, tiny=str(elsewhere)), [painted()], PARTS, TINY, progress=False)
    made.save(tmp_path / "car")
    assert Segmenter.load(tmp_path / "car").tiny == made.tiny
    assert load_predictor(tmp_path / "car").backbone.tiny_name("tiny") == made.tiny
    with pytest.raises(BackboneError, match=r"tiny encoder .*the segmenter was made with .*elsewhere") as caught:
        Predictor(made, load_backbone(folder))
    assert "\n" not in str(caught.value)
    moved = elsewhere.rename(tmp_path / "moved")
    with pytest.raises(BackboneError, match=r"tiny encoder .*elsewhere: no such folder"):
        load_predictor(tmp_path / "car")
    assert load_predictor(tmp_path / "car", tiny=str(moved)).segmenter.tiny == made.tiny


def test_its_content_decides_the_segmenters_hash(folder: Path) -> None:
    made = optimise(load_backbone(folder), [painted()], PARTS, TINY, progress=False)
    assert made.tiny
    other = replace(made, tiny=replace(made.tiny, hash="0" * 64))
    moved = replace(made, tiny=replace(made.tiny, id="/moved"))
    assert other.hash != made.hash == moved.hash


def test_segmenters_made_before_are_read_as_the_vaes(plain: Path, tmp_path: Path) -> None:
    optimise(load_backbone(plain), [painted()], PARTS, replace(TINY, encoder="vae"), progress=False).save(tmp_path)
    path = tmp_path / "segmenter.json"
    facts = json.loads(path.read_text())
    del facts["tiny_encoder"], facts["settings"]["encoder"]
    path.write_text(json.dumps(facts))
    loaded = Segmenter.load(tmp_path)
    assert loaded.tiny is None and loaded.settings.encoder == "vae"
    facts["settings"]["encoder"] = "tiny"
    path.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="tiny_encoder: got None, expected one for encoder tiny"):
        Segmenter.load(tmp_path)


def test_a_run_with_another_is_another_run(folder: Path, tmp_path: Path) -> None:
    def identity(tiny: str | None) -> object:
        backbone = load_backbone(folder, tiny=tiny)
        return Run(backbone=backbone, examples=(painted(),), parts=PARTS, settings=TINY).identity

    assert identity(None) == identity(str(folder / "tiny_vae"))
    assert identity(None) != identity(str(backbones.build_tiny(tmp_path / "other", seed=1)))


def test_a_posterior_cannot_be_sampled() -> None:
    with pytest.raises(
        InputError, match="posterior: got sample with encoder tiny, which has no posterior, expected mean"
    ):
        Settings(encoder="tiny", posterior="sample")


def spoilt(**changes: object) -> Callable[[Path], None]:
    return lambda folder: backbones.edit_config(folder, "tiny_vae", **changes)


def truncated(folder: Path) -> None:
    path = folder / "tiny_vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


REFUSED: dict[str, Callable[[Path], None]] = {
    "is a AutoencoderKL": spoilt(_class_name="AutoencoderKL"),
    "has 16 latent channels": spoilt(latent_channels=16),
    "shifts its latents": spoilt(shift_factor=0.1),
    "shrinks images 8 times, the backbone's VAE 4 times": spoilt(num_encoder_blocks=[1, 3, 3, 3]),
    "its weights cannot be loaded": truncated,
    r"has no tiny_vae/.*\.safetensors, and no .*\.bin": lambda folder: (
        folder / "tiny_vae" / "diffusion_pytorch_model.safetensors"
    ).unlink(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_tiny_encoder_of_this_backbone(folder: Path, reason: str) -> None:
    REFUSED[reason](folder)
    with pytest.raises(BackboneError, match=reason) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_one(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"has no config\.json; expected an AutoencoderTiny"):
        load_backbone(plain, tiny=str(tmp_path))


def command(files: Files, *more: str) -> list[str]:
    paths = ["--image", str(files.image), "--mask", str(files.mask), "--out", str(files.image.parent / "out")]
    return [*paths, "--parts", *PARTS, "--steps", "1", "--no-report", "--quiet", "--device", "cpu", *more]


def test_on_the_command_line(
    run: Main, files: Files, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = backbones.build_tiny(tmp_path / "elsewhere")
    tiny = ["--backbone", str(plain), "--tiny-encoder", str(elsewhere)]
    assert run(command(files, *tiny)) == 2
    assert "got --tiny-encoder with encoder vae, expected --encoder tiny beside it" in capsys.readouterr().err
    assert run(command(files, "--backbone", str(plain), "--encoder", "tiny")) == 2
    assert "posterior: got sample with encoder tiny, which has" in capsys.readouterr().err  # the default preset's
    wanted = ["--encoder", "tiny", "--posterior", "mean"]
    assert run(command(files, "--backbone", str(plain), *wanted)) == 2
    assert "has no tiny_vae; give --encoder vae, or name an AutoencoderTiny" in capsys.readouterr().err
    assert not (files.image.parent / "out").exists()
    assert run(command(files, *tiny, *wanted)) == 0
    facts = json.loads((files.image.parent / "out" / "segmenter.json").read_text())
    assert facts["settings"]["encoder"] == "tiny" and facts["tiny_encoder"]["id"] == str(elsewhere.resolve())


def painted() -> Example:
    image, mask = paint()
    return Example(name="blocks", image_HW3=image, mask_HW=mask, digest="0" * 64)
