"""scripts/check_gpu.py runs through without a GPU, every part of it."""

import json
from pathlib import Path

import pytest
import torch

from tfx.training.step import Stepper

ROOT = Path(__file__).parents[2]
NAMES = ("tests", "agree", "attention", "resume", "waits", "guard", "graphs", "batch")
NAMES += ("rate", "training", "choices", "shakespeare", "kernels", "ways")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import check_gpu

        yield check_gpu


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def rows_of(script, folder, name, *words):
    """The status of a part, and the rows that it gave besides its time."""
    path = folder / "rows.json"
    status = script.main([name, "--device", "cpu", "--json", str(path), *words])
    found = json.loads(path.read_text())
    assert list(found["parts"]) == [name]
    assert "no GPU" in found["device"]
    return status, found["parts"][name][:-1]


@pytest.mark.parametrize("name", NAMES)
def test_every_part_runs_through_and_passes(script, name, tmp_path, monkeypatch):
    compiled = torch.compile
    # What torch traces is what counts here: to compile C++ of it takes minutes.
    monkeypatch.setattr(torch, "compile", lambda *given, **named: compiled(*given, **{**named, "backend": "eager"}))
    (tmp_path / "input.txt").write_text("".join(f"line {i} of a play\n" for i in range(500)))
    status, rows = rows_of(script, tmp_path, name, "--shakespeare", str(tmp_path))
    assert rows
    assert [row for row in rows if row["good"] is False or "left out" in row["value"]] == (
        [row for row in rows if row["what"] == "2:4"]
    )
    assert status == 0


def test_no_part_is_forgotten_here(script):
    assert set(script.PARTS) == set(NAMES)


def test_a_step_that_waits_is_caught(script, tmp_path, monkeypatch):
    whole = Stepper._loss

    def waiting(self, *given):
        loss, nll = whole(self, *given)
        return loss, nll * bool(nll > 0)

    monkeypatch.setattr(script.steps, "_STACKS", {"dense": []})
    monkeypatch.setattr(Stepper, "_loss", waiting)
    status, rows = rows_of(script, tmp_path, "waits")
    assert status == 1
    assert [row["number"] for row in rows] == [1]


def test_data_that_is_not_named_is_left_out(script, tmp_path):
    status, rows = rows_of(script, tmp_path, "shakespeare")
    assert status == 0
    assert "--shakespeare FOLDER" in rows[0]["value"]


def test_the_character_model_is_timed_beside_nanogpts_loop(script, tmp_path):
    (tmp_path / "input.txt").write_text("To be, or not to be: that is the question.\n" * 400)
    path = tmp_path / "rows.json"
    words = ["shakespeare", "--device", "cpu", "--shakespeare", str(tmp_path), "--json", str(path)]
    assert script.main(words) == 0
    rows = json.loads(path.read_text())["parts"]["shakespeare"]
    assert [row["what"] for row in rows[:3]] == ["to a loss of 4.2", "nanoGPT's loop", "times as fast as nanoGPT"]
    assert rows[2]["number"] == pytest.approx(rows[1]["number"] / rows[0]["number"])


def test_a_part_that_raises_has_failed_and_the_next_one_runs(script, monkeypatch, tmp_path, capsys):
    def broken(bench):
        yield script.Row("first", "fine", True)
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(script.PARTS, "broken", broken)
    path = tmp_path / "rows.json"
    assert script.main(["broken", "rate", "--device", "cpu", "--json", str(path)]) == 1
    rows = json.loads(path.read_text())["parts"]
    assert [row["good"] for row in rows["broken"]] == [True, False, None]
    assert "no such kernel" in rows["broken"][1]["value"]
    assert len(rows["rate"]) == 3


@pytest.mark.parametrize(
    ("words", "told"), [(["wait"], "no part is called wait: there are"), (["--device", "warp"], "trainer.device=warp")]
)
def test_wrong_arguments_are_told_in_a_line(script, capsys, words, told):
    with pytest.raises(SystemExit) as left:
        script.main(words)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_every_part_says_what_it_is_for(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    printed = capsys.readouterr().out
    for name in NAMES:
        assert f"  {name} " in printed
