"""The stand-in for NVIDIA's ONNX Runtime backend, without a server around it: which warm-ups it computes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toy

from slime_repository import openvino_network
from slime_repository.contract import MAX_BATCH
from slime_serve.wheel import STAND_IN
from slime_was.tensors import LATENTS, PIXELS

Network = Callable[[int], Any]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its module; of Triton's there is what an answer takes."""
    triton = ModuleType("triton_python_backend_utils")
    for name, value in {
        "Tensor": lambda name, array: SimpleNamespace(name=name, array=array),
        "InferenceResponse": lambda tensors: {tensor.name: tensor.array for tensor in tensors},
        "Logger": SimpleNamespace(log_info=lambda line: None),
        "TritonModelException": type("TritonModelException", (Exception,), {}),
        "get_input_tensor_by_name": lambda request, name: SimpleNamespace(as_numpy=lambda: request.given[name]),
    }.items():
        setattr(triton, name, value)
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    monkeypatch.setattr("os.nice", lambda steps: steps)
    spec = importlib.util.spec_from_file_location("stand_in", STAND_IN / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoder(stand_in: Any, repository: Path, warm_ups: int, accelerator: str = "none") -> Network:
    """The toy's, as a function of the batch size: its answer."""
    accelerators = {"cpu_execution_accelerator": [{"name": accelerator}]}
    config = {
        "name": "vae_encoder",
        "max_batch_size": MAX_BATCH,
        "input": [{"name": PIXELS}],
        "output": [{"name": LATENTS}],
        "optimization": {"execution_accelerators": accelerators},
        "model_warmup": [{"batch_size": size + 1, "count": 0} for size in range(warm_ups)],
    }
    model = stand_in.TritonPythonModel()
    place = {"model_repository": str(repository / "vae_encoder"), "model_version": "1"}
    model.initialize({"model_config": json.dumps(config), **place})

    def ask(size: int) -> Any:
        pixels = np.zeros((size, 3, toy.IMAGE_SIZE, toy.IMAGE_SIZE), np.float32)
        request = SimpleNamespace(
            given={PIXELS: pixels}, is_cancelled=lambda: False, requested_output_names=lambda: [LATENTS]
        )
        (response,) = model.execute([request])
        return response

    return ask


@pytest.mark.parametrize(("seconds", "last"), [(60.0, True), (0.0, False)])
def test_one_image_and_the_largest_batch_are_computed(
    stand_in: Any, toy_repository: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, last: bool
) -> None:
    """The largest unless it takes too long; the others are acknowledged alone, until Triton passes on requests."""
    monkeypatch.setattr(stand_in, "WARM_UP_SECONDS", seconds)
    ask = encoder(stand_in, toy_repository, MAX_BATCH)
    computed = [LATENTS in ask(size) for size in range(1, MAX_BATCH + 1)]
    assert computed == [True] + [False] * (MAX_BATCH - 2) + [last]
    for size in (2, MAX_BATCH, 1):
        assert len(ask(size)[LATENTS]) == size


def test_none_is_asked_for(stand_in: Any, toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "WARM_UP_SECONDS", 0.0)
    ask = encoder(stand_in, toy_repository, 0)
    assert LATENTS in ask(1) and LATENTS in ask(2)


@pytest.mark.parametrize(("seconds", "rest"), [(60.0, True), (0.0, False)])
def test_openvino_is_warmed_up_with_each_batch(
    stand_in: Any, toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, rest: bool
) -> None:
    """As far as the time suffices; the answers are ONNX Runtime's."""
    monkeypatch.setenv(openvino_network.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(stand_in, "WARM_UP_SECONDS", seconds)
    ask = encoder(stand_in, toy_repository, MAX_BATCH, "openvino")
    assert [LATENTS in ask(size) for size in range(1, MAX_BATCH + 1)] == [True] + [rest] * (MAX_BATCH - 1)
    assert np.allclose(ask(3)[LATENTS], encoder(stand_in, toy_repository, 0)(3)[LATENTS], atol=1e-5)
    assert list(tmp_path.rglob("*.blob"))


def test_a_model_for_openvino_without_the_package(
    stand_in: Any, toy_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Exception, match=r"vae_encoder: openvino: .*pip install 'slime-serve\[openvino\]'"):
        encoder(stand_in, toy_repository, 0, "openvino")
