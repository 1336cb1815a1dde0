"""The promises of `normalize.generate`, checked with a reader of spoken forms that knows nothing of it.

The reader works on what is left of an example when the carrier, which is the same on both sides, is cut off.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

import pytest

from tfx.data.normalize import generate

Splits = dict[str, list[dict[str, str]]]

KINDS = {"cardinal", "ordinal", "date", "time", "amount", "measure"}

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CARDINALS = {word: number for number, word in enumerate(ONES)}
CARDINALS |= {word: 10 * number for number, word in enumerate(TENS, 2)}
MULTIPLIERS = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
IRREGULAR_ORDINALS = {
    "first": "one",
    "second": "two",
    "third": "three",
    "fifth": "five",
    "eighth": "eight",
    "ninth": "nine",
    "twelfth": "twelve",
}
FRACTIONS = {"a half": "0.5", "a quarter": "0.25", "three quarters": "0.75"}
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# Whether a part of the day is after noon.
DAY_PARTS = {
    "a m": False,
    "p m": True,
    "in the morning": False,
    "in the afternoon": True,
    "in the evening": True,
    "at night": True,
}
SYMBOLS = {
    "dollar": "$",
    "pound": "£",
    "euro": "€",
    "rupee": "₹",
    "franc": "CHF ",
    "yen": "¥",
    "canadian dollar": "C$",
    "australian dollar": "A$",
}
MINOR_SYMBOLS = {"cents": "$", "pence": "£", "paise": "₹", "centimes": "CHF "}
UNITS = {
    "millimeters": " mm",
    "centimeters": " cm",
    "meters": " m",
    "kilometers": " km",
    "inches": " in",
    "feet": " ft",
    "miles": " mi",
    "milligrams": " mg",
    "grams": " g",
    "kilograms": " kg",
    "ounces": " oz",
    "tons": " t",
    "milliliters": " mL",
    "liters": " L",
    "gallons": " gal",
    "cubic meters": " m³",
    "square meters": " m²",
    "square kilometers": " km²",
    "hectares": " ha",
    "acres": " ac",
    "milliseconds": " ms",
    "seconds": " s",
    "minutes": " min",
    "hours": " h",
    "kilometers per hour": " km/h",
    "miles per hour": " mph",
    "meters per second": " m/s",
    "liters per hour": " L/h",
    "liters per minute": " L/min",
    "degrees celsius": " °C",
    "degrees fahrenheit": " °F",
    "percent": "%",
    "watts": " W",
    "kilowatts": " kW",
    "megawatts": " MW",
    "kilowatt hours": " kWh",
    "hertz": " Hz",
    "megahertz": " MHz",
    "gigahertz": " GHz",
    "megabytes": " MB",
    "gigabytes": " GB",
    "megabytes per second": " MB/s",
    "gigabytes per second": " GB/s",
}
MINOR_UNITS = {"pound": "pence", "rupee": "paise", "franc": "centimes"}
TWO_DIGITS = {word for word, number in CARDINALS.items() if number >= 10}
NUMBER_WORD = "|".join([*CARDINALS, *MULTIPLIERS, "and", "a", "point", "oh", "minus", "half", "quarters?"])
AMOUNT = rf"(.+?) ({'|'.join(SYMBOLS)})s?(?: (?:and )?(.+?))?(?: ({'|'.join(MINOR_SYMBOLS)}))?"
MEASURE = rf"((?:(?:{NUMBER_WORD}) )+)((?:(?!(?:{NUMBER_WORD})\b)\w+ ?)+)"


@pytest.fixture(scope="module")
def splits() -> Splits:
    return generate(0)


def every(splits: Splits) -> Iterator[dict[str, str]]:
    for examples in splits.values():
        yield from examples


def of_kind(splits: Splits, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the spoken and the written form of every example of a kind."""
    for example in every(splits):
        if example["kind"] == kind:
            yield without_carrier(example)


def without_carrier(example: dict[str, str]) -> tuple[str, str]:
    spoken, written = example["source"].split(), example["target"].split()
    while spoken and written and spoken[0] == written[0]:
        del spoken[0], written[0]
    # The "million" of "1.5 million" is the same on both sides, but belongs to the number.
    while spoken and written and spoken[-1] == written[-1] != "million":
        del spoken[-1], written[-1]
    return " ".join(spoken), " ".join(written)


