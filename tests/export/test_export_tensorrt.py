"""Engines without a GPU: what TensorRT is asked for, what its refusals become, and what an engine answers."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from exporting import Exported, compared
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from slime_export.errors import EngineError, ExportError
from slime_export.graph import engine_builder as tensorrt
from slime_export.graph import runtimes
from slime_export.graph.accelerators import accelerator
from slime_export.graph.engine_builder import Options
from slime_export.graph.runtimes import Engine, OnnxModel
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_export.proof.report import Gate


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    fake = fake_tensorrt.module()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def scaled(path: Path, *, batch: str | int = "batch", op: str = "Mul", external: bool = False) -> Path:
    """X (batch, 3, 4) -> Y = X * weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "weights")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 4]) for name in ("X", "Y")]
    graph = helper.make_graph(
        [helper.make_node(op, ["X", "weights"], ["Y"], name="/scale")], "scaled", *[[each] for each in sides], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    kept: Any = (
        {"save_as_external_data": True, "location": path.name + ".data", "size_threshold": 0} if external else {}
    )
    onnx.save_model(model, str(path), **kept)
    return path


def built(path: Path, options: Options | None = None) -> dict[str, Any]:
    """How the fake built the engine."""
    told: dict[str, Any] = json.loads(tensorrt.build(path, path.parent, options, say=lambda _: None).read_bytes())
    return told


def test_one_profile_covers_every_batch_that_is_served(trt: ModuleType, tmp_path: Path) -> None:
    told = built(scaled(tmp_path / "model.onnx"))
    assert told["profiles"] == [{"X": [[1, 3, 4], [1, 3, 4], [8, 3, 4]]}]
    assert told["strongly_typed"]
    assert told["flags"] == []  # TF32, which is on by itself, was cleared
    assert told["hardware"] == "NONE"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_every_switch_reaches_the_builder(trt: ModuleType, tmp_path: Path) -> None:
    options = Options(opt_batch=2, version_compatible=True, hardware="ampere")
    told = built(scaled(tmp_path / "model.onnx"), options)
    assert told["profiles"] == [{"X": [[1, 3, 4], [2, 3, 4], [8, 3, 4]]}]
    assert told["flags"] == ["VERSION_COMPATIBLE"]
    assert told["hardware"] == "AMPERE_PLUS"
    assert built(tmp_path / "model.onnx", Options(hardware="same"))["hardware"] == "SAME_COMPUTE_CAPABILITY"


def test_weights_beside_the_file_are_found_by_its_path(trt: ModuleType, tmp_path: Path) -> None:
    path = scaled(tmp_path / "model.onnx", external=True)
    assert built(path)["onnx"] == str(path)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"^TensorRT: cannot read model.onnx \(.+\); export it as ONNX$"):
        built(path)


def test_stages_are_told(trt: ModuleType, tmp_path: Path) -> None:
    lines: list[str] = []
    tensorrt.build(scaled(tmp_path / "model.onnx"), tmp_path, say=lines.append)
    assert lines == ["TensorRT: Building Engine"]


def test_kernel_times_are_kept_and_those_of_another_gpu_replaced(trt: ModuleType, tmp_path: Path) -> None:
    path, cache = scaled(tmp_path / "made" / "model.onnx"), tensorrt.timing_cache(tmp_path / "repository")
    assert cache == tmp_path.resolve() / ".repository.tensorrt-timing"
    options = Options(timing_cache=cache)
    assert built(path, options)["knew"] == 0
    kept = cache.read_bytes()
    assert kept.startswith(b"this GPU")
    assert built(path, options)["knew"] == len(kept)
    cache.write_bytes(b"that GPU: a kernel took 2 ms")
    lines: list[str] = []
    tensorrt.build(path, path.parent, options, say=lines.append)
    assert "of another GPU or version" in lines[0]
    assert cache.read_bytes() == kept
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == [cache.name]


def test_what_the_parser_refuses_is_one_line_that_names_the_node(trt: ModuleType, tmp_path: Path) -> None:
    path = scaled(tmp_path / "model.onnx", op="Unheard")
    with pytest.raises(EngineError) as caught:
        built(path)
    assert "(Unheard /scale: No importer registered for op)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / tensorrt.FILE).exists()


def test_no_engine_is_one_line_and_leaves_the_old_one(trt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / tensorrt.FILE).write_bytes(b"old")
    with pytest.raises(EngineError, match=r"no engine for fails.onnx \(Could not find any implementation\)"):
        built(scaled(tmp_path / "fails.onnx"), Options(timing_cache=tmp_path / "times"))
    assert (tmp_path / tensorrt.FILE).read_bytes() == b"old"
    assert not (tmp_path / "times").exists()


