"""Which words of a source the words of an output come from, by the attention of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tfx.data.tokenizer import Tokenizer
from tfx.model.attention import Attention
from tfx.model.transformer import Transformer


@torch.inference_mode()
def source_attention(model: Transformer, source: Sequence[int], target: Sequence[int]) -> Tensor | None:
    """Weights (T, S) of the source tokens while each of the target tokens is predicted from those before it.

    The mean over the heads of the second decoder layer from the top, which follows word alignments best without
    having been trained to (Garg 2019, arXiv 1909.02074). ``target`` begins with the begin token, which is not
    predicted. None if no layer reads the source.
    """
    layers = [block.cross for block in model.decoder.layers if isinstance(block.cross, Attention)]
    if not layers:
        return None
    found: list[Tensor] = []

    def record(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(module, Attention)
        found.append(module.weights(*arguments))

    device = model.embedding.weight.device
    chosen = max(0, len(layers) - 2)
    handle = layers[chosen].register_forward_pre_hook(record)
    try:
        model(torch.tensor([list(target[:-1])], device=device), torch.tensor([list(source)], device=device))
    finally:
        handle.remove()
    # The block of that layer may run in earlier layers too.
    earlier = sum(layer is layers[chosen] for layer in layers[:chosen])
    return found[earlier][0].float().mean(0)


def word_alignment(
    model: Transformer, tokenizer: Tokenizer, source: Sequence[int], output: Sequence[int]
) -> list[tuple[int, int]]:
    """For each word of the output, the source word with the largest attention and its own number, both from 0.

    Words are what white space separates. ``source`` and ``output`` are tokens without begin and end.
    """
    weights_TS = source_attention(model, [*source, tokenizer.eos], [tokenizer.bos, *output]) if output else None
    if weights_TS is None:
        return []
    source_word_S, output_word_T = (_words(tokenizer, ids).to(weights_TS.device) for ids in (source, output))
    if not len(source_word_S):
        return []
    # Attention to a word is that to all of its tokens, the end token is none; that of a word the mean of its tokens.
    by_word_WS = torch.zeros(int(output_word_T[-1]) + 1, weights_TS.shape[1], device=weights_TS.device)
    by_word_WS.index_add_(0, output_word_T, weights_TS)
    by_words_WV = torch.zeros(len(by_word_WS), int(source_word_S[-1]) + 1, device=weights_TS.device)
    by_words_WV.index_add_(1, source_word_S, by_word_WS[:, :-1])
    return [(int(word), number) for number, word in enumerate(by_words_WV.argmax(1).tolist())]


def _words(tokenizer: Tokenizer, ids: Sequence[int]) -> Tensor:
    """The number of the word that each token is of, or stands behind."""
    ends = (len(tokenizer.decode(ids[: place + 1]).split()) for place in range(len(ids)))
    return torch.tensor([max(0, end - 1) for end in ends], dtype=torch.long)
