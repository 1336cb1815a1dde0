"""`tfx export`: a model written for another library, run there, and compared on real inputs before it is done.

What is compared stands in `export_texts`, `export_labels` and `export_states`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tfx.compression.checkpoint import LoadedModel
from tfx.errors import UserError
from tfx.model.batch import Batch

if TYPE_CHECKING:
    from tfx.exchange.target import Reopened, Target
    from tfx.tasks.contract import Split

# The largest difference in fp32, and the largest mean one of numbers of fewer bits.
TOLERANCE, _MEAN_TOLERANCE = 1e-3, 0.1
# In fp32, the smallest share of inputs with equal outputs.
EQUAL = 0.995
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Comparison(ABC):
    """How an exported model differs from ours on ``inputs`` inputs: by ``largest`` at most, by ``mean`` in the mean."""

    inputs: int
    largest: float
    mean: float

    @abstractmethod
    def words(self, where: str) -> dict[str, str]:
        """Each part of the comparison in words; ``where`` names the inputs, such as a split."""

    @abstractmethod
    def differences(self) -> str:
        """The same as part of an error."""

    def is_equal(self) -> bool:
        """Whether the difference is that of two orders of the same sums in fp32."""
        return self.largest <= TOLERANCE

    def is_near(self) -> bool:
        """Whether the difference is one that weights of fewer bits explain."""
        return self.mean <= _MEAN_TOLERANCE

    @property
    def _by(self) -> str:
        return f"by up to {self.largest:.2g}, {self.mean:.2g} in the mean"


C = TypeVar("C", bound=Comparison)


def export(
    loaded: LoadedModel,
    target: Target,
    output: Path,
    kind: str,
    compare: Callable[[LoadedModel, Reopened], C],
    finish: Callable[[Path, C], None] = lambda folder, found: None,
) -> C:
    """Writes ``loaded`` for a target into the new folder ``output``, in numbers of a kind, and compares both.

    ``finish`` adds files to the folder once the comparison is done. Raises `UserError`, and leaves nothing, for a
    model that the target has no place for, or whose outputs differ.
    """
    target.check(loaded.model.architecture)
    with whole_or_nothing(output) as folder:
        target.write(loaded, folder, kind)
        found = compare(loaded, target.reopen(folder, loaded))
        if not (found.is_equal() if kind == "float32" else found.is_near()):
            raise UserError(f"the model in {target.name} differs: {found.differences()}; nothing is written")
        finish(folder, found)
    return found


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that is renamed to it at the end, and removed where anything fails."""
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    beside = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.mkdir()
        yield beside
        os.rename(beside, output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def batches_of(loaded: LoadedModel, split: Split, count: int) -> Iterator[Batch]:
    """Batches of ``count`` rows of a split, evenly spaced from the shortest to the longest."""
    context = loaded.model.architecture.context
    rows = np.concatenate(list(split.in_order(4096, context)))
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        batch = split.collate(chosen[start : start + ROWS_AT_ONCE], context, loaded.tokenizer)
        yield replace(batch, document_start=None)  # others read a window as one text
