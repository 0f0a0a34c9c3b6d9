"""Label Studio's run lengths of brush regions.

An image (H,W) is written as H * W * 4 values of 8 bits (RGBA), of which alpha is the region. All fields are bits, the
highest first:

    32  how many values       5  bits of a value, less 1       4 x 4  the four sizes of a length, each less 1
    then, until there are that many values:
    1   1: one value repeated, 0: as many values, each different
    2   which of the four sizes the length has
    .   the length, less 1
    8   the value, or each of the values
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slime_studio.errors import StudioError

_SIZES = (3, 4, 8, 16)
_WORD = 8
_HEADER_BITS = 32 + 5 + 4 * len(_SIZES)
_PAINTED = 128  # the least alpha that counts as painted

Region = npt.NDArray[np.bool_]


def encode(region_HW: Region) -> list[int]:
    """Return a region (H,W), true where it is painted, as Label Studio's bytes."""
    flat = region_HW.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths, values = 4 * np.diff(ends, prepend=0), flat[ends - 1]  # the four channels have the same value
    longest = 1 << _SIZES[-1]
    pieces = -(-lengths // longest)
    values = np.repeat(values, pieces)
    last = np.cumsum(pieces) - 1
    whole = np.full(values.size, longest)
    whole[last] = lengths - (pieces - 1) * longest
    kinds = np.searchsorted([1 << size for size in _SIZES], whole)
    fields = np.stack([4 + kinds, whole - 1, np.where(values, 255, 0)], axis=1)  # 4: the bit for repeated values
    widths = np.stack([np.full_like(kinds, 3), np.take(_SIZES, kinds), np.full_like(kinds, _WORD)], axis=1)
    header = [4 * flat.size, _WORD - 1, *(size - 1 for size in _SIZES)]
    fields = np.concatenate([header, fields.ravel()])
    widths = np.concatenate([[32, 5, 4, 4, 4, 4], widths.ravel()])
    below = np.repeat(np.cumsum(widths), widths) - 1 - np.arange(widths.sum())  # bits of the field that follow this one
    bits = (np.repeat(fields, widths) >> below) & 1
    found: list[int] = np.packbits(bits.astype(np.uint8)).tolist()
    return found


def decode(rle: Sequence[int], height: int, width: int) -> Region:
    """Return the region (H,W) in Label Studio's bytes: true where alpha is 128 or more.

    Raises StudioError where the bytes are damaged, or are not of an image of this size.
    """
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise StudioError("region: its run lengths are no bytes; paint it anew") from error
    end = 8 * len(data)

    def field(at: int, size: int) -> int:
        return int.from_bytes(data[at // 8 : (at + size + 7) // 8], "big") >> -(at + size) % 8 & (1 << size) - 1

    count, sizes = field(0, 32), [field(37 + 4 * place, 4) + 1 for place in range(len(_SIZES))]
    if end < _HEADER_BITS or field(32, 5) + 1 != _WORD or count != 4 * height * width:
        raise StudioError(
            f"region: its run lengths are for {count} values, expected {4 * height * width}, four for each pixel of "
            f"{width}x{height}; paint it anew"
        )
    values = np.empty(count, np.uint8)
    done, at = 0, _HEADER_BITS
    while done < count:
        repeated, size = field(at, 1), sizes[field(at + 1, 2)]
        length, at = field(at + 3, size) + 1, at + 3 + size
        bits = _WORD if repeated else _WORD * length
        if at + bits > end or done + length > count:
            raise StudioError("region: its run lengths are damaged; paint it anew")
        if repeated:
            values[done : done + length] = field(at, _WORD)
        else:
            covering = np.frombuffer(data, np.uint8)[at // 8 : (at + bits + 7) // 8]
            values[done : done + length] = np.packbits(np.unpackbits(covering)[at % 8 : at % 8 + bits])
        done, at = done + length, at + bits
    region_HW: Region = values.reshape(height, width, 4)[..., 3] >= _PAINTED
    return region_HW
