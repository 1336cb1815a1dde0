"""Where each tensor of ours lies among those of another library: one map, read both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Reads a tensor of the other library by its name; raises KeyError where there is none.
Reader = Callable[[str], Tensor]


@dataclass(frozen=True)
class Place:
    """One tensor of ours, and where it lies in one of theirs.

    Ours is theirs, transposed where ``transposed`` (a matrix that is stored as inputs by outputs); of that the ``part``
    of its rows, as (number, of how many equal parts); then with rows or columns (``axis``) in the given ``order``,
    times ``scale``. ``skipped`` rows of theirs come before all that. ``is_row``: theirs has a first dimension of 1.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] | None = None
    skipped: int = 0
    scale: float = 1.0
    axis: int = 0
    order: Tensor | None = None
    is_row: bool = False

    def read(self, theirs: Tensor, shape: Sequence[int]) -> Tensor:
        """Our tensor of this shape, in fp32; raises `ValueError` where theirs does not fit."""
        value = theirs.float()
        if self.is_row:
            value = value.squeeze(0)
        if self.transposed:
            value = value.t()
        value = value[self.skipped :]
        if self.part is not None:
            number, parts = self.part
            value = value.chunk(parts)[number]
        if list(value.shape) != list(shape):
            raise ValueError(f"'{self.theirs}' has the shape {list(theirs.shape)}, and config.json asks for another")
        if self.order is not None:
            value = value.index_select(self.axis, self.order)
        return (value * self.scale).contiguous()

    def write(self, ours: Tensor) -> Tensor:
        """Their tensor, or its part; not yet transposed."""
        value = ours / self.scale
        if self.order is not None:
            value = value.index_select(self.axis, self.order.argsort())
        return value.unsqueeze(0) if self.is_row else value


def read_state(places: Iterable[Place], shapes: Mapping[str, Sequence[int]], read: Reader) -> dict[str, Tensor]:
    """Our tensors, from theirs. Raises `KeyError` or `ValueError` for one that is missing or does not fit."""
    found: dict[str, Tensor] = {}
    for place in places:
        if place.ours in shapes:
            found[place.ours] = place.read(read(place.theirs), shapes[place.ours])
    assert found.keys() == shapes.keys(), sorted(found.keys() ^ shapes.keys())
    return found


def write_state(places: Iterable[Place], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, from ours. Raises `ValueError` where several of ours are one of theirs, and differ."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    transposed: dict[str, bool] = {}
    for place in places:
        if place.skipped:  # nothing of ours is there: their positions of padding, which no model reads
            parts.setdefault(place.theirs, []).append((-1, torch.zeros(place.skipped, state[place.ours].shape[1])))
        number = place.part[0] if place.part is not None else 0
        value = place.write(state[place.ours])
        if place.part is None and place.theirs in transposed:
            if not torch.equal(value, parts[place.theirs][-1][1]):
                raise ValueError(f"'{place.ours}' differs from that of another block, and '{place.theirs}' is of all")
            continue
        parts.setdefault(place.theirs, []).append((number, value))
        transposed[place.theirs] = place.transposed
    found = {}
    for name, pieces in parts.items():
        value = torch.cat([piece for _, piece in sorted(pieces, key=lambda pair: pair[0])])
        found[name] = (value.t() if transposed[name] else value).contiguous()
    return found


def in_order(places: Iterable[Place], order: Tensor) -> list[Place]:
    """The places with the model width in another order; every tensor has it in one of its dimensions, or in none."""
    found = []
    for place in places:
        axis = width_axis(place.ours)
        found.append(place if axis is None else replace(place, axis=axis, order=order))
    return found


def width_axis(name: str) -> int | None:
    """The dimension of one of our tensors that is the model width, the residual stream's; None where it has none."""
    if name.endswith(("relative_bias", "slopes")) or name == "output.bias":
        return None
    if "norm" in name:
        return None if name.endswith(("q_norm.weight", "k_norm.weight")) else 0
    writes = name.endswith((".o.weight", ".o.bias", ".down.weight", ".down.bias"))
    if writes:
        return 0
    return None if name.endswith("bias") else 1
