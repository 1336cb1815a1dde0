"""The typed schema of a run: every setting with its type, default, range, unit and paper.

Composition (`tfx.config.compose`) merges what Hydra composed into `Root`, so only what is written
here can be set. `tfx train --help` is printed from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tfx.config.schema.data import AUTO, DatasetConfig, LimitConfig, SplitConfig
from tfx.config.schema.fields import bounds, group, in_full, is_in_range, setting
from tfx.config.schema.many import AblateConfig, LauncherConfig
from tfx.config.schema.model import RATES, ModelConfig, TokenizerConfig
from tfx.config.schema.results import TRACKERS, EvaluationConfig, TrackingConfig
from tfx.config.schema.training import (
    BUDGET_UNITS,
    DEFAULT_BUDGET_SECONDS,
    AveragingConfig,
    Budget,
    EarlyStoppingConfig,
    InstabilityConfig,
    LocalConfig,
    OptimizerConfig,
    SaveConfig,
    ScheduleConfig,
    TrainerConfig,
)

__all__ = [
    "AUTO",
    "BUDGET_UNITS",
    "DEFAULT_BUDGET_SECONDS",
    "RATES",
    "TRACKERS",
    "AblateConfig",
    "AveragingConfig",
    "Budget",
    "DatasetConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "InstabilityConfig",
    "LauncherConfig",
    "LimitConfig",
    "LocalConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Root",
    "SaveConfig",
    "ScheduleConfig",
    "SplitConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainerConfig",
    "bounds",
    "group",
    "in_full",
    "is_in_range",
    "setting",
]


@dataclass
class Root:
    """One run."""

    seed: int = setting(1, "seed of all random numbers", minimum=0, maximum=2**63 - 1)
    dry_run: bool = setting(False, "check the config, print the plan and stop")
    name: str | None = setting(None, "what the run is called in tables and reports; null: named after its settings")
    tags: list[str] = setting([], "words to find runs by: tfx report --where tags=WORD")
    init_from: str | None = setting(
        None,
        "a run, model file, or model folder of transformers to take weights, architecture and tokenizer from; "
        "a run also brings its dataset if you name none",
        path=True,
    )
    reference: str | None = setting(
        None,
        "a run directory or model file: the dense model that results are compared with; "
        "null: that of init_from, else the teacher",
        path=True,
    )
    max_quality_drop: float | None = setting(
        None,
        "largest loss allowed per stage, in the primary metric on validation data, "
        "against the reference; without one against the trained model, if techniques act once training is over",
        minimum=0,
        unit="units of the metric",
    )
    on_quality_drop: str = setting(
        "stop", "what to do with a run that lost more: stop it, or mark it and continue", choices=("stop", "mark")
    )
    model: ModelConfig = group(ModelConfig)
    dataset: DatasetConfig = group(DatasetConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    trainer: TrainerConfig = group(TrainerConfig)
    evaluation: EvaluationConfig = group(EvaluationConfig)
    tracking: TrackingConfig = group(TrackingConfig)
    technique: dict[str, Any] = field(
        default_factory=dict, metadata={"doc": "the stack; settings of one: `tfx train technique=NAME --help`"}
    )
