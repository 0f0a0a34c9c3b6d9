"""Exports that OpenVINO runs: equal to PyTorch, refused where they cannot be, and compiled once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import Exported
from onnx import numpy_helper

from serving import png, served
from slime_cli.segment import local
from slime_export import machine
from slime_export.errors import ParityError
from slime_export.graph import runtimes
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_export.proof.report import Gate
from slime_export.publish import maintenance
from slime_repository import layout, openvino_network
from slime_repository.config import openvino_precision
from slime_repository.openvino_network import CACHE_VARIABLE, OpenVinoNetwork

NO_GATE = Gate(own_error_times=None, mask_agreement=0.0)  # random networks keep their masks in no low precision
ONE_KIND = pytest.mark.parametrize("exported", ["sd15"], indirect=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled(cache: Path) -> dict[str, int]:
    """Return the cache's files and when each was written."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.triton
@pytest.mark.usefixtures("without_tracing")
@ONE_KIND
def test_exported_served_and_rolled_back(
    command: ModuleType, exported: Exported, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, (image,) = tmp_path / "repository", parity.random_images(np.random.default_rng(3), 1, 80)
    expected = exported.predictor.mask(image)
    words = [str(exported.folder), "--repository", str(repository)]
    assert command.main(words) == 0
    assert command.main([*words, "--accelerator", "openvino"]) == 0
    said = capsys.readouterr().out
    assert "this machine: " in said and "comparing the fp32 graphs" not in said  # it is compared in OpenVINO alone
    own = {"vae_encoder_openvino", "car_unet_openvino"}
    assert own < set(layout.models(repository)) and own < layout.pinned(repository / "car").keys()
    assert {openvino_precision(layout.config_text(repository / model)) for model in own} == {"fp32"}
    for _ in range(2):
        answer = np.asarray(local(str(repository / "car")).mask_of(png(image)))
        assert (answer == expected).mean() >= 0.999

    before = compiled(cache)
    assert before
    for _ in range(2):
        log = tmp_path / "log"
        with served(repository, "--log", str(log)) as server:
            assert (server.segment("car", png(image)) == expected).mean() >= 0.999
        assert sorted(re.findall(r"(\w+): loaded from its cache by OpenVINO, fp32", log.read_text())) == sorted(own)
        assert compiled(cache) == before

    for version in (3, 4):  # to what ONNX Runtime runs, and back
        assert maintenance.rollback(repository, "car", say=lambda _: None) == (version - 2, version)
        pins = layout.pinned(repository / "car")
        assert ("car_unet_openvino" in pins) == (version == 4)
        assert (np.asarray(local(str(repository / "car")).mask_of(png(image))) == expected).mean() >= 0.999


@pytest.mark.usefixtures("without_tracing")
@ONE_KIND
def test_bf16_is_held_to_masks_and_is_a_model_of_its_own(exported: Exported, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    options: dict[str, Any] = {"folder": exported.folder, "repository": repository, "accelerator": "openvino"}
    if not openvino_network.has_bf16():
        with pytest.raises(ValueError, match="--precision bf16: this processor has no instructions for it"):
            export(ExportOptions(precision="bf16", **options), lambda _: None)
        return
    with pytest.raises(ParityError, match="masks at batch"):
        held = Gate(own_error_times=None, mask_agreement=1.1)
        export(ExportOptions(precision="bf16", gate=held, **options), lambda _: None)
    assert not layout.models(repository)
    export(ExportOptions(**options), lambda _: None)
    _, report = export(ExportOptions(precision="bf16", gate=NO_GATE, **options), lambda _: None)
    largest = max(each.tensors["LATENTS"].largest for each in report.comparisons)
    assert 1e-4 < largest < 0.1, "computed in bf16, and not far off"
    found = {name: openvino_precision(layout.config_text(repository / name)) for name in layout.models(repository)}
    assert {name: each for name, each in found.items() if each} == {
        "vae_encoder_bf16_openvino": "bf16",
        "car_unet_bf16_openvino": "bf16",
        "vae_encoder_openvino": "fp32",
        "car_unet_openvino": "fp32",
    }


@ONE_KIND
def test_what_openvino_cannot_do_is_one_line(
    mistake: Callable[..., str], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (exported.folder, "--accelerator", "openvino")
    monkeypatch.setattr(runtimes, "has_bf16", lambda: False)
    for words, said in (
        (("--precision", "fp16"), "--precision fp16: OpenVINO gains nothing by it on a CPU"),
        (("--format", "tensorrt"), "--accelerator openvino: is for --format onnx, got tensorrt"),
        (("--embedding", "shared"), "--embedding shared: is exported as fp32 ONNX alone"),
        (("--precision", "bf16"), "--precision bf16: this processor has no instructions for it"),
    ):
        assert said in mistake(tmp_path / "new", 2, *wanted, *words)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'slime-serve[openvino]'" in mistake(tmp_path / "new", 2, *wanted)


@ONE_KIND
def test_the_cache_holds_whole_files_of_just_this_network(
    exported: Exported, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported.repository / "vae_encoder" / "1" / "model.onnx"
    pixels = {"PIXELS": np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)}
    expected = runtimes.OnnxModel(path)(pixels)["LATENTS"]

    def opened(path: Path, from_cache: bool) -> Any:
        network = OpenVinoNetwork(path, threads=1)
        assert network.from_cache == from_cache
        return network(pixels)["LATENTS"]

    assert np.allclose(opened(path, False), expected, atol=1e-4)
    before = compiled(cache)
    assert np.allclose(opened(path, True), expected, atol=1e-4)
    assert compiled(cache) == before, "no file that a killed process may have left half-written"
    # Other weights under the same path, of the same size and time, are another network.
    changed = tmp_path / "model.onnx"
    model = onnx.load(str(path))
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    largest.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(largest), largest.name))
    onnx.save(model, str(changed))
    os.utime(changed, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert not np.allclose(opened(changed, False), expected, atol=1e-2)
    # It is bounded: the oldest leave.
    monkeypatch.setattr(openvino_network, "CACHE_BYTES", 0)
    opened(changed, True)
    assert not compiled(cache)
    # A place that cannot be written is done without.
    monkeypatch.setenv(CACHE_VARIABLE, str(changed))
    assert np.allclose(opened(path, False), expected, atol=1e-4)


def test_the_processor_is_told(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Intel Xeon\nflags\t\t: fpu avx512f amx_bf16\n")
    told = machine.described(tmp_path / "cpuinfo")
    assert told.startswith("Intel Xeon; has AVX-512, AMX BF16; has no AVX-512 VNNI, ")
