"""The closing table: a row a stage, and in plain words where smaller is not faster."""

import copy
import io

import pytest
from rich.console import Console

from tfx.record.summary import Summary
from tfx.run.closing import closing_table

SPEED = {"latency_ms": {"p50": 10.0, "p95": 14.0}, "tokens_per_second": 800.0, "memory_bytes": 1000}


def speed(p50):
    return {**SPEED, "latency_ms": {"p50": p50, "p95": 2 * p50}}


def stage(name, bleu, size, parameters, nonzero, ms, seconds=1.0):
    return {
        "name": name,
        "valid": {"bleu": bleu, "loss": 2.0},
        "bytes": size,
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "seconds": seconds,
        "latency_ms": ms,
    }


SUMMARY = {
    "status": "completed",
    "seed": 1,
    "model": "seq2seq_tiny",
    "dataset": "normalize",
    "task": "seq2seq",
    "primary_metric": "bleu",
    "test_split": "test",
    "valid": {"bleu": 28.5, "loss": 2.0},
    "test": {"bleu": 27.25, "loss": 2.125},
    "signatures": {"bleu": "nrefs:1"},
    "parameters": 1_000_000,
    "train": {"steps": 1234, "tokens": 56789, "seconds": 61.0, "tokens_per_second": 930.0, "padding": 0.125},
    "bytes": {
        "dense_fp32": 4_000_000,
        "file": 420_000,
        "weights": 390_000,
        "header": 10_000,
        "tokenizer": 20_000,
        "ratio": 10.0,
    },
    "stages": [
        stage("trained", 30.0, 4_000_000, 1_000_000, 1_000_000, 10.0, seconds=61.0),
        stage("prune", 29.5, 1_000_000, 1_000_000, 500_000, 10.0),
        stage("quantize", 28.5, 400_000, 1_000_000, 480_000, 11.0),
        stage("file", 28.5, 400_000, 1_000_000, 480_000, 11.0),
    ],
    "inference": {"file": speed(10.0), "plain_fp32": speed(20.0), "plain_bf16": speed(30.0)},
    "evidence": {"prune": {"sparsity": 0.5, "parameters_removed": 0.0}},
    "quality_drops": [],
}


def shown(**changes):
    """The table as text, on a terminal that is wide enough."""
    out = io.StringIO()
    summary = Summary.from_dict({**copy.deepcopy(SUMMARY), **changes})
    Console(file=out, width=160).print(closing_table(summary.facts, summary.result))
    return out.getvalue()


