"""Words of scripts that are not Latin: what metrics that count words need, and a warning where they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import regex

# Scripts that put no space between words; each of their letters counts as one.
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_SPACELESS_LETTER = regex.compile(rf"[{_SPACELESS}]")
_LETTER = regex.compile(r"\p{L}")
_CHARACTERS = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[^{_SPACELESS}]+")
_PUNCTUATION = regex.compile(r"[\p{P}\p{S}\s]+")
# As the reference implementation of ROUGE splits Latin letters and digits; other scripts by their own words.
_ROUGE_WORD = regex.compile(
    rf"[a-z0-9]+|[{_SPACELESS}]\p{{M}}*"
    rf"|[[\p{{L}}\p{{N}}]--[a-z0-9\p{{Latin}}{_SPACELESS}]][[\p{{L}}\p{{N}}\p{{M}}]--[a-z0-9\p{{Latin}}{_SPACELESS}]]*",
    regex.VERSION1,
)
# Metrics that take what stands between spaces for a word.
_BY_SPACES = ("bleu", "bleu_lowercase")
_FEW = 0.1
_SAMPLE = 2_000


def rouge_words(text: str) -> list[str]:
    """The words of a text for ROUGE, in lower case: of Latin letters as the reference implementation has them."""
    return _ROUGE_WORD.findall(text.lower())


def split_characters(words: Iterable[str]) -> list[str]:
    """Words, and in their place each letter of a script without spaces; punctuation beside such letters is dropped."""
    found = []
    for word in words:
        if _SPACELESS_LETTER.search(word) is None:
            found.append(word)
        else:
            found += [piece for piece in _CHARACTERS.findall(word) if not _PUNCTUATION.fullmatch(piece)]
    return found


def misfits(metrics: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """A line for each metric that counts words between spaces where the references' script has none."""
    chosen = [name for name in metrics if name in _BY_SPACES]
    if not chosen:
        return []
    text = " ".join(row[0] for row in references[:_SAMPLE] if row)
    letters = len(_LETTER.findall(text))
    share = len(_SPACELESS_LETTER.findall(text)) / max(1, letters)
    if share < _FEW:
        return []
    return [
        f"{name} counts words between spaces, and {share:.0%} of the references' letters are of scripts without them: "
        "bleu_zh, bleu_ja, bleu_char, bleu_flores200 or chrf fit"
        for name in chosen
    ]
