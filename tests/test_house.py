"""The house: floors, packages, and that every config there is composes."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import torch

from tfx.config.compose import compose
from tfx.config.describe import GROUPS, choices
from tfx.config.registry import entry_points, technique_class
from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tfx"
FLOORS = {
    "errors": 0,
    "config": 1,
    "run": 1,
    "data": 2,
    "model": 2,
    "sweep": 2,
    "report": 2,
    "compression": 3,
    "evaluation": 3,
    "techniques": 4,
    "training": 5,
    "commands": 6,
    "cli": 7,
}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem in FLOORS)


def room(module: str) -> str:
    return module.split(".")[1]


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tfx."):
            if node.module in ("tfx.config", "tfx.compression", "tfx.commands", "tfx.data"):
                found |= {f"{node.module}.{name.name}" for name in node.names}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("tfx.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_from_lower_floors_or_its_own_folder_only(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
        other = room(module)
        assert other == own or FLOORS[other] < FLOORS[own], f"{path} imports {module}"


def test_modules_import_each_other_in_no_circle():
    graph = {}
    for path in FILES:
        name = "tfx." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        graph[name.removesuffix(".__init__")] = imports(top)
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' > '.join([*above, name])}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_package_folder_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = (path.parent.relative_to(SOURCE) for path in SOURCE.rglob("__init__.py"))
    folders = {"tfx.conf"} | {".".join(("tfx", *package.parts)) for package in packages}
    assert set(listed) == folders


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)])
def test_every_choice_composes_and_has_a_line_of_description(group, choice):
    assert choices(group)[choice]
    lm = {"model": "gpt_nano", "dataset": "stdlib"}
    overrides = [f"{group}={choice}"]
    try:
        compose(overrides)
    except Exception:
        other = "dataset" if group == "model" else "model"
        compose([*overrides, f"{other}={lm[other]}"])


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
