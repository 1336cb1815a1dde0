"""The embedded data set `normalize`: spoken numbers on the source side, written ones on the target side.

The task is inverse text normalization, the opposite direction of the task of Sproat and Jaitly, "RNN
Approaches to Text Normalization: A Challenge" (2016, arXiv 1611.00068), from whose semiotic classes the
kinds are taken. Everything is made by rule, with the number words of the library num2words.

The source is lower case without punctuation. About two in five examples stand inside a short carrier
phrase, which the target repeats word for word. Equal sources always have equal targets.

=========  =================================================================  =========================
kind       spoken (source)                                                    written (target)
=========  =================================================================  =========================
cardinal   one thousand [and] five; a hundred and six; twelve hundred         1,005; 106; 1,200
..         minus forty two; three point zero five; three point oh five        -42; 3.05; 3.05
..         one point five million; two and a half million                     1.5 million; 2.5 million
ordinal    twenty third; one hundred [and] fifth; hundred and fifth           23rd; 105th; 105th
date       the third of may nineteen oh five; may [the] third two thousand    3 May 1905; 3 May 2000
..         march twenty third; friday the third of may                        23 March; Friday 3 May
..         may twenty fourteen; the year sixteen thirty                       May 2014; the year 1630
time       half past four; [a] quarter to nine in the evening; ten to one     04:30; 20:45; 12:50
..         seven oh five p m; sixteen thirty; zero seven thirty               19:05; 16:30; 07:30
..         four o clock; eleven p m; sixteen hundred hours                    04:00; 23:00; 16:00
amount     three euros; three dollars [and] twenty cents; five pounds fifty   €3; $3.20; £5.50
..         fifty pence; three point two million dollars                       £0.50; $3.2 million
measure    five point five kilometers per hour; minus ten degrees celsius     5.5 km/h; -10 °C
..         two and three quarters miles; two hours [and] fifteen minutes      2.75 mi; 2 h 15 min
=========  =================================================================  =========================

A time without a part of the day is read on the 24-hour clock as it is said, so the bare "half past four" is
04:30 and the bare "ten to one" is 12:50. A part of the day belongs to the time meant and not to the hour
named: "ten to twelve a m" is 11:50.

No value of a kind is in two splits. The value is the number without its sign, its unit or its currency, the
time of day, or the date without the weekday; the two numbers of "2 h 15 min" are one value. A keyed hash of
kind and value assigns the split, 90 % train, 5 % valid and 5 % test of the values. The assignment depends
neither on the seed nor on the sizes, so no seed's test values are in another seed's train split either.
"""

import hashlib
import random
from calendar import monthrange
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from num2words import num2words  # type: ignore[import-untyped]

# The shares of the kinds in every split, in percent.
KIND_SHARES = {"cardinal": 22, "ordinal": 14, "date": 18, "time": 14, "amount": 16, "measure": 16}

CARRIER_SHARE = 0.4
# Where a form has few values, chance may leave a split without any: there are 24 full hours. The number is
# one with which full and quarter hours, days of the year and small numbers are shared out like the others.
SPLIT_KEY = b"tfx normalize 5581"
TRAIN_SHARE = 0.90
VALID_SHARE = 0.05
# So many rejected draws in a row mean that a split has hardly a new example of a kind left.
MAX_REJECTIONS = 20_000

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# Part of the day, and the hours it can be said with.
DAY_PARTS = (
    ("a m", range(12)),
    ("p m", range(12, 24)),
    ("in the morning", range(1, 12)),
    ("in the afternoon", range(12, 18)),
    ("in the evening", range(17, 22)),
    ("at night", range(21, 24)),
)


class Currency(NamedTuple):
    """How a currency is said and written; `minor_alone` where "fifty cents" can only mean this currency."""

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
# Yen have no minor unit in use, so they are in no form that needs one.
YEN = Currency("¥", "yen", "yen", "", False)


class Unit(NamedTuple):
    """How a unit is said and written; the symbol has the space that separates it from the number."""

    symbol: str
    spoken: str


# Units by what they measure, which is also what decides the carrier phrases. Pounds are not among them, since
# "five pounds" is already an amount. There is no singular: "one kilometer" has a single value, so it would be
# in a single split.
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
# Quantities that have no values of more than three digits in ordinary speech.
SMALL_QUANTITIES = frozenset({"duration", "speed", "temperature", "share"})


