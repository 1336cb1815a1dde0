"""The merges of a byte-pair encoding, applied by hand: what the `tokenizers` library does, and with merges left out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError

# How byte-level and other encodings spell the space before a word.
_SPACES = ("Ġ", "\u2581")
# Most tokens of a word: in text without spaces a line would be one, and to merge takes time with its square.
_LONGEST = 16


class Merges:
    """The rules of a tokenizer: which two neighbours become which piece, and which come first.

    Raises `UserError` for a tokenizer that does not merge pieces.
    """

    def __init__(self, tokenizer: Tokenizer, wanted_by: str) -> None:
        model = json.loads(tokenizer.to_json())["model"]
        marks = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
        if model["type"] != "BPE" or marks:
            kind = f"{tokenizer.kind} with {marks[0]}" if marks else tokenizer.kind
            raise UserError(
                f"{wanted_by} leaves out merges of a byte-pair encoding, and the tokenizer is {kind}: set "
                f"dataset.tokenizer.kind=bpe, or leave {wanted_by.rpartition('.')[2]} out"
            )
        self._ids: dict[str, int] = model["vocab"]
        self._pieces = {index: piece for piece, index in self._ids.items()}
        self._rules: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, merge in enumerate(model["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            pair = (self._ids[left], self._ids[right])
            self._rules.setdefault(pair, (rank, self._ids[left + right]))

    def apply(self, symbols: Sequence[int], rate: float = 0.0, rng: random.Random | None = None) -> list[int]:
        """The pieces of a word, given as single characters; each possible merge is left out with probability ``rate``.

        Algorithm 1 of Provilkov 2020 (arXiv 1910.13267): of the merges that are left the first one by rank is done, and
        the draw is repeated, until none is left.
        """
        pieces = list(symbols)
        while True:
            best: tuple[int, int, int] | None = None
            for place in range(len(pieces) - 1):
                rule = self._rules.get((pieces[place], pieces[place + 1]))
                if rule is None or (rng is not None and rng.random() < rate):
                    continue
                if best is None or rule[0] < best[0]:
                    best = (rule[0], place, rule[1])
            if best is None:
                return pieces
            _, place, merged = best
            pieces[place : place + 2] = [merged]

    def words(self, ids: Sequence[int]) -> list[list[int]]:
        """Tokens in groups that merges do not cross: those from one space to the next, up to a number of them.

        Joined in order they are ``ids``.
        """
        groups: list[list[int]] = []
        for token in ids:
            begins = token not in self._pieces or self._pieces[token].startswith(_SPACES)
            if begins or not groups or len(groups[-1]) == _LONGEST or groups[-1][-1] not in self._pieces:
                groups.append([token])
            else:
                groups[-1].append(token)
        return groups

    def characters(self, word: Sequence[int]) -> list[int] | None:
        """The characters of the tokens of a word, or None where merges of them do not give its tokens."""
        text = "".join(self._pieces.get(token, "") for token in word)
        symbols = [self._ids.get(character, -1) for character in text]
        return symbols if -1 not in symbols and self.apply(symbols) == list(word) else None
