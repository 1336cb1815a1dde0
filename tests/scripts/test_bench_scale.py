"""`scripts/bench_scale.py`: what its parts say about small sizes."""

import importlib
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("bench_scale")


@pytest.fixture
def measure(scale, monkeypatch, tmp_path):
    """Runs the script, and gives the rows that it writes."""

    def main(*words):
        monkeypatch.setattr(sys, "argv", ["bench_scale.py", *words, "--json", str(tmp_path / "rows.json")])
        scale.main()
        return json.loads((tmp_path / "rows.json").read_text())["rows"]

    return main


@pytest.mark.whole_process
def test_each_size_is_prepared_without_and_with_a_cache(measure):
    rows = measure("--part", "prepare", "--pairs", "120")
    assert [(row["pairs"], row["rows"], row["time"]) for row in rows] == [(120, 120, "first"), (120, 120, "again")]
    assert all(row["pss"] > 1e6 and row["seconds"] > 0 and row["batches"] > 0 for row in rows)


def test_speeds_are_compared_within_their_round(scale, measure, monkeypatch):
    speeds = iter([10.0, 20.0, 40.0, 60.0, 10.0, 30.0])
    words = []
    monkeypatch.setattr(
        scale, "trained", lambda given: words.append(given) or {"train": {"tokens_per_second": next(speeds)}}
    )
    one, two = measure("--part", "processes", "--rounds", "3", "--devices", "1,2", "dataset=kinds")
    assert (one["tokens_per_second"], one["ratio"]) == (10.0, 1.0)
    assert (two["tokens_per_second"], two["ratio"], two["lowest"], two["highest"]) == (30.0, 2.0, 1.5, 3.0)
    assert [given[-2:] for given in words[:2]] == [["dataset=kinds", f"trainer.devices={n}"] for n in (1, 2)]


@pytest.mark.whole_process
def test_local_steps_are_compared_with_one_process_at_the_same_tokens(measure):
    tiny = ["model=seq2seq_tiny", "model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1"]
    tiny += ["model.decoder_layers=1", "dataset.batch_tokens=256", "trainer.budget.steps=20", "trainer.device=cpu"]
    tiny += [f"dataset.limit.{split}=60" for split in ("train", "valid", "test")]
    (row,) = measure("--part", "local", "--seeds", "3", *tiny, "evaluation=greedy", "dataset.metrics=[]")
    assert row["seed"] == 3
    assert 0 < row["tokens"] <= 20 * 256
    # Other steps, and near enough.
    assert row["one"] != row["two"]
    assert row["difference"] == pytest.approx(row["two"] / row["one"] - 1)
    assert abs(row["difference"]) < 0.2


@pytest.mark.slow
@pytest.mark.whole_process
def test_local_steps_end_within_one_per_cent_of_one_process(measure, real_data):
    data = f"dataset.path={real_data('tinyshakespeare')}"
    nano = ["dataset=tinyshakespeare", data, "model=gpt_nano", "dataset.batch_tokens=1024", "trainer.budget.steps=800"]
    (row,) = measure("--part", "local", "--seeds", "1", *nano)
    assert row["tokens"] == 800 * 1024
    assert row["one"] < 1.8
    assert row["difference"] < 0.01


def test_unequal_tokens_are_no_comparison(scale, measure, monkeypatch):
    tokens = iter([100, 90])
    monkeypatch.setattr(scale, "trained", lambda words: {"train": {"tokens": next(tokens)}, "valid": {"loss": 1.0}})
    with pytest.raises(SystemExit, match="seed 1: one process trained on 100 tokens, and two on 90"):
        measure("--part", "local")


def test_overrides_of_preparing_are_refused(measure, capsys):
    with pytest.raises(SystemExit) as left:
        measure("--part", "prepare", "dataset=kinds")
    assert left.value.code == 2
    assert "preparing takes no overrides: dataset=kinds" in capsys.readouterr().err
