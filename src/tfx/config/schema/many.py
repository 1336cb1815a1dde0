"""Settings of many runs: the launcher of a sweep, and an ablation."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.config.schema.fields import setting


@dataclass
class LauncherConfig:
    """How a sweep on this machine runs its jobs (hydra.launcher)."""

    _target_: str = "hydra_plugins.tfx.LocalLauncher"
    jobs: int | None = setting(
        None, "jobs at a time; null: one per GPU, without GPUs as many as the cores allow", minimum=1
    )
    threads: int | None = setting(
        None,
        "CPU threads per job, however many run at a time; null: OMP_NUM_THREADS; if that is not set, 1, or with GPUs "
        "an equal share of the cores",
        minimum=1,
        maximum=4096,
    )
    on_failure: str = setting(
        "continue", "when a job fails: continue with the others, or start no more", choices=("continue", "stop")
    )


@dataclass
class AblateConfig:
    """What `tfx ablate` plans, beside the config that its arms share."""

    seeds: int = setting(3, "runs of each arm: with seed, seed + 1, …", minimum=1, maximum=1000)
    design: str = setting(
        "leave_one_out",
        "the stacks compared: none, each technique alone, all but each, and all; or every subset",
        choices=("leave_one_out", "all_subsets"),
    )
    match: str = setting(
        "tokens",
        "what is equal in all arms: the student's tokens; or the training FLOPs including the teacher's, and its own "
        "training if this command trains it (cheaper arms then train on more tokens than the budget names)",
        choices=("tokens", "flops"),
    )
    trial_steps: int = setting(10, "steps of the trial that each arm runs first", minimum=4, maximum=10000)
