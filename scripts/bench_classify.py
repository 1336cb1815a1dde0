"""How well questions are classified: words and pairs of words, tfx, and `transformers` fine-tuning the same encoder.

    python scripts/bench_classify.py --data path/to/trec --output FOLDER [--encoder path/to/encoder]
        [--sentences path/to/sentences.en] [--arms words tfx …] [--seeds 5] [--epochs 2] [--rows 32] [--rate 1e-4]
        [--against words] [--folds 5] [overrides of `tfx train` …]

Arms: `words`, logistic regression (C = 10) on counts of words and of pairs of neighbours, split as scikit-learn does
by default; `spaced`, the same with words split at spaces, punctuation and capitals kept; `scratch`, `tfx train` of
the data set's own model; `convolved`, that model with a convolution and BPE dropout; `r_drop`, the same with R-Drop;
`tfx`, the encoder fine-tuned by `tfx train experiment=finetune`; `one_shot`, that encoder pruned and in 4 bits, without
training; `transformers`, the encoder fine-tuned by the Trainer of that library with the same rate, warm-up, decay,
texts in a batch and epochs; `taught`, the model of `scratch` that the encoder of `tfx` with the first seed teaches, on
the training questions and on those among the `--sentences`, which have no labels; `compressed`, that student at about
two bits a weight, with the same teacher. Seed by seed the arms take turns. Each result is a line of JSON in
FOLDER/results.jsonl, from which the table is printed: an arm and seed that is there already is not run again.
Differences to the arm `--against` are over the questions of both splits, with intervals from samples of questions and
of seeds. With `--folds K` the training questions fall at random into K parts. Each is the test data once, with the
other parts to learn from and the data's own validation questions; only test counts, so that no question that is judged
has chosen anything. Seed 1 takes the first part, seed K + 1 too: `--seeds` counts runs, a multiple of K. Needs
scikit-learn for `words` and `spaced`, transformers and accelerate for `transformers`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
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


def fold(options: argparse.Namespace, whole: Path, seed: int) -> Path:
    """The folder with the data of the run with this seed: a part of the training questions are its test questions."""
    folder = options.output / "folds" / str((seed - 1) % options.folds + 1)
    folder.mkdir(parents=True, exist_ok=True)
    splits = read(whole)
    order = list(range(len(splits["train"])))
    random.Random(0).shuffle(order)
    held = set(order[(seed - 1) % options.folds :: options.folds])
    splits["test"] = [pair for number, pair in enumerate(splits["train"]) if number in held]
    splits["train"] = [pair for number, pair in enumerate(splits["train"]) if number not in held]
    for split, pairs in splits.items():
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in pairs)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


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


def accuracies(options: argparse.Namespace, said: dict[str, list[str]]) -> dict[str, Any]:
    """The share of right labels in each split, and which they are: a 0 or 1 for each question."""
    splits = read(options.data)
    right = {
        split: [int(label == pair[1]) for label, pair in zip(said[split], splits[split], strict=True)]
        for split in SPLITS[1:]
    }
    return {**{split: statistics.mean(own) for split, own in right.items()}, "right": right}


def words(options: argparse.Namespace, seed: int, **tokens: Any) -> dict[str, Any]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    splits = read(options.data)
    counts = CountVectorizer(ngram_range=(1, 2), **tokens)
    model = make_pipeline(counts, LogisticRegression(C=10, max_iter=1000, random_state=seed))
    model.fit(*zip(*splits["train"], strict=True))
    return accuracies(
        options, {split: list(model.predict([text for text, _ in splits[split]])) for split in SPLITS[1:]}
    )


def spaced(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return words(options, seed, token_pattern=r"\S+", lowercase=False)


def train(options: argparse.Namespace, name: str, overrides: list[str]) -> dict[str, Any]:
    """The accuracies of a run of tfx, of the labels that its file gives."""
    from tfx.cli import main

    run = options.output / name
    data = ["dataset=trec", f"dataset.path={options.data}", f"hydra.run.dir={run}"]
    if not (run / "summary.json").is_file() and main(["train", *data, *overrides, *options.overrides]) != 0:
        raise SystemExit(f"{name} failed: see {run / 'train.log'}")
    said = {}
    for split in SPLITS[1:]:
        texts = "".join(text + "\n" for text, _ in read(options.data)[split])
        command = [sys.executable, "-m", "tfx", "generate", str(run)]
        found = subprocess.run(command, input=texts, capture_output=True, text=True, check=True)
        said[split] = found.stdout.splitlines()
    return accuracies(options, said)


def scratch(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return train(options, f"scratch-{seed}", [f"seed={seed}"])


def convolved(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return train(options, f"convolved-{seed}", ["model.convolution=3", "+technique=bpe_dropout", f"seed={seed}"])


def r_drop(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    own = ["model.convolution=3", "+technique=[bpe_dropout,r_drop]", "technique.r_drop.alpha=1", f"seed={seed}"]
    return train(options, f"r_drop-{seed}", own)


def tfx(options: argparse.Namespace, seed: int) -> dict[str, Any]:
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


def taught(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    words = ["+technique=distill", *taught_by(options), "trainer.budget.steps=800", f"seed={seed}"]
    return train(options, f"taught-{seed}", words)


def compressed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    stack = ["+technique=[distill,quantize]", *taught_by(options), *COMPRESSION, f"seed={seed}"]
    return train(options, f"compressed-{seed}", [f"init_from={options.output / f'taught-{seed}'}", *stack])


def one_shot(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    own = [f"init_from={options.output / f'tfx-{seed}'}", "+technique=[prune,quantize]", "trainer.budget.steps=0"]
    own += ["technique.prune.score=sparsegpt", "technique.prune.sparsity=0.3"]
    own += ["technique.quantize.method=gptq", "technique.quantize.bits=4", f"seed={seed}"]
    return train(options, f"one_shot-{seed}", own)


def transformers(options: argparse.Namespace, seed: int) -> dict[str, Any]:
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
    said = {}
    for split in SPLITS[1:]:
        numbers = np.asarray(trainer.predict(rows[split]).predictions).argmax(1)
        said[split] = [labels[number] for number in numbers]
    return accuracies(options, said)


# The student is there already: a short training with small steps, most of it on the grid.
COMPRESSION = [
    *("technique.quantize.rate=2.2", "technique.quantize.start=0.3", "trainer.budget.steps=120"),
    *("optimizer.lr=0.0005", "optimizer.matrix_lr=0.002"),
]

ARMS = {
    "words": words,
    "spaced": spaced,
    "scratch": scratch,
    "convolved": convolved,
    "r_drop": r_drop,
    "tfx": tfx,
    "one_shot": one_shot,
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
    parser.add_argument("--against", choices=list(ARMS), default="words", help="the arm that differences are to")
    parser.add_argument("--folds", type=int, default=0, help="test on parts of the training questions, each in turn")
    options, options.overrides = parser.parse_known_args()
    if options.folds == 1 or (options.folds and options.seeds % options.folds):
        parser.error("--folds is 2 or more, and --seeds a multiple of it")
    options.data, options.output = options.data.absolute(), options.output.absolute()
    if options.encoder is None and {"tfx", "transformers"} & set(options.arms):
        parser.error("--encoder names the folder that is fine-tuned")
    if options.sentences is None and {"taught", "compressed"} & set(options.arms):
        parser.error("--sentences names the text whose questions teach the student")
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "results.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    whole = options.data
    for seed in range(1, options.seeds + 1):
        if options.folds:
            options.data = fold(options, whole, seed)
        for arm in options.arms:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in known):
                continue
            start = time.perf_counter()
            row: dict[str, Any] = {"arm": arm, "seed": seed, **ARMS[arm](options, seed)}
            known.append(row | {"seconds": round(time.perf_counter() - start, 1)})
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(known[-1]) + "\n")
    print_table(known, options.against, options.folds)


def print_table(rows: list[dict[str, Any]], against: str, folds: int) -> None:
    judged = "test of all folds" if folds else "both"
    table = Table("arm", "seeds", "valid", "test", judged, f"minus {against} (95 %)", "seconds")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for split in SPLITS[1:]:
            values = [100 * row[split] for row in own]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        seconds = f"{statistics.median(row['seconds'] for row in own):.0f}"
        table.add_row(arm, str(len(own)), *cells, *difference(rows, own, against, folds), seconds)
    Console().print(table)


def difference(rows: list[dict[str, Any]], own: list[dict[str, Any]], against: str, folds: int) -> tuple[str, str]:
    """The accuracy of an arm over the questions that count, and its difference to that of another, in points."""
    import numpy as np

    from tfx.report.statistics import sentence_weights

    def right(of: list[dict[str, Any]], fold: int) -> Any:
        """(runs, questions): with folds the test questions of one of them, else those of both splits."""
        counted = [row for row in of if "right" in row and (not folds or (row["seed"] - 1) % folds == fold)]
        splits = SPLITS[2:] if folds else SPLITS[1:]
        return np.array([[hit for split in splits for hit in row["right"][split]] for row in counted], float)

    parts = [
        (right(own, fold), right([row for row in rows if row["arm"] == against], fold)) for fold in range(folds or 1)
    ]
    if not all(len(own_SN) for own_SN, _ in parts):
        return "–", "–"
    accuracy = f"{100 * np.mean([own_SN.mean() for own_SN, _ in parts]):.2f}"
    if not all(len(other_SN) for _, other_SN in parts) or own[0]["arm"] == against:
        return accuracy, "–"
    drawn_RF = []
    for fold, (own_SN, other_SN) in enumerate(parts):
        weights_RN = sentence_weights(own_SN.shape[1], seed=2 * fold) / own_SN.shape[1]
        seeds_RS = sentence_weights(len(own_SN), seed=2 * fold + 1) / len(own_SN)
        drawn_RF.append(np.einsum("rn,rs,sn->r", weights_RN, seeds_RS, own_SN) - weights_RN @ other_SN.mean(0))
    # Runs of different folds differ by their seeds too: that a fold is drawn twice or not at all shows by how much.
    folds_RF = sentence_weights(len(parts), seed=2 * len(parts)) / len(parts)
    low, high = np.quantile(100 * (np.stack(drawn_RF, 1) * folds_RF).sum(1), (0.025, 0.975))
    gap = 100 * np.mean([own_SN.mean() - other_SN.mean() for own_SN, other_SN in parts])
    return accuracy, f"{gap:+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
