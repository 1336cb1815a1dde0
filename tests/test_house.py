"""The house: floors, packages, and that every config there is composes."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import torch

from tfx.config.choices import GROUPS, choices
from tfx.config.compose import compose
from tfx.config.registry import entry_points, technique_class
from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tfx"
PAGE = ROOT / "docs" / "guide" / "house.md"
FLOORS = {name: int(floor) for floor, name in re.findall(r"^\| (-?\d+) \| `(\w+)` \|", PAGE.read_text(), re.M)}
FILES = {
    "tfx." + ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.parent != SOURCE or path.stem in FLOORS
}


def imports(path: Path) -> set[str]:
    """The modules of tfx that a file imports anywhere, inside functions and for types alone included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tfx":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner in FILES else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("tfx.")}
    return found - {"tfx"}


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


def test_the_table_has_every_folder():
    folders = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= FLOORS.keys()
    assert {name for name in FLOORS if (SOURCE / name).is_dir()} == folders
    assert all((SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file() for name in FLOORS)


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_imports_from_lower_floors_or_its_own_folder_only(name):
    for other in IMPORTS[name]:
        assert other.split(".")[1] == name.split(".")[1] or floor(other) < floor(name), f"{name} imports {other}"


def test_files_import_each_other_in_no_circle():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' > '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in IMPORTS.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_every_package_folder_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = (path.parent.relative_to(SOURCE) for path in SOURCE.rglob("__init__.py"))
    folders = {"tfx.conf"} | {".".join(("tfx", *package.parts)) for package in packages}
    assert set(listed) == folders


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)])
def test_every_choice_composes_and_has_a_line_of_description(group, choice):
    assert choices(group)[choice]
    # By the kind of the model: what composes with the default data set, and with those of other tasks.
    others = {"gpt": "dataset=stdlib", "encoder": "dataset=kinds"} if group == "model" else {}
    needed = [word for kind, word in others.items() if choice.startswith(f"{kind}_")]
    compose([f"{group}={choice}", *needed])


@pytest.mark.parametrize("name", list(entry_points()))
def test_the_yaml_of_a_technique_has_every_setting_at_its_default(name):
    config = compose([f"technique={name}", "technique." + name + ".allow_noop=false"])
    settings = technique_class(name).Settings()
    assert config.technique[name].keys() == vars(settings).keys()
    for key, value in config.technique[name].items():
        if not isinstance(value, dict):
            assert value == getattr(settings, key), key


@pytest.mark.parametrize("name", list(entry_points()))
def test_the_head_of_a_technique_says_what_it_is_what_it_costs_and_its_paper(name):
    what, cost, paper = choices("technique")[name].splitlines()
    assert what
    assert re.fullmatch(r"cost: .+", cost)
    assert re.fullmatch(r"paper: \D+ \d{4}, (arXiv )?[\w.-]+(; \D+ \d{4}, (arXiv )?[\w.-]+)*", paper)


@pytest.mark.parametrize(
    ("choice", "vocab", "low", "high"),
    [
        ("gpt_small", 50257, 123e6, 126e6),
        ("gpt_medium", 50257, 350e6, 357e6),
        ("seq2seq_base", 37000, 60e6, 66e6),
        ("seq2seq_big", 37000, 205e6, 220e6),
    ],
)
def test_published_models_have_their_published_size(choice, vocab, low, high):
    family = ["dataset=stdlib"] if choice.startswith("gpt") else []
    model: ModelConfig = compose([f"model={choice}", *family]).model
    with torch.device("meta"):
        built = Transformer(Architecture.from_config(model, vocab))
    assert low < sum(parameter.numel() for parameter in built.parameters()) < high
