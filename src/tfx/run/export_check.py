"""`tfx export`: a model written for another library, run there, and compared on real inputs before it is done."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tfx.compression.checkpoint import LoadedModel
from tfx.errors import UserError
from tfx.evaluation.metrics import score_text
from tfx.exchange.search import Search, ends_of
from tfx.exchange.target import ReopenedEncoder
from tfx.model.batch import IGNORE, Batch
from tfx.model.decoding import output_limit
from tfx.model.transformer import run_batch

if TYPE_CHECKING:
    from tfx.exchange.target import Reopened, Target
    from tfx.tasks.contract import Split

# In fp32: the largest differences of log-probabilities, of the mean loss and of BLEU by beam search, and the smallest
# share of equal greedy outputs.
_TOLERANCE, _LOSS_TOLERANCE, _BLEU_TOLERANCE, _EQUAL = 1e-3, 1e-4, 0.1, 0.995
# Numbers of fewer bits: the largest mean difference of log-probabilities.
_MEAN_TOLERANCE = 0.1
_PROMPT_TOKENS, _NEW_TOKENS = 16, 32
_ROWS_AT_ONCE = 32
_BEAM = 5


@dataclass(frozen=True)
class Comparison:
    """How an exported model differs from ours on ``inputs`` inputs, of so many ``tokens``.

    ``largest`` and ``mean`` are differences of the log-probabilities of real targets; ``loss`` and ``theirs`` the mean
    loss of both, in nats a token; ``equal`` the share of inputs with the same greedy output; ``scores`` the metrics of
    the greedy outputs, theirs and ours, where the data has references, and ``beams`` those by a beam of 5.
    """

    inputs: int
    tokens: int
    largest: float
    mean: float
    loss: float
    theirs: float
    equal: float
    scores: dict[str, tuple[float, float]]
    beams: dict[str, tuple[float, float]]

    def words(self, where: str) -> dict[str, str]:
        """Each part of the comparison in words; ``where`` is the split."""
        found = {
            "compared on": f"{self.inputs:,} inputs of {where}, {self.tokens:,} tokens",
            "log-probabilities": f"differ by up to {self.largest:.2g}, {self.mean:.2g} in the mean",
            "loss": f"{self.theirs:.5f} nats a token there, {self.loss:.5f} here",
            "greedy outputs": f"{self.equal:.1%} equal",
        }
        for what, scores in (("greedy", self.scores), ("beam 5", self.beams)):
            found |= {f"{name}, {what}": f"{a:.2f} there, {b:.2f} here" for name, (a, b) in scores.items()}
        return found


@dataclass(frozen=True)
class EncoderComparison:
    """How the hidden states of an exported encoder differ from ours: the largest difference, and the mean one."""

    inputs: int
    tokens: int
    largest: float
    mean: float

    def words(self, where: str) -> dict[str, str]:
        """Each part of the comparison in words; ``where`` names the inputs."""
        return {
            "compared on": f"{self.inputs:,} of {where}, {self.tokens:,} tokens",
            "hidden states": f"differ by up to {self.largest:.2g}, {self.mean:.2g} in the mean",
        }


def export(
    loaded: LoadedModel,
    target: Target,
    split: Split,
    output: Path,
    kind: str,
    count: int,
    metrics: Sequence[str] = (),
    finish: Callable[[Path, Comparison], None] = lambda folder, found: None,
) -> Comparison:
    """Writes ``loaded`` for a target into the new folder ``output``, and compares it on ``count`` inputs of a split.

    ``finish`` adds files to the folder once the comparison is done. Raises `UserError`, and leaves nothing, for a
    model that the target has no place for, or whose outputs differ.
    """
    target.check(loaded.model.architecture)
    with whole_or_nothing(output) as folder:
        target.write(loaded, folder, kind)
        found = compare(loaded, target.reopen(folder, loaded), split, count, metrics)
        _judge(found, target, kind)
        finish(folder, found)
    return found


def export_encoder(
    loaded: LoadedModel,
    target: Target,
    texts: Sequence[str],
    output: Path,
    kind: str,
    finish: Callable[[Path, EncoderComparison], None] = lambda folder, found: None,
) -> EncoderComparison:
    """Writes an encoder alone, and compares its hidden states on ``texts``; else like `export`."""
    target.check(loaded.model.architecture)
    with whole_or_nothing(output) as folder:
        target.write(loaded, folder, kind)
        theirs = target.reopen(folder, loaded)
        assert isinstance(theirs, ReopenedEncoder)  # the target's check refused what it cannot run
        found = _compare_hidden(loaded, theirs, texts)
        if not (found.largest <= _TOLERANCE if kind == "float32" else found.mean <= _MEAN_TOLERANCE):
            raise UserError(
                f"the encoder in {target.name} differs: hidden states by up to {found.largest:.2g} "
                f"({found.mean:.2g} in the mean) on {found.inputs:,} texts; nothing is written"
            )
        finish(folder, found)
    return found


@torch.inference_mode()
def _compare_hidden(loaded: LoadedModel, theirs: ReopenedEncoder, texts: Sequence[str]) -> EncoderComparison:
    """Texts framed by begin and end token, and cut to the context."""
    tokenizer, context = loaded.tokenizer, loaded.model.architecture.context
    rows = [[tokenizer.bos, *ids[: context - 2], tokenizer.eos] for ids in tokenizer.encode(texts)]
    differences = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        for row, other in zip(part, theirs.hidden(part), strict=True):
            own_SD = loaded.model.encode(torch.tensor([row]), None)[0]
            differences.append((own_SD - other).abs())
    every_ND = torch.cat(differences)
    return EncoderComparison(len(rows), len(every_ND), float(every_ND.max()), float(every_ND.mean()))


def compare(loaded: LoadedModel, theirs: Reopened, split: Split, count: int, metrics: Sequence[str] = ()) -> Comparison:
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
    return Comparison(
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


def _judge(found: Comparison, target: Target, kind: str) -> None:
    """Raises `UserError` where the outputs differ by more than the numbers of this kind explain."""
    bleu, own_bleu = found.beams.get("bleu", (0.0, 0.0))
    if kind == "float32":
        wrong = not found.largest <= _TOLERANCE or found.equal < _EQUAL
        wrong = wrong or abs(found.theirs - found.loss) > _LOSS_TOLERANCE or abs(bleu - own_bleu) > _BLEU_TOLERANCE
    else:
        wrong = not found.mean <= _MEAN_TOLERANCE
    if wrong:
        raise UserError(
            f"the model in {target.name} differs: log-probabilities by up to {found.largest:.2g} "
            f"({found.mean:.2g} in the mean), the loss is {found.theirs:.5f} there and {found.loss:.5f} here, and "
            f"{found.equal:.1%} of {found.inputs:,} greedy outputs are equal"
            + (f", BLEU by a beam of 5 is {bleu:.2f} there and {own_bleu:.2f} here" if "bleu" in found.beams else "")
            + "; nothing is written"
        )


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
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        batch = split.collate(chosen[start : start + _ROWS_AT_ONCE], context, loaded.tokenizer)
        yield replace(batch, document_start=None)  # others read a window as one text


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
