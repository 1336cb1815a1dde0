"""A written output as a JSON object: the text, and how likely the model found it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tfx.data.tokenizer import Tokenizer
from tfx.model.decoding import Output


def described(
    output: Output, text: str, tokenizer: Tokenizer, alignment: Sequence[tuple[int, int]] | None = None
) -> dict[str, Any]:
    """The ``output`` text of a detailed output, its ``score`` and its ``tokens`` as they are written in the vocabulary.

    Each token has its ``log_prob``; the end token is among them if the output ended. ``alignment`` has pairs of words,
    of the input and of the output.
    """
    ids = output.tokens
    if len(output.log_probs) > len(ids):
        ids = [*ids, tokenizer.eos]
    facts: dict[str, Any] = {"output": text, "score": _number(output.score)}
    facts["tokens"] = [
        {"token": tokenizer.token(token), "log_prob": _number(value)}
        for token, value in zip(ids, output.log_probs, strict=True)
    ]
    if alignment is not None:
        facts["alignment"] = [list(pair) for pair in alignment]
    return facts


def record(outputs: Sequence[dict[str, Any]], best: int | None) -> dict[str, Any]:
    """What is said of one input: its best output, or if several were wanted all of them as ``nbest``."""
    first = outputs[0] if outputs else {"output": ""}
    return first if best is None else {"output": first["output"], "nbest": list(outputs)}


def _number(value: float | None) -> float | None:
    """As JSON has numbers: all are finite."""
    return round(value, 4) if value is not None and math.isfinite(value) else None
