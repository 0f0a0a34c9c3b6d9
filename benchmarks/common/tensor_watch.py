"""Watch every tensor that PyTorch makes inside a with-block, forward and backward: the largest one, and bytes alive.

    with Watch() as watch:
        torch.autograd.backward(step())
    watch.largest, watch.peak_bytes

It works on meta tensors too, so that the memory of a step can be known before any is used.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """`largest`: elements of the largest tensor made. `peak_bytes`: most bytes alive at once of those made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0
        self.peak_bytes = 0
        self._alive_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            # An expanded view names more elements than there are.
            if isinstance(made, Tensor):
                self._see(made)
        return result

    def _see(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        size, key = storage.nbytes(), storage._cdata
        self.largest = max(self.largest, min(made.numel(), size // made.element_size()))
        if key in self._known:
            return
        self._known.add(key)
        self._alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive_bytes -= size
