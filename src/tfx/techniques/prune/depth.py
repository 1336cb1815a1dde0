"""Which layers stay: evenly spaced ones, every other one by LayerDrop's rule, or those that the loss needs most."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from tfx.errors import UserError
from tfx.model.rewiring import evenly_spaced
from tfx.model.transformer import Transformer


def every_other(kept: int, layers: int, setting: str) -> list[int]:
    """The numbers that stay where each m-th layer goes: m is how many there are for each that goes (Fan 2020).

    Raises `UserError`, which names ``setting``, where that leaves another number of layers.
    """
    by_rule = {layers: list(range(layers))}
    for every in range(layers, 1, -1):
        left = [number for number in range(layers) if (number + 1) % every]
        by_rule.setdefault(len(left), left)
    if kept not in by_rule:
        counts = ", ".join(map(str, sorted(by_rule)))
        raise UserError(
            f"{setting}={kept}: dropping every n-th of {layers} layers can leave {counts}; name one of those, or "
            "technique.prune.structure.layers_by=spaced"
        )
    return by_rule[kept]


def layers_by_rule(rule: str, kept: int, layers: int, setting: str) -> list[int]:
    """The numbers of the layers that stay, where no model is needed to tell. Raises `UserError` as `every_other`."""
    return every_other(kept, layers, setting) if rule == "every_other" else evenly_spaced(kept, layers)


def layers_by_loss(
    model: Transformer, kept: Mapping[str, int], loss: Callable[[], float]
) -> tuple[dict[str, list[int]], float]:
    """The layers that stay where one after another goes, each time that without which the loss is lowest.

    ``kept`` says how many, by stack; ``loss()`` is that of ``model`` as it is when called. Returns their numbers, and
    the loss with them alone.
    """
    found: dict[str, list[int]] = {}
    lowest = loss()
    whole = {name: getattr(model, name).blocks for name in kept}
    try:
        for name, count in kept.items():
            stack, blocks = getattr(model, name), list(whole[name])
            numbers = list(range(len(blocks)))
            while len(numbers) > count:
                trials = {}
                for gone in numbers:
                    stack.blocks = nn.ModuleList(blocks[number] for number in numbers if number != gone)
                    trials[gone] = loss()
                # Of equals the later goes: what an earlier layer does others read.
                worst = min(trials, key=lambda number: (trials[number], -number))
                lowest = trials[worst]
                numbers.remove(worst)
            stack.blocks = nn.ModuleList(blocks[number] for number in numbers)
            found[name] = numbers
    finally:
        for name, blocks in whole.items():
            getattr(model, name).blocks = blocks
    return found, lowest
