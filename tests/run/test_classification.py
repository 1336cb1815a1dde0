"""Classification through the commands: a run, every technique on it, and what the other commands make of it."""

import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import tfx
from tfx.cli import main
from tfx.config.compose import compose
from tfx.model.transformer import run_batch
from tfx.run.setup import build_model, read_inputs
from tfx.techniques.calibration import Calibration, calibration_batches

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.encoder_layers=1",
    "model.context=16",
    "model.dropout=0",
    "evaluation.latency_inputs=2",
    "optimizer.lr=0.01",
]
DATA = [
    "dataset=csv",
    "model=encoder_tiny",
    "dataset.task=classification",
    "dataset.metrics=[accuracy,f1_macro,matthews,calibration_error]",
    "dataset.tokenizer.kind=char",
    "dataset.batch_tokens=256",
]
WORDS = ["sun", "rain", "snow", "wind"]


@pytest.fixture(scope="module")
def data(folder):
    """Texts whose last word says which of three labels they have."""
    for split, count in (("train", 160), ("valid", 24), ("test", 24)):
        rows = [f"{WORDS[i % 4]} and {WORDS[i * 7 % 3]}\t{['hot', 'wet', 'cold'][i * 7 % 3]}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return [*DATA, f"dataset.path={folder}"]


@pytest.fixture(scope="module")
def run(folder, data):
    words = ["trainer.budget.steps=60", "evaluation.attention_maps=1", f"hydra.run.dir={folder / 'run'}"]
    assert main(["train", *data, *TINY, *words]) == 0
    return folder / "run"


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def test_a_run_learns_and_its_other_commands_agree(run, data, capsys, monkeypatch):
    summary = summary_of(run)
    assert (summary["task"], summary["primary_metric"], summary["test_split"]) == ("classification", "accuracy", "test")
    assert summary["test"]["accuracy"] > 0.9
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert sum(row["reference"] == row["hypothesis"] for row in rows) / 24 == summary["test"]["accuracy"]
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(summary["test"])
    texts = "".join(row["source"] + "\n" for row in rows) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts.encode())))
    assert main(["generate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [*(row["hypothesis"] for row in rows), ""]
    assert main(["generate", str(run), "--json", "--beam", "3", "sun and snow"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert max(record["probabilities"], key=record["probabilities"].get) == record["output"]
    assert "--beam has no effect: classification writes no text" in shown.err
    assert main(["generate", str(run), "--json", "", "sun and snow"]) == 0
    assert [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()] == [None, record["output"]]
    page = (run / "report.html").read_text()
    assert "Labels of " in page
    assert "Texts by their right label" in page
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["report", str(run)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("accuracy", "f1_macro", "matthews", "calibration_error"))
    assert f"{summary['test']['matthews']:.3g}" in shown
    (map_,) = json.loads((run / "attention.json").read_text())
    assert map_["tokens_source"][0] == "<bos>"
    assert map_["tokens_source"][-1] == "<eos>"
    assert [layer["name"] for layer in map_["layers"]] == ["encoder 0 self"]
    assert main(["reproduce", str(run)]) == 0


def test_every_technique_acts_on_it_and_the_file_is_smaller(run, folder, capsys):
    stack = "+technique=[shuffle,mixup,distill,prune,quantize]"
    words = ["technique.shuffle.share=0.5", "technique.mixup.share=0.5", "technique.prune.sparsity=0.3"]
    words += [
        "technique.distill.hidden=0.1",
        f"technique.distill.teacher={run}",
        "technique.quantize.bits=8",
        "technique.quantize.group=16",
    ]
    where = f"hydra.run.dir={folder / 'small'}"
    assert main(["train", f"init_from={run}", stack, *words, "trainer.budget.steps=12", where]) == 0
    summary = summary_of(folder / "small")
    evidence = summary["evidence"]
    assert all(any(value for value in proof.values()) for proof in evidence.values())
    assert set(evidence) == {"shuffle", "mixup", "distill", "prune", "quantize"}
    assert evidence["distill"]["divergence"] > 0
    assert evidence["distill"]["hidden_error"] > 0
    assert summary["bytes"]["ratio"] > 2
    assert summary["reference"]["test"]["accuracy"] == summary_of(run)["test"]["accuracy"]
    capsys.readouterr()
    assert main(["inspect", str(folder / "small"), "--json"]) == 0
    assert "pooling" not in json.dumps(json.loads(capsys.readouterr().out)["tensors"])  # the mean has no weights


def written(folder, predict):
    """A folder of texts with numbers, with lists of labels, or with one label each."""
    (place := folder / predict).mkdir(exist_ok=True)
    for split, count in (("train", 80), ("valid", 12), ("test", 12)):
        lines = ["text\tlabel"]
        for i in range(count):
            first, second = WORDS[i % 4], WORDS[i * 7 % 3]
            label = {"number": f"{i * 7 % 3}.5", "several": f"{first},{second}", "one": second}[predict]
            lines.append(f"{first} and {second}\t{label}")
        (place / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return place


def of_kind(place, predict):
    return [*DATA, f"dataset.path={place}", f"dataset.predict={predict}", "dataset.metrics=[]"]


@pytest.mark.parametrize("predict", ["number", "several"])
@pytest.mark.parametrize("method", ["trellis", "gptq", "nearest"])
def test_a_rate_is_met_by_what_the_loss_of_the_task_says(predict, method, folder):
    """Numbers have one output, whose likelihood among the outputs is 1 whatever it is."""
    place = written(folder, predict)
    words = ["trainer.budget.steps=30", "+technique=quantize", f"technique.quantize.method={method}"]
    words += ["technique.quantize.rate=3", "technique.quantize.aware=false", f"hydra.run.dir={place / method}"]
    assert main(["train", *of_kind(place, predict), *TINY, *words]) == 0
    evidence = summary_of(place / method)["evidence"]["quantize"]
    assert evidence["entropy_bits"] == pytest.approx(3, rel=0.1)
    assert evidence["relative_error"] < 0.7


@pytest.mark.parametrize("predict", ["one", "number", "several"])
def test_sensitivities_are_those_of_the_loss_of_the_task(predict, folder):
    config = compose([*of_kind(written(folder, predict), predict), *TINY, "trainer.budget.steps=1"])
    _, data = read_inputs(config)
    model = build_model(config, data, torch.device("cpu"), None).eval()
    calibration = Calibration(model, lambda count: calibration_batches(data, config, 16, torch.device("cpu"), count))
    calibration.request(2)
    # As a text without labels is batched, with the first one in their place.
    calibration._batches.append(replace(calibration._batches[0], is_labelled=False))
    name = "encoder.blocks.0.ffn.up.weight"
    found_R = calibration.squared_gradients([name])[name]
    expected_R = torch.zeros_like(found_R)
    for batch in calibration._batches[:2]:
        logits_BC = model.project(run_batch(model, batch)).flatten(0, 1)
        (gradient_RC,) = torch.autograd.grad(summed_loss(predict, logits_BC, batch), [model.get_parameter(name)])
        expected_R += gradient_RC.double().square().sum(1) / len(batch.rows)
    assert float(found_R.sum()) > 0
    # A factor common to all weights says nothing.
    torch.testing.assert_close(found_R / found_R.sum(), expected_R / expected_R.sum(), rtol=1e-4, atol=1e-6)


def summed_loss(predict, logits_BC, batch):
    if predict == "one":
        return functional.cross_entropy(logits_BC, batch.target_out_BT.flatten(), reduction="sum")
    if predict == "several":
        return functional.binary_cross_entropy_with_logits(logits_BC, batch.values_BC, reduction="sum")
    return (logits_BC - batch.values_BC).square().sum()


def test_heads_units_layers_and_unused_tokens_go_and_the_labels_stay(data, folder):
    words = [f"technique.prune.structure.{word}" for word in ("heads=0.5", "ffn=0.5", "encoder_layers=1")]
    words += ["technique.prune.structure.vocabulary=true", "model.pooling=attention", "model.pooler=true"]
    where = f"hydra.run.dir={folder / 'smaller'}"
    stack = ["+technique=prune", "trainer.budget.steps=8", "technique.prune.sparsity=0"]
    assert main(["train", *data, *TINY, "model.encoder_layers=2", *stack, *words, where]) == 0
    architecture = tfx.load(folder / "smaller").model.architecture
    assert [(shape.heads, shape.ffn) for shape in architecture.encoder] == [(1, 16)]
    assert architecture.outputs.labels == ("cold", "hot", "wet")
    assert summary_of(folder / "smaller")["test"]["loss"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["dataset.metrics=[bleu]"],
            "dataset.metrics=['bleu']: 'bleu' is no metric of classification with dataset.predict=one: choose one of",
        ),
        (["model=seq2seq_tiny"], "choose a model for it, such as model=encoder_tiny"),
        (
            ["dataset.predict=several", "dataset.class_weights=balanced", "dataset.metrics=[]"],
            "needs dataset.predict=one",
        ),
        (
            ["+technique=distill", "technique.distill.sequence_level=true"],
            "for text to text, not for classification",
        ),
        (
            ["+technique=shuffle", "technique.shuffle.side=target"],
            "for text to text: classification has one sequence",
        ),
        (["model.decoder_layers=2"], "model.family=classification has no decoder: set model.decoder_layers=0 (not 2)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(words, says, data, folder, capsys):
    assert main(["train", *data, *words, f"hydra.run.dir={folder / 'never'}"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "never").exists()


def test_a_teacher_with_other_tokens_says_what_to_make_of_texts_with_labels_and_without(folder, data, run):
    (folder / "unlabelled.txt").write_text("".join(f"{WORDS[i % 3]} and {WORDS[i % 2]}\n" for i in range(40)))
    words = ["dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=270", "+technique=distill"]
    words += [f"technique.distill.teacher={run}", "technique.distill.alpha=1", "trainer.budget.steps=40"]
    words += [f"dataset.monolingual={folder / 'unlabelled.txt'}", "dataset.monolingual_share=0.5"]
    assert main(["train", *data, *TINY, *words, f"hydra.run.dir={folder / 'taught'}"]) == 0
    summary = summary_of(folder / "taught")
    # All that it knows it has from the teacher.
    assert summary["test"]["accuracy"] > 0.8
    assert 0.3 < summary["evidence"]["distill"]["unlabelled_share"] < 0.7
    assert [part["dataset"] for part in summary["data"]["mix"]] == ["csv", "monolingual"]
    # None of the texts is of the first label, which stands for the missing ones: it counts nowhere.
    rows = [json.loads(line) for line in (folder / "taught" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if row["split"] == "train"][-1] < 0.5


def test_a_teachers_answers_to_all_texts_are_kept_and_teach_the_same(folder, data, run, capsys):
    (folder / "more.txt").write_text("".join(f"{WORDS[i % 3]} and {WORDS[i % 2]} and {i}\n" for i in range(40)))
    words = ["dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=280", "+technique=distill"]
    words += [f"technique.distill.teacher={run}", "technique.distill.alpha=1", "trainer.budget.steps=10"]
    words += [f"dataset.monolingual={folder / 'more.txt'}", "trainer.precision=fp32"]
    losses, costs = [], []
    for name, more in (("live", []), ("kept", ["3"]), ("again", ["3"]), ("one", ["1"])):
        own = [f"technique.distill.cache_top_k={count}" for count in more]
        assert main(["train", *data, *TINY, *words, *own, f"hydra.run.dir={folder / name}"]) == 0
        summary = summary_of(folder / name)
        losses.append(summary["valid"]["loss"])
        costs.append((summary["train"]["teacher_flops"], summary["train"]["flops"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == losses[1]
    assert losses[3] != pytest.approx(losses[1], rel=1e-4)  # all is left to the likeliest label
    # The teacher read each text once, not in each step, and the second time not at all: its cost counts all the same.
    assert costs[1][1] < costs[0][1]
    assert costs[2] == costs[1]
    assert costs[1][0] > costs[0][0]
    several = ["dataset.predict=several", "dataset.metrics=[]", "technique.distill.cache_top_k=2"]
    assert main(["train", *data, *words, *several, f"hydra.run.dir={folder / 'never'}"]) == 2
    assert "keeps the largest logits of one label a text" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["loss=reverse_kl", "temperature=2.0"])
@pytest.mark.parametrize("predict", ["number", "several"])
def test_what_compares_distributions_of_labels_is_refused_where_there_is_none(word, predict, folder, capsys):
    words = ["+technique=distill", f"technique.distill.{word}", f"hydra.run.dir={folder / 'never'}"]
    assert main(["train", *of_kind(written(folder, predict), predict), *TINY, *words]) == 2
    assert f"technique.distill.{word} is for one label a text" in capsys.readouterr().err
    assert not (folder / "never").exists()


def test_a_teacher_with_other_labels_is_refused(folder, data, run, capsys):
    (folder / "other").mkdir()
    for split in ("train", "valid"):
        (folder / "other" / f"{split}.tsv").write_text("text\tlabel\nsun\tyes\nrain\tno\n")
    words = [f"dataset.path={folder / 'other'}", "+technique=distill", f"technique.distill.teacher={run}"]
    assert main(["train", *data, *TINY, *words, f"hydra.run.dir={folder / 'refused'}"]) == 2
    assert "has other labels than the data" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "metric"), [([], "accuracy"), (["trainer.best_by=loss"], "loss")])
def test_the_best_weights_of_a_classifier_are_those_that_are_right_most_often(words, metric, folder, capsys):
    # What is learned soon has wrong labels among the validation rows, so that their loss rises while the model becomes
    # sure of it, and is right more often of what it learns late: the rare texts with a "not".
    (place := folder / "wrong").mkdir(exist_ok=True)
    for split, rare, wrong in (("train", 10, 0), ("valid", 2, 5)):
        lines = ["text\tlabel"]
        for i in range(120):
            kind = i % 2
            negated = i // 2 % rare == 0
            is_wrong = wrong and not negated and i // 2 % wrong == 1
            text = f"{'not ' if negated else ''}{('sun', 'ice')[kind]} {WORDS[i // 4 % 4]}"
            lines.append(f"{text}\t{'ab'[(kind + negated + bool(is_wrong)) % 2]}")
        (place / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    run = folder / f"best-{metric}"
    words = [*words, "trainer.keep=best", "trainer.validate_every=0.05", f"dataset.path={place}"]
    assert main(["train", *DATA, *TINY, *words, "trainer.budget.steps=60", f"hydra.run.dir={run}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "valid" and not row.get("final")]
    least_loss = min(rows, key=lambda row: row["loss"])
    most_right = max(rows, key=lambda row: (row["accuracy"], -row["loss"]))
    assert most_right["accuracy"] > least_loss["accuracy"]
    best = most_right if metric == "accuracy" else least_loss
    summary = summary_of(run)
    train = summary["train"]
    assert (train["best_by"], train["best_step"], train["final_weights"]) == (metric, best["step"], "best")
    assert summary["valid"]["accuracy"] == pytest.approx(best["accuracy"])


def test_texts_leave_early_and_the_file_says_when(data, folder, capsys, monkeypatch):
    run, words = folder / "early", ["model.encoder_layers=3", "trainer.budget.steps=60"]
    stack = ["+technique=[early_exit,prune,quantize]", "technique.prune.sparsity=0.3", "technique.quantize.group=16"]
    assert main(["train", *data, *TINY, *words, *stack, f"hydra.run.dir={run}"]) == 0
    summary = summary_of(run)
    proof = summary["evidence"]["early_exit"]
    assert 0 < proof["left_early"] <= 1
    assert proof["accuracy"] >= proof["whole_accuracy"] - 0.005
    # What was chosen on validation data is what the file does there, compressed and with its threshold.
    assert summary["valid"]["depth"] == pytest.approx(proof["depth"])
    assert summary["valid"]["accuracy"] == pytest.approx(proof["accuracy"])
    assert 1 <= summary["test"]["depth"] < 3
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert sum(row["depth"] for row in rows) / len(rows) == pytest.approx(summary["test"]["depth"])
    file = tfx.load(run)
    assert file.model.architecture.exits == (1, 2)
    assert file.model.architecture.exit_threshold == pytest.approx(proof["threshold"])
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(summary["test"])
    texts = "".join(row["source"] + "\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts.encode())))
    blocks = []
    kept = file.model.encoder.blocks[2].__class__.forward
    monkeypatch.setattr(
        file.model.encoder.blocks[2].__class__, "forward", lambda *given: blocks.append(len(given[1])) or kept(*given)
    )
    assert main(["generate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [row["hypothesis"] for row in rows]
    assert sum(blocks) == sum(row["depth"] for row in rows)
    assert "depth" in (run / "report.html").read_text()
    # Without the technique its heads would no longer fit; with it the threshold can be chosen again.
    words = [f"init_from={run}", "trainer.budget.steps=2", f"hydra.run.dir={folder / 'early on'}"]
    assert main(["train", *words]) == 0
    assert "the heads by which texts leave the model of init_from early would no longer fit" in capsys.readouterr().err
    assert tfx.load(folder / "early on").model.architecture.exits == ()
    words = [
        f"init_from={run}",
        "+technique=early_exit",
        "technique.early_exit.threshold=0.4",
        "trainer.budget.steps=0",
    ]
    assert main(["train", *words, f"hydra.run.dir={folder / 'early-again'}"]) == 0
    again = tfx.load(folder / "early-again").model
    assert (again.architecture.exits, again.architecture.exit_threshold) == ((1, 2), 0.4)
    assert summary_of(folder / "early-again")["test"]["depth"] <= summary["test"]["depth"]


def test_a_text_that_leaves_early_needs_one_label(data, folder, capsys):
    words = ["model.encoder_layers=2", "dataset.predict=several", "dataset.metrics=[]", "+technique=early_exit"]
    assert main(["train", *data, *words, f"hydra.run.dir={folder / 'never'}"]) == 2
    assert "asks how sure a model is of one label, and this one predicts several labels" in capsys.readouterr().err
