"""The one exception for wrong input, and the suggestion for a misspelt word.

Every floor may import this file; it imports none of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LISTED = 20
_LONGEST_MESSAGE = 1000


class UserError(Exception):
    """The user's config, data or path is wrong: one line that says what, where and how to fix it.

    The command line prints the message without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > _LONGEST_MESSAGE:  # a value or name can have any length; the remedy is at the end
            line = f"{line[: _LONGEST_MESSAGE // 2]} … {line[-_LONGEST_MESSAGE // 2 :]}"
        super().__init__(line)


def suggest(word: str, choices: Iterable[str], see: str = "") -> str:
    """Returns ``": did you mean 'x'?"`` for the closest choice, else the list of choices, else ``""``.

    If the list is long, ``see`` names what explains it.
    """
    known = sorted(choices)
    folded = {choice.lower(): choice for choice in reversed(known)}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f": did you mean '{folded[close[0]]}'?" if close else listed(known, see)


def listed(choices: Iterable[str], see: str = "") -> str:
    """Returns ``": choose one of …"``, or what ``see`` names where the list is long; ``""`` for no choices."""
    known = sorted(choices)
    if len(known) > _MAX_LISTED:
        # A long list helps less than the command that explains it.
        return f": {see}" if see else f": choose one of {', '.join(known[:_MAX_LISTED])} … ({len(known):,} in all)"
    return f": choose one of {', '.join(known)}" if known else ""


def unknown(kind: str, word: str, choices: Iterable[str]) -> UserError:
    """The error for a ``word`` that is none of the ``choices`` of its ``kind``."""
    return UserError(f"{kind} '{word}' is unknown{suggest(word, choices, see='see `tfx train --help`')}")
