"""Ordinal numbers."""

import random

from tfx.data.normalize.numbers import draw_integer, spell
from tfx.data.normalize.phrase import Forms, Phrase

ORDINAL_CARRIERS = (
    "{who} came {x} in the race",
    "{who} was the {x} visitor",
    "this was the {x} time",
    "{who} lost the {x} game",
    "the {x} customer won a prize",
    "{who} read the {x} page",
    "it was the {x} edition",
    "{who} waited for the {x} bus",
    "the {x} letter came from {place}",
)


def _ordinal(rng: random.Random) -> Phrase:
    number = draw_integer(rng, (1, 4, 6, 4, 1, 1))
    return _as_ordinal(number, spell(number, "ordinal"), rng.random() < 0.5)


def _without_one(rng: random.Random) -> Phrase:
    leading = rng.choice((100, 1_000))
    number = leading + draw_integer(rng, (1,) * (len(str(leading)) - 1))
    return _as_ordinal(number, spell(number, "ordinal").removeprefix("one "), True)


def _as_ordinal(number: int, words: str, with_and: bool) -> Phrase:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    said = words if with_and else words.replace(" and ", " ")
    return Phrase(said, f"{number:,}{ending}", str(number), ORDINAL_CARRIERS)


FORMS: Forms = {
    _ordinal: 88,
    _without_one: 12,
}
