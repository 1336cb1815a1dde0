"""The obvious alternative to compression: a narrower dense model, stored in 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tfx.config import compose
from tfx.config.inheritance import from_scratch
from tfx.config.schema import ModelConfig, Root
from tfx.experiments.search.size import head_unit, untrained_bytes

# Settings of quantize: 8 bits, one scale per output channel, trained with the grid in the last part of the budget.
INT8 = {"quantize": {"bits": 8, "granularity": "channel"}}


def narrow_int8(config: Root, plain: Path, target: float) -> Root:
    """``config`` with the width whose int8 file is nearest to ``target`` bytes (weights and header), from scratch.

    Heads and layers stay; the feed-forward width shrinks in proportion. ``plain`` is a model file with the
    tokenizer and the labels.
    Sizes are those of real files with untrained weights; trained ones differ by a few per cent after entropy coding.
    """
    from tfx.compression import checkpoint

    loaded = checkpoint.load(plain, kernels=False)
    tokenizer, outputs = loaded.tokenizer, loaded.model.architecture.outputs
    full = config.model
    unit = head_unit(full)
    sizes: dict[int, int] = {}

    def size(count: int) -> int:
        if count not in sizes:
            bytes_ = untrained_bytes(_at_width(config, count * unit), tokenizer, outputs)
            sizes[count] = bytes_.weights + bytes_.header
        return sizes[count]

    low, high = 1, max(1, full.width // unit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= target else (low, middle)
    return _at_width(config, unit * min((low, high), key=lambda count: abs(size(count) - target)))


def _at_width(config: Root, width: int) -> Root:
    full: ModelConfig = config.model
    ffn = max(1, round(full.ffn_width * width / full.width))
    narrow = replace(
        from_scratch(config),
        model=replace(full, name=f"{full.name} at width {width}", width=width, ffn_width=ffn),
        technique={name: dict(values) for name, values in INT8.items()},
        reference=None,
    )
    return compose.change(narrow, [])  # fills in the technique's other settings
