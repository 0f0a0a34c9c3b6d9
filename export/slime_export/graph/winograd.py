"""Rewrites 3 x 3 convolutions of an fp32 ONNX graph as Winograd's F(4x4, 3x3): a quarter of the products.

ONNX Runtime convolves directly on a CPU, close to what the machine can multiply; fewer products are all that is left
to gain. The image is cut into tiles of 6 x 6 that overlap by 2; each gives 4 x 4 results (Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks, 2015; eq. 8):

    Y = A' [ sum over c of (G g G') * (B' d B) ] A

d a tile, g a filter, * element by element: 36 products for 16 results of a channel, where directly there are 144. In
ONNX's own operators, so that nothing has to be built: a convolution of stride 4 with 36 filters is B' d B, a product of
matrices for each of the 36 places sums over channels, a transposed convolution of stride 4 is A' m A. Filters are
transformed here, in float64. Rounding grows about tenfold, to 1e-5 of a convolution's largest result.

Only for CPUs: GPUs' libraries choose such algorithms themselves.

Shapes: B batch, C channels in, K out, H x W the image, t tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slime_export.graph.inspection import Shape, inferred
from slime_export.graph.onnx_export import prune, replace

TILE, RESULT = 6, 4
# The fewest channels that were measured to gain, a quarter of the time (docs/export.md): transforming a channel costs
# the same, whatever it saves.
LEAST_CHANNELS = 128
# Transformed filters are four times as large; where an image has fewer tiles, they are most of what there is to read.
LEAST_TILES = 256
# Most bytes of a band's transformed tiles, which are 2.25 times the image. Larger bands are a little faster, and take
# their memory at once.
BAND_BYTES = 80_000_000

_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float64,
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float64) / [[24]]
_A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64)
_INPUT, _OUTPUT = "winograd/input", "winograd/output"
_PLAIN: dict[str, object] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
_DEFAULTS: dict[str, object] = {"strides": [1, 1], "dilations": [1, 1], "group": 1}


def rewritten(model: ModelProto, least_channels: int = LEAST_CHANNELS, least_tiles: int = LEAST_TILES) -> int:
    """Replace, in `model` itself, the convolutions that gain by it; return how many. Weights must be loaded.

    Those are 3 x 3, dense, of stride 1, with a margin of 1, on sides that are multiples of 4.
    """
    shapes = inferred(model).shapes
    weights = {each.name: each for each in model.graph.initializer}
    found: dict[str, _Convolution] = {}
    for node in model.graph.node:
        if _is_plain(node) and node.input[0] in shapes and node.input[1] in weights:
            each = _Convolution(node=node, source=shapes[node.input[0]], filters=weights[node.input[1]])
            if each.gains(least_channels, least_tiles):
                found[node.output[0]] = each
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.extend(found[node.output[0]].nodes() if node.output[0] in found else [node])
    for each in found.values():
        model.graph.initializer.extend(each.constants())
    # The filters that transform the image's tiles, and the sums: the same for all convolutions.
    inwards = np.einsum("ia,jb->ijab", _B, _B).reshape(TILE * TILE, 1, TILE, TILE)
    outwards = np.einsum("ai,bj->ijab", _A, _A).reshape(TILE * TILE, 1, RESULT, RESULT)
    for name, filters in ((_INPUT, inwards), (_OUTPUT, outwards)):
        model.graph.initializer.append(numpy_helper.from_array(filters.astype(np.float32), name))
    replace(model.graph.node, nodes)
    prune(model)
    return len(found)


def transformed(filters_KC33: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return G g G' of each filter: (36, K, C) float32."""
    places_66KC = np.einsum("ia,kcab,jb->ijkc", _G, filters_KC33.astype(np.float64), _G, optimize=True)
    flat: npt.NDArray[np.float32] = places_66KC.reshape(TILE * TILE, *filters_KC33.shape[:2]).astype(np.float32)
    return flat


