"""A spoken and a written form of one value, and the carrier phrase that may surround both.

No carrier or filler has a word that a number or a date can have. No word beside the slot of a carrier could be read as
part of what fills the slot.
"""

import random
from collections.abc import Callable
from typing import NamedTuple


class Phrase(NamedTuple):
    """One spoken form with its written form, the key of its value, and the carriers that suit it.

    A carrier is a sentence with the slot ``{x}`` and the names of fillers.
    """

    spoken: str
    written: str
    value: str
    carriers: tuple[str, ...]


Forms = dict[Callable[[random.Random], Phrase], int]
"""The forms of a kind, each a function that draws a phrase, with their weights."""

CARRIER_SHARE = 0.4
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


def in_carrier(rng: random.Random, phrase: Phrase) -> tuple[str, str]:
    """Source and target of a phrase: alone, or with `CARRIER_SHARE` inside one of its carriers."""
    carrier = _fill(rng, rng.choice(phrase.carriers)) if rng.random() < CARRIER_SHARE else "{x}"
    return carrier.replace("{x}", phrase.spoken), carrier.replace("{x}", phrase.written)


def _fill(rng: random.Random, carrier: str) -> str:
    for name, words in FILLERS.items():
        if f"{{{name}}}" in carrier:
            carrier = carrier.replace(f"{{{name}}}", rng.choice(words))
    return carrier
