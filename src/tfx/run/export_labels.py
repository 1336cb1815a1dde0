"""An exported classifier: what it answers in another library is compared with what it answers here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tfx.compression.checkpoint import LoadedModel
from tfx.model.architecture import Outputs
from tfx.model.batch import Batch
from tfx.model.transformer import run_batch
from tfx.run.export_check import EQUAL, TOLERANCE, Comparison, batches_of

if TYPE_CHECKING:
    from tfx.exchange.target import Reopened
    from tfx.tasks.contract import Split


@dataclass(frozen=True)
class LabelComparison(Comparison):
    """Differences of the log-probabilities of the right labels, or of numbers in units of their scale.

    ``logits`` is the largest difference of any output, in the same units; ``equal`` the share of texts with the same
    answer. A text that is read in windows counts as many times.
    """

    logits: float
    equal: float
    predicts: str

    def words(self, where: str) -> dict[str, str]:
        if self.predicts == "number":
            found = {"numbers, in standard deviations": f"differ {self._by}"}
        else:
            found = {"log-probabilities": f"differ {self._by}", "logits": f"differ by up to {self.logits:.2g}"}
        return {
            "compared on": f"{self.inputs:,} texts of {where}",
            **found,
            "answers": f"{self.equal:.1%} equal",
        }

    def differences(self) -> str:
        what = "numbers" if self.predicts == "number" else "log-probabilities"
        return f"{what} {self._by}, and {self.equal:.1%} of {self.inputs:,} answers are equal"

    def is_equal(self) -> bool:
        return super().is_equal() and self.equal >= EQUAL


@torch.inference_mode()
def compare_labels(loaded: LoadedModel, theirs: Reopened, split: Split, count: int) -> LabelComparison:
    """Runs both models on ``count`` texts of a split, evenly spaced from the shortest to the longest."""
    outputs = loaded.model.architecture.outputs
    assert outputs is not None
    differences: list[Tensor] = []
    logits: list[Tensor] = []
    equal: list[Tensor] = []
    for batch in batches_of(loaded, split, count):
        assert batch.source_BS is not None
        lengths = batch.source_BS.new_full((len(batch.rows),), batch.source_BS.shape[1])
        if batch.source_mask_BS is not None:
            lengths = batch.source_mask_BS.sum(1)

        def unpadded(tokens_BS: Tensor, lengths: Tensor = lengths) -> list[list[int]]:
            return [row[:length].tolist() for row, length in zip(tokens_BS, lengths, strict=True)]

        types = None if batch.types_BS is None else unpadded(batch.types_BS)
        own = loaded.model.project(run_batch(loaded.model, batch)).squeeze(1) * outputs.scale + outputs.offset
        other = theirs.outputs(unpadded(batch.source_BS), types).float()
        differences.append((_scores(outputs, own, batch) - _scores(outputs, other, batch)).abs())
        logits.append(((own - other) / outputs.scale).abs().amax(1))
        equal.append(_same(outputs, own, other))
    every_N, same_N = torch.cat(differences), torch.cat(equal).float()
    return LabelComparison(
        inputs=len(every_N),
        largest=float(every_N.max()),
        mean=float(every_N.mean()),
        logits=float(torch.cat(logits).max()),
        equal=float(same_N.mean()),
        predicts=outputs.predicts,
    )


def _scores(outputs: Outputs, found_BC: Tensor, batch: Batch) -> Tensor:
    """Of outputs (B, C) the log-probability of what is right (B,), or the number in units of its scale."""
    if outputs.predicts == "one":
        return found_BC.log_softmax(1).gather(1, batch.target_out_BT).squeeze(1)
    if outputs.predicts == "number":
        return found_BC.squeeze(1) / outputs.scale
    assert batch.values_BC is not None
    return functional.logsigmoid(found_BC * (2.0 * batch.values_BC - 1.0)).mean(1)


def _same(outputs: Outputs, own_BC: Tensor, other_BC: Tensor) -> Tensor:
    """Whether both give the same answer (B,); numbers are the same within the tolerance."""
    if outputs.predicts == "one":
        return own_BC.argmax(1) == other_BC.argmax(1)
    if outputs.predicts == "number":
        return ((own_BC - other_BC) / outputs.scale).abs().squeeze(1) <= TOLERANCE
    return ((own_BC > 0) == (other_BC > 0)).all(1)
