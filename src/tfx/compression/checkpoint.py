"""The model file: safetensors that hold the weights, the architecture, the tokenizer and generation defaults.

Everything but the weights stands in the metadata of the safetensors header, under the key ``tfx``, as JSON:
``format_version``, ``architecture``, ``codecs`` (how each tensor is stored), ``aliases`` (tensors stored once
under another name), ``generation``, and ``checksum``, a SHA-256 over the content. The tokenizer is the byte
tensor ``tokenizer``: its JSON, compressed by xz. docs/FORMAT.md is the specification.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.device import choose_device
from tfx.model.transformer import Transformer
from tfx.run.directory import model_file
from tfx.run.files import replacing

FORMAT_VERSION = 1
_TOKENIZER = "tokenizer"
_MOST_TOKENIZER_BYTES = 256 << 20
_MOST_HEADER_BYTES = 100 << 20
_DENSE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class LoadedModel:
    """A model read from a file, ready to run: in evaluation mode, fp32, on its device."""

    model: Transformer
    tokenizer: Tokenizer
    generation: EvaluationConfig
    path: Path


@dataclass(frozen=True)
class FileBytes:
    """Where the bytes of a model file go; they add up to the size of the file."""

    file: int
    weights: int
    header: int
    tokenizer: int


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    codec: str
    bytes: int


def unique_tensors(model: Transformer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's weights with tied ones once, and the names of the others: alias to stored name."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        first = seen.setdefault(id(parameter), name)
        if first != name:
            aliases[name] = first
        else:
            stored[name] = parameter.detach()
    return stored, aliases


def save(path: Path, model: Transformer, tokenizer: Tokenizer, generation: EvaluationConfig) -> None:
    """Writes the model as plain fp32 tensors, whole or not at all."""
    stored, aliases = unique_tensors(model)
    arrays = {name: tensor.float().cpu().contiguous().numpy() for name, tensor in stored.items()}
    arrays[_TOKENIZER] = np.frombuffer(lzma.compress(tokenizer.to_json().encode(), preset=9), dtype=np.uint8)
    header = {
        "format_version": FORMAT_VERSION,
        "architecture": model.architecture.to_dict(),
        "codecs": dict.fromkeys(stored, "dense"),
        "aliases": aliases,
        "generation": asdict(generation),
    }
    header["checksum"] = _checksum(header, ((name, arrays[name].tobytes()) for name in sorted(arrays)))
    metadata = {"tfx": json.dumps(header, separators=(",", ":"))}
    with replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata=metadata)


def load(path: str | Path, device: str = "cpu") -> LoadedModel:
    """Reads a model file, or the final file of a run directory.

    Nothing in the file is executed. Raises `UserError` for a file that is missing, cut, altered, newer than
    this version of tfx, or whose tensors are not those of the architecture in its header; shapes are
    compared before memory is taken.
    """
    target = choose_device(device)
    file = model_file(Path(path))
    header = read_header(file)
    with _opened(file) as handle:
        with torch.device("meta"):
            model = Transformer(header.architecture)
        expected = {name: tuple(tensor.shape) for name, tensor in unique_tensors(model)[0].items()}
        names = list(handle.keys())
        found = {name: tuple(handle.get_slice(name).get_shape()) for name in names if name != _TOKENIZER}
        _compare(file, expected, found)
        arrays = {name: handle.get_tensor(name) for name in names}
    content = ((name, _bytes(arrays[name])) for name in sorted(arrays))
    if _checksum(header.raw, content) != header.raw.get("checksum"):
        raise UserError(f"{file} is damaged: its content does not match its checksum; get it again from its source")
    if _TOKENIZER not in arrays:
        raise UserError(f"{file} has no tokenizer inside: it was not written by tfx")
    tokenizer = Tokenizer.from_json(_unpack_tokenizer(file, arrays.pop(_TOKENIZER)))
    model = Transformer(header.architecture)
    state = {name: tensor.float() for name, tensor in arrays.items()}
    state |= {alias: state[name] for alias, name in header.raw["aliases"].items() if name in state}
    model.load_state_dict(state)
    model.eval().to(target)
    return LoadedModel(model, tokenizer, header.generation, file)


# --- looking at a file without loading it -----------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a model file says of itself."""

    architecture: Architecture
    generation: EvaluationConfig
    tensors: list[TensorInfo]
    bytes: FileBytes
    raw: dict[str, Any]


def read_header(file: Path) -> Header:
    """Reads and checks the header only; raises `UserError` where the file is none of ours or newer."""
    with _opened(file) as handle:
        text = (handle.metadata() or {}).get("tfx")
        if text is None:
            raise UserError(f"{file} is a safetensors file, but not a model of tfx (its header has no 'tfx' entry)")
        try:
            raw = json.loads(text)
            version = raw["format_version"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged: its header is not readable") from None
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise UserError(
                f"{file} has format version {version}, and this tfx reads up to {FORMAT_VERSION}: update tfx"
            )
        tensors = []
        for name in sorted(handle.keys()):
            piece = handle.get_slice(name)
            shape, dtype = tuple(piece.get_shape()), piece.get_dtype()
            if name != _TOKENIZER and dtype not in _DENSE_DTYPES:
                raise UserError(f"{file} is damaged: tensor '{name}' has type {dtype}")
            width = 1 if name == _TOKENIZER else _DENSE_DTYPES[dtype].itemsize
            tensors.append(TensorInfo(name, shape, f"dense {dtype.lower()}", int(np.prod(shape)) * width))
    size = file.stat().st_size
    tokenizer_bytes = sum(tensor.bytes for tensor in tensors if tensor.name == _TOKENIZER)
    weights = [tensor for tensor in tensors if tensor.name != _TOKENIZER]
    weight_bytes = sum(tensor.bytes for tensor in weights)
    account = FileBytes(size, weight_bytes, size - weight_bytes - tokenizer_bytes, tokenizer_bytes)
    try:
        architecture = Architecture.from_dict(raw["architecture"])
        known = {field.name for field in fields(EvaluationConfig)}
        generation = EvaluationConfig(**{k: v for k, v in raw["generation"].items() if k in known})
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged: its header is not complete") from None
    return Header(architecture, generation, weights, account, raw)


def _opened(file: Path) -> Any:
    try:
        with open(file, "rb") as raw:
            start = raw.read(8)
        size = file.stat().st_size
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length > min(size, _MOST_HEADER_BYTES):
            raise UserError(f"{file} is not a whole safetensors file: its header claims {length:,} bytes of {size:,}")
        return safetensors.safe_open(str(file), framework="pt")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file ({error})") from error


def _compare(file: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{file} is damaged: tensor '{name}' is {found.get(name, 'missing')}, and the architecture in the "
                f"header has {expected.get(name, 'none of that name')}"
            )


def _checksum(header: dict[str, Any], content: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over the header without the checksum, then each tensor's name and bytes, in order of names."""
    digest = hashlib.sha256()
    rest = {key: value for key, value in header.items() if key != "checksum"}
    digest.update(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    for name, data in content:
        digest.update(name.encode() + b"\0")
        digest.update(data)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _unpack_tokenizer(file: Path, packed: Tensor) -> str:
    try:
        # Bounded: a few kilobytes of xz can ask for terabytes.
        unpacked = lzma.LZMADecompressor().decompress(_bytes(packed), _MOST_TOKENIZER_BYTES)
        return unpacked.decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: its tokenizer cannot be unpacked ({error})") from None
