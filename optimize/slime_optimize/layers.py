"""The attention layers whose maps are averaged, by the names that diffusers gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_optimize.errors import BackboneError, InputError


def _blocks(level: int, attentions: tuple[int, ...], kind: str) -> tuple[str, ...]:
    return tuple(f"up_blocks.{level}.attentions.{i}.transformer_blocks.0.{kind}" for i in attentions)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The attention layers whose maps are averaged, by diffusers' names; the default is the paper's choice for SD 2.1.

    Raises InputError for an empty list, a name that occurs twice, or one of the wrong kind.
    """

    cross: tuple[str, ...] = _blocks(1, (0, 1, 2), "attn2") + _blocks(2, (0, 1), "attn2")
    self_: tuple[str, ...] = _blocks(3, (0, 1, 2), "attn1")

    def __post_init__(self) -> None:
        for role, names, ending in (("cross", self.cross, ".attn2"), ("self", self.self_, ".attn1")):
            if not names:
                raise InputError(f"{role} layers: got none, expected at least one attention layer name")
            if len(set(names)) != len(names):
                raise InputError(f"{role} layers: a layer is named twice, expected each one once")
            for name in names:
                if not name.endswith(ending):
                    raise InputError(f"{role} layer {name}: expected a name that ends in {ending}")

    def validate(self, unet: Any) -> None:
        """Raise BackboneError, naming the layers that exist, unless `unet` has every layer."""
        known = [name.removesuffix(".processor") for name in unet.attn_processors]
        for kind, wanted in (("attn2", self.cross), ("attn1", self.self_)):
            there = [name for name in known if name.endswith(kind)]
            for name in wanted:
                if name not in there:
                    raise BackboneError(f"attention layer {name}: not in this UNet; expected one of {_grouped(there)}")


def _grouped(names: Sequence[str]) -> str:
    """Return `a.attentions.[0,1].transformer_blocks.0.attn2, …`: one entry for each block of the UNet."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        block, _, rest = name.partition(".attentions.")
        index, _, tail = rest.partition(".")
        groups.setdefault((block, tail), []).append(index)
    found = [f"{b}.attentions.[{','.join(i)}].{t}" for (b, t), i in groups.items()]
    return ", ".join(found) or "nothing (it has no attention of this kind)"
