"""A model as plain tensors by their names, dequantized, for programs that know the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from tfx.compression.checkpoint import LoadedModel, unique_tensors
from tfx.exchange.search import Search
from tfx.exchange.target import Ids, ReopenedEncoder, Target, gathered, padded
from tfx.model.architecture import Architecture
from tfx.model.decoding import Ends
from tfx.model.transformer import Transformer
from tfx.record.files import read_json, replacing, write_json, write_text

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write(loaded: LoadedModel, folder: Path, kind: str) -> None:
    """Writes model.safetensors (tied weights once), config.json (architecture, roles of tokens) and tokenizer.json."""
    tensors, aliases = unique_tensors(loaded.model)
    plain = {name: tensor.to(_DTYPES[kind]).contiguous() for name, tensor in tensors.items()}
    with replacing(folder / "model.safetensors") as temporary:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt"})
    tokenizer = loaded.tokenizer
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad, "unk": tokenizer.unk}
    config = {
        "architecture": loaded.model.architecture.to_dict(),
        "tied": aliases,
        "tokens": {name: index for name, index in roles.items() if index >= 0} | {"never": list(tokenizer.never)},
    }
    write_json(folder / "config.json", config)
    write_text(folder / "tokenizer.json", tokenizer.to_json())


class Plain(Search, ReopenedEncoder):
    """A folder, read by the safetensors library, and a model built from its config.json."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        config = read_json(folder / "config.json")
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        state = {name: tensor.float() for name, tensor in tensors.items()}
        state |= {name: state[first] for name, first in config["tied"].items()}
        model = Transformer.holding(Architecture.from_dict(config["architecture"]), state).eval()
        tokens = config["tokens"]
        super().__init__(model, Ends(tokens["bos"], tokens["eos"], tokens["pad"], tuple(tokens["never"])))

    @torch.inference_mode()
    def scores(self, sources: Sequence[Ids] | None, targets: Sequence[Ids]) -> list[list[float]]:
        if sources is None:
            inputs, _ = padded([row[:-1] for row in targets], self.ends.pad)
            return gathered(self.model.project(self.model(inputs)), [row[1:] for row in targets])
        source, mask = padded(sources, self.ends.pad)
        inputs, _ = padded([[self.ends.bos, *row[:-1]] for row in targets], self.ends.pad)
        return gathered(self.model.project(self.model(inputs, source, mask.bool())), targets)

    @torch.inference_mode()
    def outputs(self, sources: Sequence[Ids], types: Sequence[Ids] | None) -> torch.Tensor:
        source, mask = padded(sources, self.ends.pad)
        kinds = None if types is None else padded(types, 0)[0]
        found = self.model.project(self.model(source[:, :0], source, mask.bool(), None, kinds)).squeeze(1)
        outputs = self.model.architecture.outputs
        assert outputs is not None
        return found * outputs.scale + outputs.offset

    @torch.inference_mode()
    def hidden(self, sources: Sequence[Ids]) -> list[torch.Tensor]:
        source, mask = padded(sources, self.ends.pad)
        states = self.model.encode(source, mask.bool())
        return [row[: len(ids)] for row, ids in zip(states, sources, strict=True)]


def check(architecture: Architecture) -> None:
    """Any architecture has a place here."""


SAFETENSORS = Target(
    "safetensors",
    "plain tensors by their names, dequantized",
    ("safetensors",),
    tuple(_DTYPES),
    check,
    write,
    Plain,
    repeats=True,
)
