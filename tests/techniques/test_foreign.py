"""A technique from another package: the README's own example, installed and run."""

import json
import re
import sys
from pathlib import Path

import pytest

from tfx.cli import main
from tfx.config import registry

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Lays the README's example out as an installed distribution: a package, and metadata with its entry point."""
    text = README.read_text(encoding="utf-8")
    code = re.search(r"```python\n# my_package/techniques.py\n(.*?)```", text, re.S).group(1)
    entry = re.search(r"```toml\n\[project.entry-points.\"tfx.techniques\"\]\n(.*?)```", text, re.S).group(1)
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "techniques.py").write_text(code)
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tfx.techniques]\n" + entry.replace('"', ""))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    registry.entry_points.cache_clear()
    yield tmp_path
    registry.entry_points.cache_clear()
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def test_the_readmes_technique_is_listed_trained_and_proved(installed, capsys):
    assert main(["list", "technique"]) == 0
    assert "drop_tokens" in capsys.readouterr().out
    tiny = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    limits = [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")]
    run = installed / "run"
    words = ["+technique=[drop_tokens,shuffle]", "technique.drop_tokens.share=0.5", "trainer.budget.steps=2"]
    assert main(["train", *tiny, *limits, *words, f"hydra.run.dir={run}", "evaluation.latency_inputs=1"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["techniques"] == ["drop_tokens", "shuffle"]
    assert summary["evidence"]["drop_tokens"]["tokens_dropped"] > 0


def test_its_settings_are_checked_like_any_others(installed, capsys):
    assert main(["train", "technique=drop_tokens", "technique.drop_tokens.share=1"]) == 2
    assert "technique.drop_tokens.share=1 is out of range" in capsys.readouterr().err
    assert main(["train", "technique=drop_token"]) == 2
    assert "did you mean 'drop_tokens'?" in capsys.readouterr().err
