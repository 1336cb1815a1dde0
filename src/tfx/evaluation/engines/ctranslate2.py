"""Decoding by CTranslate2, in its own batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tfx.compression.checkpoint import LoadedModel
from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.exchange.to_ctranslate2 import vocabulary
from tfx.model.engine import WholeEngine

Ids = Sequence[int]

# Sentences handed over at once, of about one length: they share the limit of their outputs.
_AT_ONCE = 256
# Sentences that it decodes at once.
_BATCH = 64


class CTranslate2Engine(WholeEngine):
    """A converted folder on the threads that torch has.

    Its beam search divides scores by length^alpha, not by ((5 + length) / 6)^alpha; with ``length_penalty=0`` both are
    the same.
    """

    name = "ctranslate2"

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        import ctranslate2

        kind = ctranslate2.Translator if loaded.model.architecture.is_seq2seq else ctranslate2.Generator
        threads = torch.get_num_threads()
        self._model: Any = kind(str(folder), device="cpu", inter_threads=1, intra_threads=threads)
        self._tokens = vocabulary(loaded)
        self._numbers = {token: index for index, token in enumerate(self._tokens)}
        never = [[self._tokens[index]] for index in loaded.tokenizer.never]
        self._options: dict[str, Any] = {"suppress_sequences": never} if never else {}

    @classmethod
    def check(cls, config: EvaluationConfig) -> None:
        if config.method == "sample":
            raise UserError(
                "evaluation.engine=ctranslate2 decodes by greedy and beam search, its samples are not repeatable: "
                "set evaluation.engine=torch or onnx, or evaluation.method=greedy"
            )
        for name in ("min_length", "no_repeat_ngram", "repetition_penalty"):
            if getattr(config, name) != getattr(EvaluationConfig, name):
                raise UserError(
                    f"evaluation.engine=ctranslate2 does not follow evaluation.{name}: use engine torch or onnx"
                )

    def notes(self, config: EvaluationConfig) -> list[str]:
        if config.method in ("auto", "beam") and config.beam > 1 and config.length_penalty:
            return ["CTranslate2's beam search divides scores by length^alpha, torch's by ((5 + length) / 6)^alpha"]
        return []

    def translate(self, sources: Sequence[Ids], limits: Sequence[int], config: EvaluationConfig) -> list[list[int]]:
        beam = config.beam if config.method in ("auto", "beam") else 1
        outputs: list[list[int]] = [[] for _ in sources]
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]), reverse=True)
        for first in range(0, len(order), _AT_ONCE):
            rows = order[first : first + _AT_ONCE]
            found = self._model.translate_batch(
                [self._words(sources[row]) for row in rows],
                max_batch_size=_BATCH,
                beam_size=beam,
                length_penalty=config.length_penalty,
                max_decoding_length=max(limits[row] for row in rows),
                min_decoding_length=0,
                **self._options,
            )
            for row, result in zip(rows, found, strict=True):
                outputs[row] = [self._numbers[word] for word in result.hypotheses[0]][: limits[row]]
        return outputs

    def continue_texts(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        found = self._model.generate_batch(
            [self._words(prompt) for prompt in prompts],
            max_batch_size=_BATCH,
            beam_size=1,
            max_length=new_tokens,
            include_prompt_in_result=False,
            **self._options,
        )
        return [[self._numbers[word] for word in result.sequences[0]] for result in found]

    def _words(self, ids: Ids) -> list[str]:
        return [self._tokens[index] for index in ids]
