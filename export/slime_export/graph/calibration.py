"""ONNX graphs run with more outputs than they have: ranges of tensors over given inputs.

The model's file is never copied: weights that lie beside it are read from where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, TensorProto, helper

from slime_export.errors import ExportError

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Range = tuple[float, float]


def ranges(path: Path, tensors: Iterable[str], feeds: Feeds) -> dict[str, Range]:
    """The least and the largest value of each of `tensors` over all feeds. Raises ExportError where one is NaN."""
    names = list(dict.fromkeys(tensors))
    model = onnx.load(str(path), load_external_data=False)
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            model.graph.node.append(helper.make_node(op, [name], [f"{name}/{op}"], keepdims=0))
    del model.graph.output[:]
    ends = [f"{name}/{op}" for name in names for op in ("ReduceMin", "ReduceMax")]
    model.graph.output.extend(helper.make_tensor_value_info(end, TensorProto.FLOAT, []) for end in ends)
    running = session(model, path.parent)
    each_FN2 = np.array([running.run(ends, dict(feed)) for feed in feeds], np.float64).reshape(-1, len(names), 2)
    if not np.isfinite(each_FN2).all():
        bad = names[int(np.argwhere(~np.isfinite(each_FN2))[0][1])]
        raise ExportError(f"calibration: {bad} is not finite, expected numbers; check the images it was given")
    lows_N, highs_N = each_FN2[..., 0].min(0), each_FN2[..., 1].max(0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows_N, highs_N, strict=True)}


def session(model: ModelProto, folder: Path) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as PyTorch has; external weights lie in `folder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
