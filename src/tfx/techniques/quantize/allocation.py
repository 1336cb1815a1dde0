"""The rate that a budget of bytes allows: the bits of each weight with which the whole file keeps it.

A rate is an allocation already: each matrix gets the bits that its measured sensitivity is worth, for one bit more
saves the same loss everywhere (`scales_for_rate`, `choose`). What is left to find is the sum. What lies beside the
codes (tokenizer, header, tables, scales, vectors) is known only from a file, so files are written until one fits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tfx.compression import checkpoint
from tfx.compression.checkpoint import Storage
from tfx.compression.container import compress
from tfx.compression.grid import Grid
from tfx.compression.merges import split_merges
from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.parameter_roles import is_within
from tfx.model.transformer import Transformer
from tfx.techniques.quantize.settings import LEAST_RATE, MOST_RATE

# A file that leaves no more than this share of its budget is large enough; the next try aims at half of it.
_SPARE = 0.004
_TRIES = 8
# Stands for the rate until the model is known.
_BEFORE = 2.0
# Files are written before training where the rate is less than this many times the least; and what they may be off by.
_CLOSE, _DOUBT = 2, 1.05
# What a small file has beside its weights and its tokenizer, about.
_HEADER = 1500


Named = TypeVar("Named")


def rates_of(
    tensors: Mapping[str, Named], rate: float, embedding_rate: float | None
) -> Iterator[tuple[float, dict[str, Named]]]:
    """Tensors by name, or what belongs to them, with the rate that they have together: those of the blocks, the others.

    One rate for all of them if ``embedding_rate`` is None.
    """
    if embedding_rate is None:
        yield rate, dict(tensors)
        return
    for is_block, its_rate in ((True, rate), (False, embedding_rate)):
        part = {name: value for name, value in tensors.items() if is_within(name) == is_block}
        if part:
            yield its_rate, part


class ByteBudget:
    """The bytes that a file may have, and the ``rate`` for them; ``is_known`` once it is more than a place to begin.

    ``most_rate`` is the highest that the codes have room for.
    """

    def __init__(self, most: int | None, ratio: float | None, most_rate: float) -> None:
        self.most, self.ratio = most, ratio
        self.most_rate = max(LEAST_RATE, most_rate)
        self.rate, self.is_known = min(_BEFORE, self.most_rate), False
        # Of what has a rate of its own; ``rate`` is that of the others.
        self.embedding_rate: float | None = None
        self.tokenizer: Tokenizer | None = None
        self.generation = EvaluationConfig()

    @classmethod
    def of(cls, most: int | None, ratio: float | None, most_rate: float) -> ByteBudget | None:
        """The budget of a whole file, or of its part of plain fp32 weights; None if neither is named."""
        return None if most is None and ratio is None else cls(most, ratio, most_rate)

    def __str__(self) -> str:
        return f"{self.most:,} bytes, the whole file" if self.most is not None else f"1/{self.ratio:g} of fp32"

    def limit(self, model: Transformer) -> float:
        """The most bytes of the whole file."""
        if self.most is not None:
            return float(self.most)
        assert self.ratio is not None
        dense = sum(parameter.numel() * 4 for parameter in model.parameters())
        return dense / self.ratio + self._of_tokenizer()

    def first_rate(self, model: Transformer, quantized: Mapping[str, Tensor]) -> float:
        """A rate to train with, from counts of weights alone."""
        others = sum(parameter.numel() for parameter in model.parameters()) - _count(quantized)
        free = self._free(quantized)
        kept = (_count(quantized) - free) * (self.embedding_rate or 0.0) / 8
        return first_rate(self.limit(model) - kept, free, others, self._of_tokenizer(), self.most_rate)

    def _free(self, quantized: Mapping[str, Tensor]) -> int:
        """How many weights have the rate that is to be found."""
        return next((_count(part) for _, part in rates_of(quantized, 0.0, self.embedding_rate)), 0)

    def meet(
        self,
        model: Transformer,
        quantized: Mapping[str, Tensor],
        storage: Storage,
        grids_at: Callable[[float], Mapping[str, Grid]],
    ) -> None:
        """Calls ``grids_at`` with rates until the file keeps the budget and fills it. Raises `UserError` as `meet`."""

        def bytes_at(rate: float) -> int:
            assert self.tokenizer is not None
            return file_bytes(model, grids_at(rate), storage, self.tokenizer, self.generation)

        meet(
            self.limit(model),
            self._free(quantized),
            self.rate if self.is_known else self.first_rate(model, quantized),
            bytes_at,
            self.most_rate,
        )

    def check(
        self,
        model: Transformer,
        quantized: Mapping[str, Tensor],
        storage: Storage,
        grids_at: Callable[[Mapping[str, Tensor], float], Mapping[str, Grid]],
    ) -> None:
        """Raises `UserError` where not even the least rate fits, before any training.

        ``grids_at`` quantizes weights at a rate. Weights of any values have the codes of a rate in as many bits; so the
        file is written with drawn ones, where it is near the limit at all.
        """
        limit, count = self.limit(model), _count(quantized)
        others = sum(parameter.numel() for parameter in model.parameters()) - count
        most = max(LEAST_RATE, self.embedding_rate or 0.0)
        if 8 * (limit - self._of_tokenizer() - 2 * others) > _CLOSE * most * count:
            return
        assert self.tokenizer is not None
        drawn = Transformer(model.architecture)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in drawn.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        parameters = dict(drawn.named_parameters())
        weights = {name: parameters[name].detach() for name in quantized}
        grids = grids_at(weights, LEAST_RATE)
        size = file_bytes(drawn, grids, storage, self.tokenizer, self.generation)
        # What is left after training may code a little better.
        if size > limit * _DOUBT:
            raise _unreachable(limit, size, self.embedding_rate)

    def _of_tokenizer(self) -> int:
        """The bytes of the tokenizer in a compressed file."""
        assert self.tokenizer is not None
        text, merges = split_merges(self.tokenizer.to_json())
        return len(compress(text.encode())) + (len(compress(merges)) if merges else 0)


def first_rate(limit: float, quantized: int, others: int, tokenizer: int, most: float = MOST_RATE) -> float:
    """A rate to begin with, from counts of weights alone: the others take two bytes each."""
    return _held(8 * (limit - tokenizer - _HEADER - 2 * others) / max(1, quantized), most)


def meet(limit: float, quantized: int, rate: float, bytes_at: Callable[[float], int], most: float = MOST_RATE) -> float:
    """The rate, with which ``bytes_at`` was called last, whose file has at most ``limit`` bytes and nearly as many.

    ``quantized`` weights take the rate, and it begins with ``rate``. No rate above ``most`` is tried, even if its file
    would fit. Raises `UserError` if not even the least rate fits.
    """
    fits: tuple[float, int] | None = None
    breaks: tuple[float, int] | None = None
    aim = limit * (1 - _SPARE / 2)
    for _ in range(_TRIES):
        size = bytes_at(rate)
        if size <= limit:
            if size >= limit * (1 - _SPARE) or rate == most:
                return rate
            fits = rate, size
        elif rate == LEAST_RATE:
            raise _unreachable(limit, size)
        else:
            breaks = rate, size
        if fits is not None and breaks is not None:
            # On the line through both: sizes are nearly straight in the rate.
            share = (aim - fits[1]) / (breaks[1] - fits[1])
            rate = fits[0] + min(0.95, max(0.05, share)) * (breaks[0] - fits[0])
        else:
            rate = _held(rate + 8 * (aim - size) / max(1, quantized), most)
    if fits is None or bytes_at(fits[0]) > limit:
        raise UserError(f"technique.quantize: no rate was found whose file has at most {limit:,.0f} bytes: allow more")
    return fits[0]


def _unreachable(limit: float, size: int, embedding_rate: float | None = None) -> UserError:
    kept = "" if embedding_rate is None else f" and technique.quantize.embedding_rate={embedding_rate:g}"
    return UserError(
        f"technique.quantize: a file of {limit:,.0f} bytes cannot be reached: at the least rate, {LEAST_RATE:g} bits "
        f"per weight{kept}, it has {size:,}; allow more, or take a narrower model or a smaller vocabulary"
    )


def file_bytes(
    model: Transformer,
    grids: Mapping[str, Grid],
    storage: Storage,
    tokenizer: Tokenizer,
    generation: EvaluationConfig,
) -> int:
    """The bytes of the file of ``model`` with these grids; all other weights are rounded to the type of ``storage``."""
    stored, aliases = checkpoint.unique_tensors(model)
    state = {
        name: grids[name].values() if name in grids else weight.to(storage.dtype).float()
        for name, weight in stored.items()
    }
    state |= {alias: state[name] for alias, name in aliases.items()}
    twin = Transformer.holding(model.architecture, state)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sized.safetensors"
        written = Storage(grids, storage.dtype, storage.entropy, storage.int8)
        checkpoint.save(file, twin, tokenizer, generation, written)
        return file.stat().st_size


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _held(rate: float, most: float) -> float:
    return min(most, max(LEAST_RATE, rate))
