"""The model file: one safetensors file with weights, architecture, tokenizer and generation defaults.

docs/FORMAT.md specifies its two kinds. Version 1 stores the weights as plain tensors, which any tool can open.
The others are compressed: two streams of bytes hold all weights, and a compressed description says how each is
stored. Version 4 has the levels of dependent quantizers, version 3 none, and version 2 spells out the tokenizer's
merges. `load` reads all four and never executes anything from a file.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfx.compression.container import (
    bytes_array,
    checksum,
    compress,
    damaged,
    decompress,
    open_container,
    parse_object,
    raw_bytes,
    read_bytes,
    write_container,
)
from tfx.compression.grid import Grid
from tfx.compression.int8 import use_int8
from tfx.compression.merges import MAX_MERGES_BYTES, MAX_TEXT_BYTES, join_merges, split_merges
from tfx.compression.streams import Streams, read_layout, read_streams, write_streams
from tfx.config.schema import EvaluationConfig
from tfx.data.token_roles import Roles
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.device import choose_device
from tfx.model.transformer import Transformer
from tfx.record.directory import model_file

FORMAT_VERSION = 4
_DENSE, _FIRST_COMPRESSED, _WITHOUT_CONTEXTS = 1, 2, 3
_TOKENIZER, _MERGES = "tokenizer", "merges"
_DESCRIPTION, _PACKED, _CODED = "description", "packed", "coded"
_ALIGNMENT = 64
# Settings of the evaluation that are left out of a header at their defaults, because older files are without them.
_LATER_SETTINGS = ("min_length", "no_repeat_ngram", "repetition_penalty", "engine", "engine_numbers", "precision")
_STREAMS = (_PACKED, _CODED)
_DENSE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_DESCRIPTION_BYTES = 4 << 20
# Limit on what a compressed file may unpack to. Equal codes take almost no bytes, so a forged file could ask for
# any amount of memory. A model with 99.9 % zeros has about 500 weights per byte.
_MAX_WEIGHTS_PER_BYTE = 1024
_ALWAYS_ALLOWED = 1 << 20


@dataclass(frozen=True)
class Storage:
    """How to store the weights of a compressed file; saving raises if any value would change.

    ``grids`` maps a stored tensor's name (`unique_tensors`) to its grid; `Grid.values` must equal the weight in
    memory. ``dtype`` is that of all other tensors, fp16 or fp32. ``entropy`` allows entropy coding where it makes
    a sequence smaller. ``int8`` asks readers to run the linear layers whose grids fit on int8 kernels, which
    round activations on the fly.
    """

    grids: Mapping[str, Grid] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    entropy: bool = True
    int8: bool = False


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor. ``bytes`` is its share of the file's weights; the shares add up to the whole."""

    name: str
    shape: tuple[int, ...]
    codec: str
    bytes: int


@dataclass
class LoadedModel:
    """A model read from a file, ready to run: in evaluation mode, fp32, on its device.

    ``grids`` are those of the quantized weights, where plain layers were asked for.
    """

    model: Transformer
    tokenizer: Tokenizer
    generation: EvaluationConfig
    path: Path
    tensors: list[TensorInfo]
    grids: Mapping[str, Grid] = field(default_factory=dict)


@dataclass(frozen=True)
class FileBytes:
    """The bytes of a model file by purpose: ``weights``, ``header`` and ``tokenizer`` add up to ``file``."""

    file: int
    weights: int
    header: int
    tokenizer: int


@dataclass(frozen=True)
class Header:
    """What a model file says about itself; ``raw`` is the record that the other fields come from."""

    architecture: Architecture
    generation: EvaluationConfig
    bytes: FileBytes
    version: int
    raw: dict[str, Any]


