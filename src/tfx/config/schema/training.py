"""Settings of training: optimizer, schedule, budget, and the loop with what it saves and averages."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.config.schema.fields import group, in_full, setting


@dataclass
class OptimizerConfig:
    """The optimizer."""

    name: str = setting(
        "adamw",
        "optimizer; muon: matrices by Muon, the rest by AdamW",
        choices=("adam", "adamw", "muon"),
        paper="Kingma 2015, arXiv 1412.6980; Loshchilov 2019, arXiv 1711.05101; Jordan 2024",
    )
    lr: float = setting(1e-3, "peak learning rate", above=0, maximum=100)
    betas: list[float] = setting([0.9, 0.98], "Adam's decay rates of the moments", minimum=0, below=1)
    eps: float = setting(1e-9, "Adam's epsilon", above=0, maximum=1)
    weight_decay: float = setting(0.0, "decoupled weight decay of matrices (adam: L2 penalty)", minimum=0, maximum=10)
    momentum: float = setting(0.95, "Muon's momentum", minimum=0, below=1)
    matrix_lr: float | None = setting(
        None,
        "Muon's peak learning rate of the matrices, scaled to AdamW's update size; null: 0.01 up to a model.width of "
        "128, and above it less with the square root of the width, so 0.005 at 512",
        above=0,
        maximum=100,
        paper="Liu 2025, arXiv 2502.16982",
    )
    matrix_block: int | None = setting(
        None,
        "how many rows of the matrices q, k, v, up and gate Muon makes orthogonal together, such as those of a head: "
        "less work for wide models; null: all of a matrix",
        minimum=1,
        paper="Kimi K3, arXiv 2607.24653",
    )
    layer_decay: float = setting(
        1.0,
        "learning rate of a layer relative to the one above it, for fine-tuning; embeddings are the lowest layer",
        above=0,
        maximum=1,
        paper="Howard 2018, arXiv 1801.06146; Clark 2020, arXiv 2003.10555",
    )
    clip_norm: float | None = setting(1.0, "gradients are scaled down to this norm; null: never", above=0)


@dataclass
class ScheduleConfig:
    """The learning rate over progress, the fraction of the budget that is spent."""

    name: str = setting(
        "cosine",
        "shape after the warm-up",
        choices=("constant", "inverse_sqrt", "cosine", "linear", "polynomial", "wsd"),
        paper="Vaswani 2017; Loshchilov 2017, arXiv 1608.03983; warm-up-stable-decay: Hu 2024, arXiv 2404.06395",
    )
    warmup: float = setting(0.05, "linear warm-up", minimum=0, maximum=1, unit="fractions of the budget")
    final: float = setting(0.0, "learning rate at the end, relative to the peak", minimum=0, maximum=1)
    power: float = setting(2.0, "exponent of the polynomial schedule", above=0, maximum=100)
    decay: float = setting(0.3, "wsd: the linear decay at the end", above=0, maximum=1, unit="fractions of the budget")


DEFAULT_BUDGET_SECONDS = 200.0


# The keys of a budget; only one counts.
BUDGET_UNITS = ("steps", "tokens", "seconds")


@dataclass
class Budget:
    """How long to train: exactly one counts; with none named, 200 seconds."""

    steps: int | None = setting(None, "optimizer steps", minimum=0)
    tokens: int | None = setting(None, "real tokens of source and target, padding not counted", minimum=0)
    seconds: float | None = setting(None, "training time without validation and final evaluation", minimum=0, unit="s")

    @property
    def unit(self) -> str:
        """What counts: ``steps``, ``tokens`` or ``seconds``; empty if none is named."""
        return next((unit for unit in BUDGET_UNITS if getattr(self, unit) is not None), "")

    @property
    def amount(self) -> float:
        """The amount in its unit; 0 if none is named."""
        return float(getattr(self, self.unit)) if self.unit else 0.0

    @property
    def is_zero(self) -> bool:
        """Whether the named amount is 0, so that nothing trains."""
        return bool(self.unit) and self.amount == 0

    def times(self, factor: int) -> Budget:
        """This budget, ``factor`` times as long."""
        values = {unit: getattr(self, unit) for unit in BUDGET_UNITS}
        return Budget(**{unit: None if value is None else factor * value for unit, value in values.items()})

    @property
    def override(self) -> str:
        """What a user types for it, such as ``trainer.budget.tokens=6000000``."""
        return f"trainer.budget.{self.unit}={in_full(self.amount)}"

    def __str__(self) -> str:
        return f"{self.amount:,.12g} {self.unit}"


@dataclass
class AveragingConfig:
    """Averaging of the weights that are evaluated and kept."""

    kind: str = setting(
        "none",
        "exponential moving average, the mean of the last snapshots, or none",
        choices=("none", "ema", "last"),
        paper="Polyak 1992; Vaswani 2017, section 6.1",
    )
    decay: float = setting(0.999, "ema: decay per step, reached after a warm-up of the average", above=0, below=1)
    start: float = setting(0.8, "last: when snapshots begin", minimum=0, below=1, unit="fractions of the budget")
    snapshots: int = setting(10, "last: how many, evenly spaced up to the end", minimum=1, maximum=1000)


@dataclass
class EarlyStoppingConfig:
    """Stopping before the budget is spent."""

    metric: str | None = setting(None, "a metric of the validation rows (loss, perplexity, ...); null: never stop")
    patience: int = setting(3, "validations without improvement", minimum=1)


@dataclass
class SaveConfig:
    """When to save the state for `tfx resume`; a signal and the end of training save it too."""

    every_steps: int | None = setting(None, "optimizer steps between saved states; null: by time only", minimum=1)
    every_minutes: float | None = setting(
        5.0, "time between saved states; null: by steps only", above=0, unit="minutes"
    )
    keep: int = setting(2, "saved states kept", minimum=1, maximum=1000)


@dataclass
class InstabilityConfig:
    """What to do if a loss or gradient is not finite, or if a loss jumps far above its history."""

    policy: str = setting(
        "stop",
        "stop the run; skip the step; or back off: skip it and halve the learning rate from then on. "
        "A GPU decides by itself, and the run hears of it every trainer.log_every steps",
        choices=("stop", "skip", "back_off"),
    )
    spike: float | None = setting(
        4.0,
        "how far above the median of the last 50 steps a loss counts as divergence; null: never",
        above=0,
        unit="nats per token",
    )
    patience: int = setting(10, "consecutive skipped steps after which the run stops", minimum=1)


@dataclass
class LocalConfig:
    """Local steps with an outer optimizer, for ``trainer.parallel=local``.

    Douillard 2023, arXiv 2311.08105.
    """

    steps: int = setting(
        100,
        "optimizer steps that a process takes by itself before the processes meet; they also meet before each "
        "validation and at the end",
        minimum=1,
        maximum=1000000,
    )
    average_moments: bool = setting(
        True,
        "whether the moments of the optimizers are averaged, too, when processes meet: that sends as many bytes as the "
        "weights once more with Muon, twice more with AdamW",
        paper="Iacob 2025, arXiv 2505.22549",
    )
    outer_lr: float = setting(
        1.0, "outer learning rate, of the mean change since they last met; 1: their mean", above=0, maximum=10
    )
    outer_momentum: float = setting(
        0.0, "Nesterov momentum of the outer optimizer; the paper has 0.9, at a rate of 0.7", minimum=0, below=1
    )


@dataclass
class TrainerConfig:
    """How the model is trained."""

    budget: Budget = group(Budget)
    device: str = setting("auto", "cpu, cuda, cuda:N, mps; auto: the best available")
    devices: int = setting(
        1,
        "processes that train together on this machine, each on a GPU of its own, or with an equal share of the cores",
        minimum=1,
        maximum=1024,
    )
    parallel: str = setting(
        "ddp",
        "what several processes share: ddp: the gradients of each step; fsdp: also weights and optimizer, for a model "
        "that does not fit; local: only their weights, now and then",
        choices=("ddp", "fsdp", "local"),
        paper="Li 2020, arXiv 2006.15704; Zhao 2023, arXiv 2304.11277; Douillard 2023, arXiv 2311.08105",
    )
    local: LocalConfig = group(LocalConfig)
    precision: str = setting(
        "auto",
        "fp32; bf16: autocast; mixed: bfloat16 for matrix products only; "
        "auto: bf16 on a GPU, mixed on a CPU with bfloat16 products, else fp32",
        choices=("auto", "fp32", "bf16", "mixed"),
    )
    compile: str = setting("auto", "torch.compile the model; auto: on a GPU", choices=("auto", "on", "off"))
    prefetch: str = setting(
        "auto",
        "make the next batch in a thread while a step runs; auto: on a GPU",
        choices=("auto", "on", "off"),
    )
    deterministic: bool = setting(False, "use only deterministic kernels on the GPU (on the CPU they always are)")
    accumulation: int = setting(1, "batches per optimizer step", minimum=1, maximum=100000)
    activation_checkpointing: bool = setting(
        False, "recompute activations in the backward pass to save memory", paper="Chen 2016, arXiv 1604.06174"
    )
    label_smoothing: float | None = setting(
        None,
        "mass moved from the true token to all of them; null: 0.1 for text to text, 0 otherwise",
        minimum=0,
        below=1,
        paper="Szegedy 2016, arXiv 1512.00567",
    )
    averaging: AveragingConfig = group(AveragingConfig)
    save: SaveConfig = group(SaveConfig)
    instability: InstabilityConfig = group(InstabilityConfig)
    early_stopping: EarlyStoppingConfig = group(EarlyStoppingConfig)
    keep_zeros: bool = setting(
        False, "weights that are zero in the model of init_from stay zero, so that it stays pruned"
    )
    keep: str = setting("last", "which weights become the final model", choices=("last", "best"))
    best_by: str | None = setting(
        None,
        "the metric of validation rows by which weights are the best; null: that of early stopping, else the primary "
        "metric of a classifier and the loss of other models",
    )
    validate_every: float = setting(
        0.1, "time between validations", minimum=1e-9, maximum=1, unit="fractions of the budget"
    )
    log_every: int = setting(20, "steps between training rows of metrics.jsonl", minimum=1)
    profile: bool = setting(
        False, "measure where the time of five steps goes: profile.txt and trace.json.gz in the run directory"
    )
    threads: int | None = setting(None, "CPU threads; null: torch's choice", minimum=1, maximum=4096)
    memory_gb: float | None = setting(
        None,
        "batch_tokens=auto: memory that a process may take; null: nine tenths of what is free on a GPU, half of it on "
        "a CPU, shared by its processes",
        above=0,
        unit="GB",
    )
