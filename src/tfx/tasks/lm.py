"""Language models: one stream of tokens, cut into windows; each target is the token after its input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tfx.config.schema import DatasetConfig, EvaluationConfig
from tfx.data.batching import bucket
from tfx.data.ragged import Arrays, Ragged
from tfx.data.spans import NO_SPAN, align
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import IGNORE, Batch
from tfx.model.decoding import Ends, Output, Wanted, continue_text, continue_texts, make_picker
from tfx.model.transformer import Transformer
from tfx.tasks.contract import UNKNOWN_TOKENS, Prompts, Retold, ScoredText, Split, Task, TimedWork, encoded, id_dtype
from tfx.tasks.retold import numbered, real_rows
from tfx.tasks.written import described, record

if TYPE_CHECKING:
    from datasets import Dataset

# No token: a continuation without an end.
NO_END = -1
# Number of tokens decoded after a prompt for timing.
_TIMED_TOKENS = 32
# Number of tokens that are looked at together.
_LOOKED_AT = 1 << 20
# Number of tokens of the texts whose attention is kept.
_ATTENDED_TOKENS = 24


@dataclass
class Stream(Split):
    """A tokenized split: one array of ids, and the UTF-8 bytes of the text in it.

    ``unknown_bytes`` has the bytes of the characters of each unknown token, in order. ``document_start`` is the token
    that begins a document, where none may see another one.
    """

    tokens: np.ndarray
    text_bytes: int
    unknown_bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    document_start: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def has_one_shape(self) -> bool:
        """As far as there is a batch's worth of text."""
        return True

    def epoch(self, batch_tokens: int, context: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Windows that tile the stream from a random offset, in random order: each token at most once per epoch.

        The rest, less than a window at either end and less than a batch of windows, is used in another epoch.
        """
        if len(self) < context + 1:
            raise UserError(
                f"the training text has {len(self)} tokens, but one window needs {context + 1}: "
                "give more text, or set a smaller model.context"
            )
        rows = max(1, batch_tokens // context)
        offset = int(rng.integers(0, min(context, len(self) - context)))
        starts = rng.permutation(np.arange(offset, len(self) - context, context))
        whole = len(starts) // rows * rows
        if whole == 0:
            return [starts]
        return list(starts[:whole].reshape(-1, rows))

    def in_order(self, batch_tokens: int, context: int) -> Iterator[np.ndarray]:
        starts = np.arange(0, max(1, len(self) - 1), context)
        rows = max(1, batch_tokens // context)
        for first in range(0, len(starts), rows):
            yield starts[first : first + rows]

    def collate(self, rows: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
        return collate_windows(self, rows, context, tokenizer)

    def shortest(self, context: int) -> int:
        return context

    def most_rows(self, batch_tokens: int, context: int) -> float:
        return max(1, batch_tokens // context)

    def scored_rows(self, context: int) -> int:
        return len(range(0, max(1, len(self) - 1), context))

    def places(self, rows: np.ndarray, context: int) -> np.ndarray:
        return rows // context

    def scored_text(self, tokenizer: Tokenizer, context: int) -> ScoredText:
        """The first token is never predicted: its bytes do not count."""
        unknown_bytes = np.zeros(self.scored_rows(context), dtype=np.int64)
        places = np.flatnonzero(self.tokens == tokenizer.unk)
        is_first = places == 0
        first = tokenizer.token_bytes(int(self.tokens[0])) + int(self.unknown_bytes[is_first].sum())
        np.add.at(unknown_bytes, (places[~is_first] - 1) // context, self.unknown_bytes[~is_first])
        return ScoredText(self.text_bytes - first, unknown_bytes)

    @property
    def tokens_of_all(self) -> Iterator[np.ndarray]:
        return (self.tokens[first : first + _LOOKED_AT] for first in range(0, len(self), _LOOKED_AT))

    def timed_work(self, model: Transformer, tokenizer: Tokenizer, config: EvaluationConfig) -> TimedWork:
        """Greedy decoding of 32 tokens after a prompt; the latency is per token."""
        device = model.embedding.weight.device
        greedy = make_picker(EvaluationConfig(method="greedy"), 0, device)
        length = max(1, min(len(self), model.architecture.context) // 2)
        most = max(1, min(config.latency_inputs, len(self) - length))
        starts = np.linspace(0, max(0, len(self) - length - 1), most).astype(int)
        prompts = [self.tokens[start : start + length].astype(np.int64).tolist() for start in starts]

        def extend(place: int) -> list[int]:
            return continue_text(model, prompts[place], _TIMED_TOKENS, NO_END, greedy)

        def one_by_one(seconds: list[float]) -> tuple[int, float]:
            return _TIMED_TOKENS * len(seconds), sum(seconds) * _TIMED_TOKENS

        return TimedWork(extend, len(prompts), _TIMED_TOKENS, device, one_by_one)

    def attended(
        self, predictions: Sequence[dict[str, Any]], tokenizer: Tokenizer, count: int
    ) -> list[tuple[str | None, str]]:
        pieces = [
            self.tokens[start : start + _ATTENDED_TOKENS]
            for start in range(0, _ATTENDED_TOKENS * count, _ATTENDED_TOKENS)
        ]
        return [(None, tokenizer.decode(piece.tolist())) for piece in pieces]


class LanguageModel(Task):
    """Text in, its continuation out."""

    def tokenize(self, dataset: Dataset, tokenizer: Tokenizer, arrays: Arrays, *, is_part: bool = False) -> None:
        text_bytes = 0
        for name, kind in {"tokens": id_dtype(tokenizer), "text_bytes": np.int64, "unknown_bytes": np.int64}.items():
            arrays.append(name, np.zeros(0, kind))
        for texts, ids in encoded(dataset, "text", tokenizer):
            text_bytes += sum(len(text.encode()) for text in texts)
            for text, own in zip(texts, ids, strict=True):
                if tokenizer.unk in own:
                    arrays.append("unknown_bytes", np.asarray(tokenizer.unknown_bytes(text), dtype=np.int64))
            end = [tokenizer.eos] if is_part or _has_documents(dataset) else []
            ids = [[*tokenizer.text_start, *text, *end] for text in ids]
            arrays.append("tokens", Ragged.from_lists(ids, id_dtype(tokenizer)).values)
        arrays.append("text_bytes", np.asarray([text_bytes], dtype=np.int64))

    def split(
        self,
        arrays: dict[str, np.ndarray],
        name: str,
        dataset: Dataset,
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        notes: list[str],
    ) -> Stream:
        if name == "train" and config.document_mask and not _has_documents(dataset):
            raise UserError(
                f"dataset.document_mask=true tells documents apart, and dataset '{config.name}' is one text: leave it "
                "out, or give a file or row for each document, without dataset.join"
            )
        stream = _stream(arrays, config, tokenizer)
        if len(stream) < 2:
            raise UserError(f"the {name} split of dataset '{config.name}' has a single token: give it more text")
        if unknown := len(stream.unknown_bytes):
            notes.append(
                f"{name}: {stream.unknown_bytes.sum():,} bytes of characters that the tokenizer does not know: "
                "bits_per_byte counts 8 bits for each, in addition to the model's own bits; the loss does not"
            )
            notes.append(f"{name}: {unknown:,} {UNKNOWN_TOKENS}")
        return stream

    def part(
        self,
        arrays: dict[str, np.ndarray],
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        counts: Counter[str],
    ) -> Stream | None:
        stream = _stream(arrays, config, tokenizer)
        if len(stream) < context + 1:
            counts["tokens left out, fewer than a window at the end of a pass"] += len(stream)
            return None
        counts[UNKNOWN_TOKENS] += len(stream.unknown_bytes)
        return stream

    def ends_documents(self, train: Dataset) -> bool:
        return _has_documents(train)

    def unlabelled(self, texts: Dataset) -> Dataset:
        return texts

    def retold(self, batch: Batch, own: Tokenizer, other: Tokenizer, context: int) -> Retold:
        """The first token of a window is no target: nor is its span."""
        firsts = batch.target_in_BT[:, 0].tolist()
        rows = [[first, *row] for first, row in zip(firsts, real_rows(batch.target_out_BT), strict=True)]
        texts = [align(row, own, other) for row in rows]
        begin = other.text_start
        longest = min(context, max(len(begin) + len(text.ids) for text in texts) - 1)
        target_in = np.full((len(texts), longest), other.pad, dtype=np.int64)
        target_out = np.full((len(texts), longest), IGNORE, dtype=np.int64)
        for row, text in enumerate(texts):
            ids = [*begin, *text.ids][: longest + 1]
            target_in[row, : len(ids) - 1] = ids[:-1]
            target_out[row, : len(ids) - 1] = ids[1:]
        real = int((target_out >= 0).sum())
        told = replace(
            batch,
            target_in_BT=torch.from_numpy(target_in),
            target_out_BT=torch.from_numpy(target_out),
            tokens=real,
            positions=target_out.size,
            targets=real,
            special=(other.pad, other.bos, other.eos),
            document_start=None if batch.document_start is None else _document_start(other),
        )
        before = [NO_SPAN] * len(begin)
        own_spans = [[NO_SPAN if span == text.own[0] else span for span in text.own][1:] for text in texts]
        other_spans = []
        for text in texts:
            first = set(text.other[:1])
            other_spans.append([*before, *(NO_SPAN if span in first else span for span in text.other)][1:])
        return numbered(batch, told, own_spans, other_spans)

    def sampled(self, model: Transformer, batch: Batch, tokenizer: Tokenizer, seed: int) -> Batch:
        """The first half of each window stays, and is what the model continues; only its own tokens are targets."""
        window_BT = batch.target_in_BT
        half, device = max(1, window_BT.shape[1] // 2), model.embedding.weight.device
        starts = window_BT[:, :half].tolist()
        # A window goes over the ends of documents.
        ends = Ends(tokenizer.bos, NO_END, tokenizer.pad, tokenizer.never)
        config = EvaluationConfig(method="sample", new_tokens=window_BT.shape[1] + 1 - half)
        pick = make_picker(config, seed, device, range(len(starts)))
        added = continue_texts(model, starts, ends, config, pick)
        rows = [[*start, *output.tokens] for start, output in zip(starts, added, strict=True)]
        whole_BT = torch.tensor(rows)
        target_out_BT = whole_BT[:, 1:].clone()
        target_out_BT[:, : half - 1] = IGNORE
        targets = int((target_out_BT >= 0).sum())
        return replace(
            batch, target_in_BT=whole_BT[:, :-1], target_out_BT=target_out_BT, targets=targets, is_labelled=False
        )

    def generate(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[str]:
        found = _continued(model, tokenizer, prompts, config, seed, Wanted())
        return [_joined(tokenizer, own, output.tokens) for own, output in zip(prompts.ids, found, strict=True)]

    def records(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[dict[str, Any]]:
        found = _continued(model, tokenizer, prompts, config, seed, Wanted(detailed=True))
        return [
            record([described(output, _joined(tokenizer, own, output.tokens), tokenizer)], prompts.best)
            for own, output in zip(prompts.ids, found, strict=True)
        ]


TASK = LanguageModel()


def _continued(
    model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int, wanted: Wanted
) -> list[Output]:
    """What the model adds to each prompt; prompts of similar lengths are continued together."""
    context = model.architecture.context
    texts = []
    for row, own in enumerate(prompts.ids):
        prompt = [*tokenizer.text_start, *own]
        if not prompt:
            prompt = _beginning(tokenizer)
            what = "the end of a document" if prompt == [tokenizer.eos] else "a line end"
            prompts.say(row, f"no text to continue: the model begins after {what}")
        if len(prompt) > context:
            prompts.say(row, f"of {len(prompt):,} tokens the model reads the last {context:,}, its context")
        texts.append(prompt)
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never)
    lengths = np.asarray([min(context, len(text)) for text in texts])
    added = np.full(len(texts), min(context, config.new_tokens))
    outputs = [Output([]) for _ in texts]
    # A batch keeps the keys of its prompts and of what is added.
    for rows in bucket(lengths, added, config.batch_tokens, np.arange(len(texts))):
        device = model.embedding.weight.device
        pick = make_picker(config, seed, device, [prompts.first + int(row) for row in rows])
        found = continue_texts(model, [texts[row] for row in rows], ends, config, pick, wanted)
        for row, output in zip(rows, found, strict=True):
            outputs[row] = output
    return outputs


def collate_windows(stream: Stream, starts: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
    """Windows of ``context`` inputs that begin at ``starts``; each target is the token after its input.

    A window that would pass the end of the stream is padded.
    """
    positions = starts[:, None] + np.arange(context + 1)[None, :]
    inside = positions < len(stream)
    window = stream.tokens[np.minimum(positions, len(stream) - 1)].astype(np.int64)
    target_out = np.where(inside[:, 1:], window[:, 1:], IGNORE)
    real = int(inside[:, 1:].sum())
    return Batch(
        target_in_BT=torch.from_numpy(np.ascontiguousarray(window[:, :-1])),
        target_out_BT=torch.from_numpy(np.ascontiguousarray(target_out)),
        source_BS=None,
        source_mask_BS=None,
        rows=starts,
        tokens=real,
        positions=target_out.size,
        targets=real,
        special=(tokenizer.pad, tokenizer.bos, tokenizer.eos),
        document_start=stream.document_start,
    )


def _stream(arrays: dict[str, np.ndarray], config: DatasetConfig, tokenizer: Tokenizer) -> Stream:
    start = _document_start(tokenizer) if config.document_mask else None
    return Stream(arrays["tokens"], int(arrays["text_bytes"][0]), arrays["unknown_bytes"], start)


def _document_start(tokenizer: Tokenizer) -> int:
    """The token that a document begins with: a begin token, or without one the end token of the document before.

    So each token has a target, and the first of a text is predicted from the token that stands between texts.
    """
    return tokenizer.text_start[0] if tokenizer.text_start else tokenizer.eos


def _has_documents(dataset: Dataset) -> bool:
    """Whether there is more than one text: then an end token follows each."""
    return len(dataset) > 1


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """The token before a document in training: an end token, or for a single text a line end."""
    line_end = tokenizer.encode(["\n"])[0]
    if tokenizer.ends_documents or not line_end or tokenizer.unk in line_end:
        return [tokenizer.eos]
    return line_end


def _joined(tokenizer: Tokenizer, prompt: list[int], added: list[int]) -> str:
    """The text that the added tokens append to the prompt, decoded together with it."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *added])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(added)
