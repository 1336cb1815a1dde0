"""Decoding with one hypothesis for each text: outputs of an encoder-decoder, continuations of a language model.

Shapes: B sentences, S source positions, N texts that go on, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.model.decoding.beam import beam_search
from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.output import Output, scored
from tfx.model.decoding.rules import Ends, Rules
from tfx.model.decoding.sampling import Picker, make_picker
from tfx.model.decoding.source import read_source
from tfx.model.engine import StepEngine, WholeEngine, without_padding
from tfx.model.transformer import Transformer

# Steps between two looks at what has ended, on a device that the host would have to wait for.
_STEPS_UNSEEN = 8


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each input: the ``best`` outputs (more than one: by a beam), ``detailed``: with their
    log-probabilities, beginning with its entry in ``prefixes``.
    """

    best: int = 1
    detailed: bool = False
    prefixes: Sequence[Sequence[int]] | None = None

    def check(self, engine: WholeEngine) -> None:
        """Raises `UserError` where an engine that decodes by itself cannot give this."""
        if self.best > 1 or self.detailed or (self.prefixes is not None and any(self.prefixes)):
            raise UserError(
                f"evaluation.engine={engine.name} gives one output, without prefix, score and log-probabilities: use "
                "engine torch or onnx"
            )


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
    """The tokens of the best output of each source, without begin and end (`outputs_for`)."""
    found = outputs_for(model, source_BS, source_mask_BS, limits_B, ends, config, seed, streams)
    return [outputs[0].tokens for outputs in found]


@torch.inference_mode()
def outputs_for(
    model: Transformer,
    source_BS: Tensor,
    source_mask_BS: Tensor | None,
    limits_B: Tensor,
    ends: Ends,
    config: EvaluationConfig,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    wanted: Wanted = Wanted(),
) -> list[list[Output]]:
    """The outputs of an encoder-decoder for a batch of sources, the best one of each first.

    ``limits`` holds the longest output of each. Only sampling uses ``seed`` and ``streams`` (`make_picker`).
    """
    if isinstance(model.engine, WholeEngine):
        wanted.check(model.engine)
        sources = without_padding(source_BS, source_mask_BS)
        return [[Output(tokens)] for tokens in model.engine.translate(sources, limits_B.tolist(), config)]
    device = source_BS.device
    rules = Rules(ends, config, device, wanted.prefixes)
    limits = limits_B.tolist()
    if config.method in ("beam", "auto") and config.beam > 1:
        decoder = _decoder(model, source_BS, source_mask_BS, config.beam)
        return beam_search(decoder, limits, ends, rules, config, wanted.best, detailed=wanted.detailed)
    decoder = _decoder(model, source_BS, source_mask_BS, 1)
    texts = [_Text(number, [], limit) for number, limit in enumerate(limits)]
    pick = make_picker(config, seed, device, streams or range(len(limits)))
    hidden_ND = decoder.step(torch.full((len(limits),), ends.bos, device=device))
    _extend(decoder, hidden_ND, texts, ends.eos, rules, pick, detailed=wanted.detailed)
    return [[text.output(config)] for text in texts]


