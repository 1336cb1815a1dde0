"""What a run inherits from the run or model that ``init_from`` names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tfx.config.hydra_driver import hydra_ready
from tfx.config.schema import RATES, Root
from tfx.errors import UserError


def inherit(values: dict[str, Any], typed: Sequence[str], saved: dict[str, Any] | None) -> None:
    """Takes the model, and the dataset where none is named, from the config ``saved`` of the run in ``init_from``.

    Raises `UserError` where the user names a model or tokenizer besides, and where nothing says what a model file that
    lies alone (``saved`` is None) is to be trained on.
    """
    origin = Path(str(values["init_from"]))
    keys = [override.lstrip("+").split("=", 1)[0] for override in typed]
    keys += [key for key in _said_by_experiments(typed) if key not in keys]
    tokenizer = next((key for key in keys if key.startswith("dataset.tokenizer")), None)
    if tokenizer is not None and not origin.exists():
        raise UserError(f"init_from={origin} does not exist: name a run directory or a model file")
    if tokenizer is not None:
        raise UserError(f"init_from={origin} brings its tokenizer, and {tokenizer} names another: leave it out")
    if saved is None:
        is_model = origin.is_file() or (origin / "config.json").is_file()  # that of another library
        if is_model and not any(key == "dataset" or key.startswith("dataset.") for key in keys):
            raise UserError(f"init_from={origin} is a model without its run: name the data with dataset=…")
        if is_model and (named := next((key for key in keys if _is_of_architecture(key)), None)):
            raise UserError(f"init_from={origin} brings its model, and {named} names another: leave it out")
        if is_model and "model.name" not in keys:
            values["model"]["name"] = origin.stem if origin.is_file() else origin.name  # of which all else comes
        return
    for key in keys:
        names = [key.partition(".")[2]] if key.startswith("model.") else list(saved["model"]) if key == "model" else []
        for name in names:
            if name in RATES or name == "name":
                saved["model"][name] = values["model"][name]
            elif values["model"][name] != saved["model"].get(name):
                raise UserError(
                    f"init_from={origin} brings its model (model.{name}={saved['model'].get(name)}), and {key} names "
                    f"another (model.{name}={values['model'][name]}): leave it out"
                )
    values["model"] = saved["model"]
    if "dataset" not in keys:
        # Text without references belongs to the techniques of the run, which are not inherited.
        own: dict[str, Any] = dict.fromkeys(("monolingual", "monolingual_share"))
        splits = dict(saved["dataset"].get("splits") or {})
        if splits.get("test") == []:  # a trial of a search reads none; a run that starts from it may
            own["splits"] = splits | {"test": values["dataset"]["splits"]["test"]}
        dataset = OmegaConf.create(saved["dataset"] | own)
        for key in keys:
            if key.startswith("dataset."):
                _, _, name = key.partition(".")
                OmegaConf.update(dataset, name, OmegaConf.select(OmegaConf.create(values["dataset"]), name))
        values["dataset"] = OmegaConf.to_container(dataset)


def _is_of_architecture(key: str) -> bool:
    """Whether a key names what a model file has and no run can change. A file may lack a classifier's pooling."""
    group, _, name = key.partition(".")
    return group == "model" and name not in (*RATES, "name", "pooling", "pooler")


def _said_by_experiments(typed: Sequence[str]) -> list[str]:
    """Keys and groups (``model.dropout``, ``dataset``) that the chosen experiments' files name, default or not."""
    keys: list[str] = []
    with hydra_ready():
        for override in OverridesParser.create().parse_overrides([o for o in typed if "experiment=" in o]):
            if override.key_or_group == "experiment":
                chosen = override.value()
                for name in chosen if isinstance(chosen, list) else [chosen]:
                    keys += _said_by(f"experiment/{name}")
    return keys


def _said_by(path: str) -> list[str]:
    """The same for one file, and for the files of its folder in its defaults list."""
    found = GlobalHydra.instance().config_loader().repository.load_config(path)  # type: ignore[attr-defined]
    if found.header["package"] != "_global_":
        return []  # its keys do not belong to a run's config
    keys: list[str] = []
    for default in found.defaults_list:
        if isinstance(default, GroupDefault):
            keys.append(str(default.group).removeprefix("/"))
        elif default.path != "_self_":
            keys += _said_by(f"{path.rpartition('/')[0]}/{default.path}")
    return [*keys, *_leaves(OmegaConf.to_container(found.config, resolve=False), "")]


def _leaves(values: Any, prefix: str) -> Iterator[str]:
    """The dotted keys of nested mappings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def from_scratch(config: Root) -> Root:
    """A config for another, untrained model with the tokens of the run that ``init_from`` names.

    For a model file the tokenizer of its run is taken; raises `UserError` if there is none beside it.
    """
    if config.init_from is None:
        return config
    origin = Path(config.init_from)
    path = (origin if origin.is_dir() else origin.parent) / "tokenizer.json"
    if (origin / "config.json").is_file():  # a folder of transformers, which also says what its tokens are for
        path = origin
    elif not path.is_file():
        raise UserError(
            f"init_from={origin}: another model needs its tokenizer, and there is no {path.name} beside it: "
            "name the run's directory"
        )
    tokenizer = replace(config.dataset.tokenizer, path=str(path))
    return replace(config, init_from=None, dataset=replace(config.dataset, tokenizer=tokenizer))
