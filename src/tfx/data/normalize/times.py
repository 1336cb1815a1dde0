"""Times of day."""

import random

from tfx.data.normalize.numbers import spell
from tfx.data.normalize.phrase import Forms, Phrase

# Parts of the day, and the hours that go with each.
DAY_PARTS = (
    ("a m", range(12)),
    ("p m", range(12, 24)),
    ("in the morning", range(1, 12)),
    ("in the afternoon", range(12, 18)),
    ("in the evening", range(17, 22)),
    ("at night", range(21, 24)),
)

TIME_CARRIERS = (
    "{vehicle} leaves at {x}",
    "{vehicle} arrived at {x}",
    "{event} begins at {x}",
    "{who} woke up at {x}",
    "{place} closes at {x}",
    "at {x} {who} called again",
    "{who} met the guests at {x}",
    "{event} ended before {x}",
)


def _past_or_to(rng: random.Random) -> Phrase:
    """A time relative to an hour: half past, quarter past, quarter to, or some minutes past or to."""
    minute = rng.choice((15, 30, 45, 5 * rng.randrange(1, 12), rng.randrange(2, 59)))
    hour, part = _draw_hour(rng)
    distance, relation, named = (minute, "past", hour) if minute <= 30 else (60 - minute, "to", hour + 1)
    if distance == 30:
        said = "half"
    elif distance == 15:
        said = rng.choice(("quarter", "a quarter"))
    elif distance % 5 == 0:
        said = spell(distance)
    else:
        said = f"{spell(distance)} minutes"
    return _as_time(hour, minute, f"{said} {relation} {_say_hour(named)}{part}")


def _digital(rng: random.Random) -> Phrase:
    hour, part = _draw_hour(rng)
    minute = _draw_minute(rng)
    return _as_time(hour, minute, f"{_say_hour(hour)} {_say_minute(minute)}{part}")


def _full_hour(rng: random.Random) -> Phrase:
    hour, part = _draw_hour(rng)
    # An hour without "o clock" and without a part of the day would be a cardinal.
    o_clock = " o clock" if not part or rng.random() < 0.5 else ""
    return _as_time(hour, 0, f"{_say_hour(hour)}{o_clock}{part}")


def _24_hours(rng: random.Random) -> Phrase:
    hour, said = _draw_hour_of_24(rng)
    minute = _draw_minute(rng)
    return _as_time(hour, minute, f"{said} {_say_minute(minute)}")


def _24_hours_full(rng: random.Random) -> Phrase:
    hour, said = _draw_hour_of_24(rng)
    return _as_time(hour, 0, f"{said} hundred hours")


def _draw_hour(rng: random.Random) -> tuple[int, str]:
    """Draws an hour and the part of the day to say after it, which is empty for a third of the hours."""
    if rng.random() < 1 / 3:
        return rng.randrange(1, 13), ""
    part, hours = rng.choice(DAY_PARTS)
    return rng.choice(hours), f" {part}"


def _draw_hour_of_24(rng: random.Random) -> tuple[int, str]:
    hour = rng.randrange(1, 24)
    return hour, f"zero {spell(hour)}" if hour < 10 else spell(hour)


def _draw_minute(rng: random.Random) -> int:
    return rng.randrange(1, 10) if rng.random() < 0.25 else rng.randrange(10, 60)


def _say_hour(hour: int) -> str:
    return spell((hour - 1) % 12 + 1)


def _say_minute(minute: int) -> str:
    return f"oh {spell(minute)}" if minute < 10 else spell(minute)


def _as_time(hour: int, minute: int, spoken: str) -> Phrase:
    written = f"{hour:02d}:{minute:02d}"
    return Phrase(spoken, written, written, TIME_CARRIERS)


FORMS: Forms = {
    _past_or_to: 42,
    _digital: 26,
    _full_hour: 9,
    _24_hours: 17,
    _24_hours_full: 6,
}
