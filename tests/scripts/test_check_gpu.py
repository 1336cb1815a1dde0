"""scripts/check_gpu.py runs through without a GPU; only its cheapest parts do so here."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import check_gpu

        yield check_gpu


def test_the_cheapest_parts_pass_on_a_cpu(script, tmp_path, capsys):
    path = tmp_path / "rows.json"
    names = ["agree", "attention", "batch", "rate", "kernels", "shakespeare"]
    assert script.main([*names, "--device", "cpu", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert list(found["parts"]) == names
    assert "no GPU" in found["device"]
    assert all(row["good"] is not False for rows in found["parts"].values() for row in rows)
    assert {row["good"] for row in found["parts"]["agree"]} == {True, None}
    printed = capsys.readouterr().out
    assert "8 of 8 outputs alike" in printed
    assert "--shakespeare FOLDER" in printed


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
    names = ("tests", "agree", "attention", "resume", "waits", "guard", "graphs", "batch")
    for name in (*names, "rate", "training", "choices", "shakespeare", "kernels"):
        assert f"  {name} " in printed
