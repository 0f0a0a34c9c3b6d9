"""What is in the exported graphs, and what must not be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from exporting import PARTS, Exported
from onnx import numpy_helper

from slime_export.errors import ExportError
from slime_export.graph import onnx_export as exporter
from slime_export.graph.networks import Encoder
from slime_export.graph.runtimes import OnnxModel
from slime_export.graph.tracing import encoder_signature
from slime_was import Postprocess
from slime_was.options import name_in


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(each) for each in model.graph.initializer]


def holds(model: onnx.ModelProto, wanted: np.ndarray) -> bool:
    """Whether a weight is in the file, as it is or transposed."""
    return any(
        np.array_equal(each, wanted) or (each.ndim == 2 and np.array_equal(each.T, wanted)) for each in weights(model)
    )


def test_timestep_and_text_are_constants(exported: Exported) -> None:
    model = onnx.load(exported.unet)
    unet = exported.predictor.backbone.unet
    assert not {"Sin", "Cos"} & {node.op_type for node in model.graph.node}
    names = dict(unet.named_parameters())
    constant = [name for name in names if "time_emb" in name or ".attn2.to_k" in name or ".attn2.to_v" in name]
    assert len(constant) > 50
    for name in constant:
        if names[name].ndim == 2:
            assert not holds(model, names[name].numpy()), name
    assert holds(model, unet.state_dict()["up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_k.weight"].numpy())


def test_one_pass_ends_at_the_last_map_that_is_read(exported: Exported) -> None:
    model = onnx.load(exported.unet)
    state = exported.predictor.backbone.unet.state_dict()
    after = [name for name in state if name.startswith(("conv_out", "up_blocks.3.attentions.2"))]
    after = [name for name in after if name.endswith("weight") and state[name].ndim > 1 and "attn1.to_q" not in name]
    after = [name for name in after if "attn1.to_k" not in name and "proj_in" not in name]
    assert len(after) > 5
    assert not [name for name in after if holds(model, state[name].numpy())]
    # 16 blocks with two attentions each, but for the text attention of the last block.
    assert Counter(node.op_type for node in model.graph.node)["Softmax"] == 31


def test_every_node_and_weight_reaches_an_output(exported: Exported) -> None:
    for name in ("car_unet", "vae_encoder"):
        graph = onnx.load(exported.repository / name / "1" / "model.onnx").graph
        needed = {output.name for output in graph.output}
        for node in reversed(graph.node):
            assert needed.intersection(node.output), node.name
            needed.update(node.input)
        assert {each.name for each in graph.initializer} <= needed


def test_nothing_constant_is_left_to_compute(exported: Exported) -> None:
    graph = onnx.load(exported.unet).graph
    known = {each.name for each in graph.initializer}
    assert "Constant" not in {node.op_type for node in graph.node}
    assert all(set(node.input) - known - {""} for node in graph.node)


def test_old_runtimes_can_load_the_files(exported: Exported) -> None:
    for name in ("car_unet", "vae_encoder"):
        model = onnx.load(exported.repository / name / "1" / "model.onnx")
        assert model.ir_version <= 10
        assert [each.domain for each in model.opset_import] == [""]
        assert model.opset_import[0].version <= 20


def test_inputs_and_outputs_are_those_of_the_contract(exported: Exported) -> None:
    model = OnnxModel(exported.unet)
    for batch in (1, 4):
        maps = model({"LATENTS": np.zeros((batch, 4, 16, 16), np.float32)})
        assert {name: value.shape for name, value in maps.items()} == {
            "CROSS": (batch, len(PARTS), 16, 16),
            "SELF": (batch, 256, 256),
            "POSTPROCESS": (batch, 8 + len("car")),
        }
        assert name_in(maps["POSTPROCESS"][0]) == "car"
        np.testing.assert_allclose(maps["SELF"].sum(-1), 1, rtol=1e-4)
        assert Postprocess.from_vector(maps["POSTPROCESS"][0]) == exported.predictor.segmenter.settings.postprocess(64)


@pytest.mark.parametrize("change", [{"opset": 21}, {"ir": 11}])
def test_newer_files_are_refused(exported: Exported, tmp_path: Path, change: dict[str, int]) -> None:
    model = onnx.load(exported.repository / "vae_encoder" / "1" / "model.onnx")
    model.opset_import[0].version = change.get("opset", 17)
    model.ir_version = change.get("ir", 8)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"expected at most 20 and 10"):
        exporter.check(tmp_path / "model.onnx")


def test_large_models_keep_their_weights_in_a_plain_file_beside(exported: Exported, tmp_path: Path) -> None:
    predictor = exported.predictor
    path = exporter.write(Encoder(predictor.backbone), encoder_signature(64, 16), tmp_path, external_over=0)
    data = tmp_path / "model.onnx.data"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert not data.is_symlink()
    assert data.stat().st_size > 1000
    # Triton may run as another user than who exported.
    assert data.stat().st_mode == path.stat().st_mode
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    whole = OnnxModel(exported.repository / "vae_encoder" / "1" / "model.onnx")
    np.testing.assert_array_equal(OnnxModel(path)({"PIXELS": pixels})["LATENTS"], whole({"PIXELS": pixels})["LATENTS"])


def test_the_backbone_is_left_as_it_was(exported: Exported) -> None:
    processors = {type(each).__module__ for each in exported.predictor.backbone.unet.attn_processors.values()}
    assert processors == {"diffusers.models.attention_processor"}
    assert "time_embedding.linear_1.weight" in exported.predictor.backbone.unet.state_dict()
