"""`tfx search` as a user meets it: wrong input, the plan, the trials, and the same command again after a stop."""

import json
import re

import pytest

from tfx.cli import main
from tfx.compression.checkpoint import FileBytes
from tfx.errors import UserError
from tfx.experiments import trial
from tfx.experiments.jobs import Job
from tfx.experiments.search import size
from tfx.experiments.search.search import Search
from tfx.model.architecture import Architecture
from tfx.model.transformer import count_parameters
from tfx.system.signals import StoppedBySignal

TINY = [
    "model.heads=2",
    "model.width=range(8,41,4)",
    "model.decoder_layers=1",
    "model.encoder_layers=1",
    "model.dropout=0",
    "dataset.tokenizer.vocab_size=300",
    "evaluation.latency_inputs=2",
    "evaluation.beam=1",
    "dataset.metrics=[]",
    "dataset=multi30k",
    "trainer.device=cpu",
    "trainer.budget.steps=8",
]
GO = ["max_bytes=14000", "candidates=1", "rungs=1", "seeds=1", "budget.trials=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of a few words, in a folder."""
    folder = tmp_path_factory.mktemp("data")
    for split, rows in (("train", 60), ("val", 6), ("test", 6)):
        for side, word in (("en", "number"), ("de", "Zahl")):
            lines = "".join(f"{word} {7 * row % 23} {word[::-1]} {row % 5}\n" for row in range(rows))
            (folder / f"{split}.{side}").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def search(data):
    return lambda *words: main(["search", *TINY, f"dataset.path={data}", *words])


def read(folder) -> dict:
    return json.loads((folder / "search.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_bytes=14000"], "name one of budget.seconds"),
        (["max_bytes=14000", "budget.trials=2", "budget.hours=1"], "budget.hours and budget.trials are named"),
        (["objective=losss", "budget.trials=2"], "did you mean 'loss'?"),
        (["objective=bytes", "budget.trials=2"], "min_quality"),
        (["max_bytes=3000", "budget.trials=2"], "the smallest file of this space has about"),
        (["max_bytes=14000", "max_latency_ms=0.001", "budget.trials=2"], "the smallest model of this space takes"),
        (["max_byte=14000", "budget.trials=2"], "key 'max_byte' is unknown: did you mean 'max_bytes'?"),
        (["max_bytes=14000", "spred=2", "budget.trials=2"], "key 'spred' is unknown: did you mean 'spread'?"),
        (
            ["max_bytes=14000", "budget.seconds=60", "trainer.budget.steps=0"],
            "trainer.budget.steps=0 trains nothing",
        ),
        (["max_bytes=14000", "budget.trials=2", "model.width=interval(3,1)"], "its end must lie above its start"),
        (["max_bytes=14000", "budget.trials=2", "model.width=range(5,8)"], "is a multiple of"),
        (["max_bytes=14000", "budget.trials=2", "model.width=16,abc"], "model.width=16,abc: name whole numbers"),
        (["max_bytes=14000", "budget.trials=2", "technique=distill"], "technique.distill.teacher=RUN"),
        (["max_bytes=14000", "budget.trials=2", "seed=1,2"], "seed=1, 2 makes no other config"),
        (["max_bytes=14000", "budget.trials=2", "-m"], "leave out -m"),
        (["max_bytes=14000", "budget.trials=2", "--config-name", "config"], "starts from the defaults"),
    ],
)
def test_wrong_input_is_one_line_with_status_2_and_leaves_nothing(words, message, search, here, capsys):
    assert search(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert not list(here.iterdir())


def test_help_explains_every_setting(capsys):
    assert main(["search", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("max_bytes", "budget.hours", "spread", "hydra.launcher.jobs", "interval(0,0.2)"):
        assert word in shown


def test_a_dry_run_shows_axes_what_fits_and_the_cost(search, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trial, "seconds_on_top", lambda words, environment: 100.0)

    # Two bits for each weight, in place of a written file.
    def two_bits(config, tokenizer, outputs=None, origin=None):
        weights = count_parameters(Architecture.from_config(config.model, tokenizer.vocab_size)) // 4
        return FileBytes(weights + 4000, weights, 1000, 3000)

    monkeypatch.setattr(size, "untrained_bytes", two_bits)
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("name: adam\nlr: 0.002\n")
    own = ["--config-dir", str(tmp_path / "conf"), "optimizer=mine"]
    assert search(*GO, *own, "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert "chosen so that the file fills max_bytes" in shown
    assert "technique.quantize.rate" in shown
    assert "model.heads" not in shown  # it is fixed
    bytes_ = [int(line.split()[-1].replace(",", "")) for line in shown.splitlines() if "width=" in line]
    assert len(bytes_) == 3
    assert all(7_000 < count <= 14_000 for count in bytes_)
    assert "a round: 1 config, trained for 8 steps: as much as 1 whole training" in shown
    # Training takes a second of it.
    assert re.search(r"1 training in all, .*: about 1:4\d at least", shown)
    assert "start-up, validation and the file of each training 1:40 more" in shown
    assert "a whole training takes about 0:0" in shown
    assert not list(here.iterdir())


def test_what_comes_on_top_of_training_is_measured_on_a_trial(data):
    words = [word for word in TINY if not word.startswith("model.width")]
    words += ["model.width=16", f"dataset.path={data}"]
    assert 0.5 < trial.seconds_on_top(words, {"OMP_NUM_THREADS": "1"}) < 600
    with pytest.raises(UserError, match=r"a trial cannot run: .*model\.width"):
        trial.seconds_on_top([*words, "model.width=15"], {})


def test_a_search_that_is_stopped_leaves_its_page(search, here, monkeypatch, capsys):
    def stopped(self):
        raise StoppedBySignal(2)

    monkeypatch.setattr(Search, "run", stopped)
    assert search(*GO, "hydra.sweep.dir=s") == 130
    shown = capsys.readouterr()
    assert re.search(r"page: .*s/report\.html", shown.out)
    assert "the same command with hydra.sweep.dir=" in shown.err
    assert (here / "s" / "report.html").is_file()
    assert read(here / "s")["tried"] == []


@pytest.fixture(scope="module")
def whole(search, tmp_path_factory):
    """A search of one trial: tests/experiments has longer ones."""
    folder = tmp_path_factory.mktemp("search") / "s"
    assert search(*GO, f"hydra.sweep.dir={folder}") == 0
    return folder


def test_a_search_trains_and_names_a_model_that_meets_the_limit(whole):
    found = read(whole)
    assert (found["looked_at"], found["trials"], found["ended"]) == (1, 1, 1)
    best = next(row for row in found["tried"] if row["run"] == found["best"])
    assert best["part_of_budget"] == 1.0
    summary = json.loads((whole / "trials" / found["best"].rpartition("/")[2] / "summary.json").read_text())
    assert summary["bytes"]["file"] == best["bytes"] <= 14_000
    assert summary["train"]["steps"] == 8
    assert summary["test_split"] == "valid"  # a trial knows no test data
    assert found["test"]["run"] == found["best"]
    assert found["test"]["split"] == "test"
    assert found["test"]["metrics"]["loss"] > 0
    assert [row["config"] for row in found["front"]]
    assert "trainer.budget.steps=8" in found["command"]
    assert "splits.test" not in found["command"]
    assert f"config {best['config']}" in (whole / "report.html").read_text()


def test_a_trial_is_known_again_by_its_words(whole):
    # Else a search could not go on with one that was stopped half-way.
    state = read(whole)["state"]
    words = [*state["entries"][0]["words"], "trainer.budget.steps=8", "seed=1"]
    assert Job(0, words, whole / "trials" / "0000-rung0-seed1").take_over() is None


def test_bytes_are_known_before_training(whole):
    for row in read(whole)["tried"]:
        # After eight steps vectors are nearly what they began as: scripts/bench_search.py trains for longer.
        assert row["predicted_bytes"] == pytest.approx(row["bytes"], rel=0.05)
        assert row["predicted_bytes"] > 0.7 * 14_000  # the width fills what there is, in steps of four


def test_the_same_command_again_has_nothing_left_to_do_and_another_goal_is_another_search(search, whole, capsys):
    before = read(whole)["state"]["trials"]
    assert search(*GO, f"hydra.sweep.dir={whole}") == 0
    shown = capsys.readouterr()
    assert "best:" in shown.out
    assert "started" not in shown.err
    assert read(whole)["state"]["trials"] == before
    assert search(*GO, f"hydra.sweep.dir={whole}", "max_bytes=13000") == 2
    assert "holds another search" in capsys.readouterr().err


def test_the_plan_of_a_search_whose_budget_is_spent_says_so(search, whole, capsys):
    assert search(*GO, f"hydra.sweep.dir={whole}", "dry_run=true") == 0
    assert "the budget is spent: a larger one goes on with this search" in capsys.readouterr().out


def test_a_fixed_width_is_kept_and_the_rate_fills_the_file(data, here, capsys):
    words = ["model.width=16" if word.startswith("model.width") else word for word in [*TINY, *GO]]
    assert main(["search", *words, f"dataset.path={data}", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "ffn_factor" in shown
    assert "model.width" not in shown


def test_one_value_fixes_the_factor_of_all_widths(search, capsys):
    assert search(*GO, "ffn_factor=2", "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert re.search(r"ffn_factor +2\s", shown)
    assert "ffn_factor=2" in shown
    assert not re.search(r"ffn_factor=[^2]", shown)
    for wrong in ("no", "0", "2,wide"):
        assert search(*GO, f"ffn_factor={wrong}", "dry_run=true") == 2
        assert "is no multiple of model.width: name numbers above 0" in capsys.readouterr().err


def test_classifiers_are_searched_too(here, capsys):
    tiny = [word for word in TINY if not word.startswith(("dataset", "model.decoder", "evaluation.beam"))]
    words = [*tiny, "dataset=kinds", "dataset.tokenizer.vocab_size=300", "dataset.limit.train=200"]
    words += [
        "dataset.limit.valid=20",
        "dataset.limit.test=20",
        "trainer.keep=last",
        "candidates=1",
        "rungs=1",
        "seeds=1",
    ]
    assert main(["search", *words, "max_bytes=14000", "budget.trials=1", "hydra.sweep.dir=found"]) == 0
    found = read(here / "found")
    assert found["metric"] == "accuracy"
    assert found["tried"][0]["bytes"] <= 14000


def test_a_classifier_is_searched_and_scored_with_the_labels_that_it_begins_with(here, capsys):
    for split, labels in (("all", "abc"), ("some", "ac")):
        (here / split).mkdir()
        for name, rows in (("train", 30), ("valid", 12), ("test", 12)):
            lines = [f"{row} of a kind {labels[row % len(labels)]},{labels[row % len(labels)]}" for row in range(rows)]
            (here / split / f"{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    data = ["dataset=csv", "dataset.task=classification", "dataset.label=label", "trainer.device=cpu"]
    data += ["evaluation.latency_inputs=2", "trainer.budget.steps=2"]
    model = ["model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1"]
    assert main(["train", *data, *model, "dataset.path=all", "hydra.run.dir=origin"]) == 0
    words = [*data, "dataset.path=some", "init_from=origin", "technique.quantize.granularity=channel"]
    words += ["technique.quantize.bits=8,6", "candidates=1", "rungs=1", "seeds=1", "budget.trials=1"]
    assert main(["search", *words, "max_bytes=30000", "hydra.sweep.dir=found"]) == 0
    found = read(here / "found")
    capsys.readouterr()
    assert main(["evaluate", found["best"], "dataset.path=some", "dataset.splits.test=[test.csv]", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    print(scored)
    assert found["test"]["metrics"]["accuracy"] == pytest.approx(scored["metrics"]["accuracy"])