def row(text, name):
    """The cells of the row of this name; where there are two, of the last: stages stand below the result."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return [cells for cells in rows if cells[0] == name][-1]


def test_a_row_a_stage_with_quality_size_and_speed():
    text = shown()
    [heads] = [line for line in text.splitlines() if "non-zero" in line]
    assert [cell.strip() for cell in heads.strip("┃").split("┃")] == [
        *("stage", "quality", "diff", "weights", "non-zero", "size", "ratio", "ms")
    ]
    assert "differences to 'trained'" in text
    assert row(text, "trained") == ["trained", "30", "", "1.000 M", "1.000 M", "4.00 MB", "1.00x", "10.0"]
    assert row(text, "prune") == ["prune", "29.5", "-0.5", "1.000 M", "0.500 M", "1.00 MB", "4.00x", "10.0"]
    assert row(text, "quantize") == ["quantize", "28.5", "-1.5", "1.000 M", "0.480 M", "400.00 kB", "10.00x", "11.0"]


def test_nothing_is_compared_with_a_model_that_was_still_training():
    begun = stage("trained", 20.0, 4_000_000, 1_000_000, 1_000_000, 10.0, seconds=12.2)
    text = " ".join(shown(stages=[begun, *SUMMARY["stages"][1:]]).split())
    assert "differences" not in text
    assert "'trained' when compression began, after 20% of training" in text
    assert row(shown(stages=[begun, *SUMMARY["stages"][1:]]), "quantize")[1:3] == ["28.5", ""]
    reference = stage("reference", 30.0, 4_000_000, 1_000_000, 1_000_000, 10.0)
    text = " ".join(shown(stages=[reference, begun, *SUMMARY["stages"][1:]]).split())
    assert "differences to 'reference', 'trained' when compression began, after 20% of training, size" in text
    assert "differences to 'trained'" in shown(train={**SUMMARY["train"], "seconds": 0.0})  # nothing was trained


@pytest.mark.parametrize(("name", "told"), [("teacher", "the teacher"), ("init_from", "the model of init_from")])
def test_the_table_says_what_the_reference_is(name, told):
    stages = [stage("reference", 30.0, 4_000_000, 1_000_000, 1_000_000, 10.0), *SUMMARY["stages"]]
    reference = {"name": name, "path": "dense", "valid": {"bleu": 30.0}, "test": {"bleu": 30.0}, "bytes": 4_000_000}
    text = " ".join(shown(stages=stages, reference=reference).split())
    assert f"differences to 'reference', {told}, " in text


def test_the_result_is_that_of_the_final_file():
    text = shown()
    assert row(text, "bleu") == ["bleu", "28.5", "27.25"]
    assert "420.00 kB (weights 390.00 kB, header 10.00 kB, tokenizer 20.00 kB)" in text
    assert "10.0 ms a sentence (p95 20.0)" in text
    # What proves nothing is left out.
    assert "sparsity 0.5" in text
    assert "parameters_removed" not in text
    assert "test (none: valid)" in shown(test_split="valid")


@pytest.mark.parametrize(
    ("other", "words"),
    [(6.0, "slower"), (7.9, "slower"), (8.1, "no faster"), (10.0, "no faster"), (10.4, "no faster"), (10.6, None)],
)
@pytest.mark.parametrize("name", ["plain_fp32", "plain_bf16", "reference"])
def test_where_smaller_is_not_faster_a_plain_line_says_so(name, other, words):
    labels = {"plain_fp32": "its plain fp32 tensors", "plain_bf16": "its plain bf16", "reference": "the reference"}
    text = shown(inference={**SUMMARY["inference"], name: speed(other)})
    if words is None:
        assert "smaller is" not in text
    else:
        line = f"smaller is {words} here: 10.0 ms with the file, {other:.1f} ms with {labels[name]}"
        assert text.count("smaller is") == 1
        assert line in text


def test_a_dense_model_has_no_stages_and_nothing_to_say_of_speed():
    only = speed(10.0)
    text = shown(
        stages=[SUMMARY["stages"][0], {**SUMMARY["stages"][0], "name": "file"}],
        inference={"file": only, "plain_fp32": only, "plain_bf16": speed(5.0)},
    )
    assert "stages:" not in text
    assert "smaller is" not in text
    # A compressed file that is not smaller claims nothing either.
    bytes_ = {**SUMMARY["bytes"], "ratio": 0.9}
    slow = {**SUMMARY["inference"], "plain_fp32": speed(5.0)}
    assert "smaller is" in shown(inference=slow)
    assert "smaller is" not in shown(inference=slow, bytes=bytes_)


def test_what_lost_too_much_stands_below():
    lost = "quantize lost 2 of bleu on validation data against 'trained', and max_quality_drop=1"
    assert lost in shown(quality_drops=[lost])


@pytest.mark.parametrize(
    ("rate", "reached", "says"),
    [
        (0.5, 0.68, "the codes take 0.68 bits per weight, not the 0.5 that were aimed at: no step may"),
        (6.0, 4.2, "the codes take 4.2 bits per weight, not the 6 that were aimed at: technique.quantize.bits"),
        (2.0, 2.01, None),
        (2.0, 1.99, None),
    ],
)
def test_a_rate_that_is_missed_is_said(rate, reached, says):
    text = " ".join(shown(evidence={"quantize": {"rate": rate, "entropy_bits": reached}}).split())
    assert ("that were aimed at" in text) == (says is not None)
    assert says is None or says in text
