"""What a user types as ``key=value``, translated to Hydra's grammar: texts stay as they were typed.

Hydra reads a value as a small language: ``1e5`` is a number, ``{a}`` a mapping, ``a,b`` a choice, and a path with a
bracket an error. If the setting is a text by the schema, none of this applies, and the value is quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException
from omegaconf import grammar_parser
from omegaconf.errors import OmegaConfBaseException

from tfx.config.registry import entry_points, technique_class
from tfx.config.schema import Root
from tfx.errors import UserError

# Hydra's own text settings that users set.
_HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
# Something below the list of corpora, and what may be changed there: settings of an entry. A whole one would keep what
# the new one does not say.
_IN_MIX = re.compile(r"[+~]*dataset\.mix[.\[]")
_IN_ENTRY = re.compile(r"\+*dataset\.mix\.(0|[1-9]\d*)\.\w")
_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list)\(.*\)", re.DOTALL)


def literal(word: str, *, sweep: bool = False) -> str:
    """An override for Hydra: quoted if its setting is a text or a list of texts, else unchanged.

    Quoted values, null, and in a sweep values that name several, stay unchanged.
    """
    key, equals, value = word.partition("=")
    kind = _kind(key.lstrip("+"))
    if not equals or kind is None or value == "" or _is_quoted(word):
        return word
    kind, optional = kind
    if optional and value.lower() == "null":
        return word
    if sweep and (("," in value and kind is str) or _SWEEP_FUNCTION.fullmatch(value)):
        return word
    if kind is str:
        return f"{key}={quoted(value if _interpolates(value) else escaped(value))}"
    items = _plain_items(value)
    return word if items is None else f"{key}=[{','.join(map(quoted, items))}]"


def _interpolates(value: str) -> bool:
    """Whether OmegaConf would replace a part of a text (``${seed}``); one that it cannot read is plain text."""
    try:
        return "${" in value and grammar_parser.parse(value) is not None
    except OmegaConfBaseException:
        return False


def _is_quoted(word: str) -> bool:
    """Whether the value is one text in quotes already."""
    if word.partition("=")[2][0] not in "'\"":
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(word)._value, QuotedString)
    except HydraException:
        return False


def quoted(text: str) -> str:
    """A text in single quotes, as Hydra reads it back."""
    # Backslashes are literal, except before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def _plain_items(value: str) -> list[str] | None:
    """The items of ``[a,b]`` where each is a bare word; None for anything else."""
    if not (value.startswith("[") and value.endswith("]")) or re.search(r"['\"{}()\\]|\$\{", value):
        return None
    inner = value[1:-1]
    if "[" in inner or "]" in inner:
        return None
    return [item.strip() for item in inner.split(",")] if inner.strip() else []


@cache
def _kind(key: str) -> tuple[Any, bool] | None:
    """Whether the setting of a key is a text (`str`) or a list of texts (`list`), and whether it may be null."""
    if key in _HYDRA_TEXTS:
        return str, False
    names = key.split(".")
    schema: Any = Root
    if names[:2] == ["dataset", "mix"] and len(names) > 3:  # an entry has the settings of a data set
        del names[1:3]
    if names[0] == "technique" and len(names) > 2:
        if names[1] not in entry_points():
            return None
        try:
            schema = technique_class(names[1]).Settings
        except UserError:
            return None
        names = names[2:]
    for name in names[:-1]:
        inner = {f.name: f.default_factory for f in fields(schema)}.get(name)
        if not is_dataclass(inner):
            return None
        schema = inner
    found = get_type_hints(schema).get(names[-1])
    arguments = get_args(found)
    optional = type(None) in arguments
    if optional and get_origin(found) in (Union, type(int | None)):
        (found,) = [kind for kind in arguments if kind is not type(None)]
    if found is str:
        return str, optional
    return (list, optional) if found == list[str] else None


def parse(word: str) -> tuple[str, Any]:
    """Key and value of one override, by Hydra's grammar and the schema. Raises `UserError`."""
    check_words([word])
    try:
        override = OverridesParser.create().parse_override(literal(word))
        return str(override.key_or_group), override.value()
    except HydraException as error:
        raise not_grammar(word, error) from error


