"""Assigns local files to splits by their names, in any case and with the split at any position."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from tfx.config.schema import DatasetConfig, SplitConfig
from tfx.data.plain_text import COMPRESSED, plain_name
from tfx.errors import UserError
from tfx.terminal.console import counted

SPLITS = ("train", "valid", "test")
_SUFFIXES = {
    "text": (".txt", ".text", ".tokens", ".md", ".raw", ""),
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
# Words that name a split, besides those of the config (`dataset.splits`).
_WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "devel", "development", "devset", "valset", "validset"),
    "test": ("test", "testing", "testset", "tst", "devtest"),
}
# Words for held-out data of an unknown split.
_HELD_OUT = ("eval", "evaluation", "evalset", "heldout", "holdout")


def find_files(config: DatasetConfig, notes: list[str]) -> dict[str, list[Path]]:
    """The files of each split; if no name matches a split, all of them are training data.

    Aligned files come as source and target in turn. ``notes`` say what is left out. Raises `UserError` if there are no
    files, or none for training, if a name matches two splits, or if the data may be in two places.
    """
    assert config.path is not None
    given = Path(config.path)
    try:
        if given.is_file():
            told = [split for split in _splits_of(config, _stem(config, given)) if split != "train"]
            if told:
                like = " and ".join(told)
                notes.append(f"{given.name} is named like {like} data, and is trained on: dataset.path names it alone")
            return {"train": _both_sides(config, [given])}
        found = _below(config, given, notes) if given.is_dir() else _matching(given, notes)
    except OSError as error:
        raise UserError(f"dataset.path={config.path} cannot be read: {error.strerror}") from error
    if not found:
        if given.is_dir():
            raise UserError(
                f"dataset.path={config.path} holds no file for dataset.format={config.format} "
                f"({', '.join('*' + suffix for suffix in _suffixes(config))})"
            )
        if given.exists():  # <(…), /dev/stdin, /dev/null
            raise UserError(
                f"dataset.path={config.path} is a pipe or a device, and data are read more than once: write them to a "
                "file, and name that"
            )
        raise UserError(
            f"dataset.path={config.path} does not exist, and matches no file as a glob: name the data with "
            "dataset.path=…"
        )
    found = _once(found, notes)
    splits, unused, is_told = _by_name(config, found)
    if not splits and not is_told:
        held = [path for path in found if set(_parts(_stem(config, path))) & set(_HELD_OUT)]
        if held and len(held) < len(found):
            raise UserError(
                f"{_names(held)}: named like held-out data, but match no split: name them with dataset.splits.valid or "
                "dataset.splits.test, and the rest with dataset.splits.train"
            )
        if len({_stem(config, path) for path in found}) > 1:
            notes.append(f"train: no name matches a split, so all {len(found)} files are training data")
        return {"train": _both_sides(config, found)}
    if unused:
        notes.append(f"files that match no split left out: {_names(unused)}")
    if "train" not in splits:
        names = " or ".join(config.splits.train) or "as the empty list of dataset.splits.train says"
        raise UserError(
            f"dataset.path={config.path} holds no training split: no file is named {names} "
            "(set dataset.splits.train to the name it has)"
        )
    for split, paths in splits.items():
        names, usual = getattr(config.splits, split), getattr(SplitConfig(), split)
        if names != usual and not any(_is_named(config, path, names) for path in paths):
            notes.append(f"{split}: no other file is named {' or '.join(names)}, so {_names(paths)} is taken")
    return {split: _both_sides(config, splits[split]) for split in SPLITS if split in splits}


def _is_named(config: DatasetConfig, path: Path, names: list[str]) -> bool:
    """Whether a file, or its folder, has one of these names."""
    return any(_has(_parts(told), name) for told in (_stem(config, path), path.parent.name) for name in names)


def _below(config: DatasetConfig, folder: Path, notes: list[str]) -> list[Path]:
    """The files of a folder; if it has none, those of its subfolders that are named like splits."""
    found = _belonging(config, folder)
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    holding = {sub: files for sub in inner if (files := _belonging(config, sub))}
    around = list(holding) or inner
    if not found and len(around) == 1 and len(_splits_of(config, around[0].name)) != 1:
        return _below(config, around[0], notes)  # a folder around the data, as in archives
    used = [] if found else [sub for sub in holding if _splits_of(config, sub.name)]
    if found:
        _check_place(config, folder, found, holding)
    elif holding and not used:
        folders = ", ".join(f"{sub.name}/" for sub in holding)
        raise UserError(
            f"dataset.path={folder} holds files for dataset.format={config.format} only in folders that match no split "
            f"({folders}): name one of them, or the files as a glob, with dataset.path"
        )
    if unused := [f"{sub.name}/ ({counted(len(files), 'file')})" for sub, files in holding.items() if sub not in used]:
        notes.append(f"folders left out: {', '.join(unused)}")
    return found or [path for sub in used for path in holding[sub]]


def _check_place(config: DatasetConfig, folder: Path, found: list[Path], holding: dict[Path, list[Path]]) -> None:
    """Raises `UserError` if no file matches the training split but folders beside them match one: it is ambiguous."""
    if any("train" in _splits_of(config, _stem(config, path)) for path in found):
        return
    suffix = plain_name(found[0]).removeprefix(_stem(config, found[0]))
    for sub, files in holding.items():
        if _splits_of(config, sub.name):
            inside = f"'{folder}/**/*{suffix}'"
        elif any(_splits_of(config, _stem(config, path)) for path in files):
            inside = str(sub)
        else:
            continue
        raise UserError(
            f"dataset.path={folder} holds {_names(found)}, which matches no training split, and {sub.name}/, which "
            f"does: choose one with dataset.path={inside} or dataset.path='{folder}/*{suffix}'"
        )


def _belonging(config: DatasetConfig, folder: Path) -> list[Path]:
    named = [path for path in folder.iterdir() if _belongs(config, path) and not path.name.startswith(".")]
    for path in named:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to {path.readlink()}, which does not exist: repair or remove the link")
    return sorted(path for path in named if path.is_file())


def _matching(pattern: Path, notes: list[str]) -> list[Path]:
    """The files that a glob matches, each once: by its own name if links lead to it too."""
    names = [name for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]
    kept: dict[str, Path] = {}
    for name in sorted(names, key=lambda name: (Path(name).is_symlink(), name.count(os.sep))):
        kept.setdefault(os.path.realpath(name), Path(name))
    if len(kept) < len(names):
        notes.append(f"links to files of the same glob left out: {len(names) - len(kept):,}")
    return sorted(kept.values())


def _once(paths: list[Path], notes: list[str]) -> list[Path]:
    """Each file once, if it exists both plain and compressed."""
    kept: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: (path.suffix.lower() in COMPRESSED, path)):
        kept.setdefault(path.with_name(plain_name(path)), path)
    if len(kept) < len(paths):
        copies = [path for path in paths if path not in kept.values()]
        notes.append(f"compressed files left out, because they exist uncompressed too: {_names(copies)}")
    return sorted(kept.values())


def _names(paths: list[Path]) -> str:
    shown = ", ".join(dict.fromkeys(path.name for path in paths[:6]))
    return shown + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


# --- names ------------------------------------------------------------------------------------------


def _by_name(config: DatasetConfig, paths: list[Path]) -> tuple[dict[str, list[Path]], list[Path], bool]:
    """Splits and their files, the files in no split, and whether any name matches a split.

    A file named exactly like its split wins over those that only contain the name: beside ``train.csv``,
    ``train_old.csv`` is left out.
    """
    given = Path(config.path or "")
    in_folders = len({path.parent for path in paths}) > 1 or (given.is_dir() and paths[0].parent != given)
    exact: dict[str, list[Path]] = {}
    # The name that matches, and the splits that it matches.
    loose: dict[Path, tuple[str, list[str]]] = {}
    for path in paths:
        stem = _stem(config, path)
        split = next((s for s in SPLITS if stem.lower() in _lower(getattr(config.splits, s))), None)
        if split is not None:
            exact.setdefault(split, []).append(path)
        else:
            telling = path.parent.name if in_folders and not _splits_of(config, stem) else stem
            told = _splits_of(config, telling)
            # A split without names, dataset.splits.test=[], is not wanted.
            loose[path] = telling, told if all(getattr(config.splits, s) for s in told) else []
    for name, told in loose.values():
        if len(told) > 1 and not all(split in exact for split in told):
            settings = " or ".join(f"dataset.splits.{split}=[{name}]" for split in told)
            raise UserError(f"{name} is named like {' and like '.join(told)} data: choose one with {settings}")
    splits = {}
    for split in SPLITS:
        found = exact.get(split) or [path for path, (_, told) in loose.items() if told == [split]]
        if found:
            splits[split] = _of_first_name(config, split, found)
    used = {path for found in splits.values() for path in found}
    told_any = bool(exact) or any(_splits_of(config, name) for name, _ in loose.values())
    return splits, [path for path in paths if path not in used], told_any


def _of_first_name(config: DatasetConfig, split: str, paths: list[Path]) -> list[Path]:
    """If both ``valid.*`` and ``dev.*`` exist, those that come first in the config's names."""
    for name in _lower(getattr(config.splits, split)):
        chosen = [path for path in paths if _stem(config, path).lower() == name]
        chosen = chosen or [path for path in paths if _has(_parts(_stem(config, path)), name)]
        if chosen:
            return chosen
    return paths


