"""`tfx export` says what is missing before it reads anything."""

import pytest

from tfx.cli import main
from tfx.exchange import target


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "transformer", "--output", "out"], "did you mean 'transformers'?"),
        (["--to", "ctranslate2", "--output", "out"], "pip install 'tfx[ctranslate2]'"),
        (["--to", "transformers", "--output", "."], "--output . exists already: name a new folder"),
        (["--to", "transformers", "--output", "out", "--inputs", "0"], "it must be at least 1"),
    ],
)
def test_a_missing_library_or_a_wrong_word_is_one_line(here, monkeypatch, capsys, words, message):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    assert main(["export", "run", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())


def test_the_models_that_export_are_listed(capsys):
    assert main(["list", "models", "--json"]) == 0
    shown = capsys.readouterr().out
    assert '"seq2seq_tiny": [\n      "ctranslate2"\n    ]' in shown
    assert '"gpt_nano": [\n      "transformers",\n      "ctranslate2"\n    ]' in shown
