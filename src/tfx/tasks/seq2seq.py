"""Text to text: pairs of a source and a target, encoder and decoder, scored by the texts that the model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tfx.config.schema import DatasetConfig, EvaluationConfig
from tfx.data.batching import bucket
from tfx.data.ragged import Ragged, offsets_of
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import IGNORE, Batch
from tfx.model.decoding import Ends, output_limit, translate
from tfx.model.transformer import Transformer
from tfx.processes.group import ALONE, Group
from tfx.tasks.contract import Prompts, Split, Task, TimedWork, encoded, id_dtype, timed

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Pairs(Split):
    """A tokenized split of pairs; source and target ids have no begin or end tokens.

    ``texts`` gives source text and references by row, if the split is scored as text.
    """

    source: Ragged
    target: Ragged
    texts: Dataset | None = None

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, batch_tokens: int, context: int, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(len(self))
        batches = bucket(self.source.lengths + 1, self.target.lengths + 1, batch_tokens, order)
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, batch_tokens: int, context: int) -> Iterator[np.ndarray]:
        yield from bucket(self.source.lengths + 1, self.target.lengths + 1, batch_tokens, np.arange(len(self)))

    def collate(self, rows: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
        return collate_pairs(self, rows, tokenizer)

    def lengths(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        by_row = self.target.lengths  # for all rows, computed at each call
        return np.asarray([by_row[rows].mean() for rows in batches])

    def scored_rows(self, context: int) -> int:
        return len(self)

    def places(self, rows: np.ndarray, context: int) -> np.ndarray:
        return rows

    def decode(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: EvaluationConfig,
        count: int,
        *,
        seed: int,
        progress: Callable[[int, int], Any] | None = None,
        group: Group = ALONE,
    ) -> list[str]:
        sources = Ragged(self.source.values, self.source.offsets[: count + 1])
        return decode_sources(model, sources, tokenizer, config, seed=seed, progress=progress, group=group)

    @property
    def tokens_of_all(self) -> tuple[np.ndarray, ...]:
        return (self.source.values, self.target.values)

    @property
    def longest(self) -> int:
        return max((1 + int(side.lengths.max()) for side in (self.source, self.target)), default=0)

    def timed_work(self, model: Transformer, tokenizer: Tokenizer, config: EvaluationConfig) -> TimedWork:
        """One sentence at a time, and all of them batched, with the run's own decoding."""
        count = min(config.latency_inputs, len(self))

        def decode(first: int, last: int) -> list[str]:
            offsets = self.source.offsets[first : last + 1]
            return decode_sources(model, Ragged(self.source.values, offsets), tokenizer, config, seed=0)

        def batched(seconds: list[float]) -> tuple[int, float]:
            outputs, took = timed(lambda: decode(0, count), device)
            return sum(len(ids) + 1 for ids in tokenizer.encode(outputs)), took

        device = model.embedding.weight.device
        return TimedWork(lambda place: decode(place, place + 1), count, 1, device, batched)

    def attended(
        self, predictions: Sequence[dict[str, Any]], tokenizer: Tokenizer, count: int
    ) -> list[tuple[str | None, str]]:
        return [(row["source"], row["hypothesis"]) for row in predictions[:count]]


