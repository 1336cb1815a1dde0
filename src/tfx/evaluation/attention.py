"""The attention weights of every layer on a few inputs, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tfx.data.tokenizer import Tokenizer
from tfx.model.attention import Attention
from tfx.model.transformer import Transformer

_MAX_TOKENS = 32  # a larger map is unreadable


@torch.inference_mode()
def record_attention(
    model: Transformer, tokenizer: Tokenizer, inputs: Sequence[tuple[str | None, str]]
) -> list[dict[str, Any]]:
    """The attention weights of each (source, target) text, teacher-forced; a language model's source is None.

    Returns the rows of `attention.json`: ``tokens_source``, ``tokens_target`` and ``layers``, each with its
    ``name`` (``encoder 0 self``, ``decoder 0 self``, ``decoder 0 cross``) and ``weights`` by head, query and key.
    Queries and keys of the encoder are source tokens. Texts are cut to 32 tokens and the context. The model keeps
    its mode.
    """
    was_training = model.training
    model.eval()
    device = model.embedding.weight.device
    longest = min(_MAX_TOKENS, model.architecture.context)
    layers: list[dict[str, Any]] = []

    def recorder(side: str, index: int, count: int, kind: str) -> Any:
        def record(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            assert isinstance(module, Attention)
            weights_BHTS = module.weights(*arguments[:4])
            # A block that runs again is another layer.
            names, number = {layer["name"] for layer in layers}, index
            while (name := f"{side} {number} {kind}") in names:
                number += count
            layers.append({"name": name, "weights": _rounded(weights_BHTS[0].float())})

        return record

    handles = []
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        blocks = list(stack.layers[: len(stack.blocks)]) if stack is not None else []
        for index, block in enumerate(blocks):
            for kind, module in (("self", block.attention), ("cross", block.cross)):
                if isinstance(module, Attention):
                    handles.append(module.register_forward_pre_hook(recorder(side, index, len(blocks), kind)))
    rows = []
    try:
        for source, target in inputs:
            begin = [] if model.architecture.outputs is None else [tokenizer.bos]
            source_ids = []
            if source is not None:
                ids = tokenizer.encode([source])[0][: longest - 1 - len(begin)]
                source_ids = [*begin, *ids, tokenizer.eos]
            target_ids = tokenizer.encode([target])[0]
            target_ids = [tokenizer.bos, *target_ids] if source is not None else target_ids
            target_ids = target_ids[:longest]
            if not target_ids:
                continue
            layers = []
            source_BS = torch.tensor([source_ids], device=device) if source is not None else None
            model(torch.tensor([target_ids], device=device), source_BS)
            rows.append(
                {
                    "tokens_source": _words(tokenizer, source_ids),
                    "tokens_target": _words(tokenizer, target_ids),
                    "layers": layers,
                }
            )
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return rows


def _words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Tokens as a reader knows them; special ones and white space by their names in the vocabulary."""
    return [tokenizer.decode([token]).strip() or tokenizer.token(token) for token in ids]


def _rounded(weights_HTS: torch.Tensor) -> list[Any]:
    return [[[round(value, 3) for value in row] for row in head] for head in weights_HTS.tolist()]
