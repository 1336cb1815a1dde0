"""Files from earlier versions still open and hold the same model."""

from dataclasses import replace
from pathlib import Path

import pytest

import tfx
from tfx.compression.checkpoint import read_header
from tfx.evaluation.generation import generate

FILES = Path(__file__).parent / "files"


@pytest.mark.parametrize(
    ("name", "version", "total", "text", "output"),
    [
        ("compressed_seq2seq", 3, 138.19230210781097, "march third nineteen ninety", " ".join(["the"] * 42)),
        ("dense_lm", 1, 57.0153098311348, "import os\n", "s" * 12),
    ],
)
def test_a_file_of_an_earlier_version_gives_the_model_that_was_saved(name, version, total, text, output):
    file = FILES / f"{name}.safetensors"
    loaded = tfx.load(file)
    assert read_header(file).version == version
    assert sum(float(parameter.detach().double().sum()) for parameter in loaded.model.parameters()) == pytest.approx(
        total
    )
    greedy = replace(loaded.generation, method="greedy", new_tokens=12)
    assert generate(loaded.model, loaded.tokenizer, [text], greedy) == [output]