def read_integer(spoken: str) -> int:
    first, *rest = spoken.split()
    total, group = 0, 0
    for word in ["one" if first == "a" else first, *rest]:
        if word in CARDINALS:
            group += CARDINALS[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word != "and":
            total += max(group, 1) * MULTIPLIERS[word]
            group = 0
    return total + group


def read_number(spoken: str) -> Decimal:
    if " point " in spoken:
        whole, places = spoken.split(" point ")
        digits = [CARDINALS[word.replace("oh", "zero")] for word in places.split()]
        return Decimal(f"{read_integer(whole)}.{''.join(map(str, digits))}")
    for fraction, value in FRACTIONS.items():
        if spoken.endswith(f" and {fraction}"):
            return read_integer(spoken.removesuffix(f" and {fraction}")) + Decimal(value)
    return Decimal(read_integer(spoken))


def write_number(spoken: str) -> str:
    if spoken.startswith("minus "):
        return f"-{write_number(spoken.removeprefix('minus '))}"
    if spoken.endswith(" million") and re.search(" point | half ", spoken):
        return f"{write_number(spoken.removesuffix(' million'))} million"
    return f"{read_number(spoken):,}"


def read_ordinal(spoken: str) -> int:
    *first, last = spoken.split()
    if last in IRREGULAR_ORDINALS:
        last = IRREGULAR_ORDINALS[last]
    elif last.endswith("tieth"):
        last = last.removesuffix("ieth") + "y"
    else:
        assert last.endswith("th")
        last = last.removesuffix("th")
    return read_integer(" ".join([*first, last]))


def read_year(spoken: str) -> int:
    if "thousand" in spoken or "hundred" in spoken:
        return read_integer(spoken)
    century, rest = spoken.split(maxsplit=1)
    return 100 * CARDINALS[century] + read_integer(rest.replace("oh", "zero"))


def write_date(spoken: str) -> str:
    weekday = next((name for name in WEEKDAYS if spoken.startswith(f"{name.lower()} ")), "")
    said = spoken.removeprefix(f"{weekday.lower()} ")
    month = next((name for name in MONTHS if name.lower() in said.split()), "")
    if not month:
        return str(read_year(said))
    # The rest is the day's ordinal, the year, or one and then the other.
    rest = [word for word in said.split() if word not in {"the", "of", month.lower()}]
    ordinal = next((place for place, word in enumerate(rest, 1) if re.search("(st|ond|rd|th)$", word)), 0)
    day = read_ordinal(" ".join(rest[:ordinal])) if ordinal else None
    year = read_year(" ".join(rest[ordinal:])) if rest[ordinal:] else None
    if weekday and day and year:
        assert WEEKDAYS[date(year, MONTHS.index(month) + 1, day).weekday()] == weekday
    return " ".join(str(part) for part in (weekday, day, month, year) if part)


def write_time(spoken: str) -> str:
    part = next((name for name in DAY_PARTS if spoken.endswith(f" {name}")), "")
    clock = spoken.removesuffix(f" {part}")
    if relation := re.fullmatch("(.+?)(?: minutes)? (past|to) (.+)", clock):
        said, direction, named = relation.groups()
        distance = {"half": 30, "quarter": 15, "a quarter": 15}.get(said) or read_integer(said)
        minutes = 60 * read_integer(named) + (distance if direction == "past" else -distance)
    else:
        (minutes,) = clock_readings(clock, bool(part))
    hour, minute = divmod(minutes, 60)
    hour = hour % 12 + 12 * DAY_PARTS[part] if part else hour or 12
    return f"{hour:02d}:{minute:02d}"


def clock_readings(clock: str, hour_alone: bool) -> set[int]:
    """Return all times, in minutes since midnight, that an hour followed by a minute can mean."""
    hour, full, _ = clock.partition(" o clock" if "clock" in clock else " hundred hours")
    words = hour.split()
    if full or (hour_alone and len(words) == 1):
        return {60 * read_integer(hour)}
    cuts = [(words[:place], words[place:]) for place in range(1, len(words))]
    return {
        60 * read_integer(" ".join(hours)) + read_integer(" ".join(minutes).replace("oh", "zero"))
        for hours, minutes in cuts
        if below(24, hours) and below(60, minutes) and (len(minutes) > 1 or minutes[0] in TWO_DIGITS)
    }


def below(limit: int, words: list[str]) -> int:
    """Return the number that the words make, or 0 if they make none below the limit."""
    values = [CARDINALS.get(word, 0) for word in words]
    well_formed = len(values) == 1 or (
        len(values) == 2 and 0 < values[1] < 10 and (values[0] >= 20 or words[0] in {"oh", "zero"})
    )
    return sum(values) if well_formed and sum(values) < limit else 0


def write_amount(spoken: str) -> str:
    parts = re.fullmatch(AMOUNT, spoken)
    if not parts:
        minor, unit = spoken.rsplit(maxsplit=1)
        return f"{MINOR_SYMBOLS[unit]}0.{read_integer(minor):02d}"
    major, currency, minor, unit = parts.groups()
    assert unit in {None, MINOR_UNITS.get(currency, "cents")}
    cents = f".{read_integer(minor):02d}" if minor else ""
    return f"{SYMBOLS[currency]}{write_number(major)}{cents}"


def write_measure(spoken: str) -> str:
    return " ".join(write_number(number.strip()) + UNITS[unit.strip()] for number, unit in re.findall(MEASURE, spoken))


def value_of(example: dict[str, str]) -> str:
    """Return the kind and the value, read from the written form, without sign, unit, currency and weekday."""
    kind, written = example["kind"], without_carrier(example)[1]
    if kind == "date":
        parts = re.findall(rf"\d+|{'|'.join(MONTHS)}", written)
    elif kind == "time" or re.fullmatch(r"\d+ (h|min|ft) \d+ (min|s|in)", written):
        parts = re.findall(r"\d+", written)
    else:
        # That there is exactly one number is itself a check.
        ((number, scale),) = re.findall(r"(\d[\d,.]*)( million)?", written)
        value = Decimal(number.replace(",", "")) * (1_000_000 if scale else 1)
        parts = [str(value.normalize())]
    return " ".join([kind, *parts])


@pytest.mark.parametrize("seed", [0, 7])
def test_equal_arguments_give_equal_results(seed: int) -> None:
    assert generate(seed, 300, 30, 20) == generate(seed, 300, 30, 20)


def test_seeds_give_different_examples() -> None:
    assert generate(0, 100, 10, 10) != generate(1, 100, 10, 10)


def test_result_is_the_same_on_every_python() -> None:
    text = json.dumps(generate(0, 600, 60, 60), sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "7367cfcbdce356a50d6579e29e229764742c57339e41c33a2233ad8b6e8b62fe"
    )


def test_sizes(splits: Splits) -> None:
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 20_000,
        "valid": 1_000,
        "test": 1_000,
    }
    assert {split: len(part) for split, part in generate(3, 57, 0, 1).items()} == {
        "train": 57,
        "valid": 0,
        "test": 1,
    }


