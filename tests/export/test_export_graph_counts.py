"""What `slime_export.graph.inspection` counts: against sums done by hand, and against PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import Exported
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slime_export.errors import ExportError
from slime_export.graph import onnx_export as exporter
from slime_export.graph.inspection import counts, products, without_weights
from slime_export.graph.networks import Encoder


class Layers(nn.Module):
    """A convolution, sizes computed while it runs, a linear layer and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.conv(x).flatten(2).transpose(1, 2)
        first, second = self.linear(flat).chunk(2, dim=-1)
        return first @ second.transpose(1, 2)


BY_HAND = {"Conv": 8 * 4 * 4 * 27, "MatMul": 16 * 64 * 8 + 16 * 16 * 32}


def written(folder: Path, external_over: int = exporter.EXTERNAL_OVER) -> Path:
    signature = exporter.Signature(inputs={"X": (3, 8, 8)}, outputs={"Y": (16, 16)})
    return exporter.write(Layers(), signature, folder, external_over)


def test_macs_are_those_of_one_image_summed_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = counts(path)
    assert found.macs == sum(BY_HAND.values())
    assert found.macs_by_precision == {"fp32": found.macs}
    assert found.share("fp32") == 1 and found.share("int8") == 0
    for op, macs in BY_HAND.items():
        assert sum(each.macs for each in products(without_weights(path)) if each.op == op) == macs


def test_nodes_are_counted_by_operator(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = counts(path)
    assert found.nodes == sum(found.ops.values()) == len(onnx.load(path).graph.node)
    assert (found.ops["Conv"], found.ops["MatMul"]) == (1, 2)


def test_weights_beside_the_file_are_counted_and_not_needed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "beside").mkdir()
    inside, beside = written(tmp_path / "inside"), written(tmp_path / "beside", external_over=0)
    data = beside.parent / exporter.DATA
    assert counts(beside).bytes == beside.stat().st_size + data.stat().st_size
    assert counts(beside).macs == counts(inside).macs
    assert counts(inside).bytes == inside.stat().st_size


def test_the_encoders_macs_are_those_pytorch_counts(exported: Exported) -> None:
    encoder = Encoder(exported.predictor.backbone)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        encoder(torch.zeros(1, 3, 64, 64))
    assert counts(exported.repository / "vae_encoder" / "1" / "model.onnx").macs == counter.get_total_flops() // 2


def test_the_unets_macs_are_less_than_all_pytorch_computes(exported: Exported) -> None:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        exported.predictor.full_maps(torch.zeros(1, 4, 16, 16))
    found = counts(exported.unet)
    assert 0.7 < found.macs / (counter.get_total_flops() // 2) < 1  # no text projections, nothing after the maps


def quantised_product() -> onnx.ModelProto:
    weights = {
        "scale": np.float32(0.1),
        "zero": np.uint8(3),
        "W": np.ones((4, 5), np.int8),
        "wscale": np.full(5, 0.1, np.float32),
        "wzero": np.zeros(5, np.int8),
        "V": np.ones((5, 2), np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["X", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["W", "wscale", "wzero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "V"], ["Y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_product_of_dequantised_tensors_runs_in_int8(tmp_path: Path) -> None:
    onnx.save(quantised_product(), tmp_path / "model.onnx")
    assert counts(tmp_path / "model.onnx").macs_by_precision == {"int8": 20, "fp32": 10}


def test_one_quantised_operand_is_not_enough(tmp_path: Path) -> None:
    model = quantised_product()
    model.graph.node[3].input[0] = "X"
    onnx.save(model, tmp_path / "model.onnx")
    assert counts(tmp_path / "model.onnx").macs_by_precision == {"fp32": 30}


def test_half_precision_products_are_told_apart(tmp_path: Path) -> None:
    for kind, name in ((TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")):
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["X", "W"], ["Y"], transA=1)],
            "half",
            [helper.make_tensor_value_info("X", kind, [4, 2]), helper.make_tensor_value_info("W", kind, [4, 3])],
            [helper.make_tensor_value_info("Y", kind, [2, 3])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
        assert counts(tmp_path / "model.onnx").macs_by_precision == {name: 24}


def test_an_unknown_shape_is_told_in_one_line(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("NonZero", ["X"], ["n"]),
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["X", "f"], ["Y"], name="product"),
        ],
        "unknown",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"^node product: shape of f unknown, expected one .*inputs$"):
        counts(tmp_path / "model.onnx")
