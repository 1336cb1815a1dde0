"""Words of scripts that are not Latin: for metrics that count words, and a warning if they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import regex

# Scripts that put no space between words; each of their letters counts as one. The mark of a long vowel, which Unicode
# keeps with no script, is one of kana.
_SPACELESS_SCRIPTS = {
    "Han": r"\p{Han}",
    "kana": r"\p{Hiragana}\p{Katakana}ーｰ",
    "Thai": r"\p{Thai}",
    "Lao": r"\p{Lao}",
    "Khmer": r"\p{Khmer}",
    "Burmese": r"\p{Myanmar}",
    "Tibetan": r"\p{Tibetan}",
}
_SPACELESS = "".join(_SPACELESS_SCRIPTS.values())
_SPACELESS_LETTER = regex.compile(rf"[{_SPACELESS}]")
_LETTERS_OF = {
    script: regex.compile(rf"[[{letters}]&&\p{{L}}]", regex.VERSION1) for script, letters in _SPACELESS_SCRIPTS.items()
}
_LETTER = regex.compile(r"\p{L}")
_CHARACTERS = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[^{_SPACELESS}]+")
_PUNCTUATION = regex.compile(r"[\p{P}\p{S}\s]+")
# As the reference implementation of ROUGE splits Latin letters and digits: to it all else stands between words, thus
# also signs of no script (µ, ², ½). Other scripts by their own words.
_ROUGE_WORD = regex.compile(
    rf"[a-z0-9]+|[{_SPACELESS}]\p{{M}}*"
    rf"|[[[\p{{L}}--\p{{Common}}]\p{{Nd}}]--[a-z0-9\p{{Latin}}{_SPACELESS}]]"
    rf"[[\p{{L}}\p{{Nd}}\p{{M}}]--[a-z0-9µ\p{{Latin}}{_SPACELESS}]]*",
    regex.VERSION1,
)
# Of the metrics that look for words: in which of these scripts they find them.
_FINDS_WORDS = {
    "bleu": [],
    "bleu_lowercase": [],
    "bleu_zh": [{"Han"}],
    "bleu_ja": [{"Han", "kana"}, {"kana"}],
}
# Those that need no words, or find them in each script.
_FIT_ALL = "bleu_char, bleu_flores200 or chrf"
_FEW = 0.1
_SAMPLE = 2_000


def rouge_words(text: str) -> list[str]:
    """The words of a text for ROUGE, in lower case; Latin ones as in the reference implementation."""
    return _ROUGE_WORD.findall(text.lower())


def split_characters(words: Iterable[str]) -> list[str]:
    """Words, or each letter of a script without spaces; punctuation beside such letters is dropped."""
    found = []
    for word in words:
        if _SPACELESS_LETTER.search(word) is None:
            found.append(word)
        else:
            found += [piece for piece in _CHARACTERS.findall(word) if not _PUNCTUATION.fullmatch(piece)]
    return found


def misfits(metrics: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """A line for each metric that counts words although the references' script has no spaces."""
    chosen = [name for name in metrics if name in _FINDS_WORDS]
    if not chosen:
        return []
    text = " ".join(row[0] for row in references[:_SAMPLE] if row)
    counts = {script: len(letters.findall(text)) for script, letters in _LETTERS_OF.items()}
    spaceless = sum(counts.values())
    share = spaceless / max(1, len(_LETTER.findall(text)))
    if share < _FEW:
        return []
    scripts = {script for script, count in counts.items() if count >= _FEW * spaceless}
    better = [name for name, fits in _FINDS_WORDS.items() if scripts in fits]
    return [
        f"{name} does not fit {share:.0%} of the references' letters, which are of scripts without spaces "
        f"({', '.join(sorted(scripts))}): {', '.join([*better, _FIT_ALL])} fit"
        for name in chosen
        if name not in better
    ]