def test_negative_size() -> None:
    with pytest.raises(ValueError, match="negative"):
        generate(0, 10, -1, 10)


def test_size_beyond_the_distinct_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfx.data.normalize.generator.MAX_REJECTIONS", 1)
    with pytest.raises(ValueError, match="cardinal for split test"):
        generate(0, 0, 0, 1_000)


def test_every_kind_has_its_share_of_every_split(splits: Splits) -> None:
    for examples in splits.values():
        counts = Counter(example["kind"] for example in examples)
        assert set(counts) == KINDS
        assert min(counts.values()) >= 0.1 * len(examples)


def test_order_does_not_go_by_kind(splits: Splits) -> None:
    for examples in splits.values():
        assert {example["kind"] for example in examples[:60]} == KINDS


def test_no_source_twice(splits: Splits) -> None:
    sources = [example["source"] for example in every(splits)]
    assert len(set(sources)) == len(sources)


def test_target_is_a_function_of_the_source(splits: Splits) -> None:
    # One call has no source twice, so it takes more seeds to see the same source again.
    targets: dict[str, str] = {}
    repeated = 0
    for made in (splits, generate(1), generate(2, 10_000)):
        for example in every(made):
            repeated += example["source"] in targets
            assert targets.setdefault(example["source"], example["target"]) == example["target"]
    assert repeated > 500


