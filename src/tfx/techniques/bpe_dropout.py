"""BPE dropout (Provilkov 2020, arXiv 1910.13267): words are split anew in each batch, by fewer merges."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tfx.config.schema import Root, setting
from tfx.data.merges import Merges
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.batch import IGNORE, Batch
from tfx.record.seeds import derive_seed
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import Instant, Mean, Technique, TechniqueSettings

# A word is split in at most this many ways, each drawn by itself; an occurrence of the word takes one of them. The ways
# of frequent words are kept, for to split a word costs more than to train on it.
_WAYS = 64
_KEPT = 200_000


@dataclass
class BpeDropoutSettings(TechniqueSettings):
    """Settings of `BpeDropout`."""

    rate: float = setting(
        0.1, "probability that a possible merge is left out, each time that one is chosen", above=0, maximum=1
    )


class BpeDropout(Technique):
    """Splits the words of a batch into other pieces, of which there are more; evaluation never sees it.

    Begin, end and unknown tokens stay. A row that would pass the context is cut there, unless it has an end token: then
    it stays as it was.
    """

    name = "bpe_dropout"
    Settings = BpeDropoutSettings
    effects = ("splits words anew",)

    settings: BpeDropoutSettings

    def __init__(self, settings: BpeDropoutSettings) -> None:
        super().__init__(settings)
        self._merges: Merges | None = None
        self._context = 0
        self._seed = 0
        self._ways: dict[tuple[tuple[int, ...], int], list[int]] = {}
        self._words = Mean()
        self._longer = Mean()

    def check(self, config: Root) -> None:
        tokenizer = config.dataset.tokenizer
        if config.init_from is None and tokenizer.path is None and tokenizer.kind != "bpe":
            raise UserError(
                f"technique.bpe_dropout leaves out merges of a byte-pair encoding, and dataset.tokenizer.kind="
                f"{tokenizer.kind} has none: set dataset.tokenizer.kind=bpe"
            )
        self._seed = config.seed

    def receive_data(self, data: PreparedData, architecture: Architecture) -> None:
        self._merges = Merges(data.tokenizer, f"technique.{self.name}")
        self._context = architecture.context

    # --- a batch ----------------------------------------------------------------------------------------

    def resize_batch(self, batch: Batch, moment: Instant) -> Batch:
        if not self.active(moment.progress):
            return batch
        seed = derive_seed(moment.seed, self.name, moment.step, moment.batch)
        rng = np.random.Generator(np.random.PCG64(seed))
        pad, special = batch.special[0], frozenset(batch.special)
        if batch.source_BS is not None:
            real = torch.ones_like(batch.source_BS, dtype=torch.bool)
            real = real if batch.source_mask_BS is None else batch.source_mask_BS
            rows = zip(batch.source_BS, real, strict=True)
            split = [self._split(ids[own].tolist(), special, rng, self._context) for ids, own in rows]
            source, mask = _padded([ids for ids, _ in split], pad)
            types = batch.types_BS
            if types is not None:
                # A piece is of the same text as the word that it comes from.
                whole = zip(types, real, split, strict=True)
                types, _ = _padded([own[kept][origins].tolist() for own, kept, (_, origins) in whole], 0)
            batch = replace(batch, source_BS=source, source_mask_BS=None if mask.all() else mask, types_BS=types)
        if batch.target_in_BT.shape[1]:  # a classifier reads no target
            targets = []
            for first, ids in zip(batch.target_in_BT[:, 0].tolist(), batch.target_out_BT, strict=True):
                whole_row = [first, *ids[ids >= 0].tolist()]
                targets.append(self._split(whole_row, special, rng, self._context + 1)[0])
            target_in, _ = _padded([row[:-1] for row in targets], pad)
            target_out, _ = _padded([row[1:] for row in targets], IGNORE)
            batch = replace(batch, target_in_BT=target_in, target_out_BT=target_out)
        return batch.counted()

    def _split(
        self, ids: list[int], special: frozenset[int], rng: np.random.Generator, limit: int
    ) -> tuple[list[int], list[int]]:
        """The tokens of a row, split anew, and the place in the row of the first token of the word of each."""
        found: list[int] = []
        origins: list[int] = []
        changed = words = 0
        start = 0
        for place in range(len(ids) + 1):
            if place < len(ids) and ids[place] not in special:
                continue
            for word, way in self._drawn(ids[start:place], rng):
                pieces = self._way(tuple(word), way)
                changed, words = changed + (pieces != word), words + 1
                found += pieces
                origins += [start] * len(pieces)
                start += len(word)
            found += ids[place : place + 1]
            origins += [place] * len(ids[place : place + 1])
            start = place + 1
        if len(found) > limit:
            # What a row ends with it must keep; a window of a stream ends anywhere.
            is_cut = ids[-1] not in special
            found, origins = (found[:limit], origins[:limit]) if is_cut else (ids, list(range(len(ids))))
            changed = changed if is_cut else 0
        self._words.add(float(changed), float(words))
        self._longer.add(float(len(found) - len(ids)), float(len(ids)))
        return found, origins

    def _drawn(self, ids: Sequence[int], rng: np.random.Generator) -> list[tuple[list[int], int]]:
        assert self._merges is not None
        words = self._merges.words(ids)
        return list(zip(words, rng.integers(_WAYS, size=len(words)).tolist(), strict=True))

    def _way(self, word: tuple[int, ...], way: int) -> list[int]:
        """One of the ways to split a word: the same in every step, and in a resumed run."""
        assert self._merges is not None
        if (word, way) not in self._ways:
            if len(self._ways) >= _KEPT:
                self._ways.clear()
            characters = self._merges.characters(word)
            if characters is None and len(word) > 1:
                pieces = [piece for token in word for piece in self._way((token,), way)]
            elif characters is None:
                pieces = list(word)
            else:
                rng = random.Random(derive_seed(self._seed, self.name, way, *word))
                pieces = self._merges.apply(characters, self.settings.rate, rng)
            self._ways[word, way] = pieces
        return self._ways[word, way]

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        return {"words_changed": self._words.value, "tokens_added": self._longer.value}

    def acted(self) -> bool:
        return self._words.value > 0

    def state_dict(self) -> dict[str, Any]:
        return {"words": self._words.state(), "longer": self._longer.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._words.restore(state["words"])
        self._longer.restore(state["longer"])


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one length, and a mask that is True on what they had."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = [token for row in rows for token in row]
    return torch.from_numpy(ids), torch.from_numpy(mask)