def _splits_of(config: DatasetConfig, name: str) -> list[str]:
    """The splits that a name matches: ``my_test``, ``corpus.train``, ``newstest2013``, ``Test``, ``dev-00000-of-2``.

    A name with several words in the config wins over a single word.
    """
    parts = _parts(name)
    own = [
        (len(_parts(word)), split) for split in SPLITS for word in getattr(config.splits, split) if _has(parts, word)
    ]
    longest = max(own, default=(0, ""))
    if longest[0] > 1:
        return [longest[1]]
    told = {split for _, split in own}
    for split, words in _WORDS.items():
        if any(re.fullmatch(rf"(news|discuss)?{word}\d*", part) for part in parts for word in words):
            told.add(split)
    return [split for split in SPLITS if split in told]


def _parts(name: str) -> list[str]:
    """The words of a name in lower case: split at signs, and where a capital follows a small letter."""
    return [part.lower() for part in re.split(r"[^0-9A-Za-z\u0080-\uffff]+|(?<=[a-z])(?=[A-Z])", name) if part]


def _has(parts: list[str], name: str) -> bool:
    """Whether the words of a name appear among those of a file, in sequence."""
    words = _parts(name)
    return any(words and parts[place : place + len(words)] == words for place in range(len(parts)))


def _lower(names: list[str]) -> list[str]:
    return [name.lower() for name in names]


