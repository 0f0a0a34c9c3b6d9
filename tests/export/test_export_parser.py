"""Whether TensorRT's ONNX parser documents all that the exported graphs hold, in every form and precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from benchmarks.common.random_backbone import random_segmenter
from exporting import PARTS, Exported
from onnx import ModelProto, TensorProto, helper, numpy_helper

from backbones import KINDS, build_tiny
from slime_export.graph import onnx_export as exporter
from slime_export.graph.networks import Encoder, MapsUNet
from slime_export.graph.onnx_export import Signature
from slime_export.graph.precision import convert
from slime_optimize.backbone import EMBEDDED, load_backbone
from slime_was.options import LENGTH
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, PIXELS, POSTPROCESS, SELF

# The operators that docs/operators.md of onnx/onnx-tensorrt marks as supported, at commit 96e7811 ("ONNX-TensorRT 10.1
# GA release", June 2024, opsets 9 to 20), with its restrictions.
_OPERATORS = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil
    Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND
    Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU
    HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow
    PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape
    Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
SUPPORTED = frozenset(_OPERATORS.split())


OPSET = 20
# TensorRT 11's, of its "ONNX Opset Guide"; bf16 convolutions are in no opset before 22.
OPSET_11 = 25
NETWORKS = ("vae", "tiny", "averaged", "weighted")
# What the parser narrows (DOUBLE), or knows at a network's ends alone (UINT8).
REFUSED_TYPES = {TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.STRING}


def objections(model: ModelProto, newest: int = OPSET) -> list[str]:
    """What the parser's documentation does not allow, a line each."""
    constants = {each.name: each for each in model.graph.initializer}
    found = [f"opset {each.version}" for each in model.opset_import if not 9 <= each.version <= newest]
    found += [f"{each.name} of type {each.data_type}" for each in constants.values() if each.data_type in REFUSED_TYPES]
    for node in model.graph.node:
        said = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.domain or node.op_type not in SUPPORTED:
            found.append(f"operator {node.domain}:{node.op_type}")
        if node.op_type == "Cast" and said["to"] in REFUSED_TYPES:
            found.append(f"Cast to {said['to']}")
        if node.op_type == "Resize" and not _known_resize(said):
            found.append(f"Resize {said}")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3:
            zero = constants.get(node.input[2])
            if zero is None or numpy_helper.to_array(zero).any():
                found.append(f"{node.op_type} with a zero point")
    return found


def _known_resize(said: dict[str, object]) -> bool:
    return (
        said["mode"] in (b"nearest", b"linear")
        and said["coordinate_transformation_mode"] in (b"half_pixel", b"pytorch_half_pixel", b"asymmetric")
        and said.get("nearest_mode", b"floor") in (b"floor", b"ceil", b"round_prefer_floor", b"round_prefer_ceil")
    )


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in (*KINDS, EMBEDDED)])
def graphs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, export_of: Callable[..., Exported]
) -> dict[str, ModelProto]:
    """Every network of a backbone, in fp32: as it was exported, or else traced here."""
    root, found = tmp_path_factory.mktemp(f"parser-{request.param}"), dict[str, ModelProto]()
    tiny = str(build_tiny(root / "tiny_vae"))
    if request.param == EMBEDDED:
        backbone = load_backbone(EMBEDDED, tiny=tiny)
        segmenter = random_segmenter(backbone, len(PARTS))
    else:
        exported = export_of(request.param)
        segmenter = exported.predictor.segmenter
        backbone = load_backbone(segmenter.backbone_id, tiny=tiny)
        paths = {"vae": exported.repository / "vae_encoder" / "1" / "model.onnx", "averaged": exported.unet}
        found = {name: onnx.load(path) for name, path in paths.items()}
    size, side = backbone.image_size, backbone.latent_size
    latents, pixels = {LATENTS: (4, side, side)}, {PIXELS: (3, size, size)}
    maps = {CROSS: (-1, side, side), ACCUMULATED: (-1, side, side), SELF: (side**2, side**2), POSTPROCESS: (LENGTH,)}
    modules = {
        "vae": (Encoder(backbone), Signature(inputs=pixels, outputs=latents)),
        "tiny": (Encoder(backbone, "tiny"), Signature(inputs=pixels, outputs=latents)),
        "averaged": (MapsUNet(segmenter, backbone), _maps(latents, maps, SELF)),
        "weighted": (MapsUNet(segmenter, backbone, weighted=True), _maps(latents, maps, ACCUMULATED)),
    }
    for name in modules.keys() - found.keys():
        (root / name).mkdir()
        found[name] = onnx.load(exporter.write(*modules[name], root / name))
    return found


def _maps(latents: dict[str, tuple[int, ...]], maps: dict[str, tuple[int, ...]], read: str) -> Signature:
    return Signature(inputs=latents, outputs={name: maps[name] for name in (CROSS, read, POSTPROCESS)})


@pytest.mark.parametrize("network", NETWORKS)
def test_the_parser_knows_all_of_it(graphs: dict[str, ModelProto], network: str) -> None:
    model = graphs[network]
    assert objections(model) == []
    assert len({node.op_type for node in model.graph.node}) > 3


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_parser_knows_all_of_it_in_half(graphs: dict[str, ModelProto], network: str, precision: str) -> None:
    low = convert(graphs[network], precision)  # type: ignore[arg-type]
    types = {each.data_type for each in low.graph.initializer}
    assert {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision] in types
    assert objections(low, OPSET_11 if precision == "bf16" else OPSET) == []


def quantised(zero_point: int, kind: type[np.generic]) -> ModelProto:
    """X through QuantizeLinear and DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["X", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["Y"]),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "XY"]
    constants = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero_point, kind), "zero"),
    ]
    graph = helper.make_graph(nodes, "quantised", sides[:1], sides[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_quantised_graphs_are_taken_symmetric_and_signed_alone() -> None:
    assert objections(quantised(0, np.int8)) == []
    assert objections(quantised(3, np.int8)) == [
        "QuantizeLinear with a zero point",
        "DequantizeLinear with a zero point",
    ]
    assert objections(quantised(0, np.uint8)) == ["zero of type 2"]


def test_objections_are_found(graphs: dict[str, ModelProto]) -> None:
    model = ModelProto()
    model.CopyFrom(graphs["tiny"])
    model.graph.node[0].op_type = "Unique"
    model.opset_import[0].version = 21
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "wide"))
    assert objections(model) == ["opset 21", "wide of type 11", "operator :Unique"]
