"""A toy segmenter: the whole served graph with two tiny networks, made without torch or an export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import slime_was
from serving import ROOT
from slime_repository import contract

PARTS, IMAGE_SIZE, CHANNELS, SIDE, THRESHOLD = 5, 32, 4, 8, 0.5
POSTPROCESS = slime_was.Postprocess(threshold=THRESHOLD, side=IMAGE_SIZE)
READING = contract.Reading(image_size=IMAGE_SIZE, postprocess=POSTPROCESS)
NO_CACHE = shutil.ignore_patterns("__pycache__")
PIXELS = SIDE * SIDE
Floats = npt.NDArray[np.float32]


def build_repository(folder: Path, segmenter: str = "toy", *, work: int = 0) -> Path:
    """A model repository at ``folder`` with one segmenter; `work`: GMAC that each batch takes the encoder besides."""
    shutil.copytree(ROOT / "model_repository" / contract.WAS, folder / contract.WAS, ignore=NO_CACHE)
    encoder = contract.vae_encoder_config(
        backbone="toy", image_size=IMAGE_SIZE, latent_channels=CHANNELS, latent_size=SIDE
    )
    _publish(folder / contract.VAE_ENCODER, encoder, _encoder(work))
    add_segmenter(folder, segmenter, READING)
    return folder


def described_repository(folder: Path) -> Path:
    """The repository of `build_repository`, with a name and a colour for each of the segmenter's parts."""
    repository = build_repository(folder)
    config = repository / "toy" / "config.pbtxt"
    parameters = {"parts": [f"part {number}" for number in range(PARTS)], "colours": [[9, 9, 9]] * PARTS}
    text = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(json.dumps(value))} }} }}\n'
        for key, value in parameters.items()
    )
    kept = [line for line in config.read_text().splitlines(keepends=True) if 'key: "parts"' not in line]
    config.write_text("".join(kept) + text)
    return repository


def add_segmenter(folder: Path, segmenter: str, reading: contract.Reading) -> None:
    """A segmenter that reads images so, in the repository at ``folder``."""
    preprocess = folder / reading.model
    shutil.copytree(ROOT / "model_repository" / contract.PREPROCESS, preprocess, ignore=NO_CACHE)
    (preprocess / "config.pbtxt").write_text(contract.preprocess_config(reading))
    unet = contract.unet_config(segmenter=segmenter, parts=PARTS, latent_channels=CHANNELS, latent_size=SIDE)
    _publish(folder / contract.unet_name(segmenter), unet, _unet(reading.postprocess.vector(segmenter)))
    ensemble = contract.ensemble_config(
        segmenter=segmenter,
        versions=contract.Versions(),
        parameters={"parts": '["background", "ö"]'},
        reading=reading,
    )
    _publish(folder / segmenter, ensemble, None)


def _publish(folder: Path, config: str, network: onnx.ModelProto | None) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    if network is not None:
        onnx.save(network, folder / "1" / "model.onnx")


def _encoder(work: int) -> onnx.ModelProto:
    stride = IMAGE_SIZE // SIDE
    nodes = [
        helper.make_node("AveragePool", ["PIXELS"], ["pooled"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("Conv", ["pooled", "mix"], ["mixed" if work else "LATENTS"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {"mix": 3 * _random(0, CHANNELS, 3, 1, 1)}
    if work:  # Products of 1024 x 1024 numbers, of which zeros are added.
        nodes += [
            helper.make_node("ReduceMean", ["mixed"], ["mean"], keepdims=0),
            helper.make_node("Expand", ["mean", "square"], ["product 0"]),
            *(
                helper.make_node("MatMul", [f"product {index}", "zeros"], [f"product {index + 1}"])
                for index in range(work)
            ),
            helper.make_node("ReduceMean", [f"product {work}"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["mixed", "nothing"], ["LATENTS"]),
        ]
        constants |= {"square": np.array([1024, 1024], np.int64), "zeros": np.zeros((1024, 1024), np.float32)}
    return _network(nodes, constants, {"PIXELS": (3, IMAGE_SIZE, IMAGE_SIZE)}, {"LATENTS": (CHANNELS, SIDE, SIDE)})


def _unet(vector: Floats) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["LATENTS", "words"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["CROSS"], axis=1),
        helper.make_node("Reshape", ["LATENTS", "flat"], ["keys"]),
        helper.make_node("Transpose", ["keys"], ["queries"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "keys"], ["likeness"]),
        helper.make_node("Softmax", ["likeness"], ["SELF"], axis=-1),
        helper.make_node("ReduceMax", ["logits", "axes"], ["highest"], keepdims=0),
        # Any number for each image of the batch would do.
        helper.make_node("MatMul", ["highest", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "postprocess"], ["POSTPROCESS"]),
    ]
    constants = {
        "words": 2 * _random(1, PARTS, CHANNELS, 1, 1),
        "flat": np.array([0, CHANNELS, PIXELS], np.int64),
        "axes": np.array([2, 3], np.int64),
        "zero": np.zeros((PARTS, 1), np.float32),
        "postprocess": vector,
    }
    outputs = {"CROSS": (PARTS, SIDE, SIDE), "SELF": (PIXELS, PIXELS), "POSTPROCESS": vector.shape}
    return _network(nodes, constants, {"LATENTS": (CHANNELS, SIDE, SIDE)}, outputs)


def _random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _network(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[Any]],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
) -> onnx.ModelProto:
    def infos(tensors: dict[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims]) for name, dims in tensors.items()
        ]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", infos(inputs), infos(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model
