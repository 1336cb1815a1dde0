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


def decode_sources(
    model: Transformer,
    sources: Ragged,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    *,
    seed: int,
    progress: Callable[[int, int], Any] | None = None,
) -> list[str]:
    """The output text of an encoder-decoder for each tokenized source, in order.

    ``progress`` is called with the number of sentences done and their total.
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
        ids = translate(model, batch.source_BS, batch.source_mask_BS, limit_B, ends, config, seed)
        for row, sequence in zip(group, ids, strict=True):
            outputs[row] = tokenizer.decode(sequence)
        done += len(group)
        if progress is not None:
            progress(done, len(sources))
    return outputs


def generate(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], config: EvaluationConfig, *, seed: int = 1
) -> list[str]:
    """One output for each text, in order: its transduction, or for a language model its continuation.

    A text longer than the model's context is cut. Line ends inside an output become spaces where the model
    is text to text; a language model's continuation keeps them. An empty text gives an empty output.
    """
    model.eval()
    context = model.architecture.context
    ids = tokenizer.encode(texts)
    if model.architecture.is_seq2seq:
        full = [row for row, text in enumerate(texts) if text.strip()]
        sources = Ragged.from_lists([ids[row][: context - 1] for row in full], np.int64)
        outputs = [""] * len(texts)
        for row, text in zip(full, decode_sources(model, sources, tokenizer, config, seed=seed), strict=True):
            outputs[row] = " ".join(text.split("\n"))
        return outputs
    device = model.embedding.weight.device
    outputs = []
    for row, prompt in enumerate(ids):
        if not prompt:
            outputs.append("")
            continue
        pick = make_picker(config, seed + row, device)
        added = continue_text(model, prompt, config.new_tokens, tokenizer.eos, pick)
        outputs.append(tokenizer.decode(added))
    return outputs
