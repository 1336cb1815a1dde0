"""What help and lists say of the settings."""

import subprocess
import sys
from functools import reduce

import pytest

from tfx.cli import main
from tfx.config import describe
from tfx.config.choices import choices
from tfx.config.compose import compose
from tfx.config.registry import entry_points, technique_class
from tfx.errors import UserError


@pytest.mark.parametrize("name", list(entry_points()))
def test_help_names_each_setting_of_a_technique_with_default_range_and_paper(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["train", f"+technique=[{name}]", "--help"]) == 0
    shown = capsys.readouterr().out
    assert choices("technique")[name] in shown
    for key, field in describe.settings(technique_class(name).Settings, f"technique.{name}."):
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{key} ")]
        assert describe.as_yaml(describe.default_of(field)) in line
        assert describe.explain_field(field) in line


def test_help_explains_the_techniques_that_are_named_and_no_others(capsys):
    assert main(["train", "technique=[mixup, shuffle]", "-h"]) == 0
    shown = capsys.readouterr().out
    assert "technique.mixup.alpha" in shown
    assert "technique.shuffle.window" in shown
    assert "technique.prune" not in shown
    assert main(["train", "--help", "technique=mixap"]) == 2
    assert "did you mean 'mixup'?" in capsys.readouterr().err


def _values(capsys, *words):
    """The help's value of each key, by the command's arguments."""
    assert main(["train", *words, "--help"]) == 0
    return dict(line.split(maxsplit=2)[:2] for line in capsys.readouterr().out.splitlines() if "." in line[:40])


def test_help_shows_the_values_of_a_run_without_overrides(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = _values(capsys)
    config = compose([])
    assert shown["optimizer.name"] == "muon"
    for key, _ in describe.settings():
        value = reduce(getattr, key.split("."), config)
        if key.count(".") and not isinstance(value, list):
            assert shown[key] == describe.as_yaml(value), key
    assert (shown["model.kv_heads"], shown["model.bias"], shown["trainer.budget.seconds"]) == ("null", "true", "200.0")


def test_help_shows_what_the_arguments_make_of_the_values(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = _values(capsys, "model=seq2seq_base", "trainer.budget.steps=7", "hydra.launcher.jobs=3", "experiment=small")
    assert shown["model.width"] == "512"
    assert (shown["trainer.budget.steps"], shown["trainer.budget.seconds"]) == ("7", "null")
    assert (shown["hydra.launcher.jobs"], shown["technique.quantize.bits"]) == ("3", "5")
    assert _values(capsys, "technique=quantize", "technique.quantize.bits=3")["technique.quantize.bits"] == "3"
    assert _values(capsys, "dataset=text")["dataset.task"] == "lm"  # though the default model is none for it
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\nwidth: 96\n")
    assert _values(capsys, "--config-dir", str(tmp_path), "model=mine")["model.width"] == "96"


def test_help_of_a_sweep_has_one_value_for_each_key(capsys):
    assert main(["train", "-m", "model=gpt_nano,gpt_baby", "--help"]) == 0
    assert "a run without overrides." in capsys.readouterr().out


def test_ranges_show_whole_numbers_in_full(capsys):
    sheet = {key: describe.explain_field(field) for key, field in describe.settings()}
    assert sheet["seed"].endswith("at least 0 and at most 9223372036854775807")
    assert sheet["model.context"].endswith("at least 2 and at most 1048576; in tokens")
    with pytest.raises(UserError, match="=1048577 is out of range: it must be at least 2 and at most 1048576"):
        compose(["model.context=1048577"])


def test_plain_help_says_where_the_settings_of_a_technique_are_and_loads_no_torch():
    code = (
        "import sys; from tfx.cli import main; main(['train', '--help']); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "technique=NAME --help" in " ".join(done.stdout.split())
