"""The committed configurations are the contract's, and what it renders is what Triton reads."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from slime_repository import contract
from slime_repository.config import Accelerator, parsed
from slime_repository.contract import Reading, Variant, Versions
from slime_repository.shared_contract import segmenters_config
from slime_was import Postprocess, tensors

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"

RESERVED = ("vae_encoder", "tiny_encoder_fp16", "car_unet", "car_unet_weighted")


def ensemble(**changes: Any) -> str:
    options: dict[str, Any] = {"segmenter": "car", "versions": Versions(unet=7), "parameters": {}}
    return contract.ensemble_config(**(options | changes))


def test_committed_files_are_generated() -> None:
    """To regenerate: write the text of these functions into the files."""
    assert (REPOSITORY / "preprocess/config.pbtxt").read_text() == contract.preprocess_config()
    assert (REPOSITORY / "was/config.pbtxt").read_text() == contract.was_config()
    assert (REPOSITORY / "segmenters/config.pbtxt").read_text() == segmenters_config()


def test_ends_take_one_image_on_the_cpu() -> None:
    for text in (contract.preprocess_config(Reading(image_size=128)), contract.was_config()):
        config = parsed(text)
        assert (config.backend, config.max_batch_size) == ("python", 0)
        assert [(group.count, group.kind) for group in config.instance_group] == [
            (1, config.instance_group[0].KIND_CPU)
        ]
        assert config.version_policy.latest.num_versions == 2
    assert parsed(contract.preprocess_config(Reading(image_size=128))).parameters["image_size"].string_value == "128"


def test_networks_batch_dynamically_and_choose_their_device() -> None:
    encoder = parsed(contract.vae_encoder_config(backbone="ab12", image_size=128, latent_channels=4, latent_size=32))
    unet = parsed(contract.unet_config(segmenter="car", parts=6, latent_channels=4, latent_size=32))
    for config in (encoder, unet):
        assert (config.backend, config.max_batch_size) == ("onnxruntime", contract.MAX_BATCH)
        assert config.HasField("dynamic_batching")
        assert [(group.count, group.kind) for group in config.instance_group] == [
            (1, config.instance_group[0].KIND_AUTO)
        ]
    assert encoder.parameters["backbone"].string_value == "ab12"
    assert list(encoder.input[0].dims) == [3, 128, 128]
    assert [(tensor.name, list(tensor.dims)) for tensor in unet.output] == [
        ("CROSS", [-1, 32, 32]),
        ("SELF", [1024, 1024]),
        ("POSTPROCESS", [-1]),
    ]


def test_no_queue_has_a_limit() -> None:
    """With one, a batcher holds requests back by half a second now and then; `preprocess` limits what comes in."""
    encoder = parsed(contract.vae_encoder_config(backbone="ab12", image_size=128, latent_channels=4, latent_size=32))
    unet = parsed(contract.unet_config(segmenter="car", parts=6, latent_channels=4, latent_size=32))
    assert encoder.HasField("dynamic_batching") and unet.HasField("dynamic_batching")
    for each in (encoder, unet, parsed(contract.was_config()), parsed(contract.preprocess_config())):
        assert not each.dynamic_batching.HasField("default_queue_policy")
    assert unet.dynamic_batching.max_queue_delay_microseconds == 1000


def test_networks_are_run_with_each_batch_size_before_they_count_as_loaded() -> None:
    fixed: dict[str, Any] = {"segmenter": "car", "parts": 6, "latent_channels": 4, "latent_size": 32}
    for kind in ({}, {"variant": Variant(format="tensorrt")}, {"accelerator": Accelerator(name="cuda")}):
        warm = parsed(contract.unet_config(**fixed, **kind)).model_warmup
        assert [each.batch_size for each in warm] == list(range(1, contract.MAX_BATCH + 1))
        assert all(list(each.inputs["LATENTS"].dims) == [4, 32, 32] for each in warm)
    for_cpu = parsed(contract.unet_config(**fixed, accelerator=Accelerator(name="cpu")))
    assert [each.batch_size for each in for_cpu.model_warmup] == [1]


def test_ensemble_is_linear_and_pinned() -> None:
    config = parsed(ensemble())
    steps = config.ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [
        ("preprocess", 1),
        ("vae_encoder", 1),
        ("car_unet", 7),
        ("was", 1),
    ]
    assert config.version_policy.latest.num_versions == 2
    assert not config.instance_group
    known = {"IMAGE"}
    for step in steps:
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())
    assert {"MASK", "SCORES"} <= known


def test_parameters_survive_quoting() -> None:
    parameters = {"parts": '["back\\"ground", "räder", "line\\nend"]', "form": "baked", "odd": 'a\nb\\n"c"'}
    config = parsed(ensemble(parameters=parameters))
    read = {key: value.string_value for key, value in config.parameters.items()}
    assert {key: read[key] for key in parameters} == parameters


@pytest.mark.parametrize("name", ["", "a b", "preprocess", "was", *RESERVED, "../x", "-x", "a" * 65])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="segmenter name"):
        contract.unet_name(name)


def test_wrong_numbers_are_refused() -> None:
    for parts in (1, 78):
        with pytest.raises(ValueError, match=f"got {parts}, expected 2 to 77"):
            contract.unet_config(segmenter="car", parts=parts, latent_channels=4, latent_size=8)
    with pytest.raises(ValueError, match="from 1 on"):
        Versions(unet=0)
    with pytest.raises(ValueError, match="dims"):
        contract.Tensor(name="X", dtype="FP32", dims=(0,))
    with pytest.raises(ValueError, match="dtype"):
        contract.Tensor(name="X", dtype="FP8", dims=(1,))


def test_segmenters_that_read_otherwise_have_their_own_preprocess_model() -> None:
    postprocess = Postprocess(patches=2, patch_side=400 / 512, side=512, edge_tolerance=0.1)
    reading = Reading(channel_order="bgr", postprocess=postprocess)
    assert reading.model == "preprocess_bgr_2x400"
    parameters = parsed(contract.preprocess_config(reading)).parameters
    assert parameters["crops"].string_value == "[[0, 0], [0, 112], [112, 0], [112, 112]]"
    assert parameters["crop_side"].string_value == "400"
    steps = parsed(ensemble(reading=reading)).ensemble_scheduling.step
    assert steps[0].model_name == "preprocess_bgr_2x400"
    assert "GUIDE_IMAGE" in steps[0].output_map and "GUIDE_IMAGE" in steps[3].input_map
    assert "GUIDE_IMAGE" not in parsed(ensemble()).ensemble_scheduling.step[3].input_map
    with pytest.raises(ValueError, match="got 9 crops of an image, expected at most 8"):
        Reading(postprocess=Postprocess(patches=3, patch_side=0.5))


def test_a_unet_that_weights_is_a_model_of_its_own_and_gives_no_self_map() -> None:
    variant = Variant(maps="weighted", precision="fp16", encoder="tiny", format="tensorrt")
    unet = parsed(contract.unet_config(segmenter="car", parts=6, latent_channels=4, latent_size=32, variant=variant))
    assert (unet.name, unet.backend) == ("car_unet_weighted_tensorrt", "tensorrt")
    assert [(tensor.name, list(tensor.dims)) for tensor in unet.output] == [
        ("CROSS", [-1, 32, 32]),
        ("ACCUMULATED", [-1, 32, 32]),
        ("POSTPROCESS", [-1]),
    ]
    config = parsed(ensemble(variant=variant))
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["preprocess", "tiny_encoder_fp16_tensorrt", unet.name, "was"]
    assert set(steps[3].input_map) == {"CROSS", "ACCUMULATED", "POSTPROCESS", "SIZE", "STARTED"}
    said = {key: value.string_value for key, value in config.parameters.items()}
    assert said == {"maps": "weighted", "precision": "fp16", "encoder": "tiny", "format": "tensorrt"}
    optional = {tensor.name for tensor in parsed(contract.was_config()).input if tensor.optional}
    assert optional == {"SELF", "ACCUMULATED", "GUIDE_IMAGE", "PART_MASK", "STARTED"}


def test_a_plan_is_named_as_such_and_runs_on_a_gpu_or_not_at_all() -> None:
    variant = Variant(format="tensorrt")
    config = parsed(contract.unet_config(segmenter="car", parts=6, latent_channels=4, latent_size=32, variant=variant))
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, config.instance_group[0].KIND_GPU)]


def test_an_accelerator_is_what_triton_reads() -> None:
    accelerator = Accelerator(name="tensorrt", parameters={"precision_mode": "FP16", "trt_engine_cache_enable": "1"})
    sizes = {"latent_channels": 4, "latent_size": 32}
    unet = contract.unet_config(segmenter="car", parts=6, accelerator=accelerator, **sizes)
    encoder = contract.vae_encoder_config(backbone="ab12", image_size=128, accelerator=accelerator, **sizes)
    for config in (parsed(unet), parsed(encoder)):
        (found,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (found.name, dict(found.parameters)) == ("tensorrt", dict(accelerator.parameters))
        assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    with pytest.raises(ValueError, match="got an accelerator for tensorrt, expected onnxruntime"):
        contract.unet_config(
            segmenter="car", parts=6, variant=Variant(format="tensorrt"), accelerator=accelerator, **sizes
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_openvino_is_a_format_of_its_own(precision: str) -> None:
    variant, sizes = Variant(format="openvino", precision=precision), {"latent_channels": 4, "latent_size": 32}
    unet = contract.unet_config(segmenter="car", parts=6, variant=variant, **sizes)
    encoder = contract.vae_encoder_config(backbone="ab12", image_size=128, variant=variant, **sizes)
    in_bf16 = "_bf16" * (precision == "bf16")
    names = [f"car_unet{in_bf16}_openvino", f"vae_encoder{in_bf16}_openvino"]
    for config, name in zip((parsed(unet), parsed(encoder)), names, strict=True):
        (found,) = config.optimization.execution_accelerators.cpu_execution_accelerator
        assert (config.name, config.backend, found.name) == (name, "onnxruntime", "openvino")
        assert dict(found.parameters) == {"precision": "bf16" if in_bf16 else "fp32"}
        assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
        assert len(config.model_warmup) == contract.MAX_BATCH
    assert contract.is_unet(names[0]) and contract.is_encoder(names[1])
    with pytest.raises(ValueError, match="precision fp16: OpenVINO has no gain from it"):
        Variant(format="openvino", precision="fp16")


def test_words_a_form_does_not_know() -> None:
    with pytest.raises(ValueError, match="precision: got 'fp8', expected one of fp32, fp16, bf16, int8"):
        Variant(precision="fp8")
    assert contract.encoder_name("vae", "int8") == "vae_encoder"


@pytest.mark.parametrize("model", ["preprocess", "was", "segmenters"])
def test_served_models_use_the_contracts_tensors(model: str) -> None:
    """Two of the models cannot import the names, and write them out."""
    config = parsed((REPOSITORY / model / "config.pbtxt").read_text())
    wanted = {tensor.name for tensor in (*config.input, *config.output)}
    known = {value for name, value in vars(tensors).items() if name.isupper()}
    used: set[str] = set()
    for path in (REPOSITORY / model / "1" / "model.py", *(REPOSITORY / model).glob("slime_store/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isupper():
                used.add(node.value)
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "tensors"
                and model == "was"
            ):
                used.add(getattr(tensors, node.attr))
    # A former name, which files of shared segmenters may still have.
    assert wanted <= known and used - {"WEIGHTING"} == wanted
