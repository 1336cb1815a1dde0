"""Classifiers leave as `BertForSequenceClassification` or as a graph, with their labels; such folders come in."""

from __future__ import annotations

import importlib.util
import io
import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import tfx
from tfx.cli import main
from tfx.compression.checkpoint import load
from tfx.errors import UserError
from tfx.exchange.importing import import_folder
from tfx.exchange.targets import TARGETS

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
        (["model.convolution=3"], "BertForSequenceClassification has no model with model.convolution=3"),
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


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")), reason="needs extra onnx"
)
LONG = " ".join(["and more"] * 60)
TINY = ["model=encoder_tiny", *BERT[1:]]
# Kinds of outputs, what pools, and how long texts are read.
IN_ONNX = {
    "pairs": [*BERT, *KINDS["pairs"]],
    "several": [*TINY, *KINDS["several"], "model.pooling=max"],
    "number": [*TINY, *KINDS["number"], "model.pooling=attention"],
    "windows": [*TINY, "dataset.metrics=[accuracy]", "dataset.long_texts=windows", "model.context=16"],
}


def answered(run, lines, folder, capsys, monkeypatch):
    """What `tfx generate --json` gives for lines."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode())))
    assert main(["generate", str(run), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@needs_onnx
@pytest.mark.parametrize("kind", list(IN_ONNX))
def test_onnxruntime_alone_answers_as_the_run_does(kind, data, folder, capsys, monkeypatch):
    import onnxruntime

    run, out = folder / f"{kind}-run", folder / f"{kind}-onnx"
    words = [*data, *IN_ONNX[kind], "trainer.budget.steps=8", "optimizer.lr=0.01", "evaluation.latency_inputs=1"]
    assert main(["train", *words, f"hydra.run.dir={run}"]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--to", "onnx", "--output", str(out), "--card", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["equal"] == 1
    assert max(found["largest"], found["logits"]) < 1e-4
    assert ("reads texts over 16 tokens in windows" in shown.err) == (kind == "windows")
    assert {file.name for file in out.iterdir()} == {"model.onnx", "config.json", "tokenizer.json", "README.md"}

    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = [place.name for place in session.get_inputs()]
    assert ("token_type_ids" in names) == (kind == "pairs")
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    config = json.loads((out / "config.json").read_text())
    tokenizer.enable_padding(pad_id=config["pad_token_id"])
    # Of different lengths, one of them longer than the context where texts are cut.
    texts = [row[:2] if kind == "pairs" else row[:1] for row in ROWS[:3]]
    texts += [] if kind == "windows" else [(f"{LONG} {ROWS[0][0]}", *texts[0][1:])]
    encoded = tokenizer.encode_batch([pair if kind == "pairs" else pair[0] for pair in texts])
    parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    feed = {name: np.asarray([getattr(each, parts[name]) for each in encoded], np.int64) for name in names}
    (logits,) = session.run(None, feed)
    records = answered(run, ["\t".join(pair) for pair in texts], folder, capsys, monkeypatch)
    assert len({json.dumps(record) for record in records}) > 1
    if kind == "number":
        np.testing.assert_allclose(logits[:, 0], [record["output"] for record in records], rtol=1e-3)
        return
    shares = torch.from_numpy(logits).sigmoid() if kind == "several" else torch.from_numpy(logits).softmax(1)
    labels = [config["id2label"][str(number)] for number in range(3)]
    for row, record in zip(shares.tolist(), records, strict=True):
        assert record["probabilities"] == pytest.approx(dict(zip(labels, row, strict=True)), abs=1e-5)


@needs_onnx
def test_a_compressed_classifier_with_early_exits_leaves_whole_with_its_own_codes(data, folder, capsys):
    import onnx
    from onnx import numpy_helper

    run, out = folder / "small-run", folder / "small-onnx"
    stack = ["+technique=[early_exit,quantize]", "technique.early_exit.max_drop=1", "technique.quantize.bits=8"]
    words = [*data, *BERT, *stack, "technique.quantize.granularity=channel", "dataset.metrics=[accuracy]"]
    steps = ["trainer.budget.steps=6", "evaluation.latency_inputs=1"]
    assert main(["train", *words, *steps, f"hydra.run.dir={run}"]) == 0
    capsys.readouterr()
    export = ["export", str(run), "--to", "onnx", "--output", str(out), "--numbers", "int8", "--json"]
    assert main(export) == 0
    shown = capsys.readouterr()
    assert "texts leave it early here, and not in onnx" in shown.err
    found = json.loads(shown.out)
    assert found["kept_codes"] > 0
    assert 0 < found["mean"] < 0.1
    graph = onnx.load(out / "model.onnx").graph
    arrays = [numpy_helper.to_array(item) for item in graph.initializer]
    grid = load(run, kernels=False).grids["encoder.blocks.1.ffn.up.weight"]
    own = grid.codes_RC.numpy().astype(int) - 128
    assert any(codes.dtype == np.int8 and codes.T.shape == own.shape and (own == codes.T).all() for codes in arrays)
    assert {"DynamicQuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    # Each has its zero point: without, onnxruntime fails in a `Gemm` on processors without VNNI.
    assert all(len(node.input) == 3 for node in graph.node if node.op_type == "DequantizeLinear")
    # No head of an exit is in the file: only the model's own layer has a row for each label.
    assert sum(3 in array.shape for array in arrays if array.ndim == 2) == 1


def test_a_classifier_is_decoded_by_no_engine_and_has_no_place_in_ctranslate2(data, folder, capsys):
    run = folder / "engine-run"
    words = [*data, *TINY, "dataset.metrics=[accuracy]", "trainer.budget.steps=0", "evaluation.latency_inputs=1"]
    assert main(["train", *words, f"hydra.run.dir={run}"]) == 0
    assert main(["generate", str(run), "--engine", "onnx", "a"]) == 2
    assert "evaluation.engine=onnx decodes text, and a classifier writes none" in capsys.readouterr().err
    with pytest.raises(UserError, match="CTranslate2 has no classifiers: export it --to onnx"):
        TARGETS["ctranslate2"].check(tfx.load(run).model.architecture)
