"""Decoding with one hypothesis for each text: outputs of an encoder-decoder, continuations of a language model.

Shapes: B sentences, S source positions, N texts that go on, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.model.decoding.beam import beam_search
from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.output import Output, logits_behind
from tfx.model.decoding.rules import Ends, Rules
from tfx.model.decoding.sampling import Picker, make_picker
from tfx.model.engine import without_padding
from tfx.model.transformer import Transformer

# Steps between two looks at what has ended, on a device that the host would have to wait for.
_STEPS_UNSEEN = 8


@torch.inference_mode()
def translate(
    model: Transformer,
    source_BS: Tensor,
    source_mask_BS: Tensor | None,
    limits_B: Tensor,
    ends: Ends,
    config: EvaluationConfig,
    seed: int = 0,
    streams: Sequence[int] | None = None,
) -> list[list[int]]:
    """Outputs of an encoder-decoder for a batch of sources, without begin and end tokens.

    ``limits`` holds the longest output of each. Only sampling uses ``seed`` and ``streams`` (`make_picker`).
    """
    if model.engine is not None:
        sources = without_padding(source_BS, source_mask_BS)
        return model.engine.translate(sources, limits_B.tolist(), config, seed, streams or range(len(sources)))
    memory_BSD = model.encode(source_BS, source_mask_BS)
    rules = Rules(ends, config, source_BS.device)
    limits = limits_B.tolist()
    if config.method in ("beam", "auto") and config.beam > 1:
        decoder = Decoder(model, len(limits), config.beam, memory_BSD, source_mask_BS)
        return [found[0].tokens for found in beam_search(decoder, limits, ends, rules, config)]
    decoder = Decoder(model, len(limits), 1, memory_BSD, source_mask_BS)
    texts = [_Text(number, [], limit) for number, limit in enumerate(limits)]
    pick = make_picker(config, seed, source_BS.device, streams or range(len(limits)))
    hidden_ND = decoder.step(torch.full((len(limits),), ends.bos, device=source_BS.device))
    _extend(decoder, hidden_ND, texts, ends.eos, rules, pick)
    return [text.added for text in texts]


@torch.inference_mode()
def continue_texts(
    model: Transformer, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Ends, rules: Rules, pick: Picker
) -> list[list[int]]:
    """Tokens that a language model adds after each non-empty prompt: up to the end token, or ``new_tokens`` of them.

    When a text fills the context, the model reads its later half again and continues from there.
    """
    context = model.architecture.context
    if model.engine is not None and new_tokens:
        if (longest := max(map(len, prompts))) + new_tokens > context:
            raise UserError(
                f"evaluation.engine={model.engine.name} stops at the context of {context:,} tokens, and {longest:,} of "
                f"a prompt with {new_tokens:,} new ones are more: lower evaluation.new_tokens, or use engine torch"
            )
        return model.engine.continue_texts(prompts, new_tokens, pick)
    device = model.embedding.weight.device
    texts = [_Text(number, list(prompt), new_tokens) for number, prompt in enumerate(prompts)]
    going, read = texts if new_tokens else [], context
    while going:
        pieces = [text.all[-read:] for text in going]
        longest = max(map(len, pieces))
        token_RT = torch.full((len(pieces), longest), ends.pad, device=device)
        for row, piece in enumerate(pieces):
            token_RT[row, longest - len(piece) :] = torch.tensor(piece, device=device)
        first_R = None
        if any(len(piece) < longest for piece in pieces):
            first_R = torch.tensor([longest - len(piece) for piece in pieces], device=device)
        for text, piece in zip(going, pieces, strict=True):
            # The last token that is chosen need not fit: nothing is read behind it.
            text.stop = min(new_tokens, len(text.added) + context - len(piece) + 1)
        decoder = Decoder(model, len(going))
        _extend(decoder, decoder.read(token_RT, first_R), going, ends.eos, rules, pick)
        going = [text for text in going if not text.has_ended and len(text.added) < new_tokens]
        read = max(1, context // 2)
    return [text.added for text in texts]


def continue_text(model: Transformer, prompt: list[int], new_tokens: int, eos: int, pick: Picker) -> list[int]:
    """`continue_texts` for one prompt and without rules."""
    ends = Ends(bos=eos, eos=eos, pad=0)
    rules = Rules(ends, EvaluationConfig(), torch.device("cpu"))
    return continue_texts(model, [prompt], new_tokens, ends, rules, pick)[0]


@dataclass
class _Text:
    """A text that goes on: its number in the batch, what it began with, and how many added tokens stop it."""

    number: int
    prompt: list[int]
    stop: int
    has_ended: bool = False

    def __post_init__(self) -> None:
        self.added: list[int] = []

    @property
    def all(self) -> list[int]:
        return [*self.prompt, *self.added]


def _extend(decoder: Decoder, hidden_ND: Tensor, texts: list[_Text], eos: int, rules: Rules, pick: Picker) -> None:
    """Adds tokens to all texts until each has ended or reached its ``stop``. Texts that stop leave the batch."""
    is_near = decoder.device.type == "cpu" or rules.reads_texts
    alive = texts
    unseen: list[Tensor] = []
    while True:
        produced = [len(text.added) + len(unseen) for text in alive]
        logits_NV = logits_behind(decoder.model, hidden_ND)
        rules.apply(logits_NV, produced, lambda rows=alive: [text.all for text in rows])  # type: ignore[misc]
        token_N = pick(logits_NV, [text.number for text in alive])
        unseen.append(token_N)
        left = min(text.stop - count for text, count in zip(alive, produced, strict=True)) - 1
        if is_near or not left or len(unseen) == _STEPS_UNSEEN:
            for text, tokens in zip(alive, torch.stack(unseen, 1).tolist(), strict=True):
                text.has_ended = eos in tokens
                text.added += tokens[: tokens.index(eos)] if text.has_ended else tokens
            unseen = []
            going = [row for row, text in enumerate(alive) if not text.has_ended and len(text.added) < text.stop]
            if not going:
                return
            if len(going) < len(alive):
                order_N = decoder.keep(going)
                alive = [alive[row] for row in order_N.tolist()]
                token_N = token_N[order_N]
        hidden_ND = decoder.step(token_N)
