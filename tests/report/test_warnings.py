"""What a reader is warned of: where a row starts, how it was decoded, and what nothing can be said of."""

import pytest

from tfx.report.comparison import compare_runs
from tfx.report.runs_file import keep, write_kept


def write(run_writer, folder, settings="", **more):
    run = run_writer(folder, **more)
    (run / "config.yaml").write_text(settings + (run / "config.yaml").read_text())
    return run


@pytest.fixture
def about(tmp_path):
    """The details of the warnings of one kind, of the runs below ``tmp_path / "runs"``."""

    def about(kind: str) -> list[str]:
        (family,) = compare_runs([tmp_path / "runs"]).families
        return [line.removeprefix(f"{kind}: ") for line in family.details if line.startswith(f"{kind}: ")]

    return about


def test_a_better_model_to_start_from_is_named(run_writer, tmp_path, about):
    for seed in (1, 2):
        better = run_writer(tmp_path / "better" / f"seed{seed}", seed=seed)
        base = write(run_writer, tmp_path / "runs" / f"base{seed}", seed=seed)
        write(run_writer, tmp_path / "runs" / f"q{seed}", f"init_from: {better}\n", techniques=("quantize",), seed=seed)
        write(run_writer, tmp_path / "runs" / f"p{seed}", f"init_from: {base}\n", techniques=("prune",), seed=seed)
        write(run_writer, tmp_path / "runs" / f"d{seed}", techniques=("distill",), seed=seed)
    # What starts from the baseline is that model, compressed: its difference is its own.
    assert about("different start") == ["quantize (from better; baseline: from scratch)"]


def test_models_of_one_config_are_one_start(run_writer, tmp_path, about):
    for seed in (1, 2):
        dense = run_writer(tmp_path / "dense" / f"seed{seed}", seed=seed)
        for name in ((), ("prune",)):
            folder = tmp_path / "runs" / f"{name}{seed}"
            write(run_writer, folder, f"init_from: {dense}\n", techniques=name, seed=seed)
    assert about("different start") == []


def test_a_search_that_only_one_side_had_is_named(run_writer, tmp_path, about):
    for number, words in enumerate(
        ("method: greedy, beam: 5", "method: auto, beam: 5, length_penalty: 1.0", "method: beam, beam: 1")
    ):
        summary = {"techniques": ["t" * number] if number else [], "primary_metric": "chrf", "test": {"chrf": 50.0}}
        write(run_writer, tmp_path / "runs" / str(number), f"evaluation: {{{words}}}\n", summary=summary)
    assert about("different decoding") == ["t (beam=5 length_penalty=1; baseline: greedy)"]


def test_a_rule_that_only_one_side_followed_is_named(run_writer, tmp_path, about):
    for number, words in enumerate(("method: greedy, min_length: 0", "method: greedy, no_repeat_ngram: 3")):
        summary = {"techniques": ["t"] * number, "primary_metric": "chrf", "test": {"chrf": 50.0}}
        write(run_writer, tmp_path / "runs" / str(number), f"evaluation: {{{words}}}\n", summary=summary)
    assert about("different decoding") == ["t (greedy no_repeat_ngram=3; baseline: greedy)"]


def test_a_loss_is_of_no_decoding(run_writer, tmp_path, about):
    for number, method in enumerate(("greedy", "auto")):
        summary = {"techniques": ["t"] * number, "primary_metric": "loss", "test": {"loss": 2.0}}
        write(run_writer, tmp_path / "runs" / str(number), f"evaluation: {{method: {method}}}\n", summary=summary)
    assert about("different decoding") == []


def test_runs_without_predictions_are_not_said_to_have_other_sentences(run_writer, tmp_path):
    runs = [run_writer(tmp_path / name, techniques=names) for name, names in (("base", ()), ("prune", ("prune",)))]
    (tmp_path / "kept").mkdir()
    write_kept(tmp_path / "kept" / "s.runs.jsonl", [keep(run, run.name) for run in runs])
    (family,) = compare_runs([tmp_path / "kept"]).families
    assert family.warnings == [
        "one run only (2 of 2 configs): nothing is known of the noise of training, and no difference has an interval: "
        "take three seeds or more.",
        "no test sentences beside the run or the baseline (1 of 2 configs): only seeds are resampled.",
    ]
