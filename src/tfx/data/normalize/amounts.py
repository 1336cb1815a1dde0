"""Amounts of money. Values are in hundredths of the major unit."""

import random
from typing import NamedTuple

from tfx.data.normalize.numbers import draw_integer, say_in_hundreds, say_integer, say_scaled, spell
from tfx.data.normalize.phrase import Forms, Phrase


class Currency(NamedTuple):
    """How to say and write a currency; ``minor_alone`` if "fifty cents" can mean no other currency."""

    symbol: str
    one: str
    many: str
    minor: str
    minor_alone: bool


CURRENCIES = (
    Currency("$", "dollar", "dollars", "cents", True),
    Currency("£", "pound", "pounds", "pence", True),
    Currency("€", "euro", "euros", "cents", False),
    Currency("₹", "rupee", "rupees", "paise", True),
    Currency("CHF ", "franc", "francs", "centimes", True),
    Currency("C$", "canadian dollar", "canadian dollars", "cents", False),
    Currency("A$", "australian dollar", "australian dollars", "cents", False),
)
# The yen has no minor unit in use, so no form that needs one has it.
YEN = Currency("¥", "yen", "yen", "", False)

AMOUNT_CARRIERS = (
    "{who} paid {x} for {thing}",
    "{thing} cost {x}",
    "{who} sold {thing} for {x}",
    "{who} lent her {x}",
    "the bill came to {x}",
    "{who} found {x} at {place}",
    "{x} is too much for {thing}",
    "the fare to {place} is {x}",
)
FORTUNE_CARRIERS = (
    "the company lost {x}",
    "{who} left {x} to the poor",
    "{place} was sold for {x}",
    "the new road will cost {x}",
    "the loss was put at {x}",
)


def _whole(rng: random.Random) -> Phrase:
    currency = rng.choice((*CURRENCIES, YEN))
    if rng.random() < 0.1:
        number, said = say_in_hundreds(rng)
    else:
        number = draw_integer(rng, (1, 3, 4, 4, 3, 2, 2))
        said = say_integer(rng, number)
    written = f"{currency.symbol}{number:,}"
    return Phrase(f"{said} {currency.many}", written, str(number * 100), AMOUNT_CARRIERS)


def _with_minor(rng: random.Random) -> Phrase:
    currency = rng.choice(CURRENCIES)
    major = 1 if rng.random() < 0.1 else draw_integer(rng, (2, 3, 3, 1))
    minor = rng.randrange(2, 100)
    spoken = f"{say_integer(rng, major)} {currency.one if major == 1 else currency.many}"
    if minor >= 10 and rng.random() < 0.4:
        spoken += f" {spell(minor)}"
    else:
        joint = rng.choice((" and ", " "))
        spoken += f"{joint}{spell(minor)} {currency.minor}"
    written = f"{currency.symbol}{major:,}.{minor:02d}"
    return Phrase(spoken, written, str(major * 100 + minor), AMOUNT_CARRIERS)


def _minor_alone(rng: random.Random) -> Phrase:
    currency = rng.choice([currency for currency in CURRENCIES if currency.minor_alone])
    minor = rng.randrange(2, 100)
    spoken = f"{spell(minor)} {currency.minor}"
    return Phrase(spoken, f"{currency.symbol}0.{minor:02d}", str(minor), AMOUNT_CARRIERS)


def _scaled(rng: random.Random) -> Phrase:
    currency = rng.choice((*CURRENCIES, YEN))
    hundredths, said, written = say_scaled(rng)
    return Phrase(f"{said} {currency.many}", f"{currency.symbol}{written}", str(hundredths), FORTUNE_CARRIERS)


FORMS: Forms = {
    _whole: 40,
    _with_minor: 35,
    _minor_alone: 8,
    _scaled: 17,
}