class Compound(NamedTuple):
    """Two units said one after the other, and how many of the smaller make one of the larger."""

    quantity: str
    large: Unit
    small: Unit
    ratio: int


COMPOUNDS = (
    Compound("duration", Unit(" h", "hours"), Unit(" min", "minutes"), 60),
    Compound("duration", Unit(" min", "minutes"), Unit(" s", "seconds"), 60),
    Compound("length", Unit(" ft", "feet"), Unit(" in", "inches"), 12),
)

# The words that fill the carrier phrases. No carrier or filler has a word of a number or of a date, and none
# has a word next to the slot that could be read as part of what stands there.
FILLERS = {
    "who": (
        "she", "he", "they", "we", "my brother", "his sister", "our neighbor", "the teacher", "the old man",
        "anna", "peter", "maria", "the captain", "the doctor", "her uncle", "the farmer",
    ),
    "thing": (
        "the painting", "a bicycle", "the old piano", "the house", "the lamp", "the sofa", "a winter coat",
        "the tickets", "the boat", "a small garden", "the camera", "the violin", "the carpet", "a phone",
    ),
    "place": (
        "the station", "the library", "the harbor", "the museum", "the old bridge", "the market",
        "the school", "the hotel", "the village", "the airport", "the theater", "the office",
    ),
    "event": (
        "the meeting", "the concert", "the lecture", "the game", "the ceremony", "the lesson", "the exam",
        "the festival", "the trial", "the wedding", "the interview", "the match",
    ),
    "vehicle": ("the train", "the bus", "the ferry", "the plane", "the boat", "the night train", "the tram"),
}  # fmt: skip

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


class Phrase(NamedTuple):
    """One spoken form and its written form, the key of its value, and the carriers it can stand in."""

    spoken: str
    written: str
    value: str
    carriers: tuple[str, ...]