@torch.inference_mode()
def continue_texts(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    ends: Ends,
    config: EvaluationConfig,
    pick: Picker,
    wanted: Wanted = Wanted(),
) -> list[Output]:
    """What a language model adds after each non-empty prompt: tokens up to the end, or ``new_tokens`` of them.

    When a text fills the context, the model reads its later half again and continues from there.
    """
    context, most = model.architecture.context, config.new_tokens
    if isinstance(model.engine, WholeEngine):
        wanted.check(model.engine)
        if (longest := max(map(len, prompts))) + most > context:
            raise UserError(
                f"evaluation.engine={model.engine.name} stops at the context of {context:,} tokens, and {longest:,} of "
                f"a prompt with {most:,} new ones are more: lower evaluation.new_tokens, or use engine torch or onnx"
            )
        return [Output(tokens) for tokens in model.engine.continue_texts(prompts, most)]
    device = model.embedding.weight.device
    rules = Rules(ends, config, device, wanted.prefixes)
    texts = [_Text(number, list(prompt), most) for number, prompt in enumerate(prompts)]
    going, read = texts, context
    while going:
        pieces = [text.all[-read:] for text in going]
        longest = max(map(len, pieces))
        padded = [[ends.pad] * (longest - len(piece)) + piece for piece in pieces]
        first_R = None
        if any(len(piece) < longest for piece in pieces):
            first_R = torch.tensor([longest - len(piece) for piece in pieces], device=device)
        for text, piece in zip(going, pieces, strict=True):
            # The token behind a full context can be chosen, but not be read.
            text.stop = min(most, len(text.added) + context - len(piece) + 1)
        decoder = model.engine.decoder(None, 1) if isinstance(model.engine, StepEngine) else Decoder(model, len(going))
        hidden_RD = decoder.read(torch.tensor(padded, device=device), first_R)
        _extend(decoder, hidden_RD, going, ends.eos, rules, pick, detailed=wanted.detailed)
        going = [text for text in going if not text.has_ended and len(text.added) < most]
        read = max(1, context // 2)
    return [text.output(config) for text in texts]


def continue_text(model: Transformer, prompt: list[int], new_tokens: int, eos: int, pick: Picker) -> list[int]:
    """The tokens of `continue_texts` for one prompt, without rules."""
    if not new_tokens:
        return []
    config = EvaluationConfig(new_tokens=new_tokens)
    return continue_texts(model, [prompt], Ends(bos=eos, eos=eos, pad=0), config, pick)[0].tokens


def _decoder(model: Transformer, source_BS: Tensor, source_mask_BS: Tensor | None, hypotheses: int) -> Decoder:
    """The decoder of a batch of sources: the model's own, or that of its engine."""
    if isinstance(model.engine, StepEngine):
        return model.engine.decoder(without_padding(source_BS, source_mask_BS), hypotheses)
    memory_BSD = read_source(model, source_BS, source_mask_BS)
    return Decoder(model, len(source_BS), hypotheses, memory_BSD, source_mask_BS)


@dataclass
class _Text:
    """A text that goes on: its number in the batch, what it began with, and how many added tokens stop it."""

    number: int
    prompt: list[int]
    stop: int
    added: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    has_ended: bool = False

    @property
    def all(self) -> list[int]:
        return [*self.prompt, *self.added]

    def take(self, tokens: list[int], log_probs: list[float], eos: int) -> None:
        """Adds the next tokens, up to the end token."""
        self.has_ended = eos in tokens
        count = tokens.index(eos) if self.has_ended else len(tokens)
        self.added += tokens[:count]
        self.log_probs += log_probs[: count + self.has_ended]

    def output(self, config: EvaluationConfig) -> Output:
        if self.log_probs:
            return scored(self.added, self.log_probs, config.length_penalty)
        return Output(self.added)


def _extend(
    decoder: Decoder,
    hidden_ND: Tensor,
    texts: list[_Text],
    eos: int,
    rules: Rules,
    pick: Picker,
    *,
    detailed: bool,
) -> None:
    """Adds tokens to all texts until each has ended or reached its ``stop``. Texts that stop leave the batch."""
    is_near = decoder.is_near or rules.reads_texts
    alive = texts
    unseen: list[Tensor] = []
    unseen_probs: list[Tensor] = []
    while True:
        produced = [len(text.added) + len(unseen) for text in alive]
        numbers = [text.number for text in alive]
        logits_NV = decoder.logits(hidden_ND)
        rules.apply(logits_NV, produced, [text.all for text in alive] if rules.reads_texts else [], numbers)
        token_N = pick(logits_NV, numbers)
        unseen.append(token_N)
        if detailed:
            unseen_probs.append(logits_NV.log_softmax(-1).gather(1, token_N.unsqueeze(1)).squeeze(1))
        left = min(text.stop - count for text, count in zip(alive, produced, strict=True)) - 1
        if is_near or not left or len(unseen) == _STEPS_UNSEEN:
            tokens = torch.stack(unseen, 1).tolist()
            probs = torch.stack(unseen_probs, 1).tolist() if detailed else [[]] * len(alive)
            for text, own, own_probs in zip(alive, tokens, probs, strict=True):
                text.take(own, own_probs, eos)
            unseen, unseen_probs = [], []
            going = [row for row, text in enumerate(alive) if not text.has_ended and len(text.added) < text.stop]
            if not going:
                return
            if len(going) < len(alive):
                order_N = decoder.keep(going)
                alive = [alive[row] for row in order_N.tolist()]
                token_N = token_N[order_N]
        hidden_ND = decoder.step(token_N)
