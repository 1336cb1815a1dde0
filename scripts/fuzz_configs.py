"""Bad configs for `fuzz_inputs.py`: values, keys, choices, the syntax of overrides, YAML files, and saved configs."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

# A tiny run on a few pairs, so that what is accepted costs little.
TINY = [
    "model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1",
    "trainer.budget.steps=3", "trainer.device=cpu", "dataset.tokenizer.kind=char",
]  # fmt: skip
NONSENSE = [
    "", "null", "nan", "inf", "-inf", "-1", "0", "0.5", "1e400", "1e308", "-1e-320", "9" * 30, str(2**63),
    "-" + "9" * 400,
    "true", "[]", "[1,2]", "[[[]]]", "{a:1}", "{}", "x", "'x y'", "ß", "''", "0x10", "1_000", "..", "../../etc/passwd",
    "/", "~", "${nope}", "${seed}", "${model}", "${model.width}", "${..width}", "${oc.env:TFX_NOPE}", "${oc.env:PATH}",
    "${oc.decode:'['}", "${oc.create:{a:1}}", "${nope:1}", "${tfx.random_hex:}", "${now:%Y}", "${hydra:job.name}",
    "'${'",
    "???", "{{}}", "'{'", "'{nope}'", "'{}'", "'{0}'", "'{a!r}'", "'\\n'", "x" * 5000, "'a\tb'", "1,2", "range(1,3)",
    "choice(1,2)", "int(3)", "str(3)", "glob(*)", "😀", "‮", "[1,x,null]", "{a:{b:{c:[1]}}}",
]  # fmt: skip
SOUP = "=+~@:.,[]{}()'\"\\$ \t-*!%&|<>#?/ab1éß\n😀"
GROUPS = (
    "model",
    "dataset",
    "optimizer",
    "schedule",
    "trainer",
    "evaluation",
    "technique",
    "experiment",
    "hydra/launcher",
)
YAML = {
    "empty": "",
    "a list": "- 1\n- 2\n",
    "a word": "nonsense\n",
    "a number": "3\n",
    "null": "~\n",
    "tabs": "width:\t1\n\tx: 2\n",
    "unclosed": "width: [1, 2\nheads: {a\n",
    "an unknown key": "nonsense: 1\n",
    "a key twice": "width: 16\nwidth: 32\n",
    "a key that is a number": "1: 2\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "a key that is null": "~: 3\n",
    "a tag that runs code": "width: !!python/object/apply:os.system ['touch owned']\n",
    "an object": "width: !!python/object:os.nothing {}\n",
    "an unknown tag": "width: !nonsense 3\n",
    "bytes": "width: !!binary aGVsbG8=\n",
    "a date": "width: 2026-01-01\n",
    "a set": "width: !!set {a, b}\n",
    "an anchor to itself": "width: &a [*a]\n",
    "a missing anchor": "width: *nope\n",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "deep": "width: " + "[" * 3000 + "]" * 3000 + "\n",
    "deep groups": "".join(" " * i + f"k{i}:\n" for i in range(400)),
    "two documents": "width: 16\n---\nheads: 2\n",
    "defaults that are no list": "defaults: nonsense\n",
    "defaults of nothing": "defaults:\n  - nonsense: x\n",
    "defaults of itself": "defaults:\n  - bad\n",
    "defaults that are deep": "defaults:\n  - [[a]]\n  - {a: {b: c}}\n",
    "a package": "# @package nonsense.there\nwidth: 16\n",
    "a package of the root": "# @package _global_\nseed: []\n",
    "a broken package": "# @package _group_._name_._nope_\nwidth: 16\n",
    "hydra's own": "# @package _global_\nhydra:\n  run:\n    dir: [1]\n",
    "hydra as a word": "# @package _global_\nhydra: 3\n",
    "a searchpath": "# @package _global_\nhydra:\n  searchpath: ['file:///nope', 3]\n",
    "a launcher": "# @package _global_\nhydra:\n  launcher:\n    _target_: os.system\n",
    "a callback": "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: os.getcwd\n",
    "env": "# @package _global_\nhydra:\n  job:\n    env_set: {A: [1]}\n",
    "interpolation": "width: ${nope}\n",
    "interpolation in circles": "width: ${.heads}\nheads: ${.width}\n",
    "interpolation of itself": "# @package _global_\nmodel: ${model}\n",
    "an open interpolation": "width: ${\n",
    "missing": "width: ???\n",
    "a NUL": "width: 1\0\n",
    "a form feed": "width: 1\f\x07\n",
}


def prepare(base: Path) -> None:
    """Makes the pairs that every config reads, and a config as a run saves it."""
    from tfx.config.compose import compose, to_yaml

    folder = base / "pairs"
    folder.mkdir()
    for split, count in (("train", 40), ("valid", 8), ("test", 8)):
        for side in ("en", "de"):
            (folder / f"{split}.{side}").write_text("".join(f"{side} {split} line {i}\n" for i in range(count)))
    config = compose([*_tiny(base), "+technique=[prune,quantize]", "technique.quantize.bits=4"])
    (base / "config.yaml").write_text(to_yaml(config))


def make(rng: Random, place: Any) -> tuple[str, list[str]]:
    """What is wrong, in a word, and the arguments of the command."""
    kind = rng.choices([_value, _key, _choice, _syntax, _yaml, _saved, _change, _folder], [50, 8, 8, 12, 12, 14, 8, 4])[
        0
    ]
    return kind(rng, place)


def _tiny(base: Path) -> list[str]:
    return [*TINY, "dataset=parallel", f"dataset.path={base / 'pairs'}"]


def _train(place: Any, *overrides: str) -> list[str]:
    return ["train", "dry_run=true", *_tiny(place.base), *overrides]


def _settings(rng: Random) -> tuple[list[str], str, Any]:
    """The overrides that make room for a setting of any group or technique, its key, and its field."""
    from tfx.config.describe import settings
    from tfx.config.registry import entry_points, technique_class

    found = [([], key, field) for key, field in settings() if key != "dry_run"]
    for name in entry_points():
        below = settings(technique_class(name).Settings, f"technique.{name}.")
        found += [([f"technique={name}"], key, field) for key, field in below]
    return rng.choice(found)


def _bad(rng: Random, field: Any) -> str:
    meta = field.metadata
    bounds = [meta[name] for name in ("minimum", "maximum", "above", "below") if meta.get(name) is not None]
    if bounds and rng.random() < 0.4:
        bound = rng.choice(bounds)
        step = rng.choice([0, 1, -1, 0.5, -0.5, 1e-9, -1e-9, 1e30, -1e30])
        return str(bound + step)
    word = rng.choice(NONSENSE)
    if rng.random() < 0.15:
        word = f"[{word},{rng.choice(NONSENSE)}]"
    return word


def _value(rng: Random, place: Any) -> tuple[str, list[str]]:
    overrides: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        room, key, field = _settings(rng)
        overrides += [*room, f"{rng.choice(['', '', '+', '++'])}{key}={_bad(rng, field)}"]
    return "values", _train(place, *overrides)


def _misspelt(rng: Random, word: str) -> str:
    position = rng.randrange(len(word))
    return word[:position] + rng.choice(["", "x", word[position] * 2, ".", "-", "é"]) + word[position + 1 :]


def _key(rng: Random, place: Any) -> tuple[str, list[str]]:
    room, key, _ = _settings(rng)
    key = rng.choice(
        [_misspelt(rng, key), f"{key}.x", f"{key}.0", key.split(".")[0], f"{key}@x", key.upper(), f".{key}"]
    )
    return "keys", _train(place, *room, f"{rng.choice(['', '+', '++', '~'])}{key}={rng.choice(NONSENSE)}")


def _choice(rng: Random, place: Any) -> tuple[str, list[str]]:
    group = rng.choice(GROUPS)
    choice = rng.choice(
        [*NONSENSE, "distil", "[distill,nope]", "[prune,prune]", "default", "gpt_nano", "normalise", "../train"]
    )
    return "choices", _train(place, f"{rng.choice(['', '+', '++', '~'])}{group}={choice}")


def _syntax(rng: Random, place: Any) -> tuple[str, list[str]]:
    text = rng.choice(["model.width=16", "+technique=[prune,quantize]", "dataset.metrics=[bleu]", "seed=1", "model=x"])
    for _ in range(rng.randrange(1, 6)):
        position = rng.randrange(len(text) + 1)
        text = text[:position] + rng.choice(SOUP) + text[position + rng.randrange(2) :]
    return "syntax", _train(place, text.lstrip("-") or "=")


def _yaml(rng: Random, place: Any) -> tuple[str, list[str]]:
    """A file of a folder that --config-dir names, as the choice of a group or as the whole config."""
    group = rng.choice(["model", "dataset", "technique", "experiment", "trainer", ""])
    folder = place.inputs / "conf" / group
    folder.mkdir(parents=True)
    name = rng.choice(list(YAML))
    content = YAML[name].encode()
    if rng.random() < 0.2:
        name, content = rng.choice([
            ("bytes that are not UTF-8", b"width: \xff\xfe\n"), ("UTF-16", "width: 16\n".encode("utf-16")),
            ("binary", rng.randbytes(300)), ("a byte order mark", b"\xef\xbb\xbfwidth: 16\n"),
        ])  # fmt: skip
    if rng.random() < 0.05:
        (folder / "bad.yaml").mkdir()
    else:
        (folder / "bad.yaml").write_bytes(content)
    where = ["--config-dir", str(place.inputs / "conf")]
    if group:
        return "YAML of a choice", _train(place, f"{group}=bad", *where)
    return "YAML of a config", ["train", *where, "--config-name", "bad", "dry_run=true"]


def damaged_yaml(rng: Random, text: str) -> str:
    """A YAML text with a few lines removed, doubled, moved in or out, or with another value."""
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(lines))
        key = lines[at].split(":")[0]
        act = rng.randrange(7)
        if act == 0:
            del lines[at]
        elif act == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif act == 2:
            lines[at] = "  " + lines[at]
        elif act == 3:
            lines[at] = lines[at].removeprefix("  ")
        elif act == 4:
            lines = lines[: at + 1]
        else:
            lines[at] = f"{key}: {rng.choice(NONSENSE)}"
    return "\n".join(lines) + "\n"


def _saved(rng: Random, place: Any) -> tuple[str, list[str]]:
    """A run's own config, altered, run again or evaluated."""
    folder = place.inputs / "run"
    folder.mkdir()
    text = damaged_yaml(rng, (place.base / "config.yaml").read_text())
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    if rng.random() < 0.4:
        return "saved configs", ["evaluate", str(folder)]
    if rng.random() < 0.3:
        return "saved configs", _train(place, f"init_from={folder}")
    return "saved configs", ["train", "--config-dir", str(folder), "--config-name", "config", "dry_run=true"]


def _change(rng: Random, place: Any) -> tuple[str, list[str]]:
    """Changes to a run's config, which are not parsed by Hydra."""
    run = place.inputs / "run"
    run.mkdir()
    (run / "config.yaml").write_text((place.base / "config.yaml").read_text())
    kind = rng.choice([_value, _value, _key, _choice, _syntax])
    words = [word for word in kind(rng, place)[1] if word not in _train(place)]
    return "changes to a run's config", ["evaluate", str(run), *words, "--device=cpu"]


def _folder(rng: Random, place: Any) -> tuple[str, list[str]]:
    """A run directory that cannot be made."""
    (place.inputs / "file").write_text("")
    (place.inputs / "loop").symlink_to("loop")
    (place.inputs / "old").mkdir()
    (place.inputs / "old" / "config.yaml").write_text("")
    folder = rng.choice([
        place.inputs / "file", place.inputs / "file" / "run", place.inputs / "loop" / "run", "/proc/nope/run",
        "x" * 300, place.inputs / "old", "/dev/null/run", "${nope}", "''", "[1]", "null",
    ])  # fmt: skip
    return "run directories", [*_train(place, f"hydra.run.dir={folder}")]
