"""The settings of pruning, how the sparsity rises, and which settings exclude each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tfx.config.schema import Root, group, setting
from tfx.errors import UserError
from tfx.techniques.contract import TechniqueSettings
from tfx.techniques.prune.masks import parse_pattern
from tfx.techniques.prune.structure import StructureSettings


@dataclass
class PruneSettings(TechniqueSettings):
    """Settings of `Prune`."""

    start: float = setting(
        0.2, "when pruning begins, and whole parts are removed", minimum=0, below=1, unit="fractions of the budget"
    )
    end: float = setting(0.7, "when the sparsity is reached", above=0, maximum=1, unit="fractions of the budget")
    score: str = setting(
        "magnitude",
        "which weights go first: the smallest; those that training moves towards zero; once training is over and "
        "block by block, those whose product with the size of their input is smallest, or those whose loss the rest "
        "of their row makes up for best",
        choices=("magnitude", "movement", "wanda", "sparsegpt"),
        paper="Sanh 2020, arXiv 2005.07683; Sun 2023, arXiv 2306.11695; Frantar 2023, arXiv 2301.00774",
    )
    sparsity: float = setting(0.5, "share of zeros in the pruned tensors at the end", minimum=0, below=1)
    threshold: float | None = setting(
        None,
        "prune weights of a smaller magnitude, instead of a share of them; with movement: those whose score has a "
        "smaller sigmoid (soft movement pruning)",
        above=0,
    )
    pattern: str | None = setting(
        None,
        "n:m, such as 2:4: of every m consecutive inputs n stay; sparsity must be 1 - n/m",
        paper="Mishra 2021, arXiv 2104.08378",
    )
    scope: str | None = setting(
        None,
        "where scores are compared: over all tensors, inside each (sparsegpt: inside 128 of its inputs), or inside "
        "each output row; null: row with wanda, else tensor",
        choices=("global", "tensor", "row"),
    )
    penalty: float = setting(
        100.0, "soft movement pruning: weight of the mean sigmoid of the scores in their loss, at the end", minimum=0
    )
    calibration: int = setting(16, "training batches for wanda and sparsegpt", minimum=1, maximum=100000)
    embeddings: bool = setting(False, "prune the embeddings and the output layer too")
    vectors: bool = setting(False, "prune norms and biases too; not with a pattern")
    skip: list[str] = setting([], "patterns of tensor names that are not pruned ('decoder.blocks.0.*')")
    schedule: str = setting("cubic", "how the sparsity rises from start to end", choices=("cubic", "linear", "once"))
    initial: float = setting(0.0, "sparsity at the start", minimum=0, below=1)
    every: float = setting(0.01, "time between prunings", above=0, maximum=1, unit="fractions of the budget")
    rewind: float | None = setting(
        None,
        "once the sparsity is reached, reset the remaining weights to their values at this fraction of the budget; "
        "null: never",
        minimum=0,
        below=1,
        paper="Frankle 2020, arXiv 1912.05671",
    )
    store: str = setting(
        "fp16", "number format in the file for weights that are not quantized", choices=("fp16", "fp32")
    )
    structure: StructureSettings = group(StructureSettings)

    @property
    def prunes_weights(self) -> bool:
        """Whether single weights go."""
        return self.sparsity > 0 or self.threshold is not None

    @property
    def is_one_shot(self) -> bool:
        """Whether the score needs the inputs of the trained layers, so that masks are chosen when training is over."""
        return self.score in ("wanda", "sparsegpt")

    @property
    def unit(self) -> str:
        """What scores are compared in."""
        return self.scope or ("row" if self.score == "wanda" else "tensor")

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """The pattern: how many stay of how many inputs. Of 256, 1/256 is a sparsity too."""
        if self.pattern is None:
            return None
        _, of = parse_pattern(self.pattern)
        return of - round(self.sparsity * of), of


def ramp(settings: PruneSettings, progress: float) -> float:
    """How much of the ramp is done at a progress, from 0 at start to 1 at end: 1 - (1 - t)^3 (Zhu & Gupta 2017)."""
    if progress < settings.start:
        return 0.0
    if settings.schedule == "once":
        return 1.0
    passed = min(1.0, (progress - settings.start) / (settings.end - settings.start))
    return 1.0 - (1.0 - passed) ** (3 if settings.schedule == "cubic" else 1)


def sparsity_at(settings: PruneSettings, progress: float) -> float:
    """The sparsity at a progress: s_f + (s_i - s_f) (1 - t)^3 for t from 0 at start to 1 at end (Zhu & Gupta 2017)."""
    if progress < settings.start:
        return 0.0
    return settings.sparsity + (settings.initial - settings.sparsity) * (1.0 - ramp(settings, progress))


def check_settings(settings: PruneSettings, config: Root) -> None:
    """Raises `UserError` for settings that exclude each other, or that nothing would read."""
    if settings.start >= settings.end:
        raise UserError(f"technique.prune.start={settings.start} must lie before technique.prune.end={settings.end}")
    if settings.initial > settings.sparsity:
        raise UserError(
            f"technique.prune.initial={settings.initial:g} is above sparsity={settings.sparsity:g}, and "
            "what is gone stays gone"
        )
    _check_pattern(settings)
    structure = settings.structure
    for name in ("layers_by", "layers_at"):
        if getattr(structure, name) != getattr(StructureSettings, name) and not structure.removes_layers:
            raise UserError(
                f"technique.prune.structure.{name}={getattr(structure, name)} is about layers that go, and all stay: "
                "set technique.prune.structure.encoder_layers or decoder_layers"
            )
    _check_score(settings, config)
    if settings.rewind is not None:
        _check_rewind(settings, settings.rewind, config)


def _check_pattern(settings: PruneSettings) -> None:
    """Checks settings that a pattern or a threshold excludes: each alone decides which weights are zeroed."""
    given = "a pattern" if settings.pattern is not None else "a threshold" if settings.threshold is not None else None
    if given and settings.scope not in (None, "tensor"):
        raise UserError(
            f"technique.prune.scope={settings.scope} says where scores are compared, and {given} compares none there: "
            "leave one of the two out"
        )
    if settings.threshold is not None and settings.initial:
        raise UserError("technique.prune.initial is where a sparsity begins, and a threshold has none: leave it out")
    if settings.pattern is None:
        return
    keep, of = parse_pattern(settings.pattern)
    if settings.threshold is not None:
        raise UserError("technique.prune has both a pattern and a threshold: name one")
    if settings.vectors:
        raise UserError("technique.prune.vectors=true: a pattern is one of matrices' inputs; leave one of the two out")
    exact = 1 - keep / of
    if settings.kept_of != (keep, of) or not math.isclose(settings.sparsity, exact, abs_tol=5e-3):
        raise UserError(
            f"technique.prune.pattern={settings.pattern} leaves a sparsity of {exact:g}, not "
            f"{settings.sparsity:g}: set technique.prune.sparsity={exact:g}"
        )


def _check_score(settings: PruneSettings, config: Root) -> None:
    score = settings.score
    if settings.is_one_shot:
        if not settings.prunes_weights:
            raise UserError(f"technique.prune.score={score} is for single weights, and none are pruned: leave it out")
        if settings.scope == "global":
            raise UserError(
                f"technique.prune.scope=global does not go with score={score}, which prunes block after block: name "
                "tensor or row"
            )
        default = PruneSettings()
        for name in ("threshold", "schedule", "initial", "every", "end", "rewind"):
            value = getattr(settings, name)
            if value != getattr(default, name):
                raise UserError(
                    f"technique.prune.{name}={value} has no use with score={score}, which prunes once, to a sparsity, "
                    "when training is over: leave it out"
                )
    if score == "movement":
        _check_movement(settings, config)


def _check_movement(settings: PruneSettings, config: Root) -> None:
    structure = settings.structure
    if not (settings.prunes_weights or structure.heads or structure.ffn):
        raise UserError(
            "technique.prune.score=movement chooses weights, heads and units, and none of those go: leave it out"
        )
    if config.trainer.budget.is_zero:
        raise UserError(
            "technique.prune.score=movement follows the steps of training, and the budget is zero: "
            "name a budget, or another score"
        )
    if config.trainer.parallel == "local":
        raise UserError(
            "technique.prune.score=movement needs the same steps in all processes: use trainer.parallel=ddp"
        )
    if (structure.heads or structure.ffn) and not settings.start:
        raise UserError(
            "technique.prune.start=0: no step has been taken that score=movement could choose heads or units by; "
            "name a later start"
        )
    if settings.threshold is not None and settings.threshold >= 0.5:
        raise UserError(
            f"technique.prune.threshold={settings.threshold:g} is the sigmoid of a score with score=movement, and all "
            "begin at 0.5: name a smaller one, such as 0.1"
        )


def _check_rewind(settings: PruneSettings, rewind: float, config: Root) -> None:
    """It needs training before it, and after the sparsity is reached."""
    if not settings.prunes_weights:
        raise UserError("technique.prune.rewind is for single weights, and none are pruned: leave it out")
    if config.trainer.budget.is_zero:
        raise UserError("technique.prune.rewind returns to weights of this training, and the budget is zero")
    name, reached = ("start", settings.start) if settings.schedule == "once" else ("end", settings.end)
    if rewind >= reached:
        raise UserError(
            f"technique.prune.rewind={rewind:g} must lie before the sparsity is reached, with "
            f"schedule={settings.schedule} at {name}={reached:g}"
        )
    if reached == 1.0:
        raise UserError("technique.prune.rewind needs training after the sparsity is reached: end below 1")
