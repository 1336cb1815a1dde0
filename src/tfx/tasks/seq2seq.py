"""Text to text: pairs of a source and a target, encoder and decoder, scored by the texts that the model writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tfx.config.schema import DatasetConfig, EvaluationConfig
from tfx.data.batching import bucket, most_rows
from tfx.data.ragged import Arrays, Ragged
from tfx.data.spans import NO_SPAN, align
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import IGNORE, Batch
from tfx.model.decoding import Ends, Output, Wanted, output_limit, outputs_for, translate
from tfx.model.transformer import Transformer
from tfx.processes.group import ALONE, Group
from tfx.tasks.alignment import word_alignment
from tfx.tasks.contract import UNKNOWN_TOKENS, Prompts, Retold, Split, Task, TimedWork, timed, write_texts
from tfx.tasks.retold import numbered, real_rows
from tfx.tasks.written import described, record

if TYPE_CHECKING:
    from datasets import Dataset


_BEST = Wanted()


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

    def shortest(self, context: int) -> int:
        return int((self.source.lengths + self.target.lengths).min()) + 2

    def most_rows(self, batch_tokens: int, context: int) -> float:
        return most_rows(self.source.lengths + self.target.lengths + 2, batch_tokens)

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
        return decode_sources(
            model, self.source.between(0, count), tokenizer, config, seed=seed, progress=progress, group=group
        )

    @property
    def tokens_of_all(self) -> Iterator[np.ndarray]:
        return chain(self.source.pieces(), self.target.pieces())

    @property
    def longest(self) -> int:
        return max((1 + int(side.lengths.max()) for side in (self.source, self.target)), default=0)

    def timed_work(self, model: Transformer, tokenizer: Tokenizer, config: EvaluationConfig) -> TimedWork:
        """One sentence at a time, and all of them batched, with the run's own decoding."""
        count = min(config.latency_inputs, len(self))

        def decode(first: int, last: int) -> list[str]:
            return decode_sources(model, self.source.between(first, last), tokenizer, config, seed=0)

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

    def tokenize(self, dataset: Dataset, tokenizer: Tokenizer, arrays: Arrays, *, is_part: bool = False) -> None:
        for side in ("source", "target"):
            write_texts(dataset, side, tokenizer, arrays)

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
        whole = _pairs(arrays)
        counts: Counter[str] = Counter()
        if name == "train":
            pairs = _fitting(config, whole, context, counts)
            if not len(pairs):
                raise UserError(_nothing_fits(config, context, counts))
        else:
            pairs = _cut(name, whole, dataset, context, notes)
        counts[UNKNOWN_TOKENS] = _unknown(whole, tokenizer)
        notes += [f"{name}: {count:,} {what}" for what, count in counts.items() if count]
        return pairs

    def part(
        self,
        arrays: dict[str, np.ndarray],
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        counts: Counter[str],
    ) -> Pairs | None:
        whole = _pairs(arrays)
        counts[UNKNOWN_TOKENS] += _unknown(whole, tokenizer)
        pairs = _fitting(config, whole, context, counts)
        return pairs if len(pairs) else None

    def read(self, text: str) -> str:
        return text.strip()

    def retold(self, batch: Batch, own: Tokenizer, other: Tokenizer, context: int) -> Retold:
        assert batch.source_BS is not None
        targets = [align(row, own, other) for row in real_rows(batch.target_out_BT)]
        sources = other.encode([own.decode(row) for row in batch.source_BS.tolist()])
        # Without the end token, which comes with the batch; an output that a limit cut gets one that has no span.
        ids = [each.ids[:-1] if each.ids[-1:] == [other.eos] else each.ids for each in targets]
        sides = (Ragged.from_lists([row[: context - 1] for row in side], np.int64) for side in (sources, ids))
        told = collate_pairs(Pairs(*sides), np.arange(len(ids)), other)
        spans = [each.other for each in targets]
        for row, each in enumerate(ids):
            beyond = set(spans[row][context - 1 :]) if len(each) > context - 1 else set()
            spans[row] = [NO_SPAN if span in beyond else span for span in spans[row]]
        return numbered(batch, told, [each.own for each in targets], spans)

    def sampled(self, model: Transformer, batch: Batch, tokenizer: Tokenizer, seed: int) -> Batch:
        """The model's own output for each source: at most twice as long as the target in whose place it stands."""
        device = model.embedding.weight.device
        limits = (2 * (batch.target_out_BT >= 0).sum(1)).clamp(max=model.architecture.context - 1)
        ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never)
        moved = batch.to(device)
        assert moved.source_BS is not None
        source, mask, sampling = moved.source_BS, moved.source_mask_BS, EvaluationConfig(method="sample")
        written = translate(model, source, mask, limits.to(device), ends, sampling, seed)
        # An output that reaches its limit has no end token.
        outputs = [
            ids if len(ids) == limit else [*ids, tokenizer.eos]
            for ids, limit in zip(written, limits.tolist(), strict=True)
        ]
        longest = max(map(len, outputs))
        target_in = np.full((len(outputs), longest), tokenizer.pad, dtype=np.int64)
        target_out = np.full((len(outputs), longest), IGNORE, dtype=np.int64)
        for row, ids in enumerate(outputs):
            target_in[row, : len(ids)] = [tokenizer.bos, *ids[:-1]]
            target_out[row, : len(ids)] = ids
        targets = sum(map(len, outputs))
        assert batch.source_BS is not None
        return replace(
            batch,
            target_in_BT=torch.from_numpy(target_in),
            target_out_BT=torch.from_numpy(target_out),
            tokens=batch.tokens - batch.targets + targets,
            positions=batch.source_BS.numel() + target_out.size,
            targets=targets,
            is_labelled=False,
        )

    def generate(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[str]:
        full, sources = _readable(model, prompts)
        outputs = [""] * len(prompts.texts)
        found = _decoded(model, sources, tokenizer, config, seed, prompts, full, _BEST)
        for row, own in zip(full, found, strict=True):
            outputs[row] = _one_line(tokenizer.decode(own[0].tokens))
        return outputs

    def records(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[dict[str, Any]]:
        full, sources = _readable(model, prompts)
        rows: list[list[dict[str, Any]]] = [[] for _ in prompts.texts]
        wanted = Wanted(prompts.best or 1, detailed=True)
        found = _decoded(model, sources, tokenizer, config, seed, prompts, full, wanted)
        for place, (row, outputs) in enumerate(zip(full, found, strict=True)):
            source = sources[place].tolist()
            for output in outputs:
                alignment = word_alignment(model, tokenizer, source, output.tokens)
                rows[row].append(described(output, _one_line(tokenizer.decode(output.tokens)), tokenizer, alignment))
        return [record(outputs, prompts.best) for outputs in rows]


TASK = Seq2Seq()


def _readable(model: Transformer, prompts: Prompts) -> tuple[list[int], Ragged]:
    """The rows of the prompts that hold text, and the tokens of each that the model reads."""
    longest = model.architecture.context - 1
    full = [row for row, text in enumerate(prompts.texts) if text.strip()]
    for row in full:
        if (count := len(prompts.ids[row])) > longest:
            prompts.say(
                row, f"of {count:,} tokens the first {longest:,} are read, the model's context; the rest is cut"
            )
    return full, Ragged.from_lists([prompts.ids[row][:longest] for row in full], np.int64)


def _decoded(
    model: Transformer,
    sources: Ragged,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    seed: int,
    prompts: Prompts,
    rows: Sequence[int],
    wanted: Wanted,
) -> list[list[Output]]:
    streams = [prompts.first + row for row in rows]
    if prompts.prefix:
        prefix = tokenizer.encode([prompts.prefix])[0]
        if len(prefix) >= model.architecture.context - 1:
            context = model.architecture.context
            raise UserError(f"the prefix has {len(prefix):,} tokens, too many for a context of {context:,}: shorten it")
        wanted = replace(wanted, prefixes=[prefix] * len(sources))
    return decode_outputs(model, sources, tokenizer, config, seed=seed, streams=streams, wanted=wanted)


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _pairs(arrays: dict[str, np.ndarray]) -> Pairs:
    return Pairs(*(Ragged.from_offsets(arrays[side], arrays[f"{side}_offsets"]) for side in ("source", "target")))


def _nothing_fits(config: DatasetConfig, context: int, counts: Counter[str]) -> str:
    limit = _limit(config, context)
    is_unequal = any(count and "other" in what for what, count in counts.items())
    ratio = f" and {config.max_length_ratio:g} times as long as its other side" if is_unequal else ""
    return f"no training pair of dataset '{config.name}' is within {limit} tokens per side{ratio}: raise " + (
        "dataset.max_length_ratio" if ratio else "model.context or dataset.max_tokens"
    )


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
    progress: Callable[[int, int], Any] | None = None,
    group: Group = ALONE,
) -> list[str]:
    """The text of the best output for each source (`decode_outputs`); empty for those of other processes."""
    found = decode_outputs(model, sources, tokenizer, config, seed=seed, progress=progress, group=group)
    return [tokenizer.decode(outputs[0].tokens) if outputs else "" for outputs in found]


def decode_outputs(
    model: Transformer,
    sources: Ragged,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    progress: Callable[[int, int], Any] | None = None,
    group: Group = ALONE,
    wanted: Wanted = _BEST,
) -> list[list[Output]]:
    """The outputs of an encoder-decoder for each tokenized source, in order.

    A source is sampled from the random stream of its number in ``streams``, by default its position. ``progress`` is
    called with the number of sentences done and their total. Each process of a ``group`` decodes its share of the
    batches; there are no outputs for the others.
    """
    if model.training:
        model.eval()
    device = model.embedding.weight.device
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never)
    lengths = sources.lengths + 1
    context = model.architecture.context
    limits = np.asarray([output_limit(int(length), config, context) for length in lengths])
    if wanted.prefixes is not None:
        limits = np.minimum(context - 1, limits + [len(prefix) for prefix in wanted.prefixes])
    hypotheses = config.beam if config.method in ("auto", "beam") else 1
    # A sentence needs its source once, and its output (about as long) once per hypothesis.
    batches = group.own(bucket(lengths, lengths * hypotheses, config.batch_tokens, np.arange(len(sources))))
    no_targets = sources.take(np.arange(len(sources)), 0)
    outputs: list[list[Output]] = [[] for _ in range(len(sources))]
    done, total = 0, sum(map(len, batches))
    for rows in batches:
        batch = collate_pairs(Pairs(sources, no_targets), rows, tokenizer).to(device)
        assert batch.source_BS is not None
        limit_B = torch.from_numpy(limits[rows]).to(device)
        own = [int(row) if streams is None else streams[row] for row in rows]
        prefixes = None if wanted.prefixes is None else [wanted.prefixes[row] for row in rows]
        found = outputs_for(
            model,
            batch.source_BS,
            batch.source_mask_BS,
            limit_B,
            ends,
            config,
            seed,
            own,
            replace(wanted, prefixes=prefixes),
        )
        for row, one in zip(rows, found, strict=True):
            outputs[row] = one
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return outputs