def generate(seed: int, train: int = 20_000, valid: int = 1_000, test: int = 1_000) -> dict[str, list[dict[str, str]]]:
    """Make the data set.

    Returns the examples of the splits "train", "valid" and "test", in shuffled order, each example with
    "source", "target" and "kind" (one of `KIND_SHARES`). No source is there twice, in one split or in two.
    Equal arguments give equal results on every platform and Python version, with one version of num2words.

    Raises ValueError for a negative size, and for one so large that distinct examples run out.
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


def _apportion(size: int) -> dict[str, int]:
    """Divide `size` among the kinds by their shares; what rounding down leaves goes to the first kinds."""
    counts = {kind: size * share // 100 for kind, share in KIND_SHARES.items()}
    for kind in list(KIND_SHARES)[: size - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _new_example(rng: random.Random, kind: str, split: str, seen: set[str]) -> dict[str, str]:
    forms, weights = FORMS[kind]
    for _ in range(MAX_REJECTIONS):
        # The form is drawn anew each time, so that a form with few values gives way when it is used up.
        phrase = rng.choices(forms, weights)[0](rng)
        if _split_of(kind, phrase.value) != split:
            continue
        carrier = _fill(rng, rng.choice(phrase.carriers)) if rng.random() < CARRIER_SHARE else "{x}"
        source = carrier.replace("{x}", phrase.spoken)
        if source not in seen:
            seen.add(source)
            return {"source": source, "target": carrier.replace("{x}", phrase.written), "kind": kind}
    raise ValueError(f"no more distinct examples of kind {kind} for split {split}: ask for a smaller split")


def _split_of(kind: str, value: str) -> str:
    digest = hashlib.blake2b(f"{kind} {value}".encode(), key=SPLIT_KEY, digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "valid" if position < TRAIN_SHARE + VALID_SHARE else "test"


def _fill(rng: random.Random, carrier: str) -> str:
    for name, words in FILLERS.items():
        if f"{{{name}}}" in carrier:
            carrier = carrier.replace(f"{{{name}}}", rng.choice(words))
    return carrier


# Numbers, which all kinds share.


@lru_cache(maxsize=2**16)
def _words(number: int, to: str = "cardinal") -> str:
    return str(num2words(number, to=to)).replace(",", "").replace("-", " ")


def _draw_integer(rng: random.Random, digit_weights: tuple[int, ...]) -> int:
    """Draw an integer of at least 2; `digit_weights` weighs its count of digits, from one digit upwards.

    People say round numbers more often than chance has them, and zeros inside a number are what is hard to
    write, since nothing is said for them: a good third of the numbers have extra zeros.
    """
    count = rng.choices(range(1, len(digit_weights) + 1), digit_weights)[0]
    first = rng.randrange(2 if count == 1 else 1, 10)
    zero_rate = 0.6 if rng.random() < 0.4 else 0.0
    rest = [0 if rng.random() < zero_rate else rng.randrange(10) for _ in range(count - 1)]
    return int("".join(map(str, [first, *rest])))


def _say_integer(rng: random.Random, number: int) -> str:
    """Say an integer with "and", without, or, where it begins with "one hundred" or the like, with "a"."""
    words = _words(number)
    if rng.random() < 0.4:
        return words.replace(" and ", " ")
    if words.startswith(("one hundred", "one thousand", "one million")) and rng.random() < 0.6:
        return "a" + words.removeprefix("one")
    return words


def _draw_decimal(rng: random.Random, digit_weights: tuple[int, ...]) -> int:
    """Draw a number with one or two decimal places that does not end in zero, in hundredths."""
    whole = 0 if rng.random() < 0.1 else _draw_integer(rng, digit_weights)
    if rng.random() < 0.5:
        return whole * 100 + rng.randrange(1, 10) * 10
    tenths = 0 if rng.random() < 0.3 else rng.randrange(10)
    return whole * 100 + tenths * 10 + rng.randrange(1, 10)


def _say_decimal(rng: random.Random, hundredths: int) -> str:
    whole, places = _write_hundredths(hundredths).replace(",", "").split(".")
    said = " ".join(_words(int(digit)) for digit in places)
    if places.startswith("0") and rng.random() < 0.5:
        said = said.replace("zero", "oh")
    return f"{_say_integer(rng, int(whole))} point {said}"


def _write_hundredths(hundredths: int) -> str:
    whole, places = divmod(hundredths, 100)
    return f"{whole:,}.{places:02d}".rstrip("0").rstrip(".")


def _say_in_hundreds(rng: random.Random) -> tuple[int, str]:
    """Draw a number that can be said like "twelve hundred and five", and say it so."""
    hundreds = rng.randrange(1, 10) * 10 + rng.randrange(1, 10)
    rest = 0 if rng.random() < 0.4 else rng.randrange(1, 100)
    words = f"{_words(hundreds)} hundred"
    if rest:
        words += rng.choice((" and ", " ")) + _words(rest)
    return hundreds * 100 + rest, words


def _say_scaled(rng: random.Random) -> tuple[int, str, str]:
    """Draw a number like 1.5 million; return it in hundredths, as said, and as written."""
    if rng.random() < 0.3:
        whole = rng.randrange(1, 100)
        hundredths = whole * 100 + 50
        said = f"{_words(whole)} and a half"
    else:
        hundredths = rng.randrange(1, 10 ** rng.randrange(1, 4)) * 100 + rng.randrange(1, 10) * 10
        if rng.random() < 0.3:
            hundredths += rng.randrange(1, 10)
        said = _say_decimal(rng, hundredths)
    return hundredths * 10**6, f"{said} million", f"{_write_hundredths(hundredths)} million"


# Cardinals. Values are in hundredths, as those of amounts and measures are.


def _cardinal_whole(rng: random.Random) -> Phrase:
    number = _draw_integer(rng, (1, 5, 5, 4, 6, 5, 5))
    return Phrase(_say_integer(rng, number), f"{number:,}", str(number * 100), COUNT_CARRIERS)


def _cardinal_with_a(rng: random.Random) -> Phrase:
    # Few of the other whole numbers begin with a one, so these have a form of their own.
    leading = rng.choice((100, 1_000, 100_000, 1_000_000))
    number = leading + _draw_integer(rng, (1,) * (len(str(leading)) - 1))
    return Phrase("a" + _words(number).removeprefix("one"), f"{number:,}", str(number * 100), COUNT_CARRIERS)


def _cardinal_in_hundreds(rng: random.Random) -> Phrase:
    number, said = _say_in_hundreds(rng)
    return Phrase(said, f"{number:,}", str(number * 100), COUNT_CARRIERS)


def _cardinal_negative(rng: random.Random) -> Phrase:
    number = _draw_integer(rng, (1, 3, 3, 2))
    return Phrase(f"minus {_say_integer(rng, number)}", f"-{number:,}", str(number * 100), NUMBER_CARRIERS)


def _cardinal_decimal(rng: random.Random) -> Phrase:
    hundredths = _draw_decimal(rng, (2, 2, 2, 1))
    return Phrase(_say_decimal(rng, hundredths), _write_hundredths(hundredths), str(hundredths), NUMBER_CARRIERS)


def _cardinal_scaled(rng: random.Random) -> Phrase:
    hundredths, said, written = _say_scaled(rng)
    return Phrase(said, written, str(hundredths), SCALED_CARRIERS)


# Ordinals.


def _ordinal(rng: random.Random) -> Phrase:
    number = _draw_integer(rng, (1, 4, 6, 4, 1, 1))
    return _as_ordinal(number, _words(number, "ordinal"), rng.random() < 0.5)


def _ordinal_without_one(rng: random.Random) -> Phrase:
    leading = rng.choice((100, 1_000))
    number = leading + _draw_integer(rng, (1,) * (len(str(leading)) - 1))
    return _as_ordinal(number, _words(number, "ordinal").removeprefix("one "), True)


def _as_ordinal(number: int, words: str, with_and: bool) -> Phrase:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    said = words if with_and else words.replace(" and ", " ")
    return Phrase(said, f"{number:,}{ending}", str(number), ORDINAL_CARRIERS)


# Dates.


def _date_full(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    spoken = f"{_say_day(rng, day)} {_say_year(rng, day.year)}"
    return Phrase(spoken, f"{_write_day(day)} {day.year}", day.isoformat(), DATE_CARRIERS)


def _date_full_with_weekday(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    weekday = WEEKDAYS[day.weekday()]
    spoken = f"{weekday.lower()} {_say_day(rng, day)} {_say_year(rng, day.year)}"
    return Phrase(spoken, f"{weekday} {_write_day(day)} {day.year}", day.isoformat(), DATE_CARRIERS)


def _date_day(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    return Phrase(_say_day(rng, day), _write_day(day), f"{day:%m-%d}", DATE_CARRIERS)


def _date_day_with_weekday(rng: random.Random) -> Phrase:
    day = _draw_date(rng)
    weekday = WEEKDAYS[day.weekday()]
    spoken = f"{weekday.lower()} {_say_day(rng, day)}"
    return Phrase(spoken, f"{weekday} {_write_day(day)}", f"{day:%m-%d}", DATE_CARRIERS)


def _date_month(rng: random.Random) -> Phrase:
    month, year = rng.choice(MONTHS), _draw_year(rng)
    return Phrase(f"{month.lower()} {_say_year(rng, year)}", f"{month} {year}", f"{year} {month}", MONTH_CARRIERS)


def _date_year(rng: random.Random) -> Phrase:
    # Without "the year" the year sixteen thirty would be a time.
    year = _draw_year(rng)
    return Phrase(f"the year {_say_year(rng, year)}", f"the year {year}", str(year), YEAR_CARRIERS)


def _draw_date(rng: random.Random) -> date:
    year, month = _draw_year(rng), rng.randrange(1, 13)
    return date(year, month, rng.randrange(1, monthrange(year, month)[1] + 1))


def _draw_year(rng: random.Random) -> int:
    """Draw a year of 1500 to 2049, with more "hundred", "oh" and "two thousand" than chance would give."""
    if rng.random() < 0.3:
        return 2000 + rng.randrange(rng.choice((10, 50)))
    century = 100 * rng.randrange(15, 20)
    return century + rng.choices((0, rng.randrange(1, 10), rng.randrange(10, 100)), (1, 1, 6))[0]


def _say_year(rng: random.Random, year: int) -> str:
    century, rest = divmod(year, 100)
    if century == 20 and (rest < 10 or rng.random() < 0.5):
        return _say_integer(rng, year)
    if rest == 0:
        return f"{_words(century)} hundred"
    return f"{_words(century)} {'oh ' if rest < 10 else ''}{_words(rest)}"


def _say_day(rng: random.Random, day: date) -> str:
    ordinal, month = _words(day.day, "ordinal"), MONTHS[day.month - 1].lower()
    return rng.choice((f"the {ordinal} of {month}", f"{month} {ordinal}", f"{month} the {ordinal}"))


def _write_day(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


# Times.


def _time_past_or_to(rng: random.Random) -> Phrase:
    """Say a time relative to an hour: half past, quarter past, quarter to, or some minutes past or to."""
    minute = rng.choice((15, 30, 45, 5 * rng.randrange(1, 12), rng.randrange(2, 59)))
    hour, part = _draw_hour(rng)
    distance, relation, named = (minute, "past", hour) if minute <= 30 else (60 - minute, "to", hour + 1)
    if distance == 30:
        said = "half"
    elif distance == 15:
        said = rng.choice(("quarter", "a quarter"))
    elif distance % 5 == 0:
        said = _words(distance)
    else:
        said = f"{_words(distance)} minutes"
    return _as_time(hour, minute, f"{said} {relation} {_say_hour(named)}{part}")


def _time_digital(rng: random.Random) -> Phrase:
    hour, part = _draw_hour(rng)
    minute = _draw_minute(rng)
    return _as_time(hour, minute, f"{_say_hour(hour)} {_say_minute(minute)}{part}")


def _time_full_hour(rng: random.Random) -> Phrase:
    hour, part = _draw_hour(rng)
    # Without "o clock" or a part of the day the hour alone would be a cardinal.
    o_clock = " o clock" if not part or rng.random() < 0.5 else ""
    return _as_time(hour, 0, f"{_say_hour(hour)}{o_clock}{part}")


def _time_24_hours(rng: random.Random) -> Phrase:
    hour, said = _draw_hour_of_24(rng)
    minute = _draw_minute(rng)
    return _as_time(hour, minute, f"{said} {_say_minute(minute)}")


def _time_24_hours_full(rng: random.Random) -> Phrase:
    hour, said = _draw_hour_of_24(rng)
    return _as_time(hour, 0, f"{said} hundred hours")


def _draw_hour(rng: random.Random) -> tuple[int, str]:
    """Draw an hour, and a part of the day to say after it, which is empty for a third of them."""
    if rng.random() < 1 / 3:
        return rng.randrange(1, 13), ""
    part, hours = rng.choice(DAY_PARTS)
    return rng.choice(hours), f" {part}"


def _draw_hour_of_24(rng: random.Random) -> tuple[int, str]:
    hour = rng.randrange(1, 24)
    return hour, f"zero {_words(hour)}" if hour < 10 else _words(hour)


def _draw_minute(rng: random.Random) -> int:
    return rng.randrange(1, 10) if rng.random() < 0.25 else rng.randrange(10, 60)


def _say_hour(hour: int) -> str:
    return _words((hour - 1) % 12 + 1)


def _say_minute(minute: int) -> str:
    return f"oh {_words(minute)}" if minute < 10 else _words(minute)


def _as_time(hour: int, minute: int, spoken: str) -> Phrase:
    written = f"{hour:02d}:{minute:02d}"
    return Phrase(spoken, written, written, TIME_CARRIERS)


# Amounts. Values are in hundredths of the major unit.


def _amount_whole(rng: random.Random) -> Phrase:
    currency = rng.choice((*CURRENCIES, YEN))
    if rng.random() < 0.1:
        number, said = _say_in_hundreds(rng)
    else:
        number = _draw_integer(rng, (1, 3, 4, 4, 3, 2, 2))
        said = _say_integer(rng, number)
    written = f"{currency.symbol}{number:,}"
    return Phrase(f"{said} {currency.many}", written, str(number * 100), AMOUNT_CARRIERS)


def _amount_with_minor(rng: random.Random) -> Phrase:
    currency = rng.choice(CURRENCIES)
    major = 1 if rng.random() < 0.1 else _draw_integer(rng, (2, 3, 3, 1))
    minor = rng.randrange(2, 100)
    spoken = f"{_say_integer(rng, major)} {currency.one if major == 1 else currency.many}"
    if minor >= 10 and rng.random() < 0.4:
        spoken += f" {_words(minor)}"
    else:
        joint = rng.choice((" and ", " "))
        spoken += f"{joint}{_words(minor)} {currency.minor}"
    written = f"{currency.symbol}{major:,}.{minor:02d}"
    return Phrase(spoken, written, str(major * 100 + minor), AMOUNT_CARRIERS)


def _amount_minor_alone(rng: random.Random) -> Phrase:
    currency = rng.choice([currency for currency in CURRENCIES if currency.minor_alone])
    minor = rng.randrange(2, 100)
    spoken = f"{_words(minor)} {currency.minor}"
    return Phrase(spoken, f"{currency.symbol}0.{minor:02d}", str(minor), AMOUNT_CARRIERS)


def _amount_scaled(rng: random.Random) -> Phrase:
    currency = rng.choice((*CURRENCIES, YEN))
    hundredths, said, written = _say_scaled(rng)
    return Phrase(f"{said} {currency.many}", f"{currency.symbol}{written}", str(hundredths), FORTUNE_CARRIERS)


# Measures. Values are in hundredths of the unit.


def _measure_whole(rng: random.Random) -> Phrase:
    quantity, unit = _draw_unit(rng)
    number = _draw_integer(rng, (1, 3, 3) if quantity in SMALL_QUANTITIES else (1, 3, 3, 2, 1))
    spoken = f"{_say_integer(rng, number)} {unit.spoken}"
    return Phrase(spoken, f"{number:,}{unit.symbol}", str(number * 100), MEASURE_CARRIERS[quantity])


def _measure_decimal(rng: random.Random) -> Phrase:
    quantity, unit = _draw_unit(rng)
    hundredths = _draw_decimal(rng, (3, 3, 2) if quantity in SMALL_QUANTITIES else (3, 3, 2, 1))
    spoken = f"{_say_decimal(rng, hundredths)} {unit.spoken}"
    written = f"{_write_hundredths(hundredths)}{unit.symbol}"
    return Phrase(spoken, written, str(hundredths), MEASURE_CARRIERS[quantity])


def _measure_mixed(rng: random.Random) -> Phrase:
    quantity, unit = _draw_unit(rng)
    fraction, said = rng.choice(((50, "a half"), (25, "a quarter"), (75, "three quarters")))
    whole = rng.randrange(1, 100)
    written = f"{_write_hundredths(whole * 100 + fraction)}{unit.symbol}"
    spoken = f"{_words(whole)} and {said} {unit.spoken}"
    return Phrase(spoken, written, str(whole * 100 + fraction), MEASURE_CARRIERS[quantity])


def _measure_negative(rng: random.Random) -> Phrase:
    unit = rng.choice(UNITS["temperature"])
    if rng.random() < 0.5:
        hundredths = 100 * rng.randrange(2, 100)
        said = _words(hundredths // 100)
    else:
        hundredths = 100 * rng.randrange(100) + 10 * rng.randrange(1, 10)
        said = _say_decimal(rng, hundredths)
    written = f"-{_write_hundredths(hundredths)}{unit.symbol}"
    return Phrase(f"minus {said} {unit.spoken}", written, str(hundredths), MEASURE_CARRIERS["temperature"])


def _measure_compound(rng: random.Random) -> Phrase:
    quantity, large, small, ratio = rng.choice(COMPOUNDS)
    first, second = rng.randrange(2, 25), rng.randrange(2, ratio)
    joint = rng.choice((" and ", " "))
    spoken = f"{_words(first)} {large.spoken}{joint}{_words(second)} {small.spoken}"
    written = f"{first}{large.symbol} {second}{small.symbol}"
    return Phrase(spoken, written, f"{first} {second}", MEASURE_CARRIERS[quantity])


def _draw_unit(rng: random.Random) -> tuple[str, Unit]:
    """Draw a quantity and one of its units, so that neither a lone unit nor one of many is rare."""
    quantity = rng.choices(list(UNITS), [len(units) + 1 for units in UNITS.values()])[0]
    return quantity, rng.choice(UNITS[quantity])


# The forms of every kind with their weights.
FORMS: dict[str, tuple[tuple[Callable[[random.Random], Phrase], ...], tuple[int, ...]]] = {
    "cardinal": (
        (
            _cardinal_whole,
            _cardinal_with_a,
            _cardinal_in_hundreds,
            _cardinal_negative,
            _cardinal_decimal,
            _cardinal_scaled,
        ),
        (50, 10, 8, 8, 12, 12),
    ),
    "ordinal": ((_ordinal, _ordinal_without_one), (88, 12)),
    "date": (
        (_date_full, _date_full_with_weekday, _date_day, _date_day_with_weekday, _date_month, _date_year),
        (40, 12, 14, 8, 14, 12),
    ),
    "time": (
        (_time_past_or_to, _time_digital, _time_full_hour, _time_24_hours, _time_24_hours_full),
        (42, 26, 9, 17, 6),
    ),
    "amount": ((_amount_whole, _amount_with_minor, _amount_minor_alone, _amount_scaled), (40, 35, 8, 17)),
    "measure": (
        (_measure_whole, _measure_decimal, _measure_mixed, _measure_negative, _measure_compound),
        (38, 30, 12, 8, 12),
    ),
}
