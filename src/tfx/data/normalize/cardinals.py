"""Cardinal numbers. Values are in hundredths, as are those of amounts and measures."""

import random

from tfx.data.normalize.numbers import (
    draw_decimal,
    draw_integer,
    say_decimal,
    say_in_hundreds,
    say_integer,
    say_scaled,
    spell,
    write_hundredths,
)
from tfx.data.normalize.phrase import Forms, Phrase

COUNT_CARRIERS = (
    "there were {x} people at {place}",
    "{who} counted {x} birds near {place}",
    "{place} sold {x} tickets",
    "about {x} letters arrived at {place}",
    "{who} owned {x} books",
    "the town has {x} inhabitants",
    "the file has {x} lines",
    "more than {x} visitors came",
    "{who} wrote {x} words",
    "the army lost {x} men",
)
NUMBER_CARRIERS = (
    "the result was {x}",
    "{who} wrote down {x}",
    "the answer is {x}",
    "the average was {x} at {place}",
    "the value fell below {x}",
    "{who} guessed {x}",
)
SCALED_CARRIERS = (
    "about {x} people live there",
    "{x} copies were sold",
    "more than {x} visitors saw {place}",
    "the region has {x} inhabitants",
    "the search found {x} results",
)


def _whole(rng: random.Random) -> Phrase:
    number = draw_integer(rng, (1, 5, 5, 4, 6, 5, 5))
    return Phrase(say_integer(rng, number), f"{number:,}", str(number * 100), COUNT_CARRIERS)


def _with_a(rng: random.Random) -> Phrase:
    # Few other whole numbers begin with a one, so these have their own form.
    leading = rng.choice((100, 1_000, 100_000, 1_000_000))
    number = leading + draw_integer(rng, (1,) * (len(str(leading)) - 1))
    return Phrase("a" + spell(number).removeprefix("one"), f"{number:,}", str(number * 100), COUNT_CARRIERS)


def _in_hundreds(rng: random.Random) -> Phrase:
    number, said = say_in_hundreds(rng)
    return Phrase(said, f"{number:,}", str(number * 100), COUNT_CARRIERS)


def _negative(rng: random.Random) -> Phrase:
    number = draw_integer(rng, (1, 3, 3, 2))
    return Phrase(f"minus {say_integer(rng, number)}", f"-{number:,}", str(number * 100), NUMBER_CARRIERS)


def _decimal(rng: random.Random) -> Phrase:
    hundredths = draw_decimal(rng, (2, 2, 2, 1))
    return Phrase(say_decimal(rng, hundredths), write_hundredths(hundredths), str(hundredths), NUMBER_CARRIERS)


def _scaled(rng: random.Random) -> Phrase:
    hundredths, said, written = say_scaled(rng)
    return Phrase(said, written, str(hundredths), SCALED_CARRIERS)


FORMS: Forms = {
    _whole: 50,
    _with_a: 10,
    _in_hundreds: 8,
    _negative: 8,
    _decimal: 12,
    _scaled: 12,
}
