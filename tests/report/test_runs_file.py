"""Kept runs: a file of them is the folder of runs that it stands for."""

import json

import pytest

from tfx.cli import main
from tfx.errors import UserError
from tfx.report.comparison import compare_runs
from tfx.report.runs import find_runs
from tfx.report.runs_file import KeptRun, keep, read_kept, write_kept


@pytest.fixture
def study(tmp_path, run_writer):
    """Two dense runs, and two that start from one each, as directories and as the file that stands for them."""
    folders = {}
    for seed in (1, 2):
        folders[f"dense/seed{seed}"] = run_writer(tmp_path / "runs" / f"d{seed}", seed=seed)
        small = run_writer(tmp_path / "runs" / f"s{seed}", seed=seed, techniques=("prune",), quality=0.3)
        config = small / "config.yaml"
        config.write_text(config.read_text() + f"init_from: {tmp_path}/runs/d{seed}\n")
        folders[f"small/seed{seed}"] = small
    named = {str(folders[f"dense/seed{seed}"]): f"study/dense/seed{seed}" for seed in (1, 2)}
    file = tmp_path / "kept" / "study.runs.jsonl"
    file.parent.mkdir()
    write_kept(file, [keep(folder, name, names=named) for name, folder in folders.items()])
    return tmp_path, folders, file


def test_a_report_on_kept_runs_has_the_numbers_of_their_directories(study):
    root, folders, file = study
    before, after = (compare_runs([path]).families[0] for path in (root / "runs", root / "kept"))
    assert [arm.scores for arm in before.arms] == [arm.scores for arm in after.arms]
    assert [[run.curve for run in arm.runs] for arm in before.arms] == [
        [run.curve for run in arm.runs] for arm in after.arms
    ]
    assert {str(run.path.relative_to(root / "kept" / "study")) for arm in after.arms for run in arm.runs} == {*folders}
    assert [len(compare_runs([file]).families[0].arms), len(after.arms)] == [2, 2]


def test_kept_runs_of_several_seeds_that_start_from_kept_runs_of_one_config_are_one_arm(study):
    root, _, _ = study
    small = next(arm for arm in compare_runs([root / "kept"]).families[0].arms if arm.runs[0].techniques)
    assert [run.seed for run in small.runs] == [1, 2]
    assert small.runs[0].config["init_from"] == str(root / "kept" / "study" / "dense" / "seed1")


def test_the_page_of_a_file_of_kept_runs_lies_beside_it(study, capsys):
    _, _, file = study
    assert main(["report", str(file)]) == 0
    assert "exact_match" in capsys.readouterr().out
    assert (file.parent / "report.html").is_file()


def test_kept_runs_that_only_their_notes_tell_apart_are_two_arms(study):
    root, folders, file = study
    runs = [run for _, run in read_kept(file) if isinstance(run, KeptRun)]
    trial = keep(folders["dense/seed1"], "trial/seed1", "with a penalty that no setting has")
    write_kept(file, [*runs, trial])
    assert len(compare_runs([root / "kept"]).families[0].arms) == 3


def test_of_many_training_rows_about_twenty_are_kept_and_every_other_row(tmp_path, run_writer):
    folder = run_writer(tmp_path / "run")
    rows = [{"split": "train", "step": step} for step in range(1, 1001)]
    rows += [{"split": "valid", "step": 1000}, {"split": "test", "step": 1000, "final": True}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = keep(folder, "run").metrics
    assert [row["step"] for row in kept if row["split"] == "train"] == list(range(50, 1001, 50))
    assert kept[-2:] == rows[-2:]


@pytest.mark.parametrize("name", ["", "/tmp/a", "../a", "a/./b", "a\0b", "a//b"])
def test_a_name_that_is_no_path_below_the_study_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot name"):
        write_kept(tmp_path / "a.runs.jsonl", [KeptRun(name, {}, {})])
    assert not list(tmp_path.iterdir())


def test_two_runs_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="twice"):
        write_kept(tmp_path / "a.runs.jsonl", [KeptRun("a", {}, {}), KeptRun("a", {}, {})])


def test_lines_that_cannot_be_read_are_named_and_left_out(study):
    _, _, file = study
    good = file.read_bytes()
    broken = [b"{", b"[1]", b'{"name": "../../x", "config": {}, "summary": {}}', b'{"name": "\xff"}']
    broken += [b'{"name": "x", "config": [], "summary": {}}', b'{"name": "y", "config": {}, "summary": 3}']
    file.write_bytes(good + b"".join(line + b"\n" for line in broken))
    runs, left_out = find_runs([file])
    assert (len(runs), len(left_out)) == (4, len(broken))
    assert str(left_out[0].path) == f"{file}:5"
