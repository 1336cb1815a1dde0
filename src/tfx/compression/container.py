"""The safetensors file around a model: opened within limits, checked by a checksum, its texts compressed by LZMA."""

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

# The only key of the metadata.
KEY = "tfx"
_MAX_HEADER_BYTES = 100 << 20
_MAX_LZMA_MEMORY = 256 << 20


def damaged(file: Path, why: object) -> UserError:
    """The error for a damaged file of this format."""
    return UserError(f"{file} is damaged: {why}; get a new copy from its source")


def write_container(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    """Writes all arrays and metadata, or nothing."""
    text = json.dumps(metadata, separators=(",", ":"))
    with replacing(path) as temporary:
        safetensors.numpy.save_file(dict(arrays), temporary, metadata={KEY: text})


def open_container(file: Path) -> tuple[Any, dict[str, Any]]:
    """The safetensors handle and the metadata; raises `UserError` if the file is truncated or not a tfx model.

    Reads no tensor, and no more of the header than the file can hold.
    """
    try:
        with open(file, "rb") as raw:
            start = raw.read(8)
        size = file.stat().st_size
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length > min(size, _MAX_HEADER_BYTES):
            raise UserError(f"{file} is not a valid safetensors file: its header claims {length:,} of {size:,} bytes")
        handle = safetensors.safe_open(str(file), framework="pt")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is not a valid safetensors file ({error})") from error
    text = (handle.metadata() or {}).get(KEY)
    if text is None:
        raise UserError(f"{file} is a safetensors file, but not a tfx model: its header has no '{KEY}' entry")
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
    """The content of a byte tensor, empty if the file has none of that name; raises `UserError` for another type."""
    if name not in handle.keys():  # noqa: SIM118 (not a dictionary)
        return b""
    piece = handle.get_slice(name)
    if piece.get_dtype() != "U8" or len(piece.get_shape()) != 1:
        raise damaged(file, f"'{name}' is not a one-dimensional tensor of bytes")
    return raw_bytes(handle.get_tensor(name))


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's bytes as the file holds them."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def bytes_array(data: bytes) -> NDArray[np.uint8]:
    """Bytes as an array that the file stores as a tensor."""
    return np.frombuffer(data, dtype=np.uint8)


def checksum(head: bytes, content: Mapping[str, bytes]) -> str:
    """SHA-256 of ``head``, then of each tensor's name, a zero byte and its bytes, in the order of the names."""
    digest = hashlib.sha256(head)
    for name in sorted(content):
        digest.update(name.encode() + b"\0")
        digest.update(content[name])
    return digest.hexdigest()


def compress(data: bytes) -> bytes:
    """Compresses bytes to an .lzma stream."""
    settings = {"preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0}
    filters = [{"id": lzma.FILTER_LZMA1, **settings, "dict_size": 1 << max(16, len(data).bit_length())}]
    return lzma.compress(data, format=lzma.FORMAT_ALONE, filters=filters)


def decompress(file: Path, what: str, data: bytes, most: int) -> bytes:
    """The content of an .lzma or .xz stream; raises `UserError` if it is neither or unpacks to over ``most`` bytes."""
    try:
        # Limited, because a few kilobytes can unpack to terabytes.
        unpacker = lzma.LZMADecompressor(memlimit=_MAX_LZMA_MEMORY)
        content = unpacker.decompress(data, most)
    except lzma.LZMAError as error:
        raise damaged(file, f"its {what} cannot be unpacked ({error})") from None
    if not unpacker.eof or unpacker.unused_data:
        raise damaged(file, f"its {what} is incomplete, too long, or followed by other bytes")
    return content
