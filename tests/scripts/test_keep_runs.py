"""`scripts/keep_runs.py`: finished runs become lines of a file that a report reads."""

import importlib.util
from pathlib import Path

import pytest

from tfx.report.runs_file import read_kept

ROOT = Path(__file__).parents[2]


@pytest.fixture
def keep_runs():
    spec = importlib.util.spec_from_file_location("keep_runs", ROOT / "scripts" / "keep_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_run(folder, seed, start="null"):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"defaults: [_self_]\nhydra: {{}}\nseed: {seed}\ninit_from: {start}\n")
    (folder / "summary.json").write_text('{"status": "completed", "format_version": 1}')
    (folder / "metrics.jsonl").write_text('{"split": "valid", "step": 1, "loss": 0.5}\n')


def test_runs_are_added_replaced_and_named(tmp_path, keep_runs):
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, start="outputs/a")
    file = tmp_path / "study.runs.jsonl"
    keep_runs([str(file), f"dense/seed1={tmp_path / 'b'}", "--note", "the wrong one"])
    keep_runs([str(file), f"dense/seed1={tmp_path / 'a'}"])
    keep_runs([str(file), f"small/seed2={tmp_path / 'b'}", "--named", "outputs/a=study/dense/seed1"])
    dense, small = (run for _, run in read_kept(file))
    assert (dense.name, dense.config, dense.note) == ("dense/seed1", {"seed": 1, "init_from": None}, "")
    assert (small.name, small.config) == ("small/seed2", {"seed": 2, "init_from": "study/dense/seed1"})
    assert small.metrics == [{"split": "valid", "step": 1, "loss": 0.5}]


def test_a_file_with_a_line_that_cannot_be_read_is_left_as_it_is(tmp_path, keep_runs, capsys):
    write_run(tmp_path / "a", 1)
    file = tmp_path / "study.runs.jsonl"
    file.write_text("{\n")
    with pytest.raises(SystemExit):
        keep_runs([str(file), f"dense/seed1={tmp_path / 'a'}"])
    assert file.read_text() == "{\n"
    assert ":1" in capsys.readouterr().err
