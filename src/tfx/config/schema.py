"""The typed schema of a run: every setting with its type, default, range, unit and paper.

Composition (`tfx.config.compose`) merges what Hydra composed into `Root`, so only what is written
here can be set. `tfx train --help` is printed from these fields.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfx.config.task_facts import TASKS


def setting(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    unit: str = "",
    paper: str = "",
    path: bool = False,
    are_groups: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with the facts for ``--help`` and the range check.

    ``minimum`` and ``maximum`` are inclusive, ``above`` and ``below`` exclusive. A ``path`` is relative to the folder
    that the command runs in, and saved as an absolute one. ``are_groups``: a list of groups of settings. ``words`` may
    stand in the place of a number.
    """
    metadata = {
        "doc": doc,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "unit": unit,
        "paper": paper,
        "path": path,
        "are_groups": are_groups,
        "words": words,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bounds(metadata: Mapping[str, Any]) -> list[str]:
    """The range of a setting in words, such as ``at least 0``; whole numbers in full."""
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    limits = [(word, metadata.get(key)) for key, word in words.items()]
    return [f"{word} {in_full(limit)}" for word, limit in limits if limit is not None]


def is_in_range(number: float, metadata: Mapping[str, Any]) -> bool:
    """Whether a number lies in the range of a setting."""
    holds = {"minimum": operator.ge, "maximum": operator.le, "above": operator.gt, "below": operator.lt}
    return all(metadata.get(key) is None or is_inside(number, metadata[key]) for key, is_inside in holds.items())


def in_full(number: float) -> str:
    """A number as a user types it: all digits of a whole number, six of any other."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def group(settings: type) -> Any:
    """A nested dataclass of settings."""
    return field(default_factory=settings, metadata={"doc": ""})


# --- model ------------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """The Transformer's architecture."""

    name: str = setting("custom", "name shown in tables")
    family: str = setting(
        "seq2seq",
        "encoder-decoder, decoder-only, an encoder with a layer for labels on top, or an encoder alone, from which "
        "such a classifier starts",
        choices=(*TASKS, "encoder"),
        paper="Vaswani 2017, arXiv 1706.03762; Radford 2019; Devlin 2019, arXiv 1810.04805",
    )
    encoder_layers: int = setting(4, "encoder blocks (0 for a language model)", minimum=0, maximum=1000)
    decoder_layers: int = setting(4, "decoder blocks (0 for classification)", minimum=0, maximum=1000)
    passes: int = setting(
        1,
        "how many times the blocks of a stack run, one after the other: depth without more weights",
        minimum=1,
        maximum=100,
        paper="Dehghani 2019, arXiv 1807.03819; Lan 2020, arXiv 1909.11942; Takase & Kiyono 2021, arXiv 2104.06022",
    )
    width: int = setting(128, "model width d", minimum=2, maximum=65536)
    heads: int = setting(4, "attention heads", minimum=1, maximum=1024)
    kv_heads: int | None = setting(
        None,
        "key/value heads; null: as many as heads",
        minimum=1,
        maximum=1024,
        paper="grouped-query attention, Ainslie 2023, arXiv 2305.13245",
    )
    ffn_width: int = setting(256, "feed-forward width", minimum=1, maximum=1048576)
    context: int = setting(256, "longest sequence that the model takes", minimum=2, maximum=1048576, unit="tokens")
    positions: str = setting(
        "sinusoidal",
        "position information",
        choices=("sinusoidal", "learned", "rotary", "alibi", "relative"),
        paper="Vaswani 2017; Gehring 2017; Su 2021, arXiv 2104.09864; Press 2021, arXiv 2108.12409; "
        "Raffel 2020, arXiv 1910.10683",
    )
    rotary_base: float = setting(
        10000.0, "rotary: base of the wavelengths", above=1, paper="Su 2021; Xiong 2023, arXiv 2309.16039"
    )
    rotary_scaling: str = setting(
        "none",
        "rotary: how a longer context than trained is reached; linear: positions divided by the factor; "
        "llama3: only the long wavelengths",
        choices=("none", "linear", "llama3"),
        paper="Chen 2023, arXiv 2306.15595; Grattafiori 2024, arXiv 2407.21783",
    )
    rotary_factor: float = setting(1.0, "rotary scaling: the factor", minimum=1)
    rotary_low: float = setting(
        1.0, "llama3: wavelengths that fit less often into the trained context are scaled", above=0, unit="times"
    )
    rotary_high: float = setting(
        4.0, "llama3: wavelengths that fit more often into the trained context are kept", above=0, unit="times"
    )
    rotary_context: int = setting(
        8192, "llama3: the context that the model was trained with", minimum=2, maximum=1048576, unit="tokens"
    )
    relative_buckets: int = setting(
        32, "relative: number of distances told apart, half of them exact", minimum=4, maximum=4096
    )
    relative_distance: int = setting(
        128, "relative: larger distances are one", minimum=4, maximum=1048576, unit="tokens"
    )
    norm_position: str = setting(
        "pre", "norm before or after each sub-layer", choices=("pre", "post"), paper="Xiong 2020, arXiv 2002.04745"
    )
    norm: str = setting(
        "layernorm",
        "kind of norm",
        choices=("layernorm", "rmsnorm"),
        paper="Ba 2016, arXiv 1607.06450; Zhang 2019, arXiv 1910.07467",
    )
    norm_eps: float | None = setting(
        None, "added to the variance in each norm; null: 1e-5 (layernorm) or 1e-6 (rmsnorm)", above=0, maximum=1
    )
    activation: str = setting(
        "relu",
        "feed-forward activation; swiglu and geglu gate; _tanh: with the approximate GELU",
        choices=("relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu", "geglu", "geglu_tanh"),
        paper="Hendrycks 2016, arXiv 1606.08415; Shazeer 2020, arXiv 2002.05202; So 2021, arXiv 2109.08668",
    )
    qk_norm: bool = setting(False, "RMS-normalise queries and keys of each head", paper="Henry 2020, arXiv 2010.04245")
    bias: bool = setting(True, "biases in linear layers and norms")
    attention_bias: bool | None = setting(None, "biases in the projections of attention; null: as bias")
    ffn_bias: bool | None = setting(None, "biases in the feed-forward layers; null: as bias")
    output_bias: bool = setting(False, "a bias for each logit")
    tied_embeddings: str = setting(
        "all",
        "which embeddings share one matrix: source, target and output (all); target and output (output); "
        "source and target (inputs); none",
        choices=("all", "output", "inputs", "none"),
        paper="Press 2017, arXiv 1608.05859",
    )
    embedding_scale: bool = setting(
        True, "embeddings are multiplied by the square root of the width", paper="Vaswani 2017, section 3.4"
    )
    embedding_norm: bool = setting(
        False, "a norm of the sum of embeddings and positions", paper="Devlin 2019, arXiv 1810.04805"
    )
    token_types: int = setting(
        0,
        "kinds of tokens with an embedding of their own, such as first and second sentence; 0: no such embedding",
        minimum=0,
        maximum=1024,
        paper="Devlin 2019, arXiv 1810.04805",
    )
    pooling: str = setting(
        "mean",
        "classification: how the states of a text become one: that of the first token, their mean, their maximum, or a "
        "mean with learned weights",
        choices=("first", "mean", "max", "attention"),
        paper="Devlin 2019, arXiv 1810.04805; Kim 2014, arXiv 1408.5882; Lin 2017, arXiv 1703.03130",
    )
    pooler: bool = setting(
        False,
        "classification: a dense layer with tanh between pooling and the layer for labels",
        paper="Devlin 2019, arXiv 1810.04805",
    )
    dropout: float = setting(
        0.1, "dropout of embeddings and of each sub-layer's output", minimum=0, below=1, paper="Srivastava 2014"
    )
    attention_dropout: float = setting(0.0, "dropout of attention weights", minimum=0, below=1)
    ffn_dropout: float = setting(0.0, "dropout after the feed-forward activation", minimum=0, below=1)
    token_dropout: float = setting(
        0.0, "share of input tokens whose embedding is zeroed", minimum=0, below=1, paper="Gal 2016, arXiv 1512.05287"
    )
    layer_dropout: float = setting(
        0.0, "share of blocks skipped per step", minimum=0, below=1, paper="LayerDrop, Fan 2020, arXiv 1909.11556"
    )


# --- data -------------------------------------------------------------------------------------------

# In the place of a number that is found for the machine at hand.
AUTO = "auto"


@dataclass
class TokenizerConfig:
    """The tokenizer, trained on the training split only."""

    kind: str = setting(
        "bpe",
        "byte-level BPE, unigram, or single characters",
        choices=("bpe", "unigram", "char"),
        paper="Sennrich 2016, arXiv 1508.07909; Kudo 2018, arXiv 1804.10959",
    )
    vocab_size: int = setting(
        8000, "entries, special tokens included (char: the largest number)", minimum=8, maximum=1000000
    )
    split_digits: bool = setting(False, "every digit is a separate token")
    lowercase: bool = setting(False, "texts are read in lower case, and outputs written in it: for classification")
    rows: int = setting(
        1_000_000,
        "most rows of the training split that it is trained on: of more, evenly spaced ones; of a stream, the first",
        minimum=1,
    )
    path: str | None = setting(
        None, "a tokenizer.json, or a model folder of transformers, to use unchanged instead of training one", path=True
    )


@dataclass
class SplitConfig:
    """Names of the splits: file stems or hub splits; the first that exists is taken."""

    train: list[str] = setting(["train"], "names of the training split")
    valid: list[str] = setting(["valid", "validation", "val", "dev"], "names of the validation split")
    test: list[str] = setting(["test"], "names of the test split; none: it is not read")


@dataclass
class LimitConfig:
    """Caps on the number of examples, taken from the start of a split."""

    train: int | None = setting(None, "training examples used", minimum=1)
    valid: int | None = setting(None, "validation examples used", minimum=1)
    test: int | None = setting(None, "test examples used", minimum=1)


@dataclass
class DatasetConfig:
    """The data: an embedded generator, local files, or a data set of the hub."""

    name: str = setting("custom", "name shown in tables")
    task: str = setting("seq2seq", "text to text, language modelling, or classification", choices=tuple(TASKS))
    format: str = setting(
        "parallel",
        "how the data is read: an embedded set, aligned files, plain text, or a table",
        choices=("normalize", "stdlib", "kinds", "parallel", "text", "json", "csv", "parquet"),
    )
    path: str | None = setting(None, "local folder, file or glob; null: the embedded or hub data", path=True)
    hub: str | None = setting(None, "repository on the Hugging Face hub")
    hub_config: str | None = setting(None, "configuration of the hub repository")
    hub_revision: str | None = setting(None, "commit or tag of the hub repository")
    source: str = setting("source", "seq2seq: column, path (a.b), '{template}', or file suffix of the source")
    target: str = setting(
        "target", "seq2seq: the same for the target; if it is a list, the first entry trains and all are references"
    )
    text: str = setting("text", "lm, classification: column, path or template of the text")
    pair: str | None = setting(
        None, "classification: the same for the second text where each input is a pair of texts; null: it is one text"
    )
    label: str = setting("label", "classification: the same for the label, the list of labels, or the number")
    predict: str = setting(
        "one",
        "classification: one label a text; several, of which each holds or not; or a number (regression)",
        choices=("one", "several", "number"),
    )
    labels: list[str] = setting(
        [],
        "classification: the labels in the order of the model's outputs; []: those of the training split, numbers by "
        "value and words by the alphabet",
    )
    label_separator: str = setting(",", "predict=several: what stands between the labels of a text that are no list")
    class_weights: str = setting(
        "none",
        "predict=one: what a training example counts; balanced: rare labels more, so that all labels count alike",
        choices=("none", "balanced"),
        paper="King and Zeng 2001",
    )
    long_texts: str = setting(
        "cut",
        "classification: a text longer than model.context is cut, or read in windows whose predictions are averaged",
        choices=("cut", "windows"),
    )
    join: str | None = setting(
        None, "lm: text that joins all rows of a table into one; null: each row is a document, closed by an end token"
    )
    document_mask: bool = setting(
        False,
        "lm: attention ends where a document does, and positions begin anew, as if each document were read alone",
        paper="Zhao 2024, arXiv 2402.13991",
    )
    splits: SplitConfig = group(SplitConfig)
    limit: LimitConfig = group(LimitConfig)
    valid_fraction: float = setting(
        0.0,
        "share of the training split, cut from its end (classification: evenly spaced), that validates if there is no "
        "validation split",
        minimum=0,
        below=1,
    )
    max_tokens: int | None = setting(
        None,
        "seq2seq: longer training examples are dropped; null: the model's context",
        minimum=1,
        unit="tokens per side",
    )
    max_length_ratio: float | None = setting(
        None, "seq2seq: training pairs whose lengths differ by more are dropped", above=1
    )
    empty: str = setting(
        "error",
        "seq2seq, classification: what an empty side, text or label does: stop with an error, or drop the row",
        choices=("error", "drop"),
    )
    streaming: bool = setting(
        False, "read the training split while training on it, without a download or a prepared copy"
    )
    buffer: int = setting(
        20_000, "streaming: rows that are read ahead, and among which batches of similar lengths are made", minimum=1
    )
    mix: list[Any] = setting(
        [],
        "several corpora in one run: [{dataset: NAME, path: …, weight: 2}, …]; the weight is a corpus's part of the "
        "batches",
        are_groups=True,
    )
    monolingual: str | None = setting(
        None,
        "text files, a folder or a glob: a text without a reference on each line (lm: whole texts), as more data for a "
        "technique that learns from a teacher",
        path=True,
        paper="Kim & Rush 2016, arXiv 1606.07947; Sanh 2019, arXiv 1910.01108",
    )
    monolingual_share: float | None = setting(
        None, "share of the training batches that are of such text; null: by size", above=0, below=1
    )
    batch_tokens: int | str = setting(
        4096,
        "size of a batch: source and target tokens, padding included; auto: the most that fits into the memory at hand",
        minimum=1,
        unit="tokens",
        words=(AUTO,),
    )
    batch_tokens_limit: int = setting(65536, "batch_tokens=auto: the most that is tried", minimum=1, unit="tokens")
    tokenizer: TokenizerConfig = group(TokenizerConfig)
    metrics: list[str] = setting([], "metrics of the output besides the loss; the first is the primary one")

    @property
    def batch_size(self) -> int:
        """``batch_tokens`` as a number, which `tfx.run.batch_size` puts in the place of ``auto`` before training."""
        if isinstance(self.batch_tokens, str):
            raise ValueError(f"dataset.batch_tokens={self.batch_tokens} has not been found yet")
        return self.batch_tokens


# --- training ---------------------------------------------------------------------------------------


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
    matrix_lr: float = setting(
        0.01,
        "Muon's peak learning rate of the matrices, scaled to AdamW's update size",
        above=0,
        maximum=100,
        paper="Liu 2025, arXiv 2502.16982",
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

    def __str__(self) -> str:
        return f"{self.amount:,g} {self.unit}"


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
    outer_lr: float = setting(0.7, "outer learning rate: of the mean change since they last met", above=0, maximum=10)
    outer_momentum: float = setting(
        0.5, "Nesterov momentum of the outer optimizer; the paper has 0.9 for 500 steps", minimum=0, below=1
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
        "mass moved from the true token to all of them; null: 0.1 for text to text, 0 for a language model",
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
    validate_every: float = setting(0.1, "time between validations", above=0, maximum=1, unit="fractions of the budget")
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


# --- trackers -------------------------------------------------------------------------------------

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass
class TrackingConfig:
    """Trackers that also receive what a run records. Each needs the extra of its name."""

    to: list[str] = setting([], "trackers of the run, several at once", choices=TRACKERS)
    project: str = setting("tfx", "what the runs are grouped under: a project (W&B, Trackio), an experiment (MLflow)")
    artifacts: bool = setting(False, "also send the final file and the page")


# --- evaluation -------------------------------------------------------------------------------------


@dataclass
class EvaluationConfig:
    """How the final file is scored."""

    method: str = setting(
        "auto",
        "decoding; auto: beam for text to text, sample for a language model",
        choices=("auto", "greedy", "beam", "sample"),
    )
    beam: int = setting(5, "beam: hypotheses kept", minimum=1, maximum=1000)
    length_penalty: float = setting(
        1.0,
        "beam: exponent alpha of ((5 + length) / 6)^alpha",
        minimum=0,
        maximum=10,
        paper="Wu 2016, arXiv 1609.08144",
    )
    temperature: float = setting(1.0, "sample: temperature", minimum=1e-6, maximum=100)
    top_k: int | None = setting(None, "sample: only the k likeliest tokens", minimum=1, paper="Fan 2018")
    top_p: float | None = setting(
        None, "sample: the likeliest tokens up to this mass", above=0, maximum=1, paper="Holtzman 2020"
    )
    min_length: int = setting(0, "shortest output: no end before", minimum=0, maximum=100000, unit="tokens")
    no_repeat_ngram: int = setting(
        0,
        "a text has no n-gram of this many tokens twice; 0: it may",
        minimum=0,
        maximum=1000,
        paper="Paulus 2017, arXiv 1705.04304",
    )
    repetition_penalty: float = setting(
        1.0,
        "what divides positive logits, and multiplies negative ones, of tokens that the text has; 1: nothing",
        minimum=1,
        maximum=100,
        paper="Keskar 2019, arXiv 1909.05858",
    )
    max_length_ratio: float = setting(
        2.0, "longest output: ratio * source length + 10", above=0, maximum=1000, unit="tokens"
    )
    new_tokens: int = setting(200, "lm: tokens that `tfx generate` adds", minimum=1, maximum=100000)
    batch_tokens: int = setting(8192, "tokens scored at once", minimum=1, unit="tokens")
    precision: str = setting(
        "auto",
        "number format of scoring and decoding; tf32 (on a GPU, else fp32) and bf16 (autocast) are faster; auto: tf32 "
        "for validations while training, fp32 for every number of a result",
        choices=("auto", "fp32", "tf32", "bf16"),
    )
    decode_valid: int | None = setting(None, "validation examples decoded at the end; null: all", minimum=1)
    attention_maps: int = setting(
        0, "test inputs whose attention weights are kept for the report", minimum=0, maximum=20
    )
    engine: str = setting(
        "torch",
        "what decodes in `tfx evaluate` and `tfx generate`: the model itself, or another library (its extra)",
        choices=("torch", "ctranslate2", "onnx"),
    )
    engine_numbers: str = setting(
        "float32", "type of the weights of another engine", choices=("float32", "int8", "int8_float32", "int16")
    )
    latency_inputs: int = setting(50, "inputs timed one at a time for the latency", minimum=1)


# --- sweeps -----------------------------------------------------------------------------------------


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


# The rates of a model; unlike its architecture they may change from run to run.
RATES = ("dropout", "attention_dropout", "ffn_dropout", "token_dropout", "layer_dropout")

# --- the whole --------------------------------------------------------------------------------------


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
        "against the reference, or without one against the model before compression",
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