@dataclass(frozen=True, kw_only=True)
class _Convolution:
    """A convolution that may be replaced. source: (B, C, H, W)."""

    node: NodeProto
    source: Shape
    filters: TensorProto

    def gains(self, least_channels: int, least_tiles: int) -> bool:
        _, channels, height, width = self.source
        is_float = self.filters.data_type == TensorProto.FLOAT
        whole = height % RESULT == 0 and width % RESULT == 0
        tiles = height * width // RESULT**2
        return is_float and whole and min(channels, self.filters.dims[0]) >= least_channels and tiles >= least_tiles

    def constants(self) -> Iterator[TensorProto]:
        yield numpy_helper.from_array(transformed(numpy_helper.to_array(self.filters)), self._named("filters"))
        for name, sizes in self._sizes().items():
            yield numpy_helper.from_array(np.array(sizes, np.int64), self._named(name))

    def nodes(self) -> Iterator[NodeProto]:
        """Yield X -> d, one channel at a time -> B' d B -> summed over channels at each place -> A' m A -> Y."""
        yield self._node("Reshape", "alone", self.node.input[0], self._named("to_alone"))
        results = []
        for band in range(self.bands):
            yield from self._band(band)
            results.append(self._named(f"results_{band}"))
        yield self._node("Concat", "results", *results, axis=2)
        yield self._node("Reshape", "whole", self._named("results"), self._named("to_whole"))
        last = [self._named("whole")]
        if len(self.node.input) > 2:
            yield self._node("Reshape", "bias", self.node.input[2], self._named("to_bias"))
            last.append(self._named("bias"))
        yield helper.make_node("Sum", last, self.node.output, name=self.node.name)

    def _band(self, band: int) -> Iterator[NodeProto]:
        """Yield what takes a band's rows, with the rows beside them as a margin, to its results."""

        def each(op: str, output: str, *inputs: str, **attributes: object) -> NodeProto:
            return self._node(op, f"{output}_{band}", *inputs, **attributes)

        def own(name: str) -> str:
            return self._named(f"{name}_{band}")

        pads = [int(band == 0), 1, int(band == self.bands - 1), 1]
        yield each("Slice", "rows", self._named("alone"), own("from"), own("to"), self._named("axis"))
        yield each("Conv", "tiles", own("rows"), _INPUT, strides=[RESULT] * 2, pads=pads)
        yield each("Reshape", "tiles_flat", own("tiles"), self._named("to_places"))
        yield each("Transpose", "tiles_by_place", own("tiles_flat"), perm=[0, 2, 1, 3])
        yield each("MatMul", "sums_by_place", self._named("filters"), own("tiles_by_place"))
        yield each("Transpose", "sums_flat", own("sums_by_place"), perm=[0, 2, 1, 3])
        yield each("Reshape", "sums", own("sums_flat"), self._named("to_tiles"))
        yield each("ConvTranspose", "results", own("sums"), _OUTPUT, strides=[RESULT] * 2)

    @property
    def bands(self) -> int:
        """The fewest bands of equal height whose transformed tiles stay within BAND_BYTES."""
        _, channels, height, width = self.source
        rows = height // RESULT
        most = BAND_BYTES // (4 * TILE * TILE * channels * width // RESULT)
        return next((each for each in range(1, rows) if rows % each == 0 and rows // each <= most), rows)

    def _sizes(self) -> Mapping[str, tuple[int, ...]]:
        _, channels, height, width = self.source
        high, wide, out = height // self.bands, width // RESULT, int(self.filters.dims[0])
        places, tiles = TILE * TILE, high // RESULT * wide
        sizes: dict[str, tuple[int, ...]] = {
            "to_alone": (-1, 1, height, width),
            "to_places": (-1, channels, places, tiles),
            "to_tiles": (-1, places, high // RESULT, wide),
            "to_whole": (-1, out, height, width),
            "to_bias": (out, 1, 1),
            "axis": (2,),
        }
        for band in range(self.bands):
            sizes[f"from_{band}"] = (max(0, band * high - 1),)
            sizes[f"to_{band}"] = (min(height, (band + 1) * high + 1),)
        return sizes

    def _named(self, name: str) -> str:
        return f"{self.node.output[0]}/winograd/{name}"

    def _node(self, op: str, output: str, *inputs: str, **attributes: object) -> NodeProto:
        name = self._named(output)
        return helper.make_node(op, list(inputs), [name], name=name, **attributes)


def _is_plain(node: NodeProto) -> bool:
    """Whether a node is a 3 x 3 convolution that keeps the image's size."""
    if node.op_type != "Conv":
        return False
    said = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    said.pop("auto_pad", None)
    return {**_DEFAULTS, **said} == {**_DEFAULTS, **_PLAIN}
