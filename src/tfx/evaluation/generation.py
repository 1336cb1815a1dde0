"""Text in, text out: decoding many inputs, batched by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tfx.config.schema import EvaluationConfig
from tfx.data.batching import bucket, collate_pairs
from tfx.data.prepare import Pairs, Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.model.decoding import Ends, continue_text, make_picker, output_limit, translate
from tfx.model.transformer import Transformer

# What each way to decode reads of the config.
_READS = {"greedy": (), "beam": ("beam", "length_penalty"), "sample": ("temperature", "top_k", "top_p")}


def decoding_method(config: EvaluationConfig) -> str:
    """How text to text is decoded with this config: greedy, beam or sample. A beam of one is greedy."""
    if config.method in ("auto", "beam"):
        return "beam" if config.beam > 1 else "greedy"
    return config.method


def describe_decoding(config: EvaluationConfig) -> str:
    """The same with the settings that matter to it: ``beam (beam=5, length_penalty=1)``."""
    method = decoding_method(config)
    values = {name: getattr(config, name) for name in _READS[method]}
    told = ", ".join(f"{name}={value:g}" for name, value in values.items() if value is not None)
    return f"{method} ({told})" if told else method


def ignored_settings(config: EvaluationConfig) -> dict[str, str]:
    """Settings of decoding that change nothing with this config, and why: text to text, or a model that samples."""
    method = decoding_method(config)
    ignored = {name: f"decoding is by {method}" for kind, names in _READS.items() if kind != method for name in names}
    if config.method in ("auto", "beam"):
        ignored.pop("beam", "")  # a beam of one is what makes this greedy
    if method != "sample":
        ignored["seed"] = f"decoding is by {method}"
    elif config.top_p == 1:
        ignored["top_p"] = "1 is the mass of all tokens"
    return ignored


def decode_sources(
    model: Transformer,
    sources: Ragged,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> list[str]:
    """The output text of an encoder-decoder for each tokenized source, in order.

    A source is sampled from the stream of its number in ``streams``, by default its place. ``progress`` is called with
    the number of sentences done and their total.
    """
    model.eval()
    device = model.embedding.weight.device
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad)
    lengths = sources.lengths + 1
    limits = np.asarray([output_limit(int(length), config, model.architecture.context) for length in lengths])
    hypotheses = config.beam if config.method in ("auto", "beam") else 1
    # A sentence takes its source once, and its output (about as long) once a hypothesis.
    groups = bucket(lengths, lengths * hypotheses, config.batch_tokens, np.arange(len(sources)))
    no_targets = Ragged(sources.values[:0], np.zeros(len(sources) + 1, dtype=np.int64))
    outputs = [""] * len(sources)
    done = 0
    for group in groups:
        batch = collate_pairs(Pairs(sources, no_targets), group, tokenizer).to(device)
        assert batch.source_BS is not None
        limit_B = torch.from_numpy(limits[group]).to(device)
        own = [int(row) if streams is None else streams[row] for row in group]
        ids = translate(model, batch.source_BS, batch.source_mask_BS, limit_B, ends, config, seed, own)
        for row, sequence in zip(group, ids, strict=True):
            outputs[row] = tokenizer.decode(sequence)
        done += len(group)
        if progress is not None:
            progress(done, len(sources))
    return outputs


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: EvaluationConfig,
    *,
    seed: int = 1,
    first: int = 0,
    note: Callable[[str], Any] = lambda message: None,
) -> list[str]:
    """One output for each text, in order: its transduction, or for a language model its continuation.

    ``first`` is the number of the first text among all that are decoded with this seed: each has random draws of its
    own. ``note`` hears in a line what is done to an input: a text longer than the model's context is cut, characters
    are not known, where there is no text a language model begins as the documents of its training did. Line ends
    inside an output become spaces where the model is text to text; a language model's continuation keeps them, and
    joins the text as it would stand in one. A text to text model makes nothing of an empty text.
    """
    model.eval()
    ids = tokenizer.encode(texts)
    for row, own in enumerate(ids):
        if unknown := own.count(tokenizer.unk):
            note(f"line {first + row + 1}: {unknown:,} tokens of characters that the tokenizer does not know")
    if model.architecture.is_seq2seq:
        return _transduce(model, tokenizer, texts, ids, config, seed, first, note)
    context = model.architecture.context
    outputs = []
    for row, own in enumerate(ids):
        prompt = own
        if not prompt:
            prompt = _beginning(tokenizer)
            what = "the end of a document" if prompt == [tokenizer.eos] else "a line end"
            note(f"line {first + row + 1}: no text to continue: the model begins behind {what}")
        if len(prompt) > context:
            note(f"line {first + row + 1}: of {len(prompt):,} tokens the model reads the last {context:,}, its context")
        pick = make_picker(config, seed, model.embedding.weight.device, [first + row])
        added = continue_text(model, prompt, config.new_tokens, tokenizer.eos, pick)
        outputs.append(_joined(tokenizer, own, added))
    return outputs


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What stood before the first token of a document in training: an end token; for one single text, a line end."""
    line_end = tokenizer.encode(["\n"])[0]
    if tokenizer.ends_documents or not line_end or tokenizer.unk in line_end:
        return [tokenizer.eos]
    return line_end


def _transduce(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    ids: list[list[int]],
    config: EvaluationConfig,
    seed: int,
    first: int,
    note: Callable[[str], Any],
) -> list[str]:
    longest = model.architecture.context - 1
    full = [row for row, text in enumerate(texts) if text.strip()]
    for row in full:
        if len(ids[row]) > longest:
            note(
                f"line {first + row + 1}: of {len(ids[row]):,} tokens the first {longest:,} are read, the model's "
                "context; the rest is cut"
            )
    sources = Ragged.from_lists([ids[row][:longest] for row in full], np.int64)
    streams = [first + row for row in full]
    outputs = [""] * len(texts)
    found = decode_sources(model, sources, tokenizer, config, seed=seed, streams=streams)
    for row, text in zip(full, found, strict=True):
        outputs[row] = " ".join(text.split("\n"))
    return outputs


def _joined(tokenizer: Tokenizer, prompt: list[int], added: list[int]) -> str:
    """What the added tokens put behind the prompt, as both are decoded in one piece."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *added])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(added)
