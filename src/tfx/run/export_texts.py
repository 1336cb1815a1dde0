"""An exported model that writes text: scores of real targets, and outputs, are compared with ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tfx.compression.checkpoint import LoadedModel
from tfx.evaluation.metrics import score_text
from tfx.exchange.search import Search, ends_of
from tfx.model.batch import IGNORE, Batch
from tfx.model.decoding import output_limit
from tfx.model.transformer import run_batch
from tfx.run.export_check import EQUAL, Comparison, batches_of

if TYPE_CHECKING:
    from tfx.exchange.target import Reopened
    from tfx.tasks.contract import Split

# In fp32, the largest differences of the mean loss and of BLEU by beam search.
_LOSS_TOLERANCE, _BLEU_TOLERANCE = 1e-4, 0.1
_PROMPT_TOKENS, _NEW_TOKENS = 16, 32
_BEAM = 5


@dataclass(frozen=True)
class TextComparison(Comparison):
    """Differences of the log-probabilities of the ``tokens`` of real targets.

    ``loss`` and ``theirs`` are the mean loss of both, in nats a token; ``equal`` is the share of inputs with the same
    greedy output; ``scores`` are the metrics of the greedy outputs, theirs and ours, where the data has references, and
    ``beams`` those by a beam of 5.
    """

    tokens: int
    loss: float
    theirs: float
    equal: float
    scores: dict[str, tuple[float, float]]
    beams: dict[str, tuple[float, float]]

    def words(self, where: str) -> dict[str, str]:
        found = {
            "compared on": f"{self.inputs:,} inputs of {where}, {self.tokens:,} tokens",
            "log-probabilities": f"differ {self._by}",
            "loss": f"{self.theirs:.5f} nats a token there, {self.loss:.5f} here",
            "greedy outputs": f"{self.equal:.1%} equal",
        }
        for what, scores in (("greedy", self.scores), ("beam 5", self.beams)):
            found |= {f"{name}, {what}": f"{a:.2f} there, {b:.2f} here" for name, (a, b) in scores.items()}
        return found

    def differences(self) -> str:
        bleu, own_bleu = self._bleu
        return (
            f"log-probabilities {self._by}, the loss is {self.theirs:.5f} there and {self.loss:.5f} here, and "
            f"{self.equal:.1%} of {self.inputs:,} greedy outputs are equal"
            + (f", BLEU by a beam of 5 is {bleu:.2f} there and {own_bleu:.2f} here" if "bleu" in self.beams else "")
        )

    def is_equal(self) -> bool:
        bleu, own_bleu = self._bleu
        is_near = abs(self.theirs - self.loss) <= _LOSS_TOLERANCE and abs(bleu - own_bleu) <= _BLEU_TOLERANCE
        return super().is_equal() and self.equal >= EQUAL and is_near

    @property
    def _bleu(self) -> tuple[float, float]:
        return self.beams.get("bleu", (0.0, 0.0))


def compare_texts(
    loaded: LoadedModel, theirs: Reopened, split: Split, count: int, metrics: Sequence[str] = ()
) -> TextComparison:
    """Runs both models on ``count`` inputs of a split, evenly spaced from the shortest to the longest."""
    ours = Search(loaded.model, ends_of(loaded.tokenizer))
    rows_of_all: list[int] = []
    outputs: tuple[list[list[int]], list[list[int]]] = ([], [])
    beams: tuple[list[list[int]], list[list[int]]] = ([], [])
    differences: list[float] = []
    ours_of_all: list[float] = []
    theirs_of_all: list[float] = []
    for batch in batches_of(loaded, split, count):
        sources, targets = _rows(batch, loaded)
        own = _scores(loaded, batch)
        other = theirs.scores(sources, targets)
        for left, right in zip(own, other, strict=True):
            assert len(left) == len(right), (len(left), len(right))
            ours_of_all += left
            theirs_of_all += right
            differences += [abs(a - b) for a, b in zip(left, right, strict=True)]
        prompts = sources if sources is not None else [row[:_PROMPT_TOKENS] for row in targets]
        limits = _limits(loaded, prompts)
        outputs[0].extend(theirs.greedy(prompts, limits))
        outputs[1].extend(ours.greedy(prompts, limits))
        if split.texts is not None and metrics:
            beams[0].extend(theirs.beam(prompts, max(limits), _BEAM))
            beams[1].extend(ours.beam(prompts, max(limits), _BEAM))
        rows_of_all += batch.rows.tolist()
    tokens = len(differences)
    return TextComparison(
        inputs=len(rows_of_all),
        tokens=tokens,
        largest=max(differences),
        mean=sum(differences) / tokens,
        loss=-sum(ours_of_all) / tokens,
        theirs=-sum(theirs_of_all) / tokens,
        equal=sum(a == b for a, b in zip(*outputs, strict=True)) / len(rows_of_all),
        scores=_text_scores(loaded, split, rows_of_all, outputs, metrics),
        beams=_text_scores(loaded, split, rows_of_all, beams, metrics),
    )


def _text_scores(
    loaded: LoadedModel,
    split: Split,
    rows: Sequence[int],
    outputs: tuple[list[list[int]], list[list[int]]],
    metrics: Sequence[str],
) -> dict[str, tuple[float, float]]:
    if split.texts is None or not metrics:
        return {}
    references = [split.texts[row]["references"] for row in rows]
    theirs, ours = (
        score_text([loaded.tokenizer.decode(ids) for ids in side], references, metrics).metrics for side in outputs
    )
    return {name: (theirs[name], ours[name]) for name in theirs}


def _rows(batch: Batch, loaded: LoadedModel) -> tuple[list[list[int]] | None, list[list[int]]]:
    """Sources and targets without padding; a language model's target begins with its first input."""
    targets = []
    for inputs, outputs in zip(batch.target_in_BT.tolist(), batch.target_out_BT.tolist(), strict=True):
        real = [index for index in outputs if index != IGNORE]
        targets.append(real if batch.source_BS is not None else [inputs[0], *real])
    if batch.source_BS is None:
        return None, targets
    mask = batch.source_mask_BS if batch.source_mask_BS is not None else torch.ones_like(batch.source_BS).bool()
    return [row[real].tolist() for row, real in zip(batch.source_BS, mask, strict=True)], targets


@torch.inference_mode()
def _scores(loaded: LoadedModel, batch: Batch) -> list[list[float]]:
    log_probs = loaded.model.project(run_batch(loaded.model, batch)).float().log_softmax(-1)
    target_BT = batch.target_out_BT
    picked = log_probs.gather(2, target_BT.clamp(min=0).unsqueeze(2)).squeeze(2)
    return [row[real].tolist() for row, real in zip(picked, target_BT != IGNORE, strict=True)]


def _limits(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[int]:
    context = loaded.model.architecture.context
    if loaded.model.architecture.is_seq2seq:
        return [output_limit(len(row), loaded.generation, context) for row in prompts]
    return [max(1, min(_NEW_TOKENS, context - len(row))) for row in prompts]