def unique_tensors(model: Transformer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's weights by name, tied ones once, and the aliases: other names of tied weights to stored names."""
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


# --- writing ----------------------------------------------------------------------------------------


def save(
    path: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    generation: EvaluationConfig,
    storage: Storage | None = None,
) -> None:
    """Writes the whole model or nothing: as plain fp32 tensors, or compressed as ``storage`` says.

    Raises `ValueError` if the compressed file would not give back the model's exact values.
    """
    stored, aliases = unique_tensors(model)
    facts: dict[str, Any] = {
        "architecture": model.architecture.to_dict(),
        "aliases": aliases,
        "generation": _settings(generation),
    }
    if tokenizer.ends_documents:
        facts["ends_documents"] = True
    if tokenizer.roles is not None:
        facts["roles"] = tokenizer.roles.to_dict()
    text = tokenizer.to_json()
    if storage is None:
        _save_dense(path, stored, facts, text)
    else:
        _save_compressed(path, stored, facts, text, storage)


def _save_dense(path: Path, stored: dict[str, Tensor], facts: dict[str, Any], tokenizer: str) -> None:
    arrays = {name: tensor.float().cpu().contiguous().numpy() for name, tensor in stored.items()}
    arrays[_TOKENIZER] = bytes_array(compress(tokenizer.encode()))
    header = {"format_version": _DENSE, **facts, "codecs": dict.fromkeys(stored, "dense")}
    header["checksum"] = checksum(_dense_head(header), {name: array.tobytes() for name, array in arrays.items()})
    write_container(path, arrays, header)


def _save_compressed(
    path: Path, stored: dict[str, Tensor], facts: dict[str, Any], tokenizer: str, storage: Storage
) -> None:
    unknown = storage.grids.keys() - stored.keys()
    if unknown:
        raise ValueError(f"there are grids for tensors that the model does not store: {sorted(unknown)}")
    for name, grid in storage.grids.items():
        if not torch.equal(grid.values(), stored[name].float()):
            raise ValueError(f"the values of '{name}' in memory differ from those of its grid")
    values = {name: storage.grids.get(name, tensor.float()) for name, tensor in stored.items()}
    streams = write_streams(values, storage.dtype, storage.entropy)
    weights = sum(tensor.numel() for tensor in stored.values())
    if not _may_unpack(weights, len(streams.packed) + len(streams.coded)):
        streams = write_streams(values, storage.dtype, entropy=False)
    if storage.int8:
        facts = {**facts, "activations": "int8"}
    description = {**facts, "tensors": streams.tensors, "tables": streams.tables}
    if streams.contexts:
        description["contexts"] = streams.contexts
    text, merges = split_merges(tokenizer)
    content = {
        _TOKENIZER: compress(text.encode()),
        _MERGES: compress(merges) if merges else b"",
        _DESCRIPTION: compress(json.dumps(description, separators=(",", ":")).encode()),
        _PACKED: streams.packed,
        _CODED: streams.coded,
    }
    content = {name: data for name, data in content.items() if data}
    version = FORMAT_VERSION if streams.contexts else _WITHOUT_CONTEXTS
    header = {"format_version": version, "checksum": checksum(b"", content)}
    write_container(path, {name: bytes_array(data) for name, data in content.items()}, header)


def _dense_head(header: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in header.items() if key != "checksum"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


def runnable(model: Transformer, storage: Storage) -> Transformer:
    """A model with the same weights that runs exactly like the one loaded from its compressed file."""
    twin = Transformer.holding(model.architecture, model.state_dict())
    if storage.int8:
        use_int8(twin, storage.grids, unique_tensors(twin)[1])
    return twin.eval()


# --- reading ----------------------------------------------------------------------------------------


def load(path: str | Path, device: str = "cpu", *, kernels: bool = True) -> LoadedModel:
    """Reads a model file, or the final file of a run directory, and unpacks compressed weights to fp32.

    If the file asks for int8 activations, its layers run on int8 kernels. With ``kernels=False`` they are plain
    layers, which can be trained.

    Raises `UserError` if the file is missing, truncated, altered or newer than this version of tfx, or if its
    tensors do not match the architecture in its header. Shapes are compared before memory is allocated.
    """
    target = choose_device(device)
    file = model_file(Path(path))
    handle, metadata = open_container(file)
    header = _read_header(file, handle, metadata)
    blocks = len(header.architecture.encoder) + len(header.architecture.decoder)
    if blocks > len(header.raw["tensors"] if header.version >= _FIRST_COMPRESSED else handle.keys()):
        raise damaged(file, f"its architecture has {blocks:,} blocks, more than the file has tensors")
    shapes, aliases = _expected(file, header.architecture)
    read = _read_dense if header.version == _DENSE else _read_compressed
    state, tensors, grids = read(file, handle, metadata, header, shapes)
    tokenizer = _read_tokenizer(file, handle, header.raw.get("roles"))
    tokenizer.ends_documents = header.raw.get("ends_documents") is True
    if tokenizer.vocab_size > header.architecture.vocab_size:
        raise damaged(file, f"its tokenizer has {tokenizer.vocab_size:,} ids, more than the model's embedding")
    state = {name: _aligned(tensor) for name, tensor in state.items()}
    model = Transformer.holding(header.architecture, state | {alias: state[name] for alias, name in aliases.items()})
    model.eval().to(target)
    if kernels and header.raw.get("activations") == "int8":
        use_int8(model, grids, aliases)
    return LoadedModel(model, tokenizer, header.generation, file, tensors, {} if kernels else grids)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor in fp32 at an aligned address, which vector instructions read fastest.

    A mapped file's tensors begin wherever its header ends.
    """
    plain = tensor.float()
    return plain if plain.is_contiguous() and plain.data_ptr() % _ALIGNMENT == 0 else plain.clone()


def tensor_rows(loaded: LoadedModel) -> list[dict[str, Any]]:
    """One row per stored tensor: ``name``, ``shape``, ``codec``, ``bits_per_weight``, ``sparsity`` and ``bytes``.

    ``sparsity`` is the share of weights that are zero. Load the model with ``kernels=False`` first, because int8
    kernels keep their weights in another form.
    """
    weights, _ = unique_tensors(loaded.model)
    rows = []
    for tensor in loaded.tensors:
        count = max(1, prod(tensor.shape))
        rows.append(
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "codec": tensor.codec,
                "bits_per_weight": 8.0 * tensor.bytes / count,
                "sparsity": int((weights[tensor.name] == 0).sum()) / count,
                "bytes": tensor.bytes,
            }
        )
    return rows


def read_header(file: Path) -> Header:
    """Reads and checks a file's header without its weights; raises `UserError` as `load` does."""
    return _read_header(file, *open_container(file))


def _read_header(file: Path, handle: Any, metadata: dict[str, Any]) -> Header:
    version = metadata.get("format_version")
    if type(version) is not int or version < _DENSE:
        raise damaged(file, "its header is not readable")
    if version > FORMAT_VERSION:
        raise UserError(f"{file} has format version {version}, but this tfx reads up to {FORMAT_VERSION}: update tfx")
    sizes = {}
    for name in handle.keys():  # noqa: SIM118 (not a dictionary)
        piece = handle.get_slice(name)
        dtype = piece.get_dtype()
        is_bytes = version >= _FIRST_COMPRESSED or name == _TOKENIZER
        if dtype not in ({"U8": torch.uint8} if is_bytes else _DENSE_DTYPES):
            raise damaged(file, f"tensor '{name}' has type {dtype}")
        sizes[name] = prod(piece.get_shape()) * (1 if is_bytes else _DENSE_DTYPES[dtype].itemsize)
    raw = metadata
    tokenizer = {_TOKENIZER, _MERGES} if version > _FIRST_COMPRESSED else {_TOKENIZER}
    others = set(tokenizer)
    if version >= _FIRST_COMPRESSED:
        if not sizes.keys() <= {*tokenizer, _DESCRIPTION, *_STREAMS}:
            raise damaged(file, "it has streams that its format version does not define")
        description = read_bytes(file, handle, _DESCRIPTION)
        raw = parse_object(file, decompress(file, "description", description, _MAX_DESCRIPTION_BYTES))
        others.add(_DESCRIPTION)
    if _TOKENIZER not in sizes:
        raise damaged(file, "it has no tokenizer")
    size = file.stat().st_size
    weights = sum(bytes_ for name, bytes_ in sizes.items() if name not in others)
    tokens = sum(sizes.get(name, 0) for name in tokenizer)
    account = FileBytes(size, weights, size - weights - tokens, tokens)
    try:
        architecture = Architecture.from_dict(raw["architecture"])
        generation = _generation(raw["generation"])
        for key, kind in {
            "aliases": dict,
            **({"tensors": list, "tables": list} if version >= _FIRST_COMPRESSED else {}),
        }.items():
            if not isinstance(raw[key], kind):
                raise TypeError(key)
    except UserError as error:
        raise damaged(file, error) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged(file, "its header is not complete") from None
    return Header(architecture, generation, account, version, raw)


def _settings(generation: EvaluationConfig) -> dict[str, Any]:
    """All settings; those that came after the first files only where they are not at their defaults.

    What decodes is a matter of the machine, not of the model.
    """
    generation = replace(generation, engine="torch", engine_numbers="float32", precision="auto")
    later = {name: getattr(EvaluationConfig, name) for name in _LATER_SETTINGS}
    return {name: value for name, value in asdict(generation).items() if name not in later or value != later[name]}


def _generation(record: dict[str, Any]) -> EvaluationConfig:
    """The settings that this version knows; raises `ValueError` if one has the wrong type or is not finite."""
    known = {}
    for setting in fields(EvaluationConfig):
        if setting.name not in record:
            continue
        value, default = record[setting.name], setting.default
        kinds = (str,) if isinstance(default, str) else (int, float, type(None) if default is None else int)
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(setting.name)
        known[setting.name] = value
    return EvaluationConfig(**known)


def _read_tokenizer(file: Path, handle: Any, roles: dict[str, Any] | None) -> Tokenizer:
    packed, merges = (read_bytes(file, handle, name) for name in (_TOKENIZER, _MERGES))
    data = decompress(file, "tokenizer", packed, MAX_TEXT_BYTES if merges else _MAX_TOKENIZER_BYTES)
    planes = decompress(file, "merges", merges, MAX_MERGES_BYTES) if merges else b""
    try:
        text = join_merges(data.decode(), planes) if merges else data.decode()
        return Tokenizer.from_json(text, None if roles is None else Roles.from_dict(roles))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UserError) as error:
        raise damaged(file, f"its tokenizer is not readable ({error})") from None


def _expected(file: Path, architecture: Architecture) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Names and shapes of the tensors that an architecture stores, and its aliases; allocates no tensor."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of tensors without elements
            model = Transformer(architecture)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise damaged(file, f"its architecture cannot be built ({error})") from None
    stored, aliases = unique_tensors(model)
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}, aliases


