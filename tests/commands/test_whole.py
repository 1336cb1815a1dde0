"""The commands as a user meets them: a tiny run of each family, read back by every command; and wrong input."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tfx.cli import main
from tfx.system.signals import StoppedBySignal

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "trainer.budget.steps=3",
    "trainer.log_every=1",
    "evaluation.latency_inputs=2",
    "evaluation.beam=2",
    "evaluation.new_tokens=12",
    "evaluation.attention_maps=2",
]
PAIRS = ["model.encoder_layers=1", *(f"dataset.limit.{split}=20" for split in ("train", "valid", "test"))]


def train(*overrides: str) -> int:
    return main(["train", *TINY, *overrides])


@pytest.fixture(scope="module")
def pairs_run(folder) -> Path:
    assert train(*PAIRS, f"hydra.run.dir={folder / 'pairs'}") == 0
    return folder / "pairs"


@pytest.fixture(scope="module")
def lm_run(folder) -> Path:
    text = folder / "text.txt"
    lm = ["dataset=text", f"dataset.path={text}", "dataset.tokenizer.kind=char", "dataset.batch_tokens=64"]
    assert train("model=gpt_nano", "model.context=16", *lm, f"hydra.run.dir={folder / 'lm'}") == 0
    return folder / "lm"


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["pairs_run", "lm_run"])
def test_a_run_leaves_every_file_and_a_summary_whose_numbers_agree(name, request):
    run = request.getfixturevalue(name)
    for file in ("config.yaml", "overrides.yaml", "environment.json", "train.log", "tokenizer.json"):
        assert (run / file).stat().st_size > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["test_split"] == ("test" if name == "pairs_run" else "valid")
    bytes_ = summary["bytes"]
    assert bytes_["file"] == bytes_["weights"] + bytes_["header"] + bytes_["tokenizer"]
    assert bytes_["file"] == (run / "model.safetensors").stat().st_size
    assert summary["train"]["steps"] == 3
    assert summary["inference"]["file"]["latency_ms"]["p50"] > 0
    # What is read back from the file scores as the model did in memory.
    trained, file = (stage["valid"]["loss"] for stage in summary["stages"])
    assert trained == pytest.approx(file, rel=1e-6)
    # What reports resample is stored: the loss, from its sentences or windows.
    kept = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    loss = sum(row["nll"] for row in kept) / sum(row["targets"] for row in kept)
    assert loss == pytest.approx(summary["test"]["loss"], rel=1e-4)
    assert "<svg" in (run / "report.html").read_text()
    assert len(json.loads((run / "attention.json").read_text())) == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all({"split", "step", "tokens", "seconds"} <= row.keys() for row in rows)
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize("name", ["pairs_run", "lm_run"])
def test_evaluate_gives_the_summarys_numbers(name, request, capsys):
    run = request.getfixturevalue(name)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics == pytest.approx(json.loads((run / "summary.json").read_text())["test"])


def test_generate_writes_one_line_for_one_line_in_order(pairs_run, monkeypatch, capsys):
    lines = b"twenty three\r\n\nfive past nine\nninety"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    capsys.readouterr()
    assert main(["generate", str(pairs_run)]) == 0
    together = capsys.readouterr().out.split("\n")
    assert len(together) == 5  # four lines, each ended
    assert together[1] == together[4] == ""
    for text, expected in zip(["twenty three", "five past nine", "ninety"], [together[0], *together[2:4]], strict=True):
        assert main(["generate", str(pairs_run), text]) == 0
        assert capsys.readouterr().out == expected + "\n"


def test_a_language_model_continues_on_one_line_the_same_for_a_seed(lm_run, capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        capsys.readouterr()
        assert main(["generate", str(lm_run), "line 7", "", "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    first, second, rest = outputs[0].split("\n")
    assert first.startswith("line 7")
    assert second  # behind no text, what follows a line end
    assert rest == ""


def test_inspect_adds_up_to_the_file(pairs_run, capsys):
    capsys.readouterr()
    assert main(["inspect", str(pairs_run), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert sum(row["bytes"] for row in content["tensors"]) == content["bytes"]["weights"]
    assert content["bytes"]["file"] == (pairs_run / "model.safetensors").stat().st_size
    assert json.loads((pairs_run / "tensors.json").read_text()) == content["tensors"]


def test_the_seed_decides_every_byte_and_a_saved_config_alone_repeats_a_run(pairs_run, folder):
    alone = folder / "alone"
    alone.mkdir()
    (alone / "config.yaml").write_text((pairs_run / "config.yaml").read_text())
    saved = ["--config-dir", str(alone), "--config-name", "config"]
    assert main(["train", *saved, f"hydra.run.dir={folder / 'again'}"]) == 0
    assert digest(folder / "again") == digest(pairs_run)
    assert main(["train", *saved, "seed=2", f"hydra.run.dir={folder / 'other'}"]) == 0
    assert digest(folder / "other") != digest(pairs_run)


def test_a_run_directory_is_never_overwritten(pairs_run, capsys):
    before = digest(pairs_run)
    assert train(*PAIRS, f"hydra.run.dir={pairs_run}") == 2
    assert "tfx resume" in capsys.readouterr().err
    assert digest(pairs_run) == before


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (RuntimeError("it broke"), 1, "failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (StoppedBySignal(signal.SIGTERM), 143, "interrupted"),
    ],
)
def test_a_run_that_ends_badly_says_so_in_its_summary_and_log(error, status, word, tmp_path, folder, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr("tfx.training.loop.Trainer.train", broken)
    run = tmp_path / word
    assert train(*PAIRS, f"hydra.run.dir={run}") == status
    assert json.loads((run / "summary.json").read_text())["status"] == word
    assert "Traceback" in (run / "train.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_a_run_begins_is_told(number, folder, tmp_path, monkeypatch, capsys):
    def signalled(*_):
        os.kill(os.getpid(), number)

    run = tmp_path / "run"
    name = signal.Signals(number).name
    line = f"tfx: stopped by {name} before training began: nothing new was saved\n"
    monkeypatch.setattr("tfx.run.setup.Setup.prepare", signalled)
    assert train(*PAIRS, "dry_run=true") == 128 + number
    assert capsys.readouterr().err == line
    # Once the run directory is there, it says how to go on instead.
    assert train(*PAIRS, f"hydra.run.dir={run}") == 128 + number
    shown = capsys.readouterr().err
    assert shown.splitlines()[0] == f"interrupted: stopped by {name} (continue with `tfx resume {run}`)"
    assert line not in shown
    monkeypatch.setattr("tfx.run.setup.Setup.__init__", signalled)
    assert train(*PAIRS, f"hydra.run.dir={tmp_path / 'other'}") == 128 + number
    assert capsys.readouterr().err == line
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dry", [[], ["dry_run=true"]], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=seq2seq_tny"], "model 'seq2seq_tny' is unknown: did you mean 'seq2seq_tiny'?"),
        (["+techniqe=distill"], "did you mean 'technique'?"),
        (["+trian.lr=3"], "'trian'"),
        (["dataset.pth=x"], "did you mean 'dataset.path'?"),
        (["+dataset.pth=x"], "did you mean 'dataset.path'?"),
        (["technique=distil"], "did you mean 'distill'?"),
        (["trainer.budget.steps=abc"], "trainer.budget.steps"),
        (["trainer.budget.steps=1", "trainer.budget.tokens=3"], "keep one of them"),
        (["optimizer.lr=-1"], "above 0"),
        (["optimizer.lr=nan"], "out of range"),
        (["model.dropout=1"], "below 1"),
        (["model.norm=foo"], "layernorm"),
        (["model=gpt_nano"], "for a language model"),
        (["model.heads=3"], "multiple of model.heads"),
        (["hydra.launcher.jobs=2"], "hydra.launcher.jobs is for a sweep, and this is a single run: add -m"),
        (["trainer.devices=auto"], "trainer.devices=auto is not a whole number: leave it out for one process"),
        (["optimizer.lr=high"], "optimizer.lr=high is not a number"),
        (["hydra/launcher=basic"], "hydra/launcher is for a sweep"),
        (["hydra.sweep.dir=s"], "hydra.sweep.dir is for a sweep"),
        (["dataset=parallel"], "dataset.path"),
        (["dataset=parallel", "dataset.path=nowhere"], "nowhere"),
        (["dataset.metrics=[bluu]"], "did you mean 'bleu'?"),
        (["trainer.threads=4096"], "far more than this machine has"),
        (["foo"], "foo"),
    ],
)
def test_wrong_input_is_one_line_with_status_2_and_leaves_nothing(overrides, words, dry, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["train", *overrides, *dry]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("tfx: ")
    assert words in captured.err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    "command", [["trian"], ["evaluate", "nowhere"], ["generate", "nowhere", "x"], ["inspect", "nowhere"]]
)
def test_wrong_commands_and_paths_are_one_line(command, capsys):
    assert main(command) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [["train", "dry_run=true"], ["ablate"], ["report", "."], ["inspect", "x"]])
def test_a_working_directory_that_is_gone_is_one_line(command, tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error == "tfx: the working directory cannot be used (No such file or directory): change to another one\n"


@pytest.mark.parametrize("command", [["--help"], ["list"]])
def test_help_and_list_import_neither_torch_nor_datasets_nor_hydra(command):
    code = (
        "import sys; from tfx.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'datasets', 'hydra'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_list_shows_techniques_in_brackets(capsys):
    assert main(["list", "experiments"]) == 0
    assert "technique=[distill,quantize]" in " ".join(capsys.readouterr().out.split())


def test_completion_knows_commands_and_choices(monkeypatch, capfd):
    monkeypatch.setenv("COMP_LINE", "tfx train model=seq2seq_t")
    done = subprocess.run(
        [sys.executable, "-m", "tfx", "-sc", "query=bash"], capture_output=True, text=True, check=False
    )
    assert "model=seq2seq_tiny" in done.stdout


@pytest.mark.parametrize(("command", "usage"), [("train", "[key=value …]"), ("ablate", "+technique=[a,b,…]")])
def test_the_usage_line_keeps_its_brackets(command, usage, capsys):
    assert main([command, "--help"]) == 0
    assert usage in capsys.readouterr().out
