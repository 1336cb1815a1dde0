"""The arguments of a command: options may stand anywhere, and an error is one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tfx.errors import UserError, suggest


class Arguments(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose options may stand before, between and after all other words.

    After ``--`` every word is an argument, whatever it begins with.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(prog=f"tfx {command}", description=description, allow_abbrev=False, **options)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of all arguments; raises `UserError` for words that do not fit."""
        before, behind = list(words), []
        if "--" in before:
            place = before.index("--")
            before, behind = before[:place], before[place + 1 :]
        options, others = self._split(before)
        # The options first: argparse fills the positional words in one piece.
        return self.parse_args([*options, "--", *others, *behind])

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        options: list[str] = []
        others: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            action = self._option_string_actions.get(word.partition("=")[0])
            if action is None:
                if word.startswith("--") and "=" not in word and word[2:3].isalpha():
                    known = [name for name in self._option_string_actions if name.startswith("--")]
                    raise UserError(f"option '{word}' is unknown{suggest(word, known)}")
                others.append(word)
                continue
            options.append(word)
            takes_value = action.nargs is None or action.nargs != 0
            if takes_value and "=" not in word:
                options += left[:1]
                left = left[1:]
        return options, others

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


@contextmanager
def told_by_options(keys: Sequence[str]) -> Iterator[None]:
    """Inside, an error names these settings as the options that stand for them: ``--top-k 0``."""
    try:
        yield
    except UserError as error:
        names = "|".join(map(re.escape, keys)) or "(?!)"
        told = re.sub(rf"\b({names})=(?=[\w.-])", lambda m: f"--{_option(m[1])} ", str(error))
        raise UserError(told) from error


def _option(key: str) -> str:
    return key.rpartition(".")[2].replace("_", "-")
