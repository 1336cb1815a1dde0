"""Measures. Values are in hundredths of the unit."""

import random
from typing import NamedTuple

from tfx.data.normalize.numbers import draw_decimal, draw_integer, say_decimal, say_integer, spell, write_hundredths
from tfx.data.normalize.phrase import Forms, Phrase


class Unit(NamedTuple):
    """How to say and write a unit; the symbol includes the space that separates it from the number."""

    symbol: str
    spoken: str


# Units by the quantity that they measure, which also decides the carriers. Pounds are left out, because "five pounds"
# is already an amount. There is no singular, because "one kilometer" has a single value and would be in one split only.
UNITS = {
    "length": (
        Unit(" mm", "millimeters"),
        Unit(" cm", "centimeters"),
        Unit(" m", "meters"),
        Unit(" km", "kilometers"),
        Unit(" in", "inches"),
        Unit(" ft", "feet"),
        Unit(" mi", "miles"),
    ),
    "mass": (
        Unit(" mg", "milligrams"),
        Unit(" g", "grams"),
        Unit(" kg", "kilograms"),
        Unit(" oz", "ounces"),
        Unit(" t", "tons"),
    ),
    "volume": (
        Unit(" mL", "milliliters"),
        Unit(" L", "liters"),
        Unit(" gal", "gallons"),
        Unit(" m³", "cubic meters"),
    ),
    "area": (
        Unit(" m²", "square meters"),
        Unit(" km²", "square kilometers"),
        Unit(" ha", "hectares"),
        Unit(" ac", "acres"),
    ),
    "duration": (
        Unit(" ms", "milliseconds"),
        Unit(" s", "seconds"),
        Unit(" min", "minutes"),
        Unit(" h", "hours"),
    ),
    "speed": (
        Unit(" km/h", "kilometers per hour"),
        Unit(" mph", "miles per hour"),
        Unit(" m/s", "meters per second"),
    ),
    "flow": (
        Unit(" L/h", "liters per hour"),
        Unit(" L/min", "liters per minute"),
    ),
    "temperature": (
        Unit(" °C", "degrees celsius"),
        Unit(" °F", "degrees fahrenheit"),
    ),
    "share": (Unit("%", "percent"),),
    "power": (
        Unit(" W", "watts"),
        Unit(" kW", "kilowatts"),
        Unit(" MW", "megawatts"),
    ),
    "energy": (Unit(" kWh", "kilowatt hours"),),
    "frequency": (
        Unit(" Hz", "hertz"),
        Unit(" MHz", "megahertz"),
        Unit(" GHz", "gigahertz"),
    ),
    "data": (
        Unit(" MB", "megabytes"),
        Unit(" GB", "gigabytes"),
    ),
    "transfer": (
        Unit(" MB/s", "megabytes per second"),
        Unit(" GB/s", "gigabytes per second"),
    ),
}
# Quantities whose values have at most three digits in ordinary speech.
SMALL_QUANTITIES = frozenset({"duration", "speed", "temperature", "share"})


class Compound(NamedTuple):
    """Two units said together, and how many of the smaller make one of the larger."""

    quantity: str
    large: Unit
    small: Unit
    ratio: int


COMPOUNDS = (
    Compound("duration", Unit(" h", "hours"), Unit(" min", "minutes"), 60),
    Compound("duration", Unit(" min", "minutes"), Unit(" s", "seconds"), 60),
    Compound("length", Unit(" ft", "feet"), Unit(" in", "inches"), 12),
)

