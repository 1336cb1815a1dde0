"""Classifiers leave as `BertForSequenceClassification` with their labels, and such folders come in."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import tfx
from tfx.cli import main
from tfx.exchange.importing import import_folder

BERT = [
    "model=encoder_base",
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=24",
    "model.encoder_layers=2",
    "model.context=40",
]
ROWS = [(f"word {i % 5} and more", f"other {i % 3}", "abc"[i % 3], str(i % 3 + 0.5)) for i in range(40)]


@pytest.fixture(scope="module")
def data(folder):
    for split in ("train", "valid"):
        rows = [{"text": a, "second": b, "label": label, "number": number} for a, b, label, number in ROWS]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["dataset=json", "dataset.task=classification", f"dataset.path={folder}", "dataset.tokenizer.vocab_size=290"]


KINDS = {
    "pairs": ["dataset.pair=second", "dataset.metrics=[accuracy]"],
    "several": ["dataset.predict=several", "dataset.metrics=[f1_micro]"],
    "number": ["dataset.predict=number", "dataset.label=number", "dataset.metrics=[pearson]"],
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_classifier_answers_the_same_in_transformers_and_comes_back(kind, data, folder, capsys):
    run, out = folder / kind, folder / f"{kind}-out"
    words = [*data, *BERT, *KINDS[kind], "trainer.budget.steps=3", "evaluation.latency_inputs=1"]
    assert main(["train", *words, f"hydra.run.dir={run}"]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--to", "transformers", "--output", str(out), "--card", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] == 1
    assert found["largest"] < 1e-4
    assert "pipeline_tag: text-classification" in (out / "README.md").read_text()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert type(theirs) is transformers.BertForSequenceClassification
    # Their own tokenizer frames a text, or a pair, as ours does.
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = ROWS[1][:2] if kind == "pairs" else ROWS[1][:1]
    inputs = tokenizer(*text, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        logits = theirs(**inputs).logits[0]
    given = {
        "pairs": lambda: theirs.config.id2label[int(logits.argmax())],
        "several": lambda: json.dumps([theirs.config.id2label[i] for i in range(3) if logits[i] > 0]),
        "number": lambda: f"{float(logits[0]):.4g}",
    }[kind]()
    assert main(["generate", str(run), "\t".join(text)]) == 0
    shown = capsys.readouterr().out.strip()
    assert (f"{float(shown):.4g}" if kind == "number" else shown) == given
    again = import_folder(out, folder / f"{kind}.safetensors")
    assert again.model_type == "bert"
    outputs = tfx.load(folder / f"{kind}.safetensors").model.architecture.outputs
    assert outputs.predicts == {"pairs": "one"}.get(kind, kind)
    assert outputs.labels == (() if kind == "number" else ("a", "b", "c"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.pooling=mean"], "BertForSequenceClassification has no model with model.pooling=mean"),
        (["model.pooler=false"], "BertForSequenceClassification has no model with model.pooler=false"),
    ],
)
def test_a_classifier_that_the_class_cannot_be_is_refused_by_its_setting(words, says, data, folder, capsys):
    run = folder / words[0]
    settings = [*data, *BERT, "dataset.metrics=[accuracy]", *words, "trainer.budget.steps=1"]
    assert main(["train", *settings, "evaluation.latency_inputs=1", f"hydra.run.dir={run}"]) == 0
    assert main(["export", str(run), "--to", "transformers", "--output", str(folder / "no")]) == 2
    assert says in capsys.readouterr().err
    assert main(["export", str(run), "--to", "safetensors", "--output", str(folder / f"plain{words[0]}")]) == 0


def test_fine_tuning_starts_from_the_encoder_of_a_folder_with_a_new_layer_for_labels(data, folder, make, capsys):
    theirs = make("encoder", folder / "encoder")
    run = folder / "tuned"
    words = [*data, f"init_from={folder / 'encoder'}", "experiment=finetune", "dataset.metrics=[accuracy]"]
    words = [word for word in words if "tokenizer" not in word]
    steps = ["trainer.budget.steps=0", "evaluation.latency_inputs=1"]
    assert main(["train", *words, *steps, f"hydra.run.dir={run}"]) == 0
    model = tfx.load(run).model
    assert model.architecture.outputs.labels == ("a", "b", "c")
    assert (model.architecture.pooling, model.architecture.pooler) == ("first", True)
    ours = model.encoder.blocks[1].ffn.up.weight
    torch.testing.assert_close(ours, theirs.encoder.layer[1].intermediate.dense.weight)
    # What is trained from there starts from it, and beats nothing at all.
    words = [f"init_from={run}", "trainer.budget.steps=20", "optimizer.lr=0.01", "evaluation.latency_inputs=1"]
    assert main(["train", *words, "optimizer=adamw", f"hydra.run.dir={folder / 'further'}"]) == 0
    before, after = (json.loads((folder / n / "summary.json").read_text())["valid"] for n in ("tuned", "further"))
    assert after["loss"] < before["loss"]
