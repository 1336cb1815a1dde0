"""What someone or something has altered between a run and its resumption is told, or refused, and nothing is lost."""

import json
import shutil

import pytest

from tfx.cli import main
from tfx.training.state import saved_states

TINY = [
    *("model=seq2seq_tiny", "model.width=16", "model.heads=2", "model.ffn_width=32", "dataset.tokenizer.kind=char"),
    *("model.encoder_layers=1", "model.decoder_layers=1", "dataset.limit.train=20", "dataset.limit.valid=5"),
    *("dataset.limit.test=5", "evaluation.latency_inputs=1", "evaluation=greedy", "trainer.budget.steps=4"),
    *("trainer.save.every_steps=2", "trainer.log_every=1"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("altered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(folder / "cache"))
        assert main(["train", *TINY, f"hydra.run.dir={folder}/run"]) == 0
        yield folder / "run"


@pytest.fixture
def stopped(finished, tmp_path):
    """The run as it was after its second step."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    saved_states(run / "state")[0].unlink()
    for name in ("summary.json", "model.safetensors", "predictions.jsonl", "report.html", "tensors.json"):
        (run / name).unlink()
    return run


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return (run / "model.safetensors").read_bytes()


def test_nothing_altered_is_nothing_told(stopped, finished, capsys):
    assert main(["resume", str(stopped)]) == 0
    assert weights(stopped) == weights(finished)
    said = capsys.readouterr().err
    assert "when the state was saved" not in said
    assert "is not what it was" not in said


def test_a_setting_that_was_edited_is_told(stopped, finished, capsys):
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("  lr: 0.002\n", "  lr: 0.5\n"))
    assert main(["resume", str(stopped)]) == 0
    assert "optimizer.lr is 0.5, and was 0.002 when the state was saved: the run goes on with it" in " ".join(
        capsys.readouterr().err.split()
    )
    assert weights(stopped) != weights(finished)


def test_a_model_that_was_edited_is_refused(stopped, capsys):
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("  width: 16\n", "  width: 32\n"))
    assert main(["resume", str(stopped)]) == 2
    assert "model.width is 32, and was 16 when the state was saved: put it back" in capsys.readouterr().err
    assert len(saved_states(stopped / "state")) == 1


def test_what_may_change_is_not_told(stopped, finished, capsys):
    assert main(["resume", str(stopped), "trainer.log_every=2", "trainer.save.keep=5"]) == 0
    assert "when the state was saved" not in capsys.readouterr().err
    assert weights(stopped) == weights(finished)


def test_rows_that_were_removed_from_the_log_stay_away_and_the_others_stay_whole(stopped, capsys):
    lines = (stopped / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_bytes(b"".join(lines[1:]))
    assert main(["resume", str(stopped)]) == 0
    assert "metrics.jsonl is not what it was when the state was saved" in " ".join(capsys.readouterr().err.split())
    assert [row["step"] for row in rows(stopped) if row["split"] == "train"] == [2, 3, 4]


def test_a_log_that_is_gone_is_begun_anew(stopped):
    (stopped / "metrics.jsonl").unlink()
    assert main(["resume", str(stopped)]) == 0
    assert [row["step"] for row in rows(stopped) if row["split"] == "train"] == [3, 4]


def test_a_state_under_the_name_of_another_is_set_aside(stopped, capsys):
    (state,) = saved_states(stopped / "state")
    shutil.copy(state, state.with_name("step-000000003.safetensors"))
    assert main(["resume", str(stopped)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "step-000000003.safetensors holds the state after step 2, and is not that file" in said
    assert (stopped / "state" / "step-000000003.safetensors.damaged").is_file()


def test_a_state_that_cannot_be_read_stays(stopped, capsys):
    (state,) = saved_states(stopped / "state")
    state.unlink()
    state.mkdir()  # which nobody can read as a file, not even root
    assert main(["resume", str(stopped)]) == 2
    assert "cannot be read (Is a directory), and was left as it is" in capsys.readouterr().err
    assert state.is_dir()