def _read_dense(
    file: Path, handle: Any, metadata: dict[str, Any], header: Header, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], list[TensorInfo], dict[str, Grid]]:
    names = list(handle.keys())
    _compare(file, shapes, {n: tuple(handle.get_slice(n).get_shape()) for n in names if n != _TOKENIZER})
    arrays = {name: handle.get_tensor(name) for name in names}
    found = checksum(_dense_head(metadata), {name: raw_bytes(array) for name, array in arrays.items()})
    _match(file, metadata, found)
    tensors = []
    for name in sorted(shapes):
        codec = f"dense f{8 * arrays[name].itemsize}" if arrays[name].dtype != torch.bfloat16 else "dense bf16"
        tensors.append(TensorInfo(name, shapes[name], codec, arrays[name].nbytes))
    return {name: arrays[name].float() for name in shapes}, tensors, {}


def _read_compressed(
    file: Path, handle: Any, metadata: dict[str, Any], header: Header, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], list[TensorInfo], dict[str, Grid]]:
    # The file's size limits everything that is read up to here.
    content = {name: read_bytes(file, handle, name) for name in handle.keys()}  # noqa: SIM118 (not a dictionary)
    _match(file, metadata, checksum(b"", content))
    try:
        records = header.raw["tensors"]
        found = {record["name"]: tuple(record["shape"]) for record in records}
        _compare(file, shapes, found)
        if len(records) != len(found):
            raise ValueError("it stores a tensor twice")
        packed, coded = (content.get(name, b"") for name in _STREAMS)
        if not _may_unpack(sum(map(prod, shapes.values())), len(packed) + len(coded)):
            raise ValueError("its header asks for more weights than its streams can hold")
        for record in records:
            read_layout(record)
        contexts = header.raw.get("contexts", []) if header.version > _WITHOUT_CONTEXTS else []
        stored = read_streams(Streams(packed, coded, records, header.raw["tables"], contexts))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise damaged(file, error) from None
    grids = {name: piece.value for name, piece in stored.items() if isinstance(piece.value, Grid)}
    state = {
        name: piece.value.values() if isinstance(piece.value, Grid) else piece.value.float()
        for name, piece in stored.items()
    }
    tensors = [TensorInfo(name, shapes[name], str(piece.layout), piece.bytes) for name, piece in stored.items()]
    return state, tensors, grids


def _may_unpack(weights: int, bytes_: int) -> bool:
    return weights <= _ALWAYS_ALLOWED + _MAX_WEIGHTS_PER_BYTE * bytes_


def _match(file: Path, metadata: dict[str, Any], found: str) -> None:
    if metadata.get("checksum") != found:
        raise damaged(file, "its content does not match its checksum")


def _compare(file: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise damaged(
                file,
                f"tensor '{name}' is {found.get(name, 'missing')}, but the architecture in the "
                f"header has {expected.get(name, 'no tensor of that name')}",
            )
