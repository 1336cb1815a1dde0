"""The five commands of docs/guide/deploy.md, from data to a translator that needs no tfx, each as it is written."""

from __future__ import annotations

import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tfx.cli import main

ROOT = Path(__file__).parents[2]
# The model of the page would train for minutes.
TINY = ["model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"]
TINY += [
    "dataset.tokenizer.vocab_size=300",
    "trainer.budget.steps=60",
    "trainer.threads=1",
    "evaluation.latency_inputs=1",
]
TINY += ["optimizer.lr=0.02", "hydra.run.dir=RUN"]


def test_from_data_to_a_translator_on_a_server(here, texts, monkeypatch, capsys):
    pytest.importorskip("ctranslate2")
    page = (ROOT / "docs" / "guide" / "deploy.md").read_text(encoding="utf-8")
    section = page[page.index("in five commands") :]
    commands = [line for block in re.findall(r"```sh\n(.*?)```", section, re.S) for line in block.splitlines() if line]
    (script,) = re.findall(r"```python\n(.*?)```", section, re.S)
    folder = here / "path" / "to" / "multi30k"
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        for side in ("en", "de"):
            (folder / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts[:20]))
    install, train, export, on_server, translate = commands

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.fullmatch(r"pip install 'path/to/tfx\[(\w+)\]'", install)[1] in project["optional-dependencies"]
    assert main([*shlex.split(train)[1:], *TINY]) == 0
    assert main([*shlex.split(export)[1:], "--inputs", "4"]) == 0
    assert on_server == "pip install ctranslate2 tokenizers"
    assert set(re.search(r"^import (ctranslate2.*)$", script, re.M)[1].split(", ")) == set(on_server.split()[2:])
    assert translate == "python translate.py < sentences.en"
    capsys.readouterr()
    sentences = f"{texts[0]}\n\n  {texts[3]} \n"
    monkeypatch.setattr("sys.stdin", io.StringIO(sentences))
    exec(compile(script, "translate.py", "exec"), {})
    found = capsys.readouterr().out.splitlines()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sentences.encode())))
    words = ["generate", "RUN", "--engine", "ctranslate2", "--engine-numbers", "int8"]
    assert main(words) == 0
    expected = capsys.readouterr().out.splitlines()
    assert len(found) == len(expected) == 3
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert found[0]
