"""A technique from another package: the README's own example, installed and run by processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Lays the README's example out as an installed distribution: a package, and metadata with its entry point."""
    text = README.read_text(encoding="utf-8")
    code = re.search(r"```python\n# my_package/techniques.py\n(.*?)```", text, re.S).group(1)
    entry = re.search(r"```toml\n\[project.entry-points.\"tfx.techniques\"\]\n(.*?)```", text, re.S).group(1)
    site = tmp_path_factory.mktemp("site")
    package, info = site / "my_package", site / "my_package-1.0.dist-info"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "techniques.py").write_text(code)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tfx.techniques]\n" + entry.replace('"', ""))
    return site


@pytest.fixture
def tfx(site, tmp_path):
    def run(*arguments):
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**os.environ, "PYTHONPATH": path, "TFX_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "tfx", *arguments]
        return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_the_readmes_technique_is_listed_trained_and_proved(tfx, tmp_path):
    assert "drop_tokens" in tfx("list", "technique").stdout
    tiny = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    limits = [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")]
    words = ["+technique=[drop_tokens,shuffle]", "technique.drop_tokens.share=0.5", "trainer.budget.steps=2"]
    done = tfx("train", *tiny, *limits, *words, "hydra.run.dir=run", "evaluation.latency_inputs=1")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["techniques"] == ["drop_tokens", "shuffle"]
    assert summary["evidence"]["drop_tokens"]["tokens_dropped"] > 0


def test_its_settings_are_checked_like_any_others(tfx):
    refused = tfx("train", "technique=drop_tokens", "technique.drop_tokens.share=1")
    assert refused.returncode == 2
    assert "technique.drop_tokens.share=1 is out of range" in refused.stderr
    misspelt = tfx("train", "technique=drop_token")
    assert misspelt.returncode == 2
    assert "did you mean 'drop_tokens'?" in misspelt.stderr