def test_no_value_in_two_splits(splits: Splits) -> None:
    # Nor is a value of one seed's test split in the train split of another seed.
    other = generate(1, 5_000, 500, 500)
    homes: dict[str, set[str]] = defaultdict(set)
    for made in (splits, other):
        for split, examples in made.items():
            for example in examples:
                homes[value_of(example)].add(split)
    assert len(homes) > 10_000
    assert {value: home for value, home in homes.items() if len(home) > 1} == {}


def test_train_has_every_word_and_character_of_the_others(splits: Splits) -> None:
    for side in ("source", "target"):
        known = Counter(word for example in splits["train"] for word in example[side].split())
        characters = {character for example in splits["train"] for character in example[side]}
        for split in ("valid", "test"):
            for example in splits[split]:
                assert set(example[side]) <= characters
                if side == "source":
                    assert all(known[word] >= 5 for word in example[side].split())


def test_source_is_lower_case_words_and_target_has_digits(splits: Splits) -> None:
    for example in every(splits):
        assert re.fullmatch("[a-z]+( [a-z]+)*", example["source"])
        assert re.search("[0-9]", example["target"])


def test_a_third_to_a_half_is_in_carriers(splits: Splits) -> None:
    for examples in splits.values():
        # The two sides of a date can share "the year" without a carrier.
        others = [example for example in examples if example["kind"] != "date"]
        inside = sum(without_carrier(example)[0] != example["source"] for example in others)
        assert 1 / 3 < inside / len(others) < 1 / 2


def test_cardinals_are_right(splits: Splits) -> None:
    for spoken, written in of_kind(splits, "cardinal"):
        assert write_number(spoken) == written, spoken


def test_cardinals_have_one_to_seven_digits(splits: Splits) -> None:
    wholes = [written for _, written in of_kind(splits, "cardinal") if re.fullmatch("[0-9,]+", written)]
    counts = Counter(len(written.replace(",", "")) for written in wholes)
    assert set(counts) == set(range(1, 8))
    assert all(counts[digits] > len(wholes) / 20 for digits in range(2, 8))


def test_ordinals_are_right(splits: Splits) -> None:
    for spoken, written in of_kind(splits, "ordinal"):
        number = read_ordinal(spoken)
        endings = {} if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}
        assert f"{number:,}{endings.get(number % 10, 'th')}" == written, spoken


def test_dates_are_right(splits: Splits) -> None:
    for spoken, written in of_kind(splits, "date"):
        assert write_date(spoken) == written, spoken


def test_times_are_right(splits: Splits) -> None:
    for spoken, written in of_kind(splits, "time"):
        assert write_time(spoken) == written, spoken


def test_amounts_are_right(splits: Splits) -> None:
    for spoken, written in of_kind(splits, "amount"):
        assert write_amount(spoken) == written, spoken


def test_measures_are_right(splits: Splits) -> None:
    for spoken, written in of_kind(splits, "measure"):
        assert write_measure(spoken) == written, spoken


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("cardinal", "and"),
        ("cardinal", "(?<! )a (hundred|thousand|million)"),
        ("cardinal", "[a-z]+(teen|ty (one|two|three|four|five|six|seven|eight|nine)) hundred"),
        ("cardinal", "minus"),
        ("cardinal", "point"),
        ("cardinal", "and a half million"),
        ("ordinal", "hundred and"),
        ("ordinal", "hundred (?!and)"),
        ("ordinal", "(?<! )hundred"),
        ("date", "the .* of"),
        ("date", "[a-z]+day"),
        ("date", "oh"),
        ("date", "two thousand"),
        ("time", "half past"),
        ("time", "quarter to"),
        ("time", "minutes past"),
        ("time", "o clock"),
        ("time", "hundred hours"),
        ("time", "p m"),
        ("time", "in the morning"),
        ("amount", "pence"),
        ("amount", "million"),
        ("amount", "yen"),
        ("measure", "minus"),
        ("measure", "three quarters"),
        ("measure", "per hour"),
        ("measure", "(hours|minutes|feet) .*(minutes|seconds|inches)"),
    ],
)
def test_every_form_is_frequent_in_train_and_present_in_the_others(splits: Splits, kind: str, form: str) -> None:
    counts = {
        split: sum(
            bool(re.search(rf"\b{form}\b", without_carrier(example)[0]))
            for example in examples
            if example["kind"] == kind
        )
        for split, examples in splits.items()
    }
    assert counts["train"] >= 100
    assert counts["valid"] >= 1
    assert counts["test"] >= 1
