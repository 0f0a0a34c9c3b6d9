"""Answers that no segmenter gives: whatever a server sends, the client ends with a mask or a SegmenterError."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from fake_triton import CAR, FakeTriton
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]

from slime_client import Mask, SegmenterError
from slime_client.core import SegmenterCore
from slime_client.protocol import Call, Work

IMAGE = np.zeros((6, 8, 3), np.uint8)


def configuration(parameters: dict[str, str]) -> Any:
    answer = service_pb2.ModelConfigResponse()
    for key, value in parameters.items():
        answer.config.parameters[key].string_value = value
    return answer


def answer() -> Any:
    """A right one."""
    right = service_pb2.ModelInferResponse(model_name="car", model_version="1")
    right.outputs.add(name="MASK", datatype="UINT8", shape=[6, 8])
    right.raw_output_contents.append(bytes(48))
    right.outputs.add(name="SCORES", datatype="FP32", shape=[3, 4, 4])
    right.raw_output_contents.append(bytes(192))
    return right


def asked(told: Any, answered: Any) -> Mask | SegmenterError:
    """What becomes of a connection that is told so and an image that is answered so; nothing else may be raised."""
    core = SegmenterCore("127.0.0.1:1", "car", shared_memory=False)
    answers = {"ModelConfig": told, "ModelInfer": answered, "RepositoryIndex": service_pb2.RepositoryIndexResponse()}

    def run(steps: Any) -> Any:
        try:
            step = next(steps)
            while True:
                step = steps.send(
                    answers[step.method]
                    if isinstance(step, Call)
                    else step.function()
                    if isinstance(step, Work)
                    else None
                )
        except StopIteration as end:
            return end.value

    try:
        run(core._connecting())
        return run(core._segmenting(IMAGE, scores=True, timeout=None))
    except SegmenterError as error:
        assert "\n" not in str(error)
        return error


def mutated(message: Any, chance: random.Random) -> Any:
    """The message with a few bytes of its wire form changed, inserted or left out; None where it cannot be read."""
    wire = bytearray(message.SerializeToString())
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(wire))
        wire[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
    changed = type(message)()
    try:
        changed.ParseFromString(bytes(wire))
    except DecodeError:
        return None
    return changed


def test_the_right_answer() -> None:
    assert isinstance(asked(configuration(CAR), answer()), Mask)


@pytest.mark.parametrize("part", ["description", "answer"])
def test_a_thousand_wrong_ones(part: str) -> None:
    chance = random.Random(5)
    masks = errors = 0
    while masks + errors < 1000:
        told, answered = configuration(CAR), answer()
        changed = mutated(told if part == "description" else answered, chance)
        if changed is None:
            continue
        ended = asked(changed, answered) if part == "description" else asked(told, changed)
        masks += isinstance(ended, Mask)
        errors += isinstance(ended, SegmenterError)
    assert errors > 100


@pytest.mark.parametrize("value", [None, 7, "car", [], {}, [[]], [None], [["a"]], "x" * 100_000, -1e308])
@pytest.mark.parametrize("key", ["parts", "colours"])
def test_descriptions_of_any_json(key: str, value: Any) -> None:
    ended = asked(configuration({**CAR, key: json.dumps(value)}), answer())
    assert isinstance(ended, SegmenterError)
    assert ended.code == "INTERNAL"
    assert len(str(ended)) < 1000


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ([6, 8], bytes(47)),
        ([6, 8], b""),
        ([-6, -8], bytes(48)),
        ([0, 8], b""),
        ([2**40, 2**40], bytes(48)),
        ([48], bytes(48)),
    ],
)
def test_a_mask_whose_shape_is_not_its_size(shape: list[int], content: bytes) -> None:
    wrong = answer()
    wrong.outputs[0].shape[:] = shape
    wrong.raw_output_contents[0] = content
    ended = asked(configuration(CAR), wrong)
    assert isinstance(ended, SegmenterError)
    assert ended.code == "INTERNAL"


def test_random_bytes_as_images_are_refused_one_by_one(server: FakeTriton, car: Any) -> None:
    chance = random.Random(0)
    images = [chance.randbytes(chance.randint(1, 400)) for _ in range(200)]
    answers = list(car.segment_many(images, concurrency=16))
    assert {one.error and one.error.code for one in answers} == {"INVALID_ARGUMENT"}
