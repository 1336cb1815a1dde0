"""A run that was stopped anywhere and resumed is the run that was never stopped, to the bit; and `tfx reproduce`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from tfx.cli import main
from tfx.record.lock import locked
from tfx.training import step

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=32", "model.decoder_layers=1", "trainer.log_every=3"),
    *("evaluation.latency_inputs=2", "evaluation.beam=2", "trainer.save.every_steps=4", "trainer.save.keep=1000"),
]
PAIRS = [
    *("model.encoder_layers=2", "dataset.limit.train=120", "dataset.limit.valid=10", "dataset.limit.test=10"),
    "dataset.batch_tokens=128",
]
KINDS = {
    # The whole stack, with what each technique keeps between steps: projections, learned steps, masks, rewinding;
    # the best weights are kept.
    "stack": [
        *PAIRS,
        "+technique=[shuffle,mixup,distill,prune,quantize]",
        *("technique.distill.teacher_budget.steps=5", "technique.distill.hidden=0.1", "technique.prune.rewind=0.1"),
        *("technique.distill.layer_map=uniform", "technique.distill.relations=0.1", "technique.distill.on_policy=0.3"),
        "technique.shuffle.share=0.5",
        *("technique.quantize.learned_step=true", "technique.quantize.granularity=channel"),
        *("trainer.averaging.kind=ema", "trainer.budget.steps=20", "trainer.keep=best"),
    ],
    # Stopped in the first epoch, whose order is made again, and in the second.
    "curriculum": [
        *PAIRS,
        *("+technique=shuffle", "technique.shuffle.examples=by_length", "technique.shuffle.share=0"),
        *("dataset.batch_tokens=512", "trainer.budget.steps=16"),
    ],
    # Parts leave the model in the middle of accumulated steps, and layers that are left learn faster then; scales are
    # chosen for a rate.
    "structure": [
        *PAIRS,
        "+technique=[prune,quantize]",
        *("technique.prune.structure.ffn=0.5", "technique.prune.structure.encoder_layers=1"),
        *("technique.quantize.granularity=channel", "technique.quantize.rate=2.5", "technique.quantize.bits=5"),
        *("optimizer=adamw", "optimizer.layer_decay=0.5", "trainer.accumulation=2"),
        *("trainer.averaging.kind=last", "trainer.averaging.start=0.3", "trainer.budget.tokens=3500"),
    ],
    "lm": [
        *("model=gpt_nano", "model.context=16", "dataset=text", "dataset.path=text.txt", "model.dropout=0.1"),
        *("dataset.tokenizer.kind=char", "dataset.batch_tokens=64", "trainer.keep=best", "trainer.budget.steps=14"),
        *("trainer.early_stopping.metric=loss", "optimizer.clip_norm=null"),
    ],
}
# Buffers of less than a pass, and passes of less than the run.
STREAM = ["dataset.streaming=true", "dataset.buffer=25", "dataset.tokenizer.kind=char", "dataset.batch_tokens=128"]
KINDS["streamed from the hub"] = [
    *PAIRS[:1],
    *("dataset=parquet", "dataset.hub=./hub", "dataset.path=null", "dataset.metrics=[chrf]", *STREAM),
    *("trainer.budget.steps=13", "trainer.prefetch=on"),
]
KINDS["a mixture"] = [
    *PAIRS[:1],
    "dataset.mix=[{dataset: json, path: rows, weight: 3, streaming: true},{dataset: normalize, limit: {train: 60}}]",
    *("dataset.buffer=15", "dataset.batch_tokens=128", "trainer.budget.steps=9", "trainer.accumulation=2"),
    "trainer.prefetch=on",
]
OUTPUTS = ("model.safetensors", "compressed.safetensors", "tokenizer.json", "predictions.jsonl")


def train(run: Path, *overrides: str) -> int:
    return main(["train", *TINY, *overrides, f"hydra.run.dir={run}"])


def content(run: Path) -> dict:
    """The final files, and the metrics without times."""
    found = {name: (run / name).read_bytes() for name in OUTPUTS if (run / name).is_file()}
    text = (run / "metrics.jsonl").read_text()
    return found | {"metrics": re.sub(r'"(seconds|tokens_per_second)": [^,}]+', "", text).splitlines()}


def cut_back(whole: Path, run: Path, states: int) -> None:
    """A copy of a run as a kill would leave it, with its first so many states and rows of later steps."""
    shutil.copytree(whole, run)
    for path in sorted(run.glob("state/step-*"))[states:]:
        path.unlink()
    for name in ("summary.json", "model.safetensors", "compressed.safetensors", "predictions.jsonl"):
        (run / name).unlink(missing_ok=True)
    (run / ".model.safetensors.abcd.tmp").write_bytes(b"half a file")


@pytest.fixture(scope="module")
def data(folder) -> None:
    """A folder that stands in for a repository of the hub, with two files of training rows; and lines of JSON."""
    (folder / "hub").mkdir()
    (folder / "rows").mkdir()
    for name, count in (("train-00000-of-00002", 45), ("train-00001-of-00002", 30), ("valid", 5), ("test", 5)):
        texts = [f"{name[:3]} {i * i % 97} of {name[8:11]}" for i in range(count)]
        rows = [{"source": text, "target": text[::-1]} for text in texts]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"hub/{name}.parquet", row_group_size=20)
        (folder / f"rows/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module", params=KINDS)
def whole(request, folder, data) -> Path:
    run = folder / request.param
    assert train(run, *KINDS[request.param]) == 0
    return run


def test_a_run_goes_on_from_its_states_to_the_same_bits(whole):
    states = len(list(whole.glob("state/step-*")))
    assert states >= 3
    # What a stack keeps changes all the way; elsewhere the first and the last but one say as much as all of them.
    counts = range(states + 1) if whole.name in ("stack", "structure") else (1, states - 1)
    for count in counts:
        run = whole.with_name(f"{whole.name}-{count}")
        cut_back(whole, run, count)
        assert main(["resume", str(run)]) == 0
        assert content(run) == content(whole)
        assert not list(run.glob(".*.tmp"))
        summary, other = (json.loads((path / "summary.json").read_text()) for path in (run, whole))
        assert summary["train"]["flops"] == other["train"]["flops"]
        assert summary["evidence"] == other["evidence"]
        assert [row["valid"] for row in summary["stages"]] == [row["valid"] for row in other["stages"]]
        assert len(summary["resumed"]) == min(1, count)


@pytest.fixture(scope="module")
def dense(folder) -> Path:
    run = folder / "dense"
    assert train(run, *PAIRS, "trainer.budget.steps=9") == 0
    return run


def test_a_finished_run_says_so_and_stays(dense, capsys):
    before = content(dense)
    assert main(["resume", str(dense)]) == 0
    assert "is finished" in capsys.readouterr().err
    assert content(dense) == before
    moved = shutil.copytree(dense, dense.with_name("it moved"))
    assert main(["resume", str(moved)]) == 0
    assert f"`tfx train 'init_from={moved}' …`" in capsys.readouterr().err


def test_a_finished_run_goes_on_with_a_longer_budget_as_one_that_was_stopped_there(dense, capsys):
    """The learning rate, validations and averages are those of the new budget, from the last step on."""
    run, other = dense.with_name("on"), dense.with_name("on-stopped")
    shutil.copytree(dense, run)
    cut_back(dense, other, len(list(dense.glob("state/step-*"))))
    for path in (run, other):
        assert main(["resume", str(path), "trainer.budget.steps=20"]) == 0
    assert content(run) == content(other)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["train"]["steps"] == 20
    assert summary["resumed"] == [9]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "valid" and row["step"] > 9] == [10, 12, 14, 16, 18, 20, 20]
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    assert "it had trainer.budget.steps=20" in capsys.readouterr().err


def test_a_result_stays_until_the_longer_run_has_one_of_its_own(dense, capsys, monkeypatch):
    run = shutil.copytree(dense, dense.with_name("lost"))
    before = (run / "summary.json").read_bytes()
    take = step.Stepper.take

    def stops(self, batches, factor, number, progress):
        if number == 11:
            raise RuntimeError("the machine fails")
        return take(self, batches, factor, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr(step.Stepper, "take", stops)
        assert main(["resume", str(run), "trainer.budget.steps=12"]) == 1
    assert (run / "summary.json").read_bytes() == before
    assert main(["resume", str(run)]) == 0  # its budget is the longer one now
    assert json.loads((run / "summary.json").read_text())["train"]["steps"] == 12


def test_what_cannot_go_on_says_why(dense, capsys):
    gone = shutil.copytree(dense, dense.with_name("gone"))
    for path in gone.glob("state/step-*"):
        path.unlink()
    early = shutil.copytree(dense, dense.with_name("early"))
    summary = json.loads((early / "summary.json").read_text())
    summary["train"]["stopped_early"] = True
    (early / "summary.json").write_text(json.dumps(summary))
    for run, words in ((gone, "its saved state is gone"), (early, "stopped early, by its validations")):
        before, config = content(run), (run / "config.yaml").read_text()
        capsys.readouterr()
        assert main(["resume", str(run), "trainer.budget.steps=50"]) == 2
        assert words in capsys.readouterr().err
        assert content(run) == before
        assert (run / "config.yaml").read_text() == config


def test_a_run_that_another_process_holds_is_refused(dense, capsys):
    run = dense.with_name("held")
    cut_back(dense, run, 1)
    with locked(run):
        assert main(["resume", str(run)]) == 2
    assert f"in use by another tfx process (id {os.getpid()})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimizer.lr=0.1", "optimizer.lr cannot change"),
        ("seed=2", "seed cannot change"),
        ("trainer.budget.steps=5", "or gets a longer one"),
        ("trainer.budget.tokens=5000", "or gets a longer one"),
        ("trainer.save.evry_steps=2", "did you mean 'trainer.save.every_steps'"),
    ],
)
def test_changes_that_are_not_safe_are_refused(dense, capsys, change, words):
    run = dense.with_name("changed")
    cut_back(dense, run, 1)
    assert main(["resume", str(run), change]) == 2
    assert words in capsys.readouterr().err
    shutil.rmtree(run)


def test_a_longer_budget_goes_on(dense):
    run = dense.with_name("longer")
    cut_back(dense, run, 2)
    assert main(["resume", str(run), "trainer.budget.steps=12", "trainer.log_every=1"]) == 0
    assert json.loads((run / "summary.json").read_text())["train"]["steps"] == 12
    assert "trainer.budget.steps=12" in (run / "overrides.yaml").read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [3, 6, 9, 10, 11, 12]


def test_data_that_changed_since_stop_the_resume(folder, capsys):
    (folder / "other.txt").write_text("".join(f"line {i} of a little text\n" for i in range(300)))
    run = folder / "moved"
    words = [word.replace("text.txt", "other.txt") for word in KINDS["lm"]]
    assert train(run, *words) == 0
    (run / "summary.json").unlink()
    (folder / "other.txt").write_text("".join(f"line {i} of another text\n" for i in range(300)))
    files = ("config.yaml", "overrides.yaml", "environment.json", "tokenizer.json")
    before = {name: (run / name).read_bytes() for name in files}
    assert main(["resume", str(run), "trainer.budget.steps=30"]) == 2
    assert "cannot go on: changed since it began: corpus and tokenizer" in capsys.readouterr().err
    assert list(run.glob("state/step-*"))
    # A refusal changes nothing: with its data back, the run goes on as it would have.
    assert {name: (run / name).read_bytes() for name in files} == before
    assert not (run / "summary.json").exists()
    (folder / "other.txt").write_text("".join(f"line {i} of a little text\n" for i in range(300)))
    assert main(["resume", str(run)]) == 0


def test_a_streamed_file_that_changed_in_its_middle_stops_the_resume(folder, data, capsys):
    # Longer than its beginning and its end, which are in the fingerprint of the corpus.
    row = json.dumps({"source": "a b", "target": "b a"}) + "\n"
    rows = row * (5 * 2**19 // len(row))
    (folder / "long").mkdir()
    shutil.copy(folder / "rows/valid.jsonl", folder / "long/valid.jsonl")
    file, run = folder / "long/train.jsonl", folder / "streamed"
    file.write_text(rows)
    words = [*PAIRS[:1], "dataset=json", f"dataset.path={folder}/long", "dataset.metrics=[]", *STREAM]
    assert train(run, *words, "trainer.budget.steps=3", "dataset.tokenizer.rows=20") == 0
    (run / "summary.json").unlink()
    half = len(row) * (len(rows) // len(row) // 2)
    file.write_text(rows[:half] + row.replace("b a", "b c") + rows[half + len(row) :])
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert "cannot go on: changed since it began: streamed file train.jsonl: put back" in said
    # Its content counts, and not when it was written; but that is told, as not all of it was compared.
    file.write_text(rows)
    assert main(["resume", str(run)]) == 0
    assert "streamed files last modified changed from 2" in capsys.readouterr().err


def started(run: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tfx", "train", *TINY, *overrides, f"hydra.run.dir={run}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(pattern: str, run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.whole_process
def test_a_signal_saves_says_how_to_go_on_and_the_rest_is_the_same(folder):
    words = [*PAIRS, "trainer.budget.steps=120", "trainer.save.every_steps=50"]
    run = folder / "stopped"
    process = started(run, *words)
    wait_for("state/best.safetensors", run, process)  # the training is on its way
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert f"tfx resume {run}" in " ".join(printed.split()).replace("- ", "-")
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    (state,) = run.glob("state/step-*")
    assert int(state.stem.removeprefix("step-")) % 50 or "step-000000120" in state.stem
    assert main(["resume", str(run)]) == 0
    assert train(folder / "unstopped", *words) == 0
    assert content(run) == content(folder / "unstopped")


def test_a_teacher_that_was_killed_goes_on_too(folder, monkeypatch):
    words = [*PAIRS, "+technique=distill", "technique.distill.teacher_budget.steps=90", "trainer.budget.steps=4"]
    words += ["trainer.save.every_steps=30"]
    caches = {name: folder / name for name in ("cache-killed", "cache-whole")}
    monkeypatch.setenv("TFX_CACHE", str(caches["cache-killed"]))
    run = folder / "taught"
    process = started(run, *words)
    wait_for("teachers/.*.training/state/step-*", caches["cache-killed"], process)
    process.kill()
    process.communicate()
    assert [path.name for path in run.iterdir() if not path.name.startswith(".")] != []
    assert main(["resume", str(run)]) == 0
    (teacher,) = caches["cache-killed"].glob("teachers/[!.]*")
    assert json.loads((teacher / "summary.json").read_text())["resumed"]
    monkeypatch.setenv("TFX_CACHE", str(caches["cache-whole"]))
    assert train(folder / "taught-whole", *words) == 0
    assert content(run) == content(folder / "taught-whole")


# --- steps that must not be taken, and memory --------------------------------------------------------


def test_a_batch_that_does_not_fit_is_cut_and_the_step_stays_the_same(folder, monkeypatch):
    words = [*PAIRS, "trainer.budget.steps=3", "model.dropout=0", "trainer.precision=fp32", "optimizer=adamw"]
    assert train(folder / "roomy", *words) == 0
    plain = step.run_batch

    def narrow(model, batch):
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("too many rows")
        return plain(model, batch)

    monkeypatch.setattr(step, "run_batch", narrow)
    assert train(folder / "narrow", *words) == 0
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in ("roomy", "narrow")]
    assert summaries[1]["train"]["tokens"] == summaries[0]["train"]["tokens"]
    assert summaries[1]["valid"]["loss"] == pytest.approx(summaries[0]["valid"]["loss"], rel=1e-4)
    assert "out of memory at step 1" in (folder / "narrow" / "train.log").read_text()


# --- reproduce --------------------------------------------------------------------------------------


def test_reproduce_is_exact_and_names_what_differs(dense, capsys):
    assert main(["reproduce", str(dense), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "identical"
    assert all(found["identical_files"].values())
    assert found["metrics"]["test.loss"][0] == found["metrics"]["test.loss"][1]
    assert content(dense.with_name("dense-reproduced")) == content(dense)

    environment = json.loads((dense / "environment.json").read_text())
    other = shutil.copytree(dense, dense.with_name("elsewhere"))
    environment["packages"]["torch"] = "1.0"
    (other / "environment.json").write_text(json.dumps(environment))
    # In another environment the same numbers are enough, whatever else was recorded there.
    summary = json.loads((other / "summary.json").read_text())
    summary["evidence"] = {"another": {"number": 1}}
    (other / "summary.json").write_text(json.dumps(summary))
    assert main(["reproduce", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "within tolerance"
    assert main(["reproduce", str(other), "seed=2"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "config seed: 1 before, 2 now" in printed
    assert "packages.torch: 1.0 before" in printed
    assert "different" in printed


def test_moved_data_are_the_same_data_and_others_are_not(folder, capsys):
    run = folder / "unmoved"
    texts = {"first.txt": "a text of ten words, and no more than that " * 40}
    texts["moved/first.txt"] = texts["first.txt"]
    texts["other.txt"] = texts["first.txt"].replace("ten", "few")
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    options = ["model=gpt_nano", "model.context=16", "dataset=text", "dataset.tokenizer.kind=char"]
    assert train(run, *options, f"dataset.path={folder}/first.txt", "trainer.budget.steps=2") == 0
    capsys.readouterr()
    assert main(["reproduce", str(run), f"dataset.path={folder}/moved/first.txt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["config"]) == ("identical", {})
    assert main(["reproduce", str(run), f"dataset.path={folder}/other.txt", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "different"
    assert list(found["config"]) == ["dataset.path"]


def test_the_name_of_a_data_file_is_none_of_the_data(folder, capsys):
    run, again = folder / "named", folder / "named-again"
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text("a text of ten words, and no more than that " * 40)
    options = ["model=gpt_nano", "model.context=16", "dataset=text", "dataset.tokenizer.kind=char"]
    assert train(run, *options, f"dataset.path={folder}/one.txt", "trainer.budget.steps=2") == 0
    capsys.readouterr()
    renamed = f"dataset.path={folder}/two.txt"
    assert main(["reproduce", str(run), renamed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["config"], found["environment"]) == ("identical", {}, {})
    assert found["went_on_after"] == []
    assert main(["resume", str(run), renamed, "trainer.budget.steps=4"]) == 0
    # The budget grew on the way, and so did the schedule.
    main(["reproduce", str(run), "--folder", str(again)])
    said = capsys.readouterr().out
    assert f"{run} went on after step 2 with a longer budget: its schedule was different until then" in said
    assert json.loads((again / "reproduction.json").read_text())["went_on_after"] == [2]


def test_a_budget_of_two_words_is_no_longer_one(dense, folder, capsys):
    words = ["trainer.budget.steps=null", "trainer.budget.tokens=3000"]
    assert train(folder / "words", *PAIRS, *words) == 0
    cut_back(folder / "words", folder / "words again", 1)
    assert main(["resume", str(folder / "words again")]) == 0
    capsys.readouterr()
    assert main(["reproduce", str(folder / "words again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["went_on_after"] == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json"])
def test_what_cannot_be_compared_with_is_told_before_the_training(name, dense, folder, capsys):
    run = shutil.copytree(dense, folder / f"broken {name}")
    with open(run / name, "a") as file:
        file.write("garbage\n")
    assert main(["reproduce", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said
    assert not run.with_name(f"{run.name}-reproduced").exists()


def test_states_that_are_all_damaged_are_kept_and_the_run_starts_over(dense, folder, capsys):
    run = folder / "all damaged"
    cut_back(dense, run, 2)
    names = sorted(path.name for path in run.glob("state/step-*"))
    for name in names:
        (run / "state" / name).write_bytes(b"garbage")
    assert main(["resume", str(run)]) == 0
    said = capsys.readouterr().err
    assert all(f"kept as {name}.damaged" in said for name in names)
    assert [path.name for path in sorted(run.glob("state/*.damaged"))] == [f"{name}.damaged" for name in names]
    assert content(run) == content(dense)


def test_steps_of_another_environment_are_named(folder, capsys):
    run = folder / "two_processes"
    options = ["model=gpt_nano", "model.context=16", "dataset=stdlib", "dataset.limit.train=20"]
    assert train(run, *options, "trainer.budget.steps=2") == 0
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"processes": 2}))
    assert main(["resume", str(run), "trainer.budget.steps=4"]) == 0
    capsys.readouterr()
    main(["reproduce", str(run)])
    said = capsys.readouterr().out
    assert "environment processes (of the first steps, before it was resumed): 2 before, 1 now" in said
    assert "expected in another environment" in said


def test_seconds_are_reproduced_step_by_step(folder, capsys):
    run = folder / "timed"
    assert train(run, *PAIRS, "trainer.budget.seconds=0.5", "+technique=prune") == 0
    capsys.readouterr()
    assert main(["reproduce", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "identical"


def test_an_unfinished_run_cannot_be_reproduced(dense, capsys):
    run = dense.with_name("unfinished")
    cut_back(dense, run, 1)
    assert main(["reproduce", str(run)]) == 2
    assert "has no summary.json: the run did not complete, and `tfx resume" in capsys.readouterr().err


def test_a_saved_config_alone_reruns_elsewhere(dense, folder):
    place = folder / "place"
    place.mkdir()
    shutil.copy(dense / "config.yaml", place)
    again = folder / "again"
    words = ["--config-dir", str(place), "--config-name", "config", f"hydra.run.dir={again}"]
    done = subprocess.run([sys.executable, "-m", "tfx", "train", *words], env=os.environ, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert content(again) == content(dense)
