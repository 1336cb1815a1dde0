"""Settings of what is measured and told: evaluation and trackers."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.config.schema.fields import setting

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass
class TrackingConfig:
    """Trackers that also receive what a run records. Each needs the extra of its name."""

    to: list[str] = setting([], "trackers of the run, several at once", choices=TRACKERS)
    project: str = setting("tfx", "what the runs are grouped under: a project (W&B, Trackio), an experiment (MLflow)")
    artifacts: bool = setting(False, "also send the final file and the page")


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