def _cut(name: str, pairs: Pairs, dataset: Dataset, context: int, notes: list[str]) -> Pairs:
    """Cuts the sides of validation and test pairs to the model's context."""
    longest = context - 1  # the end token of the source, the begin token of the decoder's input
    cut = int(((pairs.source.lengths > longest) | (pairs.target.lengths > longest)).sum())
    if not cut:
        return Pairs(pairs.source, pairs.target, dataset)
    notes.append(f"{name}: {cut:,} examples cut to {longest} tokens per side")
    rows = np.arange(len(pairs))
    return Pairs(pairs.source.take(rows, longest), pairs.target.take(rows, longest), dataset)


def _fitting(config: DatasetConfig, pairs: Pairs, context: int, counts: Counter[str]) -> Pairs:
    """The training pairs that are neither too long nor too unequal; ``counts`` gets the number of the others."""
    limit = _limit(config, context)
    source, target = pairs.source.lengths, pairs.target.lengths
    short = (source <= limit) & (target <= limit)
    keep = short.copy()
    if config.max_length_ratio is not None:
        keep &= np.maximum(source, target) <= config.max_length_ratio * np.maximum(1, np.minimum(source, target))
    counts[f"pairs over {limit} tokens per side dropped"] += int((~short).sum())
    unequal = f"pairs with one side over {config.max_length_ratio or 0:g} times the other dropped"
    counts[unequal] += int((short & ~keep).sum())
    if keep.all():
        return pairs
    rows = np.flatnonzero(keep)
    return Pairs(pairs.source.take(rows), pairs.target.take(rows))


def _limit(config: DatasetConfig, context: int) -> int:
    """Tokens of a side of the longest training pair."""
    longest = context - 1
    return min(longest, config.max_tokens or longest)


def _unknown(pairs: Pairs, tokenizer: Tokenizer) -> int:
    return sum(int((ids == tokenizer.unk).sum()) for ids in pairs.tokens_of_all)
