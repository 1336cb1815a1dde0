"""Training splits whose rows have no numbers of their own: what needs them is refused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import Tokenizer
from tfx.model.batch import Batch
from tfx.tasks.contract import Split, TimedWork

if TYPE_CHECKING:
    from tfx.model.transformer import Transformer


class UnnumberedSplit(Split):
    """A split that `tfx.tasks.batches` can draw batches from, and no more."""

    @abstractmethod
    def refuse(self, what: str) -> NoReturn:
        """Raises `UserError`: something in the run needs ``what``, and this split does not have it."""

    def epoch(self, batch_tokens: int, context: int, rng: np.random.Generator) -> list[np.ndarray]:
        self.refuse("an order of all batches")

    def in_order(self, batch_tokens: int, context: int) -> Iterator[np.ndarray]:
        self.refuse("an order of all rows")

    def collate(self, rows: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
        self.refuse("rows by their numbers")

    def scored_rows(self, context: int) -> int:
        self.refuse("rows by their numbers")

    def places(self, rows: np.ndarray, context: int) -> np.ndarray:
        self.refuse("rows by their numbers")

    def timed_work(self, model: Transformer, tokenizer: Tokenizer, config: EvaluationConfig) -> TimedWork:
        self.refuse("rows by their numbers")

    def attended(
        self, predictions: Sequence[dict[str, Any]], tokenizer: Tokenizer, count: int
    ) -> list[tuple[str | None, str]]:
        self.refuse("rows by their numbers")