def check_words(words: Sequence[str]) -> None:
    """Raises `UserError` for a word that is no override, or that names several values without a sweep."""
    before = ""
    for word in words:
        if "=" not in word and not word.startswith("~"):
            hint = f"; if it belongs to the word before it, quote both: {shlex.quote(f'{before} {word}')}"
            raise UserError(f"'{word}' is not an override: write key=value{hint if '=' in before else ''}")
        before = word
        if _IN_MIX.match(word) and not _IN_ENTRY.match(word):
            raise UserError(
                f"{word}: a setting of an entry of dataset.mix is typed with the entry's number from 0, as "
                "dataset.mix.0.path=…; to change a whole entry, type the whole list"
            )
        if word.startswith("~"):
            continue
        try:
            override = OverridesParser.create().parse_override(literal(word))
        except HydraException as error:
            raise not_grammar(word, error) from error
        if override.is_sweep_override():
            key, _, value = word.partition("=")
            listed = f"; a list of them is {_in_list(key, value)}" if _is_list(key) else ""
            raise UserError(
                f"{word} names several values: sweep over them with `tfx train -m {shlex.quote(word)}`{listed}"
            )


def where_chosen(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep, with ``++`` before the settings of techniques that some of its lists choose.

    Hydra composes every job with them; `of_job` then leaves out what is not the job's.
    """
    chosen = [names for word in overrides if word.startswith("technique=") for names in listed_names(word)]
    some = {name for names in chosen for name in names} if len(chosen) > 1 else set()
    return [f"++{word.lstrip('+')}" if technique_of(word) in some else word for word in overrides]


def of_job(overrides: Sequence[str]) -> tuple[list[str], set[str]]:
    """The overrides of one job of a sweep as for a run by itself, and the techniques that only other jobs have."""
    chosen = [names for word in overrides if word.startswith("technique=") for names in listed_names(word)]
    named = {name for word in overrides if word.startswith("++") and (name := technique_of(word)) is not None}
    idle = named - set(chosen[-1]) if chosen else set()
    kept = [word for word in overrides if not (word.startswith("++") and technique_of(word) in idle)]
    return [word.removeprefix("++") if technique_of(word) in named else word for word in kept], idle


def technique_of(word: str) -> str | None:
    """The technique whose settings a word names: ``quantize`` of ``technique.quantize.bits=4``; None for others."""
    group, _, rest = word.lstrip("+~").partition("=")[0].partition(".")
    return rest.partition(".")[0] if group == "technique" and rest else None


def listed_names(word: str) -> list[list[str]]:
    """The lists of techniques that a word ``technique=…`` names: one, or in a sweep several; none if it is unclear."""
    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return []
    found = value.list if isinstance(value, ChoiceSweep) else [value]
    lists = [each if isinstance(each, list) else [each] for each in found]
    if any(isinstance(name, list) for each in lists for name in each):
        raise UserError(f"{word} is a list of lists: type several for a sweep as `tfx train -m 'technique=[],[a,b]'`")
    return [["null" if name is None else str(name) for name in each] for each in lists]


def not_grammar(word: str, error: Exception) -> UserError:
    """The error for an override that Hydra cannot read, with the form to type."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    key, _, value = word.partition("=")
    if key != key.strip():
        return UserError(f"'{word}' cannot be read: leave out the spaces around '{key.strip()}'")
    if value[:1] in ("[", "{") and value[-1:] in (",", ":"):
        return UserError(f"{word} ends too early: a shell ends a word at a space, so quote all of it: '{word} …'")
    if _is_list(key):
        items = value.removeprefix("[").removesuffix("]")
        return UserError(f"{word} cannot be read ({first}): if its items are texts, type {_in_list(key, items)}")
    return UserError(f"{word} cannot be read ({first}): if its value is one text, type {in_shell(key, quoted(value))}")


def _is_list(key: str) -> bool:
    """Whether the setting of a key is a list of texts."""
    kind = _kind(key.lstrip("+"))
    return kind is not None and kind[0] is list


def _in_list(key: str, items: str) -> str:
    """What to type for a list of comma-separated texts."""
    return in_shell(key, f"[{','.join(quoted(item.strip()) for item in items.split(','))}]")


def in_shell(key: str, value: str) -> str:
    """An override in the quotes of a POSIX shell; double ones if possible, because the value has single ones."""
    word = f"{key}={value}"
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


# --- texts that OmegaConf would read as more than a text ------------------------------------------------


def escaped(value: Any) -> Any:
    """Plain values whose texts OmegaConf gives back as they are: it reads ``${`` as the start of an interpolation."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + "\\${", value)
    return value
