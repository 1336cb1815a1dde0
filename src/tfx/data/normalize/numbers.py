"""Drawing numbers, saying them in words and writing them in digits, for all kinds."""

import random
from functools import lru_cache

from num2words import num2words


@lru_cache(maxsize=2**16)
def spell(number: int, to: str = "cardinal") -> str:
    """A number in words, without commas and hyphens: ``one thousand and forty two``."""
    return str(num2words(number, to=to)).replace(",", "").replace("-", " ")


def draw_integer(rng: random.Random, digit_weights: tuple[int, ...]) -> int:
    """Draws an integer of at least 2; ``digit_weights`` weighs its number of digits, from one digit upwards.

    Over a third of the numbers have extra zeros. People say round numbers more often than chance would, and zeros
    inside a number are hard to write, because no word stands for them.
    """
    count = rng.choices(range(1, len(digit_weights) + 1), digit_weights)[0]
    first = rng.randrange(2 if count == 1 else 1, 10)
    zero_rate = 0.6 if rng.random() < 0.4 else 0.0
    rest = [0 if rng.random() < zero_rate else rng.randrange(10) for _ in range(count - 1)]
    return int("".join(map(str, [first, *rest])))


def say_integer(rng: random.Random, number: int) -> str:
    """Says an integer with "and", without it, or with "a" for a leading "one" before hundred, thousand or million."""
    words = spell(number)
    if rng.random() < 0.4:
        return words.replace(" and ", " ")
    if words.startswith(("one hundred", "one thousand", "one million")) and rng.random() < 0.6:
        return "a" + words.removeprefix("one")
    return words


def draw_decimal(rng: random.Random, digit_weights: tuple[int, ...]) -> int:
    """Draws a number with one or two decimal places and no trailing zero; returns it in hundredths."""
    whole = 0 if rng.random() < 0.1 else draw_integer(rng, digit_weights)
    if rng.random() < 0.5:
        return whole * 100 + rng.randrange(1, 10) * 10
    tenths = 0 if rng.random() < 0.3 else rng.randrange(10)
    return whole * 100 + tenths * 10 + rng.randrange(1, 10)


def say_decimal(rng: random.Random, hundredths: int) -> str:
    """Says a number with decimal places; a zero right after the point is "zero" or "oh"."""
    whole, places = write_hundredths(hundredths).replace(",", "").split(".")
    said = " ".join(spell(int(digit)) for digit in places)
    if places.startswith("0") and rng.random() < 0.5:
        said = said.replace("zero", "oh")
    return f"{say_integer(rng, int(whole))} point {said}"


def write_hundredths(hundredths: int) -> str:
    """Writes a number given in hundredths, without trailing zeros: ``1,234.5``."""
    whole, places = divmod(hundredths, 100)
    return f"{whole:,}.{places:02d}".rstrip("0").rstrip(".")


def say_in_hundreds(rng: random.Random) -> tuple[int, str]:
    """Draws a number such as 1,205; returns it, and in words such as "twelve hundred and five"."""
    hundreds = rng.randrange(1, 10) * 10 + rng.randrange(1, 10)
    rest = 0 if rng.random() < 0.4 else rng.randrange(1, 100)
    words = f"{spell(hundreds)} hundred"
    if rest:
        words += rng.choice((" and ", " ")) + spell(rest)
    return hundreds * 100 + rest, words


def say_scaled(rng: random.Random) -> tuple[int, str, str]:
    """Draws a number such as 1.5 million; returns it in hundredths, as spoken, and as written."""
    if rng.random() < 0.3:
        whole = rng.randrange(1, 100)
        hundredths = whole * 100 + 50
        said = f"{spell(whole)} and a half"
    else:
        hundredths = rng.randrange(1, 10 ** rng.randrange(1, 4)) * 100 + rng.randrange(1, 10) * 10
        if rng.random() < 0.3:
            hundredths += rng.randrange(1, 10)
        said = say_decimal(rng, hundredths)
    return hundredths * 10**6, f"{said} million", f"{write_hundredths(hundredths)} million"
