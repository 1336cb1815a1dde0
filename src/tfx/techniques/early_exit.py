"""Early exit: heads after inner blocks, by which a text leaves as soon as one of them is sure of its label.

Xin 2020 (DeeBERT), arXiv 2004.12993; Schwartz 2020, arXiv 2004.07453. Sureness is the probability of the likeliest
label, and the threshold is the lowest that keeps the quality of the whole model on validation data.

Shapes: N texts, D width, C labels, E exits and the end, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfx.config.schema import Root, setting
from tfx.errors import UserError
from tfx.evaluation.labels import label_metrics
from tfx.model.architecture import Architecture
from tfx.model.early_exit import heads_of, logits_of_exits, set_exits, sureness
from tfx.model.loss import projected_losses
from tfx.model.modes import scoring
from tfx.model.transformer import Transformer
from tfx.record.metric_vocabulary import higher_is_better
from tfx.tasks.batches import scoring_batches
from tfx.techniques.calibration import Validation
from tfx.techniques.contract import Instant, Mean, Objective, Technique, TechniqueSettings

# How many thresholds are tried: probabilities of the heads, evenly spaced by rank.
_TRIED = 200


@dataclass
class EarlyExitSettings(TechniqueSettings):
    """Settings of `EarlyExit`."""

    layers: list[int] = setting(
        [], "number of encoder layers before each head; empty: one after every layer but the last", minimum=1
    )
    weight: float = setting(1.0, "weight of the loss of each head, beside that of the whole model", above=0)
    joint: bool = setting(
        True,
        "the heads' losses train the layers too; false: only the heads, so that the whole model is as without them",
        paper="Schwartz 2020, arXiv 2004.07453; false: Xin 2020, arXiv 2004.12993",
    )
    max_drop: float = setting(
        0.005,
        "how much of the primary metric, on validation data, may go when texts leave early: of this, the lowest "
        "threshold that keeps the rest",
        minimum=0,
    )
    threshold: float | None = setting(
        None,
        "the probability of its likeliest label from which a text leaves; null: chosen on validation data",
        above=0,
        below=1,
    )


class EarlyExit(Technique):
    """Adds a head after inner blocks, trains it with all losses of the model, and chooses when texts leave."""

    name = "early_exit"
    Settings = EarlyExitSettings
    effects = ("exits early",)
    tasks = ("classification",)
    trains_exits = True
    # A head learns what the model's own learns: from a teacher too, and once where two passes must agree.
    after = ("adds a teacher",)
    before = ("runs twice",)

    settings: EarlyExitSettings

    def __init__(self, settings: EarlyExitSettings) -> None:
        super().__init__(settings)
        self._metric = ""
        self._loss = Mean()
        self._chosen: dict[str, float] = {}

    def check(self, config: Root) -> None:
        self._metric = config.dataset.metrics[0] if config.dataset.metrics else "loss"

    def plan(self, model: Transformer) -> list[str]:
        outputs = model.architecture.outputs
        if outputs is not None and outputs.predicts != "one":
            raise UserError(
                "technique.early_exit asks how sure a model is of one label, and this one predicts "
                f"{'numbers' if outputs.predicts == 'number' else 'several labels'}: leave it out"
            )
        return [f"texts may leave after {' or '.join(map(str, self.depths(model.architecture)))} layers"]

    def depths(self, architecture: Architecture) -> list[int]:
        """The number of blocks before each head. Raises `UserError` for a model without such a place."""
        if architecture.passes > 1:
            raise UserError(
                "technique.early_exit counts blocks, and those of a model with several passes are several layers each: "
                "set model.passes=1"
            )
        layers = len(architecture.encoder)
        depths = sorted(set(self.settings.layers)) or list(range(1, layers))
        if not depths:
            raise UserError("technique.early_exit needs a model of two layers or more: set model.encoder_layers=2")
        if depths[-1] >= layers:
            raise UserError(
                f"technique.early_exit.layers={self.settings.layers}: of {layers} layers the last has the model's own "
                f"head, so name numbers from 1 to {layers - 1}"
            )
        return depths

    # --- hooks ----------------------------------------------------------------------------------------

    def prepare_model(self, model: Transformer, config: Root) -> nn.Module | None:
        set_exits(model, self.depths(model.architecture))
        return None

    def reads_states(self) -> bool:
        return True

    def objective(self, objective: Objective, moment: Instant) -> None:
        if not self.active(moment.progress):
            return
        assert objective.states is not None
        terms = [(loss, scale) for _, loss, scale in objective.logit_losses]
        for depth, head in heads_of(objective.model).items():
            states_BSD = objective.states.encoder[depth]
            if not self.settings.joint:
                states_BSD = states_BSD.detach()
            pooled_BD = head.pooled(states_BSD, objective.batch.source_mask_BS)
            pooled_ND = objective.select(pooled_BD.unsqueeze(1)).float()
            # The bias is one more column of the matrix.
            pooled_NX = torch.cat([pooled_ND, torch.ones_like(pooled_ND[:, :1])], 1)
            weight_CX = torch.cat([head.output.weight, head.output.bias.unsqueeze(1)], 1)
            loss, _ = projected_losses(pooled_NX, weight_CX, terms)
            objective.other.append((f"{self.name} {depth}", loss, self.settings.weight))
            self._loss.add(loss.detach(), len(pooled_ND))

    def tune(self, model: Transformer, weights: Transformer, validation: Validation | None) -> None:
        if not model.architecture.exits or validation is None:
            return
        scores = ExitScores.of(weights, validation)
        threshold = self.settings.threshold
        if threshold is None:
            threshold = scores.lowest_threshold(self._metric, self.settings.max_drop)
        model.exits_at(threshold)
        quality, depth_N = scores.at(threshold)
        whole, _ = scores.at(None)
        self._chosen = {
            **({} if threshold is None else {"threshold": threshold}),
            "left_early": float((depth_N < scores.depth_E[-1]).mean()),
            "depth": float(depth_N.mean()),
            self._metric: quality[self._metric],
            f"whole_{self._metric}": whole[self._metric],
        }

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        return {**self._chosen, "loss": self._loss.value}

    def acted(self) -> bool:
        # Heads that were trained are in the file, even where validation data let no text leave by one.
        return self._loss.value > 0 or self._chosen.get("left_early", 0.0) > 0

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self._loss.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loss.restore(state["loss"])


@dataclass(frozen=True)
class ExitScores:
    """What each exit says of a split: logits (E, N, C), its sureness (E, N), the blocks (E,) before it.

    ``judge`` turns the logits (N, C) that the texts leave with, and their blocks, into metrics.
    """

    logits_ENC: np.ndarray
    sureness_EN: np.ndarray
    depth_E: np.ndarray
    judge: Callable[[np.ndarray, np.ndarray], dict[str, float]]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Transformer, validation: Validation) -> ExitScores:
        """The scores of a model with exits."""
        split, architecture = validation.split, model.architecture
        depth_E = np.asarray([*architecture.exits, len(architecture.encoder)])
        rows = split.scored_rows(architecture.context)
        assert architecture.outputs is not None
        logits_ENC = np.zeros((len(depth_E), rows, architecture.outputs.count), dtype=np.float32)
        sureness_EN = np.zeros((len(depth_E), rows), dtype=np.float32)
        device = model.embedding.weight.device
        batches = scoring_batches(
            split, validation.tokenizer, batch_tokens=validation.batch_tokens, context=architecture.context
        )
        with scoring(model):
            for batch in batches:
                found_EBC = logits_of_exits(model, batch.to(device))
                place = split.places(batch.rows, architecture.context)
                logits_ENC[:, place] = found_EBC.cpu().numpy()
                sure_B: list[Tensor] = [sureness(found_BC) for found_BC in found_EBC]
                sureness_EN[:, place] = torch.stack(sure_B).cpu().numpy()

        def judge(logits_NC: np.ndarray, depth_N: np.ndarray) -> dict[str, float]:
            answers = split.answers(logits_NC, depth_N)
            return {"loss": float(answers.loss.mean()), **label_metrics(answers)}

        return cls(logits_ENC, sureness_EN, depth_E, judge)

    def at(self, threshold: float | None) -> tuple[dict[str, float], np.ndarray]:
        """The metrics, and the blocks (N,) that each text takes, at a threshold; None: nothing leaves early."""
        last, rows = len(self.depth_E) - 1, np.arange(self.sureness_EN.shape[1])
        exit_N = np.full(len(rows), last)
        if threshold is not None:
            sure_EN = self.sureness_EN >= np.float32(threshold)
            sure_EN[last] = True
            exit_N = sure_EN.argmax(0)  # the first that is
        depth_N = self.depth_E[exit_N]
        return self.judge(self.logits_ENC[exit_N, rows], depth_N), depth_N

    def lowest_threshold(self, metric: str, most_lost: float) -> float | None:
        """The lowest threshold from which on, up to 1, no more than this of the metric is lost; None: 1 loses more.

        One below it may do so too, by chance: the first that fails ends the search. A probability may be rounded to 1.
        """
        sign = 1.0 if higher_is_better(metric) else -1.0
        needed = sign * self.at(None)[0][metric] - most_lost
        places = np.linspace(0, 1, _TRIED)
        # Rounded down, so that the texts whose sureness it is leave too.
        found = np.floor(np.quantile(self.sureness_EN[:-1].astype(np.float64), places) * 1e6) / 1e6
        chosen = None
        for threshold in np.unique([*found, 1.0])[::-1]:
            if sign * self.at(float(threshold))[0][metric] < needed - 1e-12:
                break
            chosen = float(threshold)
        return chosen
