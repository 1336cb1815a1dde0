"""One text in the tokens of two tokenizers, cut into the shortest spans that both have.

Both end a token at the end of a span, at the same character: so the tokens of a span spell the same text in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tfx.data.tokenizer import INSIDE, Tokenizer

# The number of a token that belongs to no common span.
NO_SPAN = -1


@dataclass
class Aligned:
    """A row of ids in another tokenizer's ids, with the number of the span of each token in either, from 0 on."""

    ids: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    other: list[int] = field(default_factory=list)


def align(row: Sequence[int], own: Tokenizer, other: Tokenizer) -> Aligned:
    """A row of ids of one tokenizer in the ids of another.

    An end token in the row is a span by itself, and the texts before and after it are aligned on their own. A span
    counts for nothing (`NO_SPAN`) where it has an unknown token or a part of a character.
    """
    found = Aligned()
    piece: list[int] = []
    spans = 0
    for token in [*row, None]:
        if token is not None and token not in (own.eos, own.bos, own.pad):
            piece.append(token)
            continue
        spans = _add_text(found, piece, own, other, spans)
        piece = []
        if token == own.eos:
            found.ids.append(other.eos)
            found.own.append(spans)
            found.other.append(spans)
            spans += 1
        elif token is not None:
            found.own.append(NO_SPAN)
    return found


def _add_text(found: Aligned, piece: list[int], own: Tokenizer, other: Tokenizer, first: int) -> int:
    """Adds a text without end tokens, whose spans have the numbers from ``first`` on; returns the next number."""
    text = own.decode(piece)
    ids, other_ends = other.spans(text)
    own_ends = _ends(piece, text, own)
    common = sorted({*own_ends} & {*other_ends} - {INSIDE})
    # A span that holds a character that either does not spell says nothing.
    begins = [0, *common][: len(common)]
    unspelt = {n for n, (begin, end) in enumerate(zip(begins, common, strict=True)) if "\ufffd" in text[begin:end]}
    numbers = []
    for tokens, ends, unknown in ((piece, own_ends, own.unk), (ids, other_ends, other.unk)):
        numbers.append(spans := _numbered(ends, common))
        unspelt |= {span for token, span in zip(tokens, spans, strict=True) if token == unknown}
    found.ids += ids
    for kept, spans in zip((found.own, found.other), numbers, strict=True):
        kept += [NO_SPAN if span == NO_SPAN or span in unspelt else first + span for span in spans]
    return first + len(common)


def _ends(piece: list[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Where in its text each token of a piece ends; `INSIDE` where that is inside a character."""
    ids, ends = tokenizer.spans(text)
    if ids == piece:
        return ends
    # It is cut from a longer text, or drawn by a model: what its beginnings spell tells.
    ends = []
    for count in range(1, len(piece) + 1):
        spelt = tokenizer.decode(piece[:count])
        is_whole = text.startswith(spelt) and (count == len(piece) or not spelt.endswith("\ufffd"))
        ends.append(len(spelt) if is_whole else INSIDE)
    return ends


def _numbered(ends: list[int], common: list[int]) -> list[int]:
    """The number of the span of each token; a span goes to the last token that ends where it does."""
    places = {end: number for number, end in enumerate(common)}
    last = {end: place for place, end in enumerate(ends)}
    numbers, span = [], 0
    for place, end in enumerate(ends):
        numbers.append(span if span < len(common) else NO_SPAN)
        if end in places and last[end] == place:
            span = places[end] + 1
    return numbers
