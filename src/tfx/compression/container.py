"""The safetensors file around a model: opened with bounds, checked by a checksum, its texts compressed by LZMA."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfx.errors import UserError
from tfx.record.files import replacing

# The metadata's one key.
KEY = "tfx"
_MOST_HEADER_BYTES = 100 << 20
_MOST_LZMA_MEMORY = 256 << 20


def damaged(file: Path, why: object) -> UserError:
    """The error for a file that is ours and not whole."""
    return UserError(f"{file} is damaged: {why}; get it again from its source")


def write_container(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    """Writes arrays and metadata, whole or not at all."""
    text = json.dumps(metadata, separators=(",", ":"))
    with replacing(path) as temporary:
        safetensors.numpy.save_file(dict(arrays), temporary, metadata={KEY: text})


def open_container(file: Path) -> tuple[Any, dict[str, Any]]:
    """The safetensors handle and the metadata; raises `UserError` where the file is cut or none of ours.

    No tensor is read, and no more of the header than the file can hold.
    """
    try:
        with open(file, "rb") as raw:
            start = raw.read(8)
        size = file.stat().st_size
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length > min(size, _MOST_HEADER_BYTES):
            raise UserError(f"{file} is not a whole safetensors file: its header claims {length:,} bytes of {size:,}")
        handle = safetensors.safe_open(str(file), framework="pt")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file ({error})") from error
    text = (handle.metadata() or {}).get(KEY)
    if text is None:
        raise UserError(f"{file} is a safetensors file, but not a model of tfx (its header has no '{KEY}' entry)")
    return handle, parse_object(file, text)


def parse_object(file: Path, text: str | bytes) -> dict[str, Any]:
    """A JSON object; raises `UserError` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise damaged(file, "its header is not readable")
    return value


def read_bytes(file: Path, handle: Any, name: str) -> bytes:
    """A tensor of bytes, empty where the file has none of that name; raises `UserError` for another type."""
    if name not in handle.keys():  # noqa: SIM118 (not a dictionary)
        return b""
    piece = handle.get_slice(name)
    if piece.get_dtype() != "U8" or len(piece.get_shape()) != 1:
        raise damaged(file, f"'{name}' is not a row of bytes")
    return raw_bytes(handle.get_tensor(name))


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's bytes as they stand in the file."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def bytes_array(data: bytes) -> NDArray[np.uint8]:
    """Bytes as a tensor of the file."""
    return np.frombuffer(data, dtype=np.uint8)


def checksum(head: bytes, content: Mapping[str, bytes]) -> str:
    """SHA-256 over ``head``, then each tensor's name, a zero byte and its bytes, in order of names."""
    digest = hashlib.sha256(head)
    for name in sorted(content):
        digest.update(name.encode() + b"\0")
        digest.update(content[name])
    return digest.hexdigest()


def compress(data: bytes) -> bytes:
    """An .lzma stream."""
    settings = {"preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0}
    filters = [{"id": lzma.FILTER_LZMA1, **settings, "dict_size": 1 << max(16, len(data).bit_length())}]
    return lzma.compress(data, format=lzma.FORMAT_ALONE, filters=filters)


def decompress(file: Path, what: str, data: bytes, most: int) -> bytes:
    """The content of an .lzma or .xz stream; raises `UserError` for another, or for more than ``most`` bytes."""
    try:
        # Bounded: a few kilobytes can ask for terabytes.
        unpacker = lzma.LZMADecompressor(memlimit=_MOST_LZMA_MEMORY)
        content = unpacker.decompress(data, most)
    except lzma.LZMAError as error:
        raise damaged(file, f"its {what} cannot be unpacked ({error})") from None
    if not unpacker.eof or unpacker.unused_data:
        raise damaged(file, f"its {what} is not whole")
    return content
