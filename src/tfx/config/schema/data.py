"""Settings of the data: where texts come from, how they are split, limited and cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfx.config.schema.fields import group, setting
from tfx.config.schema.model import TokenizerConfig
from tfx.config.task_facts import TASKS

# In the place of a number that is found for the machine at hand.
AUTO = "auto"


@dataclass
class SplitConfig:
    """Names of the splits: file stems or hub splits; the first that exists is taken."""

    train: list[str] = setting(["train"], "names of the training split")
    valid: list[str] = setting(["valid", "validation", "val", "dev"], "names of the validation split")
    test: list[str] = setting(["test"], "names of the test split; none: it is not read")


@dataclass
class LimitConfig:
    """Caps on the number of examples, taken from the start of a split; for classification from all over it."""

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
        "share of the training split, cut from its end (classification: from all over it), that validates if there is "
        "no validation split",
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
        None, "seq2seq: training pairs whose lengths differ by more are dropped", above=1, maximum=1000000
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