MEASURE_CARRIERS = {
    "length": (
        "{who} walked {x}",
        "the road to {place} is {x} long",
        "the wall is {x} high",
        "{x} of rope lay on the deck",
    ),
    "mass": ("the parcel weighs {x}", "{who} carried {x}", "the recipe needs {x} of flour"),
    "volume": ("the tank holds {x}", "{who} bought {x} of oil", "{x} of water ran out"),
    "area": ("the farm covers {x}", "{who} bought {x} of land", "{x} of forest are left"),
    "duration": ("{event} lasted {x}", "{who} waited for {x}", "the repair took {x}"),
    "speed": ("{vehicle} ran at {x}", "{who} drove at {x}"),
    "flow": ("the pump moves {x}", "the leak reached {x}"),
    "temperature": ("it was {x} at {place}", "the sensor showed {x}"),
    "share": ("prices rose by {x}", "sales rose by {x}"),
    "power": ("the motor gives {x}", "the heater needs {x}"),
    "energy": ("the house used {x}", "{who} saved {x}"),
    "frequency": ("the signal is at {x}", "{who} heard a tone of {x}"),
    "data": ("the file takes up {x}", "{who} deleted {x}"),
    "transfer": ("the disk reads {x}", "the copy ran at {x}"),
}


def _whole(rng: random.Random) -> Phrase:
    quantity, unit = _draw_unit(rng)
    number = draw_integer(rng, (1, 3, 3) if quantity in SMALL_QUANTITIES else (1, 3, 3, 2, 1))
    spoken = f"{say_integer(rng, number)} {unit.spoken}"
    return Phrase(spoken, f"{number:,}{unit.symbol}", str(number * 100), MEASURE_CARRIERS[quantity])


def _decimal(rng: random.Random) -> Phrase:
    quantity, unit = _draw_unit(rng)
    hundredths = draw_decimal(rng, (3, 3, 2) if quantity in SMALL_QUANTITIES else (3, 3, 2, 1))
    spoken = f"{say_decimal(rng, hundredths)} {unit.spoken}"
    written = f"{write_hundredths(hundredths)}{unit.symbol}"
    return Phrase(spoken, written, str(hundredths), MEASURE_CARRIERS[quantity])


def _mixed(rng: random.Random) -> Phrase:
    quantity, unit = _draw_unit(rng)
    fraction, said = rng.choice(((50, "a half"), (25, "a quarter"), (75, "three quarters")))
    whole = rng.randrange(1, 100)
    written = f"{write_hundredths(whole * 100 + fraction)}{unit.symbol}"
    spoken = f"{spell(whole)} and {said} {unit.spoken}"
    return Phrase(spoken, written, str(whole * 100 + fraction), MEASURE_CARRIERS[quantity])


def _negative(rng: random.Random) -> Phrase:
    unit = rng.choice(UNITS["temperature"])
    if rng.random() < 0.5:
        hundredths = 100 * rng.randrange(2, 100)
        said = spell(hundredths // 100)
    else:
        hundredths = 100 * rng.randrange(100) + 10 * rng.randrange(1, 10)
        said = say_decimal(rng, hundredths)
    written = f"-{write_hundredths(hundredths)}{unit.symbol}"
    return Phrase(f"minus {said} {unit.spoken}", written, str(hundredths), MEASURE_CARRIERS["temperature"])


def _compound(rng: random.Random) -> Phrase:
    quantity, large, small, ratio = rng.choice(COMPOUNDS)
    first, second = rng.randrange(2, 25), rng.randrange(2, ratio)
    joint = rng.choice((" and ", " "))
    spoken = f"{spell(first)} {large.spoken}{joint}{spell(second)} {small.spoken}"
    written = f"{first}{large.symbol} {second}{small.symbol}"
    return Phrase(spoken, written, f"{first} {second}", MEASURE_CARRIERS[quantity])


def _draw_unit(rng: random.Random) -> tuple[str, Unit]:
    """Draws a quantity and one of its units, so that neither a lone unit nor one of many is rare."""
    quantity = rng.choices(list(UNITS), [len(units) + 1 for units in UNITS.values()])[0]
    return quantity, rng.choice(UNITS[quantity])


FORMS: Forms = {
    _whole: 38,
    _decimal: 30,
    _mixed: 12,
    _negative: 8,
    _compound: 12,
}
