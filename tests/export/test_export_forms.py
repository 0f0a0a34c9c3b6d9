"""Both forms of a UNet: what is in their graphs, what must not be, and that they give the same masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from exporting import PARTS, Exported
from onnx import ModelProto, numpy_helper

import slime_was
from slime_export.graph import tracing
from slime_export.graph.runtimes import OnnxModel
from slime_optimize.method.prediction import Predictor
from slime_repository.variant import MAPS, Variant

LAST = "up_blocks.3.attentions.2"
Traced = dict[str, Path]


@pytest.fixture(scope="module")
def predictor(exported: Exported) -> Predictor:
    return exported.predictor


@pytest.fixture(scope="module")
def traced(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """The UNet's file in each form."""
    folder = tmp_path_factory.mktemp("traced") / "weighted"
    weighted = tracing.trace_unet(exported.predictor, Variant(maps="weighted"), folder, 10**9) / "model.onnx"
    return {"averaged": exported.unet, "weighted": weighted}


def holds(model: ModelProto, wanted: np.ndarray) -> bool:
    """Whether a matrix or kernel is among the weights, as it is or transposed."""
    weights = [numpy_helper.to_array(each) for each in model.graph.initializer]
    return any(np.array_equal(each, wanted) or (each.ndim == 2 and np.array_equal(each.T, wanted)) for each in weights)


def kernels(predictor: Predictor) -> dict[str, np.ndarray]:
    state = predictor.backbone.unet.state_dict()
    return {name: value.numpy() for name, value in state.items() if name.endswith("weight") and value.ndim > 1}


@pytest.mark.parametrize("maps", MAPS)
def test_no_timestep_embedding_and_no_text_projection(predictor: Predictor, traced: Traced, maps: str) -> None:
    model = onnx.load(traced[maps])
    assert not {"Sin", "Cos", "Gather"} & {node.op_type for node in model.graph.node if "time" in node.name}
    constant = [
        name for name in kernels(predictor) if "time_emb" in name or ".attn2.to_k" in name or ".attn2.to_v" in name
    ]
    assert len(constant) > 30
    assert not [name for name in constant if holds(model, kernels(predictor)[name])]


@pytest.mark.parametrize("maps", MAPS)
def test_nothing_after_the_last_map_that_is_read(predictor: Predictor, traced: Traced, maps: str) -> None:
    model = onnx.load(traced[maps])
    before = ("proj_in", "attn1.to_q", "attn1.to_k")  # what the last self map needs, and not its values
    after = [
        name
        for name in kernels(predictor)
        if name.startswith(("conv_out", LAST)) and not any(b in name for b in before)
    ]
    assert len(after) >= 7 and f"{LAST}.transformer_blocks.0.attn1.to_v.weight" in after
    assert not [name for name in after if holds(model, kernels(predictor)[name])]
    assert holds(model, kernels(predictor)[f"{LAST}.transformer_blocks.0.attn1.to_k.weight"])
    needed = {output.name for output in model.graph.output}
    for node in reversed(model.graph.node):
        assert needed.intersection(node.output), node.name
        needed.update(node.input)


@pytest.mark.parametrize("maps", MAPS)
def test_one_conditional_pass(predictor: Predictor, traced: Traced, maps: str, tmp_path: Path) -> None:
    model = onnx.load(traced[maps])
    # 16 blocks with two attentions each, but for the text attention of the last; weighting computes none again.
    assert Counter(node.op_type for node in model.graph.node)["Softmax"] == 31
    convolutions = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in convolutions)
    onnx.save(model, tmp_path / "opened.onnx")
    # No second half of the batch anywhere, which guidance would put beside the first.
    answers = OnnxModel(tmp_path / "opened.onnx")({"LATENTS": np.zeros((3, 4, 16, 16), np.float32)})
    assert len(answers) > 50
    assert {len(each) for each in answers.values()} == {3}


def test_the_weighted_form_has_no_map_of_pixels_by_pixels_averaged_or_given_out(traced: Traced) -> None:
    model = onnx.load(traced["weighted"])
    assert [value.name for value in model.graph.output] == ["CROSS", "ACCUMULATED", "POSTPROCESS"]
    softmaxes = {node.output[0]: node for node in model.graph.node if node.op_type == "Softmax"}
    readers = Counter(node.op_type for node in model.graph.node for name in node.input if name in softmaxes)
    whole = Counter(node.op_type for node in onnx.load(traced["averaged"]).graph.node)
    # Slices and means of the five layers' text maps; of self maps nothing but products with values.
    assert set(readers) == {"MatMul", "Slice"}
    assert readers["Slice"] == 5
    assert whole["ReduceMean"] == 8  # five text maps, three self maps: the averaged form's own


def test_both_forms_give_the_same_scores(predictor: Predictor, traced: Traced) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32)
    one, other = (OnnxModel(traced[maps])({"LATENTS": latents}) for maps in MAPS)
    np.testing.assert_allclose(other["CROSS"], one["CROSS"], rtol=1e-4, atol=1e-6)
    was = slime_was.accumulate(one["CROSS"].reshape(2, len(PARTS), 256), one["SELF"]).reshape(2, len(PARTS), 16, 16)
    np.testing.assert_allclose(other["ACCUMULATED"], was, rtol=1e-3, atol=1e-5)
