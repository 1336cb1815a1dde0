"""What help and lists say of the settings."""

import subprocess
import sys

import pytest

from tfx.cli import main
from tfx.config import describe
from tfx.config.registry import entry_points, technique_class


@pytest.mark.parametrize("name", list(entry_points()))
def test_help_names_each_setting_of_a_technique_with_default_range_and_paper(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["train", f"+technique=[{name}]", "--help"]) == 0
    shown = capsys.readouterr().out
    assert describe.choices("technique")[name] in shown
    for key, field in describe.settings(technique_class(name).Settings, f"technique.{name}."):
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{key} ")]
        assert str(describe.default_of(field)) in line
        assert describe.explain_field(field) in line


def test_help_explains_the_techniques_that_are_named_and_no_others(capsys):
    assert main(["train", "technique=[mixup, shuffle]", "-h"]) == 0
    shown = capsys.readouterr().out
    assert "technique.mixup.alpha" in shown
    assert "technique.shuffle.window" in shown
    assert "technique.prune" not in shown
    assert main(["train", "--help", "technique=mixap"]) == 2
    assert "did you mean 'mixup'?" in capsys.readouterr().err


def test_plain_help_says_where_the_settings_of_a_technique_are_and_loads_none():
    code = (
        "import sys; from tfx.cli import main; main(['train', '--help']); "
        "print(sorted({'torch', 'hydra'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "technique=NAME --help" in " ".join(done.stdout.split())
