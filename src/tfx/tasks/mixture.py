"""The training splits of several corpora in one: each batch is of one corpus, drawn by the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.errors import UserError
from tfx.record.seeds import derive_seed
from tfx.tasks.contract import Split
from tfx.tasks.unnumbered import UnnumberedSplit

# Draws that share a generator.
_BLOCK = 1024


def with_monolingual_part(config: DatasetConfig, train: Split, own: Split, is_labelled: bool) -> Mixture:
    """The training split with one of texts without references beside it, by its share of the batches, else by size.

    ``is_labelled`` says whether a technique has given it targets. Raises `UserError` where sizes are not known.
    """
    known = train if isinstance(train, Mixture) else Mixture([config.name], [1.0], [train])
    share = config.monolingual_share
    if share is None:
        if known.size is None:
            raise UserError(
                "dataset.monolingual stands beside a stream, whose size is not known: say how much of the batches is "
                "of it, with dataset.monolingual_share=0.5"
            )
        share = len(own) / (len(known) + len(own))
    weight = sum(known.weights) * share / (1.0 - share)
    place = len(known.parts)
    return Mixture(
        [*known.names, "monolingual"],
        [*known.weights, weight],
        [*known.parts, own],
        known.unlabelled if is_labelled else (*known.unlabelled, place),
    )


@dataclass
class Mixture(UnnumberedSplit):
    """The training splits ``parts`` of the corpora ``names``, from which batches are drawn by ``weights``.

    ``unlabelled`` are the places of those that are texts without references.
    """

    names: list[str]
    weights: list[float]
    parts: list[Split]
    unlabelled: tuple[int, ...] = ()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def size(self) -> int | None:
        sizes = [part.size for part in self.parts]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def has_one_shape(self) -> bool:
        return all(part.has_one_shape for part in self.parts)

    def draws(self, seed: int, first: int = 0) -> Iterator[int]:
        """The part that each batch is of, from the ``first`` on, keyed by (seed, number of the batch)."""
        shares = np.asarray(self.weights) / sum(self.weights)
        while True:
            block, inside = divmod(first, _BLOCK)
            rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "mix", block)))
            drawn = rng.choice(len(self.parts), size=_BLOCK, p=shares)
            yield from drawn[inside:].tolist()
            first = (block + 1) * _BLOCK

    def drawn_before(self, seed: int, count: int) -> list[int]:
        """How many of the first ``count`` batches are of each part."""
        counts = [0] * len(self.parts)
        for _, part in zip(range(count), self.draws(seed), strict=False):
            counts[part] += 1
        return counts

    def shortest(self, context: int) -> int | None:
        known = [length for part in self.parts if (length := part.shortest(context)) is not None]
        return min(known) if len(known) == len(self.parts) else None

    def most_rows(self, batch_tokens: int, context: int) -> float | None:
        rows = [part.most_rows(batch_tokens, context) for part in self.parts]
        known = [share * each for share, each in zip(self.weights, rows, strict=True) if each is not None]
        return sum(known) / sum(self.weights) if len(known) == len(rows) else None

    @property
    def tokens_of_all(self) -> Iterator[np.ndarray]:
        return chain.from_iterable(part.tokens_of_all for part in self.parts)

    @property
    def longest(self) -> int:
        return max(part.longest for part in self.parts)

    def refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"the training split is a mixture of {' and '.join(self.names)}, and something in this run needs {what}: "
            "leave it out, or train on one corpus"
        )
