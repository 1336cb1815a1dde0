"""`tfx export` of a classifier: what it answers in another library is compared with what it answers here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tfx.compression.checkpoint import LoadedModel
from tfx.errors import UserError
from tfx.model.architecture import Outputs
from tfx.model.batch import Batch
from tfx.model.transformer import run_batch
from tfx.run.export_check import batches_of, whole_or_nothing

if TYPE_CHECKING:
    from tfx.exchange.target import Reopened, Target
    from tfx.tasks.contract import Split

# Largest difference in fp32 of log-probabilities, or of numbers in units of their scale; the mean one in fewer bits.
_TOLERANCE, _MEAN_TOLERANCE = 1e-3, 0.1
_EQUAL = 0.995


@dataclass(frozen=True)
class LabelComparison:
    """How the answers of an exported classifier differ from ours on ``inputs`` texts.

    ``largest`` and ``mean`` are differences of the log-probabilities of the right labels, or of numbers in units of
    their scale; ``equal`` is the share of texts with the same answer.
    """

    inputs: int
    largest: float
    mean: float
    equal: float
    predicts: str

    def words(self, where: str) -> dict[str, str]:
        """Each part of the comparison in words; ``where`` is the split."""
        what = "numbers, in standard deviations" if self.predicts == "number" else "log-probabilities"
        return {
            "compared on": f"{self.inputs:,} texts of {where}",
            what: f"differ by up to {self.largest:.2g}, {self.mean:.2g} in the mean",
            "answers": f"{self.equal:.1%} equal",
        }


def export_classifier(
    loaded: LoadedModel,
    target: Target,
    split: Split,
    output: Path,
    kind: str,
    count: int,
    finish: Callable[[Path, LabelComparison], None] = lambda folder, found: None,
) -> LabelComparison:
    """Writes a classifier for a target, and compares it on ``count`` texts of a split; else like `export`."""
    target.check(loaded.model.architecture)
    with whole_or_nothing(output) as folder:
        target.write(loaded, folder, kind)
        found = compare_answers(loaded, target.reopen(folder, loaded), split, count)
        is_near = found.largest <= _TOLERANCE if kind == "float32" else found.mean <= _MEAN_TOLERANCE
        if not is_near or (kind == "float32" and found.equal < _EQUAL):
            raise UserError(
                f"the classifier in {target.name} differs by up to {found.largest:.2g} ({found.mean:.2g} in the mean), "
                f"and {found.equal:.1%} of {found.inputs:,} answers are equal; nothing is written"
            )
        finish(folder, found)
    return found


@torch.inference_mode()
def compare_answers(loaded: LoadedModel, theirs: Reopened, split: Split, count: int) -> LabelComparison:
    """Runs both models on ``count`` texts of a split, evenly spaced from the shortest to the longest."""
    outputs = loaded.model.architecture.outputs
    assert outputs is not None
    differences: list[Tensor] = []
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
        equal.append(_same(outputs, own, other))
    every_N, same_N = torch.cat(differences), torch.cat(equal).float()
    return LabelComparison(
        len(every_N), float(every_N.max()), float(every_N.mean()), float(same_N.mean()), outputs.predicts
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
        return ((own_BC - other_BC) / outputs.scale).abs().squeeze(1) <= _TOLERANCE
    return ((own_BC > 0) == (other_BC > 0)).all(1)
