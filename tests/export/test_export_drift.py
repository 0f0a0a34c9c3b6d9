"""Past the gate the report says which layer drifts first, in fp32 and in lower precisions; nothing is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import Exported
from onnx import ModelProto, numpy_helper

import slime_export.graph.onnx_export
from slime_export.errors import ParityError
from slime_export.graph import precision
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import drift

ONE_KIND = pytest.mark.parametrize("exported", ["sd21"], indirect=True)
BLOCK = "up_blocks.1.resnets.1"


def spoil(model: ModelProto, place: str) -> None:
    """Enlarges the weights of a convolution a little."""
    (node,) = [each for each in model.graph.node if each.name.endswith(f"{place}/conv1/Conv")]
    (weight,) = [each for each in model.graph.initializer if each.name == node.input[1]]
    changed = numpy_helper.to_array(weight) * np.float32(1.5)
    weight.CopyFrom(numpy_helper.from_array(changed.astype(numpy_helper.to_array(weight).dtype), weight.name))


def spoiling(output: str, place: str) -> Callable[..., Path]:
    """In the place of onnx.write: spoils the model that has this output."""
    real = slime_export.graph.onnx_export.write

    def write(module: Any, signature: Any, folder: Path, external_over: int) -> Path:
        path = real(module, signature, folder, external_over)
        if output in signature.outputs:
            model = onnx.load(path)
            spoil(model, place)
            onnx.save(model, path)
        return path

    return write


def refused(exported: Exported, repository: Path, **wanted: Any) -> str:
    with pytest.raises(ParityError) as caught:
        export(ExportOptions(folder=exported.folder, repository=repository, **wanted), lambda _: None)
    assert not repository.exists()
    return str(caught.value)


@ONE_KIND
@pytest.mark.parametrize(
    ("output", "place", "layer"),
    [
        ("CROSS", "up_blocks.1/resnets.1", BLOCK),
        ("LATENTS", "down_blocks.1/resnets.0", "encoder.down_blocks.1.resnets.0"),
    ],
)
@pytest.mark.usefixtures("without_tracing")
def test_a_graph_that_is_not_pytorch(
    exported: Exported, output: str, place: str, layer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slime_export.graph.onnx_export, "write", spoiling(output, place))
    line = refused(exported, tmp_path / "new")
    assert f"{layer} drifts first" in line and line.endswith("nothing was published")


@ONE_KIND
@pytest.mark.usefixtures("without_tracing")
def test_a_lower_precision_that_goes_wrong(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = precision.convert

    def convert(model: ModelProto, low: precision.Low) -> ModelProto:
        converted = real(model, low)
        if "CROSS" in {value.name for value in model.graph.output}:
            spoil(converted, "up_blocks.1/resnets.1")
        return converted

    monkeypatch.setattr(precision, "convert", convert)
    line = refused(exported, tmp_path / "new", precision="fp16")
    assert "masks at batch" in line and f"{BLOCK} drifts first" in line


def test_the_first_past_the_limit_or_the_largest() -> None:
    one = {"a": np.ones(3), "b": np.ones(3), "c": np.ones(3)}
    got = {"a": np.ones(3), "b": np.ones(3) * 1.2, "c": np.ones(3) * 2}
    past = drift.found(got, one, noted=0.1)
    assert past and (past.layer, round(past.largest, 6)) == ("b", 0.2)
    assert drift.found(got, one, noted=5) == drift.Drift(layer="c", largest=1.0)
    other_shape = drift.found(got | {"c": np.ones(4)}, one, noted=5)
    assert other_shape and other_shape.layer == "b"
    assert drift.found({}, one) is None
    broken = got | {"a": np.full(3, np.nan)}
    found = drift.found(broken, one, noted=0.1)
    assert found and found.layer == "a"
