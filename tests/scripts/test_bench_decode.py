"""`scripts/bench_decode.py`: its table, its batches, and what its arms decode with."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch

from tfx.compression.checkpoint import save
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.generation import generate
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_decode.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_decode", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_of_the_same_round_and_scores_of_the_outputs(bench):
    def one(seconds, text):
        return {"seconds": seconds, "size": 4, "outputs": [text, text]}

    good, bad = "a man rides a bike today", "nothing of that"
    rounds = [
        {"tfx": one(1.0, good), "peer": one(2.0, bad)},
        {"tfx": one(4.0, good), "peer": one(4.0, bad)},
        {"tfx": one(2.0, good), "peer": one(6.0, bad)},
    ]
    ours, peer = bench.table_rows(rounds, 2, [[good], [good]])
    assert (ours["ms a sentence"], ours["lowest"], ours["highest"]) == (1000.0, 500.0, 2000.0)
    assert (ours["sentences/s"], ours["bleu"]) == (1.0, pytest.approx(100))
    assert (peer["tfx is faster"], peer["from"], peer["to"]) == (2.0, 1.0, 3.0)
    assert peer["bleu"] < 1


def test_batches_are_of_similar_lengths_and_outputs_in_order(bench):
    sources = [[1] * length for length in (5, 1, 4, 2, 3)]
    seen = []

    def decode(batch):
        seen.append([len(row) for row in batch])
        return [f"of {len(row)}" for row in batch]

    assert bench.in_batches(decode, sources, 2) == ["of 5", "of 1", "of 4", "of 2", "of 3"]
    assert seen == [[1, 2], [3, 4], [5]]
    assert bench.until_end([3, 4, 2, 2], 2) == [3, 4]
    assert bench.until_end([3, 4], 2) == [3, 4]


def test_a_peer_has_an_arm_for_each_kind_of_numbers(bench):
    options = argparse.Namespace(run=Path("RUN"), also=["small/compressed.safetensors"])
    found = bench.arms(options, {"transformers": "t", "ctranslate2": "c"})
    names = ["tfx", "tfx small/compressed.safetensors", "transformers", "ctranslate2 float32", "ctranslate2 int8"]
    assert list(found) == [*names, "tfx, engine=ctranslate2"]
    assert found["ctranslate2 int8"]["numbers"] == "int8"
    assert found["tfx, engine=ctranslate2"]["engine"] == "ctranslate2"


@pytest.mark.parametrize("size", [1, 4096])
def test_what_is_measured_is_what_tfx_generates(bench, tmp_path, size):
    texts = ["a few words", "words", "a few more words"]
    config = ModelConfig(width=16, heads=2, ffn_width=16, encoder_layers=1, decoder_layers=1, context=32)
    tokenizer = Tokenizer.train(TokenizerConfig(vocab_size=270), texts, word_initial_space=True)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size)).eval()
    initialise(model, 1)
    save(tmp_path / "model.safetensors", model, tokenizer, EvaluationConfig())
    threads = torch.get_num_threads()
    task = {"library": "tfx", "model": str(tmp_path / "model.safetensors"), "beam": 2, "size": size, "sources": texts}
    measured = bench.measure(task)
    torch.set_num_threads(threads)
    expected = generate(model, tokenizer, texts, EvaluationConfig(method="beam", beam=2))
    assert measured["outputs"] == expected
    assert measured["seconds"] > 0
