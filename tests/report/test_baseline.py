"""What rows are compared with where nothing is asked for, and that the report says so."""

import pytest

from tfx.cli import main
from tfx.report.comparison import compare_runs
from tfx.report.page import baseline_line


def written(run_writer, folder, settings="", **more):
    run = run_writer(folder, **more)
    (run / "config.yaml").write_text(settings + (run / "config.yaml").read_text())
    return run


def chosen(path, **more):
    (family,) = compare_runs([path], **more).families
    return family.baseline and family.baseline.runs[0].path.name, baseline_line(family)


def test_of_plain_arms_with_as_many_runs_the_nearest_to_all_others_is_the_baseline(run_writer, tmp_path):
    for name, settings in (("a", "lr: 1\ndecay: 1\n"), ("b", "lr: 2\n"), ("c", "lr: 2\ndecay: 3\n")):
        written(run_writer, tmp_path / name, settings)
    written(run_writer, tmp_path / "d", "lr: 2\n", techniques=("prune",))
    name, line = chosen(tmp_path)
    assert name == "b"
    assert "chosen because it has no technique and has the settings nearest to those of all others. --baseline" in line
    written(run_writer, tmp_path / "c2", "lr: 2\ndecay: 3\n", seed=2)
    name, line = chosen(tmp_path)
    assert name == "c"
    assert "chosen because it has no technique and has the most runs (2). " in line
    assert chosen(tmp_path, baseline=str(tmp_path / "a"))[0] == "a"


def test_what_its_user_calls_baseline_is_it(run_writer, tmp_path):
    written(run_writer, tmp_path / "baseline" / "seed1", "lr: 1\n")
    for seed in (1, 2):
        written(run_writer, tmp_path / "other" / f"seed{seed}", "lr: 2\n", seed=seed)
    name, line = chosen(tmp_path)
    assert name == "seed1"
    assert "chosen because it has no technique and is named 'baseline'. " in line


@pytest.fixture
def shots(run_writer, tmp_path):
    """Two compressed models of two seeds, which lost 0.1 and 0.2, and 0.3 and 0.3."""
    for name, lost in (("prune", (0.1, 0.2)), ("quantize", (0.3, 0.3))):
        for seed, loss in zip((1, 2), lost, strict=True):
            reference = {"name": "init_from", "test": {"exact_match": 0.4 + loss + seed / 10}}
            summary = {"reference": reference, "test": {"exact_match": 0.4 + seed / 10}}
            written(run_writer, tmp_path / f"{name}{seed}", techniques=(name,), seed=seed, summary=summary)
    return tmp_path


def test_without_a_dense_row_each_run_is_compared_with_the_model_that_it_started_from(shots, capsys):
    comparison = compare_runs([shots])
    (family,) = comparison.facts()["families"]
    assert family["baseline"] is None
    found = {arm["arm"]: [arm[f"difference{end}"] for end in ("", "_low", "_high")] for arm in family["arms"]}
    # Student's interval of two: 12.706 times the spread over the root of two.
    assert found["prune"] == pytest.approx([-0.15, -0.15 - 0.6353, -0.15 + 0.6353], abs=1e-4)
    assert found["quantize"] == pytest.approx([-0.3] * 3)
    assert all(arm["p"] is None for arm in family["arms"])
    assert main(["report", str(shots)]) == 0
    printed = capsys.readouterr().out
    assert "No baseline: every config has techniques" in printed
    assert "not tested" in printed
    assert "Differences to where each started" in (shots / "report.html").read_text()
    assert chosen(shots, baseline="prune")[0] == "prune1"


def test_one_compressed_run_is_no_baseline(shots):
    (family,) = compare_runs([shots / "prune1"]).facts()["families"]
    assert family["baseline"] is None
    assert family["arms"][0]["difference"] == pytest.approx(-0.1)


def test_without_the_test_of_a_start_the_fewest_techniques_are_the_baseline(run_writer, tmp_path):
    written(run_writer, tmp_path / "a", techniques=("prune", "quantize"))
    written(run_writer, tmp_path / "b", techniques=("quantize",))
    name, line = chosen(tmp_path)
    assert name == "b"
    assert "chosen because it has the fewest techniques. " in line


def test_labels_of_another_kind_are_another_question(run_writer, tmp_path):
    for name, predict in (("a", "one"), ("b", "several")):
        written(run_writer, tmp_path / name, f"dataset: {{predict: {predict}}}\n")
    assert len(compare_runs([tmp_path]).families) == 2


def test_where_all_have_techniques_the_one_that_all_others_start_from_is_the_baseline(run_writer, tmp_path):
    parent = written(run_writer, tmp_path / "parent", techniques=("bpe_dropout", "r_drop"))
    for name, lost in (("prune", 0.1), ("quantize", 0.2)):
        summary = {
            "reference": {"name": "init_from", "test": {"exact_match": 0.5}},
            "test": {"exact_match": 0.5 - lost},
        }
        written(run_writer, tmp_path / name, f"init_from: {parent}\n", techniques=(name,), summary=summary)
    name, line = chosen(tmp_path)
    assert name == "parent"
    assert "chosen because all others start from it" in line


def test_a_page_of_its_own_is_never_written_over(shots, tmp_path, capsys):
    run, other = tmp_path / "prune1", tmp_path / "prune2"
    (run / "report.html").write_text("the run's own")
    assert main(["report", str(run), str(other)]) == 0
    assert f"page: {run / 'comparison.html'}" in capsys.readouterr().out
    assert (run / "report.html").read_text() == "the run's own"
    (shots / "search.json").write_text("{}")
    (shots / "report.html").write_text("the search's own")
    assert main(["report", str(shots)]) == 0
    assert (shots / "report.html").read_text() == "the search's own"
    assert (shots / "comparison.html").is_file()


def test_a_page_that_is_not_tfx_s_is_never_written_over(shots, capsys):
    (shots / "report.html").write_text("my own notes")
    assert main(["report", str(shots)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "report.html exists already, and is no page of tfx's (--html names it): name another file" in said.err
    assert (shots / "report.html").read_text() == "my own notes"
    assert main(["report", str(shots), "--html", str(shots / "mine.html")]) == 0
    assert main(["report", str(shots), "--html", str(shots / "mine.html")]) == 0  # which is one
