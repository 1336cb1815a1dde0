"""Permutation training: tokens of a training sequence change places; evaluation is not affected.

The noise is that of denoising sequence models (Lample 2018, arXiv 1711.00043, section 2.3, for the window;
Lewis 2020, arXiv 1910.13461, for spans). The curriculum by length follows Platanios 2019, arXiv 1903.09848.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.config.schema import Root, setting
from tfx.config.task_facts import TASKS
from tfx.errors import UserError
from tfx.model.batch import IGNORE, Batch
from tfx.techniques.contract import Instant, Mean, Technique, TechniqueSettings


@dataclass
class ShuffleSettings(TechniqueSettings):
    """Settings of `Shuffle`."""

    end: float = setting(0.5, "when it stops acting", above=0, maximum=1, unit="fractions of the budget")
    mode: str = setting(
        "window",
        "what is permuted: all tokens, tokens within a window, or whole spans",
        choices=("whole", "window", "spans"),
        paper="Lample 2018, arXiv 1711.00043; Lewis 2020, arXiv 1910.13461",
    )
    window: int = setting(3, "window: no token moves further than this", minimum=1, unit="positions")
    span: int = setting(3, "spans: length of a span", minimum=1, unit="tokens")
    share: float = setting(0.05, "share of the sequences that are permuted", minimum=0, maximum=1)
    anneal: str = setting("linear", "how the share falls to 0 from start to end", choices=("none", "linear", "cosine"))
    side: str = setting(
        "source",
        "text to text: the source, the target (decoder input and labels together), or both",
        choices=("source", "target", "both"),
    )
    examples: str = setting(
        "random",
        "order of examples: random in each epoch, or a curriculum (the first epoch from short to long)",
        choices=("random", "by_length"),
        paper="Platanios 2019, arXiv 1903.09848",
    )


def permutation(movable_BT: Tensor, mode: str, *, window: int, span: int, generator: torch.Generator | None) -> Tensor:
    """A permutation of each row's positions (B, T): entry i is the position whose token comes to i.

    Positions that are not movable stay where they are, and no token crosses one. ``whole``: uniform;
    ``window``: no token moves further than ``window``; ``spans``: runs of ``span`` tokens change places.
    """
    device = movable_BT.device
    position_T = torch.arange(movable_BT.shape[1], device=device)
    draw_BT = torch.rand(movable_BT.shape, generator=generator, device=device)
    # A fixed position opens a new segment, and sorts first in it: so it keeps its place.
    segment_BT = (~movable_BT).cumsum(1)
    if mode == "window":
        # Sorting by position + U[0, k + 1) moves nothing further than k (Lample 2018).
        key_BT = position_T + draw_BT * (window + 1)
    elif mode == "spans":
        start_BT = torch.where(movable_BT, -1, position_T.expand_as(segment_BT)).cummax(1).values
        first_BT = position_T - (position_T - start_BT - 1).remainder(span)
        key_BT = draw_BT.gather(1, first_BT.clamp(min=0))
    else:
        key_BT = draw_BT
    key_BT = key_BT.masked_fill(~movable_BT, -1.0)
    order_BT = key_BT.argsort(dim=1, stable=True)
    return order_BT.gather(1, segment_BT.gather(1, order_BT).argsort(dim=1, stable=True))


class Shuffle(Technique):
    """Permutes tokens inside a share of the training sequences; padding and special tokens keep their places.

    A target that is permuted is permuted whole: decoder inputs and labels come from the same permuted
    sequence, so that each label is still the token that follows its input, and no input shows its label.
    """

    name = "shuffle"
    Settings = ShuffleSettings
    effects = ("permutes tokens",)
    before = ("mixes examples",)

    def __init__(self, settings: ShuffleSettings) -> None:
        super().__init__(settings)
        self._moved = Mean()
        self._distance = Mean()
        self._reordered = 0

    def check(self, config: Root) -> None:
        task = TASKS[config.dataset.task]
        if not task.decodes and self.settings.side != "source":
            raise UserError(
                f"technique.shuffle.side={self.settings.side} is for text to text: {task.what} has one sequence"
            )
        if task.is_stream and self.settings.examples == "by_length":
            raise UserError(
                "technique.shuffle.examples=by_length is for text to text: the windows of a language model are all of "
                "one length; leave it out"
            )

    def hooks(self) -> tuple[str, ...]:
        used = ("order_batches",) if self.settings.examples == "by_length" else ()
        return (*used, "transform_batch") if self.settings.share > 0 else used

    def when(self, hook: str) -> str:
        return "first epoch" if hook == "order_batches" else super().when(hook)

    def share(self, progress: float) -> float:
        """Share of the sequences that are permuted at this progress."""
        settings = self.settings
        if not self.active(progress):
            return 0.0
        passed = (progress - settings.start) / (settings.end - settings.start)
        factor = {"none": 1.0, "linear": 1.0 - passed, "cosine": 0.5 * (1.0 + math.cos(math.pi * passed))}
        return settings.share * factor[settings.anneal]

    def transform_batch(self, batch: Batch, moment: Instant) -> Batch:
        share = self.share(moment.progress)
        if share == 0.0:
            return batch
        device = batch.target_in_BT.device
        generator = moment.generator("shuffle", device)
        is_lm = batch.source_BS is None
        permuted: dict[str, Any] = {}
        if batch.source_BS is not None and self.settings.side in ("source", "both"):
            source_BS = batch.source_BS
            order = self._draw(~self._special(source_BS, batch), share, generator)
            permuted["source_BS"] = source_BS.gather(1, order)
        if is_lm or self.settings.side in ("target", "both"):
            permuted |= self._permute_target(batch, share, generator, is_lm)
        return replace(batch, **permuted)

    def _permute_target(self, batch: Batch, share: float, generator: torch.Generator, is_lm: bool) -> dict[str, Tensor]:
        """Decoder inputs and labels from one permuted sequence of T + 1 tokens: the first input, and the labels."""
        first_B1, labels_BT = batch.target_in_BT[:, :1], batch.target_out_BT
        real_BT = labels_BT >= 0
        # Without a label, as in a prompt that a text continues, a token is known from where it is read.
        read_BT = torch.cat([batch.target_in_BT[:, 1:], labels_BT[:, -1:].clamp(min=0)], dim=1)
        sequence = torch.cat([first_B1, torch.where(real_BT, labels_BT, read_BT)], dim=1)
        movable = torch.cat([real_BT[:, :1], real_BT], dim=1)
        movable &= ~self._special(sequence, batch)
        if not is_lm:
            # The begin token, and whatever stands where the decoder begins.
            movable[:, 0] = False
        sequence = sequence.gather(1, self._draw(movable, share, generator))
        # After the end of a shorter row the inputs are padding, and stay padding.
        padding_BT = self._special(batch.target_in_BT, batch)
        return {
            "target_in_BT": torch.where(padding_BT, batch.target_in_BT, sequence[:, :-1]),
            "target_out_BT": torch.where(real_BT, sequence[:, 1:], IGNORE),
        }

    def _special(self, tokens_BT: Tensor, batch: Batch) -> Tensor:
        special = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for token in batch.special:
            special |= tokens_BT == token
        return special

    def _draw(self, movable_BT: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """Draws the rows and their permutations, and counts what moved."""
        device = movable_BT.device
        chosen_B1 = torch.rand((movable_BT.shape[0], 1), generator=generator, device=device) < share
        order_BT = permutation(
            movable_BT & chosen_B1,
            self.settings.mode,
            window=self.settings.window,
            span=self.settings.span,
            generator=generator,
        )
        distance_BT = (order_BT - torch.arange(order_BT.shape[1], device=device)).abs()
        moved = (distance_BT > 0).sum()
        self._moved.add(moved, movable_BT.sum())
        self._distance.add(distance_BT.sum(), moved)
        return order_BT

    def order_batches(self, lengths: np.ndarray, epoch: int, order: np.ndarray) -> np.ndarray:
        if epoch > 0:
            return order
        ordered = order[np.argsort(lengths[order], kind="stable")]
        # Set, not added to: a resumed run makes this order again.
        self._reordered = int((ordered != order).sum())
        return ordered

    def evidence(self) -> dict[str, float]:
        return {
            "tokens_moved": self._moved.value,
            "mean_distance": self._distance.value,
            "batches_reordered": float(self._reordered),
        }

    def state_dict(self) -> dict[str, object]:
        return {"moved": self._moved.state(), "distance": self._distance.state(), "reordered": self._reordered}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._moved.restore(state["moved"])  # type: ignore[arg-type]
        self._distance.restore(state["distance"])  # type: ignore[arg-type]
        self._reordered = state["reordered"]  # type: ignore[assignment]
