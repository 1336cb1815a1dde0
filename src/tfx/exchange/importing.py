"""`tfx import`: a model folder of `transformers` as a model file of ours, and the cache of those made on the way."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tfx.compression.checkpoint import save, unique_tensors
from tfx.config.checks import check_values
from tfx.config.schema import EvaluationConfig
from tfx.data.foreign import CONFIG, TOKENIZER, read_generation
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.exchange.families import FAMILIES, family_of
from tfx.exchange.family import Family
from tfx.exchange.fields import Fields
from tfx.exchange.folder import Folder, is_folder
from tfx.exchange.weights import read_state
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer
from tfx.record.directory import model_file, writable_cache
from tfx.record.lock import making

_VERSION = 1


@dataclass(frozen=True)
class Imported:
    """A model that came in. ``left_out`` are the names of the tensors that have no place here."""

    model: Transformer
    tokenizer: Tokenizer
    generation: EvaluationConfig
    model_type: str
    left_out: list[str]


def read_folder(path: Path) -> Imported:
    """The model of a folder of `transformers`. Raises `UserError`, which names the field or file that has no place."""
    folder = Folder(path)
    file = folder.path / CONFIG
    config = folder.config
    classes = config.get("architectures")
    family = family_of(str(config.get("model_type")), [str(name) for name in classes or []])
    if family is None:
        raise UserError(
            f"{file}: model_type={config.get('model_type')!r} is not supported: supported are {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UserError(f"{file}: quantization_config is not supported: save the model with plain weights")
    renamed = _with_prefix(family, folder)
    fields = Fields(config, file)
    architecture = family.read(fields, list(renamed))
    fields.finish()
    architecture = _without_empty_bias(family, architecture, folder)
    try:
        architecture.check()
    except ValueError as error:
        raise UserError(f"{file}: {error}, which is not supported") from None
    model, read = _weights(family, architecture, folder, renamed)
    left_out = [name for name in renamed if name not in read and not _matches(name, family.unused)]
    _check_nothing_lost(family, folder, left_out)
    tokenizer = _tokenizer(folder, architecture)
    return Imported(model, tokenizer, _generation(folder), family.model_type, left_out)


def import_folder(path: Path, output: Path) -> Imported:
    """Writes the model of a folder as a model file; nothing is left where that fails."""
    found = read_folder(path)
    save(output, found.model, found.tokenizer, found.generation)
    return found


def local_model(path: Path) -> Path:
    """What RUN|FILE|FOLDER names, as a run directory or model file: a folder of `transformers` is converted once.

    The file lies in the cache under the hash of the folder's content.
    """
    if not is_folder(path):
        return path
    file = writable_cache("imported") / f"{Folder(path).fingerprint()[:32]}-{_VERSION}.safetensors"
    with making(file):
        if not file.is_file():
            import_folder(path, file)
    return file


def local_file(path: Path) -> Path:
    """The model file that RUN|FILE|FOLDER names."""
    return model_file(local_model(path))


def _with_prefix(family: Family, folder: Folder) -> dict[str, str]:
    """The names of the tensors as the whole class has them, each with its name in the files.

    The files of a bare model, without the layer of its task, lack the prefix.
    """
    if not family.prefix or any(name.startswith(family.prefix) for name in folder.names):
        return {name: name for name in folder.names}
    return {name if name.startswith("lm_head.") else family.prefix + name: name for name in folder.names}


def _without_empty_bias(family: Family, architecture: Architecture, folder: Folder) -> Architecture:
    """The architecture without a bias of the output that is zero: classes that have one have it in every file."""
    if not architecture.output_bias:
        return architecture
    place = next(place for place in family.places(architecture) if place.ours == "output.bias")
    return architecture if folder.tensor(place.theirs).any() else replace(architecture, output_bias=False)


def _weights(
    family: Family, architecture: Architecture, folder: Folder, renamed: dict[str, str]
) -> tuple[Transformer, set[str]]:
    """The model, and the names of the tensors that it was made of."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's words on tensors without elements
        stored, aliases = unique_tensors(Transformer(architecture))
    read: set[str] = set()

    def tensor(name: str) -> Tensor:
        value = folder.tensor(renamed[name])
        read.add(name)
        return value

    try:
        shapes = {name: tuple(value.shape) for name, value in stored.items()}
        state = read_state(family.places(architecture), shapes, tensor)
    except KeyError as error:
        raise UserError(f"{folder.path}: the weights have no '{error.args[0]}', which {CONFIG} asks for") from None
    except ValueError as error:
        raise UserError(f"{folder.path}: {error}") from None
    state |= {alias: state[name] for alias, name in aliases.items()}
    return Transformer.holding(architecture, state).eval(), read


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _check_nothing_lost(family: Family, folder: Folder, left_out: list[str]) -> None:
    """Raises `UserError` for a tensor that would change what the model computes and has no place here."""
    lost = [name for name in left_out if not _matches(name, family.left_out)]
    if lost:
        raise UserError(f"{folder.path}: the weights have '{lost[0]}', which a {family.model_type} model does not")


def _tokenizer(folder: Folder, architecture: Architecture) -> Tokenizer:
    tokenizer = Tokenizer.load(folder.path)
    if tokenizer.vocab_size > architecture.vocab_size:
        raise UserError(
            f"{folder.path / TOKENIZER} has {tokenizer.vocab_size:,} ids, and the model embeddings for "
            f"{architecture.vocab_size:,}: they do not belong together"
        )
    return tokenizer


def _generation(folder: Folder) -> EvaluationConfig:
    """The beam that the folder's decoding has; length penalties of other formulas do not carry over."""
    beam = read_generation(folder.path).get("num_beams")
    config = EvaluationConfig(beam=beam) if type(beam) is int and beam >= 1 else EvaluationConfig()
    check_values(config, f"{folder.path}: ")
    return config