def _suffixes(config: DatasetConfig) -> tuple[str, ...]:
    if config.format == "parallel":
        return tuple(f".{side.removeprefix('.')}" for side in (config.source, config.target))
    return _SUFFIXES[config.format]


def _belongs(config: DatasetConfig, path: Path) -> bool:
    name = plain_name(path)
    if config.format == "parallel":
        return name.endswith(_suffixes(config))
    return Path(name).suffix.lower() in _suffixes(config) and not name.lower().startswith(("readme", "license"))


def _stem(config: DatasetConfig, path: Path) -> str:
    name = plain_name(path)
    if config.format == "parallel":
        for suffix in _suffixes(config):
            if name.endswith(suffix):
                return name.removesuffix(suffix)
    return name.removesuffix(Path(name).suffix)


def _both_sides(config: DatasetConfig, paths: list[Path]) -> list[Path]:
    """Aligned files: source and target in turn, even if only one was named; else the paths as given."""
    if config.format != "parallel":
        return paths
    suffixes = dict(zip(("source", "target"), _suffixes(config), strict=True))
    for side, suffix in suffixes.items():
        if "/" in suffix or os.sep in suffix:
            raise UserError(f"dataset.{side}={getattr(config, side)} is not the suffix of a file: it names a folder")
    if suffixes["source"] == suffixes["target"]:
        raise UserError(f"dataset.source and dataset.target are both '{config.source}': name the suffix of each side")
    both = []
    for stem in dict.fromkeys(path.with_name(_stem(config, path)) for path in paths):
        for side, suffix in suffixes.items():
            plain = stem.with_name(stem.name + suffix)
            there = [path for path in (plain, *(plain.with_name(plain.name + c) for c in COMPRESSED)) if path.is_file()]
            if not there:
                raise UserError(
                    f"{plain} is missing: dataset.{side}={getattr(config, side)} names the suffix of that side"
                )
            both.append(there[0])
    return both
