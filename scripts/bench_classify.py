"""How well questions are classified: words and pairs of words, tfx, and `transformers` fine-tuning the same encoder.

    python scripts/bench_classify.py --data path/to/trec --output FOLDER [--encoder path/to/encoder]
        [--sentences path/to/sentences.en] [--arms words tfx …] [--seeds 5] [--epochs 2] [--rows 32] [--rate 1e-4]
        [overrides of `tfx train` …]

Arms: `words`, logistic regression (C = 10) on counts of words and of pairs of neighbours; `scratch`, `tfx train` of the
data set's own model; `tfx`, the encoder fine-tuned by `tfx train experiment=finetune`; `transformers`, the same by the
Trainer of that library with the same rate, warm-up, decay, texts in a batch and epochs; `taught`, the model of
`scratch` that the encoder of `tfx` with the first seed teaches, on the training questions and on those among the
`--sentences`, which have no labels; `compressed`, that student at about two bits a weight, with the same teacher. Seed
by seed the arms take turns. Each result is a line of JSON in FOLDER/results.jsonl, from which the table is printed: an
arm and seed that is there already is not run again. Needs scikit-learn for `words`, transformers and accelerate for
`transformers`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SPLITS = ("train", "valid", "test")
# How a question that asks for something begins; most others of a conversation ask for a yes or a no.
_ASKS = re.compile(
    r"(what|who|whom|whose|where|when|why|how|which|name|(in|at|on|for) (what|which)|(for|by) how)\b", re.IGNORECASE
)


def read(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Texts and labels of each split."""
    splits = {}
    for split in SPLITS:
        header, *lines = (data / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        text, label = header.split("\t").index("text"), header.split("\t").index("label")
        splits[split] = [(cells[text], cells[label]) for cells in (line.split("\t") for line in lines)]
    return splits


def questions(options: argparse.Namespace) -> Path:
    """FOLDER/questions.en: the questions among the sentences as TREC spells them, once each, and none that it has."""
    known = {text.lower() for pairs in read(options.data).values() for text, _ in pairs}
    found = []
    for sentence in options.sentences.read_text(encoding="utf-8").splitlines():
        if not sentence.strip().endswith("?") or not _ASKS.match(sentence.strip()):
            continue
        text = re.sub(r"(\w)('s|'re|'ve|'ll|'d)\b", r"\1 \2", re.sub(r"\s*([?,;:])", r" \1", sentence.strip()))
        if len(text.split()) > 3 and text.lower() not in known:
            known.add(text.lower())
            found.append(text + "\n")
    path = options.output / "questions.en"
    path.write_text("".join(found), encoding="utf-8")
    return path


def words(options: argparse.Namespace, seed: int) -> dict[str, float]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    splits = read(options.data)
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
    model = make_pipeline(counts, LogisticRegression(C=10, max_iter=1000, random_state=seed))
    model.fit(*zip(*splits["train"], strict=True))
    return {split: float(model.score(*zip(*splits[split], strict=True))) for split in SPLITS[1:]}


def train(options: argparse.Namespace, name: str, overrides: list[str]) -> dict[str, float]:
    """The accuracies of a run of tfx, on its file."""
    from tfx.cli import main

    run = options.output / name
    data = ["dataset=trec", f"dataset.path={options.data}", f"hydra.run.dir={run}"]
    if not (run / "summary.json").is_file() and main(["train", *data, *overrides, *options.overrides]) != 0:
        raise SystemExit(f"{name} failed: see {run / 'train.log'}")
    summary = json.loads((run / "summary.json").read_text())
    return {split: summary[split]["accuracy"] for split in SPLITS[1:]}


def scratch(options: argparse.Namespace, seed: int) -> dict[str, float]:
    return train(options, f"scratch-{seed}", [f"seed={seed}"])


def tfx(options: argparse.Namespace, seed: int) -> dict[str, float]:
    steps = -(-len(read(options.data)["train"]) // options.rows) * options.epochs
    recipe = [f"init_from={options.encoder}", "experiment=finetune", f"optimizer.lr={options.rate}", f"seed={seed}"]
    recipe.append("optimizer.layer_decay=1")  # the other library has none
    # A text of this data has about 13 tokens with the two around it.
    size = [f"dataset.batch_tokens={13 * options.rows}", f"trainer.budget.steps={steps}"]
    return train(options, f"tfx-{seed}", [*recipe, *size])


def taught_by(options: argparse.Namespace) -> list[str]:
    """The teacher of the students, which has read every text once, and what they are taught on."""
    teacher = f"technique.distill.teacher={options.output / 'tfx-1'}"
    return [teacher, "technique.distill.cache_top_k=6", f"dataset.monolingual={questions(options)}"]


def taught(options: argparse.Namespace, seed: int) -> dict[str, float]:
    words = ["+technique=distill", *taught_by(options), "trainer.budget.steps=800", f"seed={seed}"]
    return train(options, f"taught-{seed}", words)


def compressed(options: argparse.Namespace, seed: int) -> dict[str, float]:
    stack = ["+technique=[distill,quantize]", *taught_by(options), *COMPRESSION, f"seed={seed}"]
    return train(options, f"compressed-{seed}", [f"init_from={options.output / f'taught-{seed}'}", *stack])


def transformers(options: argparse.Namespace, seed: int) -> dict[str, float]:
    import numpy as np
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    splits = read(options.data)
    labels = sorted({label for _, label in splits["train"]})
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    model = AutoModelForSequenceClassification.from_pretrained(options.encoder, num_labels=len(labels))
    rows = {
        split: [{**tokenizer(text, truncation=True), "labels": labels.index(label)} for text, label in pairs]
        for split, pairs in splits.items()
    }
    steps = -(-len(rows["train"]) // options.rows) * options.epochs
    settings = TrainingArguments(
        output_dir=str(options.output / f"transformers-{seed}"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.rows,
        per_device_eval_batch_size=64,
        learning_rate=options.rate,
        weight_decay=0.01,
        warmup_steps=steps // 10,
        lr_scheduler_type="linear",
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, settings, train_dataset=rows["train"], processing_class=tokenizer)
    trainer.train()
    found = {}
    for split in SPLITS[1:]:
        said = np.asarray(trainer.predict(rows[split]).predictions).argmax(1)
        found[split] = float(np.mean([number == row["labels"] for number, row in zip(said, rows[split], strict=True)]))
    return found


# The student is there already: a short training with small steps, most of it on the grid.
COMPRESSION = [
    *("technique.quantize.rate=2.2", "technique.quantize.start=0.3", "trainer.budget.steps=120"),
    *("optimizer.lr=0.0005", "optimizer.matrix_lr=0.002"),
]

ARMS = {
    "words": words,
    "scratch": scratch,
    "tfx": tfx,
    "transformers": transformers,
    "taught": taught,
    "compressed": compressed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--sentences", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-4)
    options, options.overrides = parser.parse_known_args()
    options.data, options.output = options.data.absolute(), options.output.absolute()
    if options.encoder is None and {"tfx", "transformers"} & set(options.arms):
        parser.error("--encoder names the folder that is fine-tuned")
    if options.sentences is None and {"taught", "compressed"} & set(options.arms):
        parser.error("--sentences names the text whose questions teach the student")
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "results.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for seed in range(1, options.seeds + 1):
        for arm in options.arms:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in known):
                continue
            start = time.perf_counter()
            row: dict[str, Any] = {"arm": arm, "seed": seed, **ARMS[arm](options, seed)}
            known.append(row | {"seconds": round(time.perf_counter() - start, 1)})
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(known[-1]) + "\n")
    print_table(known)


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("arm", "seeds", "valid", "test", "seconds")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for split in SPLITS[1:]:
            values = [100 * row[split] for row in own]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        table.add_row(arm, str(len(own)), *cells, f"{statistics.median(row['seconds'] for row in own):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
