"""A budget of bytes becomes a rate: on formulas, and in files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.cli import main
from tfx.compression.checkpoint import read_header
from tfx.errors import UserError
from tfx.techniques.quantize.allocation import LEAST_RATE, MOST_RATE, first_rate, meet


@given(
    st.floats(0.55, 5.9),
    st.integers(2_000, 1_000_000),
    st.floats(0.7, 1.3),
    st.integers(0, 50_000),
    st.floats(LEAST_RATE, MOST_RATE),
)
def test_the_rate_that_fills_the_limit_is_found(wanted, count, slope, besides, first):
    calls = []

    def bytes_at(rate):
        calls.append(rate)
        return round(besides + count * (slope * rate + 0.05 * rate**2) / 8)

    limit = bytes_at(wanted)
    rate = meet(limit, count, first, bytes_at)
    assert rate == calls[-1]  # what is there is of that rate
    assert bytes_at(rate) <= limit
    assert bytes_at(rate) >= 0.97 * limit
    assert len(calls) <= 12


def test_what_cannot_be_reached_is_told_with_the_least_there_is():
    with pytest.raises(UserError, match="has 56,250"):
        meet(50_000, 100_000, 2.0, lambda rate: round(50_000 + 100_000 * rate / 8))
    assert meet(1e9, 1000, 2.0, lambda rate: round(1000 * rate / 8)) == MOST_RATE
    assert meet(1e9, 1000, 0.8, lambda rate: round(1000 * rate / 8), most=1.0) == 1.0


def test_the_first_rate_counts_what_lies_beside_the_codes():
    assert first_rate(10_000 + 1_500 + 2_000 + 500, 40_000, 1_000, 500) == 2.0
    assert first_rate(10, 40_000, 1_000, 500) == LEAST_RATE
    assert first_rate(1e9, 40_000, 1_000, 500, most=1.0) == 1.0


TINY = ["model.width=32", "model.heads=2", "model.ffn_width=64", "model.encoder_layers=1", "model.decoder_layers=1"]
TINY += ["dataset.metrics=[]", "evaluation.beam=1", "evaluation.latency_inputs=2", "trainer.device=cpu"]
TINY += ["dataset.tokenizer.vocab_size=300", "dataset.limit.train=60", "dataset.limit.valid=8", "dataset.limit.test=8"]


def train(folder, *words: str) -> dict:
    assert main(["train", *TINY, "+technique=quantize", *words, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


def test_files_keep_their_bytes_in_training_and_after_it(tmp_path):
    summary = train(tmp_path / "trained", "technique.quantize.bytes=12000", "trainer.budget.steps=4")
    assert 0.985 * 12_000 < summary["bytes"]["file"] <= 12_000
    assert summary["bytes"]["file"] == read_header(tmp_path / "trained" / "compressed.safetensors").bytes.file
    assert summary["evidence"]["quantize"]["aware_steps"] > 0
    again = ["trainer.budget.steps=0", f"init_from={tmp_path / 'trained' / 'model.safetensors'}"]
    words = [word for word in TINY if not word.startswith(("model.", "dataset.tokenizer"))]
    folder = tmp_path / "after"
    more = ["technique.quantize.ratio=12", "technique.quantize.aware=false", "technique.quantize.calibration=2"]
    assert main(["train", *words, "+technique=quantize", *again, *more, f"hydra.run.dir={folder}"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert 12 <= summary["bytes"]["ratio"] < 13.5


@pytest.mark.parametrize("limit", ["bytes=12000", "ratio=9"])
def test_bytes_and_few_bits_take_the_highest_rate_that_the_bits_have(tmp_path, limit):
    words = [f"technique.quantize.{limit}", "technique.quantize.bits=3", "trainer.budget.steps=2"]
    summary = train(tmp_path / "r", *words)
    assert summary["evidence"]["quantize"]["rate_for_bytes"] == 1.0  # more would fit
    assert "rate" not in summary["evidence"]["quantize"]
    assert summary["evidence"]["quantize"]["bits"] == 3


@pytest.mark.parametrize("limit", ["bytes=12000", "ratio=9"])
def test_bits_without_a_rate_are_refused_in_the_words_of_the_user(tmp_path, capsys, limit):
    words = [f"technique.quantize.{limit}", "technique.quantize.bits=2", f"hydra.run.dir={tmp_path / 'r'}"]
    assert main(["train", *TINY, "+technique=quantize", *words]) == 2
    assert f"technique.quantize.{limit} needs room for the codes of large weights: bits=3" in capsys.readouterr().err


def test_two_ways_to_say_the_rate_are_an_error(tmp_path, capsys):
    words = ["technique.quantize.bytes=12000", "technique.quantize.rate=2", f"hydra.run.dir={tmp_path / 'r'}"]
    assert main(["train", *TINY, "+technique=quantize", *words]) == 2
    assert "rate=2.0 and bytes=12000" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("method", ["nearest", "trellis"])
def test_a_file_that_cannot_be_so_small_is_refused_before_it_trains_and_in_a_dry_run(tmp_path, capsys, method):
    code = [f"technique.quantize.method={method}", "technique.quantize.calibration=2"]
    small = ["+technique=quantize", "trainer.budget.steps=4", f"hydra.run.dir={tmp_path / 'r'}", *code]
    for more in ([], ["dry_run=true"]):
        assert main(["train", *TINY, *small, "technique.quantize.bytes=4000", *more]) == 2
        captured = capsys.readouterr()
        assert "a file of 4,000 bytes cannot be reached: at the least rate" in captured.err
        assert "validation" not in captured.err  # no step was made
    least = int(captured.err.split("it has ")[1].split(";")[0].replace(",", ""))
    # As much as that, and a little for doubt, can be had.
    enough = f"technique.quantize.bytes={round(1.06 * least)}"
    summary = train(tmp_path / "fits", enough, "trainer.budget.steps=4", *code)
    assert summary["bytes"]["file"] <= 1.06 * least


@pytest.mark.parametrize("method", ["nearest", "trellis"])
def test_embeddings_have_a_rate_of_their_own(tmp_path, capsys, method):
    words = [
        "technique.quantize.rate=1.5",
        "technique.quantize.embedding_rate=3.5",
        f"technique.quantize.method={method}",
    ]
    train(tmp_path / "r", *words, "trainer.budget.steps=3", "technique.quantize.calibration=2")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "r"), "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["tensors"] if len(row["shape"]) == 2]
    bits = {}
    for is_block in (True, False):
        part = [row for row in rows if (".blocks." in row["name"]) == is_block]
        weights = [row["shape"][0] * row["shape"][1] for row in part]
        bits[is_block] = sum(r["bits_per_weight"] * n for r, n in zip(part, weights, strict=True)) / sum(weights)
    # A matrix as small as here has more beside its codes than they take.
    assert bits[False] == pytest.approx(3.5, abs=0.5)
    assert bits[True] == pytest.approx(1.5, abs=0.5)


def test_with_bytes_what_embeddings_leave_goes_to_the_blocks(tmp_path):
    found = {}
    for rate in (1.0, 4.0):
        words = ["technique.quantize.bytes=12000", f"technique.quantize.embedding_rate={rate}"]
        summary = train(tmp_path / str(rate), *words, "trainer.budget.steps=2")
        assert 0.985 * 12_000 < summary["bytes"]["file"] <= 12_000
        found[rate] = summary["evidence"]["quantize"]["rate_for_bytes"]
    assert found[1.0] > found[4.0] + 0.5


def test_a_rate_for_embeddings_without_a_rate_says_what_to_name(tmp_path, capsys):
    words = ["technique.quantize.embedding_rate=2", f"hydra.run.dir={tmp_path / 'r'}"]
    assert main(["train", *TINY, "+technique=quantize", *words]) == 2
    assert "technique.quantize.embedding_rate goes with a rate" in capsys.readouterr().err
