"""Examples of all kinds, in splits that share no value."""

import hashlib
import random
from typing import NamedTuple

from tfx.data.normalize import amounts, cardinals, dates, measures, ordinals, times
from tfx.data.normalize.phrase import Forms, in_carrier


class Kind(NamedTuple):
    """A kind of examples: its share of every split in percent, and its forms."""

    share: int
    forms: Forms


KINDS = {
    "cardinal": Kind(22, cardinals.FORMS),
    "ordinal": Kind(14, ordinals.FORMS),
    "date": Kind(18, dates.FORMS),
    "time": Kind(14, times.FORMS),
    "amount": Kind(16, amounts.FORMS),
    "measure": Kind(16, measures.FORMS),
}

# Chance could leave a split without any value of a form that has few, such as the 24 full hours. With this number,
# full and quarter hours, days of the year and small numbers are split in the same shares as all others.
SPLIT_KEY = b"tfx normalize 5581"
TRAIN_SHARE = 0.90
VALID_SHARE = 0.05
# After this many rejected draws in a row, a split has hardly any new example of a kind left.
MAX_REJECTIONS = 20_000


def generate(seed: int, train: int = 20_000, valid: int = 1_000, test: int = 1_000) -> dict[str, list[dict[str, str]]]:
    """Makes the data set, with ``train``, ``valid`` and ``test`` examples in the splits of these names.

    Returns the examples of each split in shuffled order. Each has ``source``, ``target`` and ``kind`` (one of
    `KINDS`). No source occurs twice, neither in one split nor in two. Equal arguments give equal results on every
    platform and Python version, as long as num2words is the same version.

    Raises `ValueError` if a size is negative, or so large that distinct examples run out.
    """
    sizes = {"train": train, "valid": valid, "test": test}
    if min(sizes.values()) < 0:
        raise ValueError(f"sizes of splits must not be negative: {sizes}")
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {}
    for split, size in sizes.items():
        examples = [
            _new_example(rng, kind, split, seen) for kind, count in _apportion(size).items() for _ in range(count)
        ]
        rng.shuffle(examples)
        splits[split] = examples
    return splits


def kinds(seed: int, train: int = 8_000, valid: int = 1_000, test: int = 1_000) -> dict[str, list[dict[str, str]]]:
    """The same examples as ``text`` and ``label``: the spoken side, and its kind."""
    made = generate(seed, train, valid, test)
    return {split: [{"text": row["source"], "label": row["kind"]} for row in rows] for split, rows in made.items()}


def _apportion(size: int) -> dict[str, int]:
    """Divides ``size`` among the kinds by their shares. Shares are rounded down; the first kinds get the rest."""
    counts = {name: size * kind.share // 100 for name, kind in KINDS.items()}
    for kind in list(KINDS)[: size - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _new_example(rng: random.Random, kind: str, split: str, seen: set[str]) -> dict[str, str]:
    forms = KINDS[kind].forms
    for _ in range(MAX_REJECTIONS):
        # Draw the form anew each time, so that others replace a form whose few values are used up.
        phrase = rng.choices(list(forms), list(forms.values()))[0](rng)
        if _split_of(kind, phrase.value) != split:
            continue
        source, target = in_carrier(rng, phrase)
        if source not in seen:
            seen.add(source)
            return {"source": source, "target": target, "kind": kind}
    raise ValueError(f"no more distinct examples of kind {kind} for split {split}: ask for a smaller split")


def _split_of(kind: str, value: str) -> str:
    digest = hashlib.blake2b(f"{kind} {value}".encode(), key=SPLIT_KEY, digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "valid" if position < TRAIN_SHARE + VALID_SHARE else "test"
