"""Broken data files for `fuzz_inputs.py`, for every format, and tokenizer files of the wrong kind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz_configs import NONSENSE, TINY

LINES = [f"line {i} of it" for i in range(30)]
FORMATS = ("parallel", "text", "json", "csv", "parquet")


def prepare(base: Path) -> None:
    """Makes whole files of every format, and a tokenizer, to be broken."""
    from tfx.config.schema import TokenizerConfig
    from tfx.data.tokenizer import Tokenizer

    folder = base / "tokenizers"
    folder.mkdir()
    for kind, size in (("bpe", 270), ("unigram", 40), ("char", 40)):
        tokenizer = Tokenizer.train(TokenizerConfig(kind=kind, vocab_size=size), LINES, word_initial_space=True)
        (folder / f"{kind}.json").write_text(tokenizer.to_json(), encoding="utf-8")


def make(rng: Random, place: Any) -> tuple[str, list[str]]:
    """What is wrong, in a word, and the arguments of the command."""
    if rng.random() < 0.25:
        return _tokenizer(rng, place)
    format_ = rng.choice(FORMATS)
    folder = place.inputs / "data"
    folder.mkdir()
    names = whole(folder, format_)
    bad = folder / rng.choice(names)
    label, breaks = rng.choice(list(BREAKS.items()) + 3 * list(OWN[format_].items()))
    breaks(rng, bad)
    path = rng.choice([folder, folder, folder / "*", bad])
    task = ["model=gpt_nano"] if format_ == "text" else []
    spec = []
    if format_ not in ("text", "parallel") and rng.random() < 0.2:
        spec = [f"dataset.{rng.choice(['source', 'target'])}={rng.choice(NONSENSE)}"]
        label = "columns"
    if rng.random() < 0.1:
        spec.append("dataset.empty=drop")
    return f"{format_}: {label}", _train(format_, path, *task, *spec)


def _train(format_: str, path: Any, *overrides: str) -> list[str]:
    tiny = [word for word in TINY if format_ != "text" or "encoder" not in word]
    return ["train", "dry_run=true", *tiny, f"dataset={format_}", f"dataset.path='{path}'", *overrides]


def whole(folder: Path, format_: str) -> list[str]:
    """Writes good files of a format: training and validation; returns their names."""
    import pyarrow
    import pyarrow.parquet

    names = []
    for split in ("train", "valid"):
        rows = [{"source": line, "target": f"{split} {line}"} for line in LINES]
        files: dict[str, Callable[[Path], Any]] = {
            "parallel": lambda path, rows=rows: path.write_text(
                "".join(row["source" if path.suffix == ".en" else "target"] + "\n" for row in rows)
            ),
            "text": lambda path: path.write_text("\n".join(LINES * 20)),
            "json": lambda path, rows=rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
            "csv": lambda path, rows=rows: path.write_text(
                "source,target\n" + "".join(f"{row['source']},{row['target']}\n" for row in rows)
            ),
            "parquet": lambda path, rows=rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
        }
        suffixes = {"parallel": ("en", "de"), "text": ("txt",), "json": ("jsonl",)}.get(format_, (format_,))
        for suffix in suffixes:
            files[format_](folder / f"{split}.{suffix}")
            names.append(f"{split}.{suffix}")
    return names


# --- what breaks any file ---------------------------------------------------------------------------


def _write(content: bytes) -> Callable[[Random, Path], None]:
    return lambda rng, path: path.write_bytes(content) and None


def _edit(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path], None]:
    return lambda rng, path: path.write_bytes(change(rng, path.read_bytes())) and None


def _insert(what: bytes) -> Callable[[Random, Path], None]:
    def change(rng: Random, data: bytes) -> bytes:
        position = rng.randrange(len(data) + 1)
        return data[:position] + what + data[position:]

    return _edit(change)


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 20)):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def _replace(make: Callable[[Path], Any]) -> Callable[[Random, Path], None]:
    def act(rng: Random, path: Path) -> None:
        path.unlink()
        make(path)

    return act


def _ring(path: Path) -> None:
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)


BREAKS: dict[str, Callable[[Random, Path], None]] = {
    "empty": _write(b""),
    "blank lines": _write(b"\n" * 30),
    "spaces": _write(b" \t \n" * 30),
    "binary": lambda rng, path: path.write_bytes(rng.randbytes(5000)) and None,
    "NUL bytes": _insert(b"\0\0"),
    "only NUL bytes": _write(b"\0" * 5000),
    "one line of 50 MB": lambda rng, path: path.write_bytes(b"ab " * (50 * 2**20 // 3)) and None,
    "mixed line ends": _edit(lambda rng, data: data.replace(b"\n", b"\r\n", 7).replace(b"line 2", b"line\r2")),
    "old Mac line ends": _edit(lambda rng, data: data.replace(b"\n", b"\r")),
    "line separators": _insert("\u2028\u2029\x85\x0b\x0c".encode()),
    "a byte order mark": _edit(lambda rng, data: b"\xef\xbb\xbf" + data),
    "a byte order mark inside": _insert(b"\xef\xbb\xbf"),
    "UTF-16": _edit(lambda rng, data: data.decode("latin-1").encode("utf-16")),
    "UTF-32": _edit(lambda rng, data: data.decode("latin-1").encode("utf-32")),
    "Latin-1": _insert("é".encode("latin-1")),
    "overlong UTF-8": _insert(b"\xc0\x80"),
    "a surrogate in UTF-8": _insert(b"\xed\xa0\x80"),
    "cut": _edit(lambda rng, data: data[: rng.randrange(len(data))]),
    "flipped": _edit(_flip),
    "a folder": _replace(Path.mkdir),
    "a link to itself": _replace(lambda path: path.symlink_to(path)),
    "links in a ring": _replace(_ring),
    "a link to nothing": _replace(lambda path: path.symlink_to("nowhere")),
    "a link to a folder": _replace(lambda path: path.symlink_to(".")),
    "a pipe": _replace(os.mkfifo),
    "a device": _replace(lambda path: path.symlink_to("/dev/zero")),
    "gone": _replace(lambda path: None),
    "gzip": _edit(lambda rng, data: __import__("gzip").compress(data)),
    "a line more": _edit(lambda rng, data: data + b"one more\n"),
    "a line less": _edit(lambda rng, data: data[data.index(b"\n") + 1 :] if b"\n" in data else b""),
    "control characters": _insert(bytes(range(1, 32))),
}


def _rows(text: str) -> Callable[[Random, Path], None]:
    return _write(text.encode("utf-8", "surrogatepass"))


def _table(columns: dict[str, Any]) -> Callable[[Random, Path], None]:
    def act(rng: Random, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    return act


_JSON = '{"source": "a", "target": "b"}\n'
OWN: dict[str, dict[str, Callable[[Random, Path], None]]] = {
    "parallel": {
        "empty lines": _edit(lambda rng, data: data.replace(b"line 3", b"").replace(b" of it", b"", 1) + b"\n")
    },
    "text": {"one character": _write(b"x"), "one line": _write(b"a line")},
    "json": {
        "a number": _rows("3\n"),
        "a list of numbers": _rows("[1, 2]\n"),
        "a list of lists": _rows("[[]]\n"),
        "null": _rows("null\n"),
        "a string": _rows('"x"\n'),
        "an empty object": _rows("{}\n" * 9),
        "other columns": _rows('{"x": 1}\n' * 9),
        "a column missing in a row": _rows(_JSON * 5 + '{"source": "a"}\n'),
        "values of all types": _rows('{"source": [1, {}], "target": {"a": null}}\n' * 9),
        "numbers": _rows('{"source": 1e999, "target": NaN}\n' * 9),
        "a huge number": _rows('{"source": ' + "9" * 9000 + ', "target": 1}\n'),
        "deep": _rows("[" * 100000 + "]" * 100000),
        "deep objects": _rows('{"source": ' * 5000 + "1" + "}" * 5000),
        "a lone surrogate": _rows('{"source": "\\ud800", "target": "b"}\n' * 9),
        "keys twice": _rows('{"source": "a", "source": "b", "target": "c"}\n' * 9),
        "an open string": _rows('{"source": "a\n' * 9),
        "a trailing comma": _rows('[{"source": "a", "target": "b"},]'),
        "two lists": _rows("[" + _JSON + "]\n[" + _JSON + "]"),
        "lists of references, empty": _rows('{"source": "a", "target": []}\n' * 9),
        "lists of references, nested": _rows('{"source": "a", "target": [["b"], null, 3]}\n' * 9),
    },
    "csv": {
        "only a header": _rows("source,target\n"),
        "no header": _rows("a,b\nc,d\n"),
        "a column twice": _rows("source,source,target\na,b,c\n" * 2),
        "an empty header": _rows(",\na,b\n"),
        "ragged": _rows("source,target\na,b\nc\nd,e,f\n"),
        "an open quote": _rows('source,target\n"a,b\nc,d\n'),
        "a quote inside": _rows('source,target\na "b" c,d\n"x"y,z\n'),
        "semicolons": _rows("source;target\na;b\n" * 9),
        "empty cells": _rows("source,target\n,\n" * 9),
        "50 MB in a quote": _rows('source,target\n"' + "a,b\n" * (10 << 20)),
        "many columns": _rows(",".join(["source", "target"] * 20000) + "\na,b\n"),
    },
    "parquet": {
        "no rows": _table({"source": [], "target": []}),
        "no columns": _table({}),
        "numbers": _table({"source": [1, 2, None], "target": [0.5, float("nan"), 1.0]}),
        "bytes": _table({"source": [b"\xff", b"a"], "target": [b"a", b"\0"]}),
        "lists": _table({"source": [["a"], []], "target": [[None], ["b", "c"]]}),
        "structs": _table({"source": [{"a": 1}, None], "target": [{"b": {"c": "x"}}, {"b": None}]}),
        "nulls": _table({"source": [None, None], "target": [None, None]}),
        "other columns": _table({"x": ["a"], "y": ["b"]}),
        "NUL in text": _table({"source": ["a\0b"] * 30, "target": ["c"] * 30}),
        "only the magic": _write(b"PAR1PAR1"),
        "a lying footer": _write(b"PAR1" + b"\xff" * 100 + (2**31 - 1).to_bytes(4, "little") + b"PAR1"),
    },
}


# --- tokenizers -------------------------------------------------------------------------------------


def _tokenizer(rng: Random, place: Any) -> tuple[str, list[str]]:
    kind = rng.choice(["bpe", "unigram", "char"])
    path = place.inputs / "tokenizer.json"
    whole_text = (place.base / "tokenizers" / f"{kind}.json").read_text(encoding="utf-8")
    label = rng.choice(["other", "file", "edited", "edited", "edited", "deep edit", "deep edit", "deep edit"])
    if label == "other":
        path.write_text(
            rng.choice(["{}", "[]", "null", "3", '"x"', '{"model": {}}', "{", "[" * 100000, '{"version": "9.9"}'])
        )
    elif label == "file":
        path.write_text(whole_text, encoding="utf-8")
        rng.choice(list(BREAKS.values()))(rng, path)
    else:
        content = json.loads(whole_text)
        for _ in range(rng.choice([1, 1, 2, 3])):
            if label == "edited":
                _edit_tokenizer(rng, content)
            else:
                mutate(rng, content)
        path.write_text(json.dumps(content), encoding="utf-8")
    overrides = ["dataset=parallel", f"dataset.path={place.base / 'pairs'}", f"dataset.tokenizer.path={path}"]
    return f"tokenizer: {label}", ["train", "dry_run=true", *TINY, *overrides]


_STRATEGY = {"strategy": {"Fixed": 2**63}, "direction": "Left", "pad_to_multiple_of": 0}
# Parts of the files of other tools, or of no tool.
_PARTS: dict[str, list[Any]] = {
    "pre_tokenizer": [None, {"type": "Nonsense"}, {"type": "Split"}, {"type": ""}, 3],
    "added_tokens": [
        None,
        3,
        [],
        [{"id": 2**32 - 1, "content": "x"}],
        [
            {"id": i, "content": "<big>", "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i in (10**8, 2)
        ],
    ],
    "truncation": [
        {"max_length": length, "strategy": "LongestFirst", "stride": stride, "direction": "Right"}
        for length, stride in ((0, 0), (1, 0), (1, 9), (-1, 0))
    ],
    "padding": [
        {**_STRATEGY, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
        {**_STRATEGY, "strategy": {"Fixed": 10**9}, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
    ],
    "normalizer": [
        {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x"},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Prepend", "prepend": "x" * 10**6},
        {"type": "Sequence", "normalizers": []},
    ],
    "decoder": [
        None,
        {"type": "Nonsense"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
        {"type": "Strip", "content": "x", "start": 2**63, "stop": 1},
        {"type": "Strip", "content": "x", "start": 5, "stop": 5},
        {"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": True},
    ],
    "post_processor": [
        {"type": "Nonsense"},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
    ],
}
_MODEL: dict[str, list[Any]] = {
    "unk_id": [None, -1, 10**9, 2**70, "x", 3.5],
    "unk_token": [None, "nope", 3],
    "merges": [None, [], [["a"]], ["a b c"], [["nope", "nope"]], 3],
    "vocab": [{}, [], None, "x"],
    "type": ["BPE", "Unigram", "WordLevel", "WordPiece", "Nonsense"],
    "dropout": [1.0, 2.0, -1],
    "byte_fallback": [True],
    "continuing_subword_prefix": ["##", 3],
}
_IDS = [-1, 10**6, 2**31, 2**32 - 1, 2**63, 10**30, 0, None, "x", 1.5]
_SCORES = [["x", float("nan")], ["x", -1e308], ["x", 1e308], ["x"], [], None, ["", 0]]


def _edit_tokenizer(rng: Random, content: dict[str, Any]) -> None:
    """One of the ways in which the tokenizer files of other tools differ, or are wrong."""
    model = content["model"]
    vocab = model.get("vocab")
    act = rng.randrange(3)
    if act == 0:
        part = rng.choice(list(_PARTS))
        content[part] = rng.choice(_PARTS[part])
    elif act == 1 or not vocab or not isinstance(vocab, dict | list):
        part = rng.choice(list(_MODEL))
        model[part] = rng.choice(_MODEL[part])
    elif isinstance(vocab, dict):
        vocab[rng.choice(list(vocab))] = rng.choice(_IDS)
    else:
        vocab[rng.randrange(len(vocab))] = rng.choice(_SCORES)


WRONG = [
    None,
    True,
    -1,
    0,
    1,
    3.5,
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    -(2**63),
    1e308,
    "",
    "x",
    "../x",
    "a\0b",
    [],
    [[]],
    {},
    {"x": 1},
]


def mutate(rng: Random, node: Any) -> None:
    """Changes one place of a JSON value: another value, one missing, one more."""
    while isinstance(node, dict | list):
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        key = rng.choice(places)
        inner = node[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            node = inner
            continue
        act = rng.randrange(5)
        if act == 0:
            del node[key]
        elif act == 1 and isinstance(node, dict):
            node[rng.choice(["x", "../x", "", f"{key}x"])] = inner
        elif act == 1:
            node.insert(key, inner)
        elif act == 2 and isinstance(inner, int) and not isinstance(inner, bool):
            node[key] = rng.choice([inner + 1, inner - 1, -inner, inner * 2, inner * 1000, float(inner), str(inner)])
        else:
            node[key] = rng.choice(WRONG)
        return
