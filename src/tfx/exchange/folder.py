"""A model folder of `transformers`: config.json, weights as safetensors, tokenizer.json. No code in it is run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from tfx.data.foreign import CONFIG, GENERATION, NAMES, TOKENIZER, read_object, sentencepieces
from tfx.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files that decide what is made of the folder, beside its weights.
_TEXTS = (CONFIG, GENERATION, TOKENIZER, *NAMES, INDEX)
_DTYPES = {"F32", "F16", "BF16", "F64"}


def is_folder(path: Path) -> bool:
    """Whether a path is a model folder of `transformers`, not a run directory of ours."""
    return (path / CONFIG).is_file() and not (path / "config.yaml").exists()


class Folder:
    """The files of a model folder; raises `UserError` for what is missing or not readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise UserError(f"{path} is not a folder: name one with {CONFIG}, {WEIGHTS} and {TOKENIZER}")
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is not a model folder of transformers: it has no {CONFIG}")

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_object(self.path / CONFIG)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each tensor."""
        if (self.path / INDEX).is_file():
            shards = read_object(self.path / INDEX).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                raise UserError(f"{self.path / INDEX} has no weight_map")
            files = {str(name): self.path / Path(shard).name for name, shard in shards.items()}
            for file in sorted(set(files.values())):
                if not file.is_file():
                    raise UserError(f"{file} is missing, and {INDEX} names it")
            return files
        file = self.path / WEIGHTS
        if not file.is_file():
            pickled = [found.name for found in self.path.glob("pytorch_model*.bin")]
            why = f"; {pickled[0]} may run code when it is read: save the model as safetensors" if pickled else ""
            raise UserError(f"{self.path} has no {WEIGHTS}{why}")
        return dict.fromkeys(self._open(file).keys(), file)

    @property
    def names(self) -> Sequence[str]:
        """The names of all tensors."""
        return list(self._files)

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored; raises `KeyError` where there is none of that name, `UserError` for other types."""
        handle = self._open(self._files[name])
        try:
            kind = handle.get_slice(name).get_dtype()
            if kind not in _DTYPES:
                raise UserError(f"{self._files[name]}: '{name}' has the type {kind}: save it as float32 or bfloat16")
            value: Tensor = handle.get_tensor(name)
        except safetensors.SafetensorError as error:
            raise UserError(f"{self._files[name]} cannot be read: {error}") from error
        return value.to(torch.float32)

    def _open(self, file: Path) -> Any:
        try:
            return safetensors.safe_open(str(file), framework="pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} is not a whole safetensors file ({error})") from error

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the files that are read."""
        digest = hashlib.sha256()
        files = {self.path / name for name in _TEXTS if (self.path / name).is_file()} | set(self._files.values())
        files |= set(sentencepieces(self.path))
        for file in sorted(files):
            digest.update(file.name.encode() + b"\0")
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()
