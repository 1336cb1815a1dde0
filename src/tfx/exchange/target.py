"""The contract of a target: how a model is written for another library, and run by it again."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tfx.compression.checkpoint import LoadedModel
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.rewiring import multiplied, unrolled

Ids = Sequence[int]


class Reopened(ABC):
    """An exported model, run by the library that it was written for."""

    @abstractmethod
    def scores(self, sources: Sequence[Ids] | None, targets: Sequence[Ids]) -> list[list[float]]:
        """Log-probabilities of the tokens of each target, teacher-forced; a language model's first token has none.

        Sources end with the end token, and so do targets of an encoder-decoder, whose begin token is not in them.
        """

    @abstractmethod
    def greedy(self, inputs: Sequence[Ids], limits: Sequence[int]) -> list[list[int]]:
        """The likeliest token at each step, at most ``limits`` of them, without the end token.

        Inputs are sources with their end token, or the texts that a language model continues.
        """

    @abstractmethod
    def beam(self, sources: Sequence[Ids], limit: int, width: int) -> list[list[int]]:
        """The best output of each source of a batch by beam search without a length penalty, up to ``limit`` tokens.

        Sources end with the end token, outputs do not; only an encoder-decoder is asked.
        """

    def outputs(self, sources: Sequence[Ids], types: Sequence[Ids] | None) -> Tensor:
        """The outputs (N, C) of a classifier, numbers in their own unit; ``types`` are those of the tokens of pairs."""
        raise NotImplementedError


class ReopenedEncoder(Reopened):
    """The same, by a library that also runs encoders alone."""

    @abstractmethod
    def hidden(self, sources: Sequence[Ids]) -> list[Tensor]:
        """The last hidden states (S, D) of each source, without padding."""


@dataclass(frozen=True)
class Target:
    """A library to export to. ``modules`` are what must be installed, by the extra of its name.

    ``kinds`` are the number types of the weights, the default first. ``write`` puts the model into an empty folder, and
    raises `UserError`, which names the setting that would fit, for one that the library has no place for; ``check``
    raises the same and writes nothing.
    """

    name: str
    doc: str
    modules: tuple[str, ...]
    kinds: tuple[str, ...]
    check: Callable[[Architecture], None]
    write: Callable[[LoadedModel, Path, str], None]
    reopen: Callable[[Path, LoadedModel], Reopened]
    # How many matrices leave with the codes of a compressed file, not dequantized, in weights of a kind.
    kept: Callable[[LoadedModel, str], int] = lambda loaded, kind: 0
    # What to know of weights of a kind on this machine, if anything.
    note: Callable[[str], str | None] = lambda kind: None
    # Whether a block may run several times there.
    repeats: bool = False

    def require(self, what: str) -> None:
        """Raises `UserError`, with the command that mends it, where a library is not installed that ``what`` needs."""
        if any(importlib.util.find_spec(module) is None for module in self.modules):
            raise UserError(f"{what} needs an extra: pip install 'path/to/tfx[{self.name}]'")


def fitted(loaded: LoadedModel, target: Target) -> LoadedModel:
    """The model in plain matrices and, where ``target`` has no other, with a block for each layer."""
    loaded = replace(loaded, model=multiplied(loaded.model))
    if target.repeats:
        return loaded
    model, origins = unrolled(loaded.model)
    grids = {name: loaded.grids[origin] for name, origin in origins.items() if origin in loaded.grids}
    return replace(loaded, model=model, grids=grids)


def refuse(target: str, setting: str, value: object, fits: object) -> UserError:
    """The error for a setting of a model that a target has no place for."""
    shown = {True: "true", False: "false", None: "null"}
    words = [shown.get(each, each) if isinstance(each, bool | None) else each for each in (value, fits)]
    return UserError(
        f"{target} has no model with model.{setting}={words[0]}: train one with model.{setting}={words[1]} to export it"
    )


def gathered(logits_BTV: Tensor, targets: Sequence[Ids]) -> list[list[float]]:
    """The log-probabilities of the tokens of each target."""
    log_probs = logits_BTV.float().log_softmax(-1)
    return [
        log_probs[row, : len(ids)].gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1).tolist()
        for row, ids in enumerate(targets)
    ]


def padded(rows: Sequence[Ids], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of one length, and a mask with 1 on their real tokens."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    return ids, mask.long()