def test_no_gpu_is_one_line(trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(log: Any) -> Any:
        log.log(log.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", refuse)
    with pytest.raises(EngineError, match=r"cannot start \(CUDA initialization failure with error: 35\)"):
        built(scaled(tmp_path / "model.onnx"))


def test_no_tensorrt_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for attempt in (lambda: built(scaled(tmp_path / "model.onnx")), lambda: Engine(tmp_path / "model.plan")):
        with pytest.raises(ExportError, match=re.escape("pip install 'slime-serve[gpu]'")) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_an_old_tensorrt_says_what_it_lacks(trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "HardwareCompatibilityLevel", fake_tensorrt.OldHardwareCompatibilityLevel)
    monkeypatch.setattr(trt, "__version__", "10.7.0")
    with pytest.raises(ExportError, match=r"^TensorRT 10.7.0: does not know hardware 'same'"):
        built(scaled(tmp_path / "model.onnx"), Options(hardware="same"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"opt_batch": 9}, "got opt batch 9, expected 1 to 8"),
        ({"hardware": "turing"}, "got hardware 'turing', expected one of this, same, ampere"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        Options(**changes)


def test_a_fixed_batch_is_refused(trt: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="input X has dimensions"):
        built(scaled(tmp_path / "model.onnx", batch=2))


def test_an_engine_answers_as_the_onnx_file(trt: ModuleType, tmp_path: Path) -> None:
    path = scaled(tmp_path / "model.onnx")
    engine = Engine(tensorrt.build(path, tmp_path, say=lambda _: None), device="cpu")
    assert engine.outputs == ("Y",)
    assert engine.largest == 8
    for batch in (1, 3, 19):  # the last in three
        inputs = {"X": np.random.default_rng(batch).normal(size=(batch, 4, 3)).astype(np.float32).transpose(0, 2, 1)}
        expected = OnnxModel(path)({"X": np.ascontiguousarray(inputs["X"])})
        np.testing.assert_array_equal(engine(inputs)["Y"], expected["Y"])
    with pytest.raises(EngineError, match=r"input X of shape \(9, 3, 4\) is outside the engine's batches"):
        engine.run({"X": torch.zeros(9, 3, 4)})


def test_a_plan_that_does_not_load_is_one_line(trt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / tensorrt.FILE).write_bytes(b"of another version")
    with pytest.raises(
        EngineError, match=r"model.plan does not load \(Serialization assertion failed\); build it again"
    ):
        Engine(tmp_path / tensorrt.FILE, device="cpu")


def test_a_segmenter_through_engines_is_equal_to_pytorch(trt: ModuleType, exported: Exported, tmp_path: Path) -> None:
    engines = []
    for model in ("vae_encoder", "car_unet"):
        (tmp_path / model).mkdir()
        path = exported.repository / model / "1" / "model.onnx"
        engines.append(Engine(tensorrt.build(path, tmp_path / model, say=lambda _: None), device="cpu"))
    told = json.loads((tmp_path / "car_unet" / tensorrt.FILE).read_bytes())
    assert told["profiles"] == [{"LATENTS": [[size, 4, 16, 16] for size in (1, 1, 8)]}]
    report = compared(exported.predictor, *engines)
    assert report.failures == []


@pytest.mark.slow
def test_an_export_as_engines(
    trt: ModuleType, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 is tried as an ONNX file before an engine is built of it; engines are what is proven and published."""
    monkeypatch.setattr(runtimes, "Engine", partial(Engine, device="cpu"))
    photos, repository = tmp_path / "photos", tmp_path / "repository"
    photos.mkdir()
    for index, image in enumerate(parity.random_images(np.random.default_rng(5), 2, 64)):
        Image.fromarray(image).save(photos / f"{index}.png")
    wanted = {"format": "tensorrt", "precision": "int8", "calibration": photos}
    gate = Gate(own_error_times=None, mask_agreement=0.0)  # random networks of eight channels keep no masks in int8
    options = ExportOptions(folder=exported.folder, repository=repository, gate=gate, **wanted)
    _, report = export(options, lambda _: None)
    assert report.graphs["unet"].share("int8") > 0.3
    for model in ("car_unet_tensorrt", "vae_encoder_tensorrt"):
        assert (repository / model / "1" / tensorrt.FILE).exists()


def test_accelerators_are_of_the_files_precision_and_cover_every_batch() -> None:
    sizes = {"LATENTS": (4, 64, 64)}
    found = accelerator("tensorrt", precision="fp16", inputs=sizes, cache="/engines")
    assert found.name == "tensorrt"
    assert found.parameters == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/engines",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/engines",
        "trt_profile_min_shapes": "LATENTS:1x4x64x64",
        "trt_profile_opt_shapes": "LATENTS:1x4x64x64",
        "trt_profile_max_shapes": "LATENTS:8x4x64x64",
    }
    cuda = [accelerator("cuda", precision=each, inputs=sizes) for each in ("fp32", "fp16")]
    assert [each.name for each in cuda] == ["cuda", "cuda"]
    assert ["use_tf32" in each.parameters for each in cuda] == [True, False]
    with pytest.raises(ExportError, match="got 'openvino', expected one of cpu, cuda, tensorrt, or none"):
        accelerator("openvino", precision="fp32", inputs=sizes)


def test_the_fake_has_the_real_packages_signatures() -> None:
    real = pytest.importorskip("tensorrt")
    for mine in fake_tensorrt.METHODS:
        theirs = getattr(real, mine.__name__)
        for name, method in vars(mine).items():
            if hasattr(method, "__wrapped__"):
                said = getattr(theirs, name).__doc__ or ""
                for argument in list(method.__wrapped__.__annotations__):
                    assert argument == "return" or re.search(rf"\W{argument}: ", said), f"{mine.__name__}.{name}"
    for each in fake_tensorrt.NAMES:
        members = getattr(getattr(real, each.__name__), "__members__", {})
        assert {name for name in getattr(each, "__members__", {}) if name != "EXPLICIT_BATCH"} <= {
            *members,
            "SAME_COMPUTE_CAPABILITY",
        }