class Seq2Seq(Task):
    """Pairs in, texts out."""

    label_smoothing = 0.1
    word_initial_space = True

    def tokenize(self, dataset: Dataset, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        arrays = {}
        for side in ("source", "target"):
            parts = [Ragged.from_lists(ids, id_dtype(tokenizer)) for _, ids in encoded(dataset, side, tokenizer)]
            arrays[side] = np.concatenate([part.values for part in parts])
            arrays[f"{side}_offsets"] = offsets_of(np.concatenate([part.lengths for part in parts]))
        return arrays

    def split(
        self,
        arrays: dict[str, np.ndarray],
        name: str,
        dataset: Dataset,
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        notes: list[str],
    ) -> Pairs:
        sides = [Ragged(arrays[side], arrays[f"{side}_offsets"]) for side in ("source", "target")]
        fitting = _fit(config, name, Pairs(*sides), dataset, context, notes)
        if unknown := sum(int((side.values == tokenizer.unk).sum()) for side in sides):
            notes.append(f"{name}: {unknown:,} tokens that the tokenizer does not know")
        return fitting

    def read(self, text: str) -> str:
        return text.strip()

    def generate(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[str]:
        longest = model.architecture.context - 1
        full = [row for row, text in enumerate(prompts.texts) if text.strip()]
        for row in full:
            if (count := len(prompts.ids[row])) > longest:
                prompts.say(
                    row, f"of {count:,} tokens the first {longest:,} are read, the model's context; the rest is cut"
                )
        sources = Ragged.from_lists([prompts.ids[row][:longest] for row in full], np.int64)
        streams = [prompts.first + row for row in full]
        outputs = [""] * len(prompts.texts)
        found = decode_sources(model, sources, tokenizer, config, seed=seed, streams=streams)
        for row, text in zip(full, found, strict=True):
            outputs[row] = " ".join(text.split("\n"))
        return outputs


TASK = Seq2Seq()


def collate_pairs(pairs: Pairs, rows: np.ndarray, tokenizer: Tokenizer) -> Batch:
    """Pads the given rows into one batch."""
    sources = [pairs.source[row] for row in rows]
    targets = [pairs.target[row] for row in rows]
    source_length = max(map(len, sources)) + 1
    target_length = max(map(len, targets)) + 1
    source = np.full((len(rows), source_length), tokenizer.pad, dtype=np.int64)
    target_in = np.full((len(rows), target_length), tokenizer.pad, dtype=np.int64)
    target_out = np.full((len(rows), target_length), IGNORE, dtype=np.int64)
    target_in[:, 0] = tokenizer.bos
    for i, (source_ids, target_ids) in enumerate(zip(sources, targets, strict=True)):
        source[i, : len(source_ids)] = source_ids
        source[i, len(source_ids)] = tokenizer.eos
        target_in[i, 1 : len(target_ids) + 1] = target_ids
        target_out[i, : len(target_ids)] = target_ids
        target_out[i, len(target_ids)] = tokenizer.eos
    real_sources = sum(map(len, sources)) + len(rows)
    real_targets = sum(map(len, targets)) + len(rows)
    mask = None
    if real_sources != source.size:
        lengths = np.fromiter((len(ids) + 1 for ids in sources), dtype=np.int64, count=len(rows))
        mask = torch.from_numpy(np.arange(source_length)[None, :] < lengths[:, None])
    return Batch(
        target_in_BT=torch.from_numpy(target_in),
        target_out_BT=torch.from_numpy(target_out),
        source_BS=torch.from_numpy(source),
        source_mask_BS=mask,
        rows=rows,
        tokens=real_sources + real_targets,
        positions=source.size + target_in.size,
        targets=real_targets,
        special=(tokenizer.pad, tokenizer.bos, tokenizer.eos),
    )


def decode_sources(
    model: Transformer,
    sources: Ragged,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    progress: Callable[[int, int], Any] | None = None,
    group: Group = ALONE,
) -> list[str]:
    """The output text of an encoder-decoder for each tokenized source, in order.

    A source is sampled from the random stream of its number in ``streams``, by default its position. ``progress`` is
    called with the number of sentences done and their total. Each process of a ``group`` decodes its share of the
    batches; the outputs of the others are empty.
    """
    model.eval()
    device = model.embedding.weight.device
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad)
    lengths = sources.lengths + 1
    limits = np.asarray([output_limit(int(length), config, model.architecture.context) for length in lengths])
    hypotheses = config.beam if config.method in ("auto", "beam") else 1
    # A sentence needs its source once, and its output (about as long) once per hypothesis.
    batches = group.own(bucket(lengths, lengths * hypotheses, config.batch_tokens, np.arange(len(sources))))
    no_targets = Ragged(sources.values[:0], np.zeros(len(sources) + 1, dtype=np.int64))
    outputs = [""] * len(sources)
    done, total = 0, sum(map(len, batches))
    for rows in batches:
        batch = collate_pairs(Pairs(sources, no_targets), rows, tokenizer).to(device)
        assert batch.source_BS is not None
        limit_B = torch.from_numpy(limits[rows]).to(device)
        own = [int(row) if streams is None else streams[row] for row in rows]
        ids = translate(model, batch.source_BS, batch.source_mask_BS, limit_B, ends, config, seed, own)
        for row, sequence in zip(rows, ids, strict=True):
            outputs[row] = tokenizer.decode(sequence)
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return outputs


def _fit(config: DatasetConfig, name: str, pairs: Pairs, dataset: Dataset, context: int, notes: list[str]) -> Pairs:
    """Drops training pairs that are too long or too unequal; cuts the sides of validation and test pairs."""
    longest = context - 1  # the end token of the source, the begin token of the decoder's input
    source, target = pairs.source.lengths, pairs.target.lengths
    if name != "train":
        cut = int(((source > longest) | (target > longest)).sum())
        if not cut:
            return Pairs(pairs.source, pairs.target, dataset)
        notes.append(f"{name}: {cut:,} examples cut to {longest} tokens per side")
        rows = np.arange(len(pairs))
        return Pairs(pairs.source.take(rows, longest), pairs.target.take(rows, longest), dataset)
    limit = min(longest, config.max_tokens or longest)
    short = (source <= limit) & (target <= limit)
    keep = short.copy()
    if config.max_length_ratio is not None:
        keep &= np.maximum(source, target) <= config.max_length_ratio * np.maximum(1, np.minimum(source, target))
    if not keep.any():
        ratio = f" and {config.max_length_ratio:g} times as long as its other side" if short.any() else ""
        raise UserError(
            f"no training pair of dataset '{config.name}' is within {limit} tokens per side{ratio}: raise "
            + ("dataset.max_length_ratio" if ratio else "model.context or dataset.max_tokens")
        )
    if not short.all():
        notes.append(f"train: {int((~short).sum()):,} pairs over {limit} tokens per side dropped")
    if (short & ~keep).any():
        notes.append(
            f"train: {int((short & ~keep).sum()):,} pairs with one side over {config.max_length_ratio:g} times "
            "the other dropped"
        )
    if keep.all():
        return pairs
    rows = np.flatnonzero(keep)
    return Pairs(pairs.source.take(rows), pairs.target.take(rows))
