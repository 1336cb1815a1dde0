"""Dates: days, months and years from 1500 to 2049."""

import random
from calendar import monthrange
from datetime import date

from tfx.data.normalize.numbers import say_integer, spell
from tfx.data.normalize.phrase import Forms, Phrase

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

DATE_CARRIERS = (
    "{who} was born on {x}",
    "{event} took place on {x}",
    "{who} left {place} on {x}",
    "on {x} it rained at {place}",
    "{place} opened on {x}",
    "{event} was moved to {x}",
    "the letter from {who} is dated {x}",
)
MONTH_CARRIERS = (
    "{who} moved there in {x}",
    "{place} burned down in {x}",
    "in {x} there was no harvest",
    "{event} was announced in {x}",
    "{who} died in {x}",
)
YEAR_CARRIERS = (
    "{place} was built in {x}",
    "{who} arrived in {x}",
    "in {x} the war was over",
    "{x} was a good year",
    "nobody remembers {x}",
)


def _full(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    spoken = f"{_say_day(rng, day)} {_say_year(rng, day.year)}"
    return Phrase(spoken, f"{_write_day(day)} {day.year}", day.isoformat(), DATE_CARRIERS)


def _full_with_weekday(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    weekday = WEEKDAYS[day.weekday()]
    spoken = f"{weekday.lower()} {_say_day(rng, day)} {_say_year(rng, day.year)}"
    return Phrase(spoken, f"{weekday} {_write_day(day)} {day.year}", day.isoformat(), DATE_CARRIERS)


def _day(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    return Phrase(_say_day(rng, day), _write_day(day), f"{day:%m-%d}", DATE_CARRIERS)


def _day_with_weekday(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    weekday = WEEKDAYS[day.weekday()]
    spoken = f"{weekday.lower()} {_say_day(rng, day)}"
    return Phrase(spoken, f"{weekday} {_write_day(day)}", f"{day:%m-%d}", DATE_CARRIERS)


def _month(rng: random.Random) -> Phrase:
    month, year = rng.choice(MONTHS), _draw_year(rng)
    return Phrase(f"{month.lower()} {_say_year(rng, year)}", f"{month} {year}", f"{year} {month}", MONTH_CARRIERS)


def _year(rng: random.Random) -> Phrase:
    # Without "the year", the year sixteen thirty would be a time of day.
    year = _draw_year(rng)
    return Phrase(f"the year {_say_year(rng, year)}", f"the year {year}", str(year), YEAR_CARRIERS)


def _draw_date(rng: random.Random) -> date:
    year, month = _draw_year(rng), rng.randrange(1, 13)
    return date(year, month, rng.randrange(1, monthrange(year, month)[1] + 1))


def _draw_year(rng: random.Random) -> int:
    """Draws a year from 1500 to 2049, with more "hundred", "oh" and "two thousand" than chance would give."""
    if rng.random() < 0.3:
        return 2000 + rng.randrange(rng.choice((10, 50)))
    century = 100 * rng.randrange(15, 20)
    return century + rng.choices((0, rng.randrange(1, 10), rng.randrange(10, 100)), (1, 1, 6))[0]


def _say_year(rng: random.Random, year: int) -> str:
    century, rest = divmod(year, 100)
    if century == 20 and (rest < 10 or rng.random() < 0.5):
        return say_integer(rng, year)
    if rest == 0:
        return f"{spell(century)} hundred"
    return f"{spell(century)} {'oh ' if rest < 10 else ''}{spell(rest)}"


def _say_day(rng: random.Random, day: date) -> str:
    ordinal, month = spell(day.day, "ordinal"), MONTHS[day.month - 1].lower()
    return rng.choice((f"the {ordinal} of {month}", f"{month} {ordinal}", f"{month} the {ordinal}"))


def _write_day(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


FORMS: Forms = {
    _full: 40,
    _full_with_weekday: 12,
    _day: 14,
    _day_with_weekday: 8,
    _month: 14,
    _year: 12,
}
