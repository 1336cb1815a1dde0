"""The functions in an ONNX file are the model's own, with caches that go out and come in again."""

from __future__ import annotations

import copy
import importlib.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tfx.compression.checkpoint import LoadedModel
from tfx.compression.grid import Grid
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.exchange.onnx_graphs import Classifier, Decoder, Encoder
from tfx.exchange.onnx_int8 import own_matrices, quantize, rounded
from tfx.exchange.run_onnx import OnnxModel
from tfx.exchange.search import Search, ends_of
from tfx.exchange.targets import TARGETS
from tfx.model.architecture import Architecture, Outputs
from tfx.model.decoding import Wanted, continue_texts, make_picker, outputs_for
from tfx.model.transformer import Transformer, initialise
from tfx.run.export_check import export
from tfx.run.export_texts import compare_texts
from tfx.tasks.lm import Stream
from tfx.tasks.seq2seq import Pairs

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")), reason="needs extra onnx"
)
PAIRS = {"width": 16, "heads": 4, "ffn_width": 24, "context": 32, "encoder_layers": 1, "decoder_layers": 1}
TEXTS = PAIRS | {"family": "lm", "encoder_layers": 0}
EVERY = [
    PAIRS | {"positions": "rotary", "kv_heads": 2, "norm_position": "post"},
    PAIRS | {"positions": "sinusoidal", "embedding_norm": True, "output_bias": True, "tied_embeddings": "none"},
    PAIRS | {"positions": "relative", "norm": "rmsnorm", "bias": False, "embedding_scale": False},
    PAIRS | {"positions": "alibi", "qk_norm": True, "decoder_layers": 2},
    TEXTS | {"positions": "learned", "activation": "gelu"},
    TEXTS | {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "kv_heads": 2, "decoder_layers": 2},
    TEXTS | {"positions": "alibi"},
]


LABELS = TEXTS | {"family": "classification", "encoder_layers": 2, "decoder_layers": 0}
CLASSIFIERS = [
    LABELS | {"positions": "learned", "pooling": "first", "pooler": True, "norm_position": "post"},
    LABELS | {"positions": "rotary", "pooling": "mean", "token_types": 2, "embedding_norm": True, "convolution": 3},
    LABELS | {"positions": "relative", "pooling": "max", "kv_heads": 2},
    LABELS | {"positions": "alibi", "pooling": "attention", "token_types": 2, "qk_norm": True},
]


def made(settings: dict, size: int = 40, outputs: Outputs | None = None) -> Transformer:
    model = Transformer(Architecture.from_config(ModelConfig(dropout=0.0, **settings), size, outputs))
    initialise(model, 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def no_cache(model: Transformer, rows: int) -> list[torch.Tensor]:
    shapes = [(rows, shape.kv_heads, 0, model.architecture.head_width) for shape in model.architecture.decoder]
    return [torch.zeros(shape) for shape in shapes for _ in range(2)]


@torch.no_grad()
@pytest.mark.parametrize("settings", EVERY)
def test_the_graph_of_any_architecture_is_the_model_also_in_two_steps_and_beside_padding(settings):
    model = made(settings)
    ids = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model)
    if model.architecture.is_seq2seq:
        source = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(2))
        mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
        expected = model.project(model(ids, source, mask))
        crossing = list(Encoder(model, projects=True)(source, mask.long()))
        whole = decoder(ids, mask.long(), None, no_cache(model, 3), crossing)
        first = decoder(ids[:, :5], mask.long(), None, no_cache(model, 3), crossing)
        second = decoder(ids[:, 5:], mask.long(), None, list(first[1:]), crossing)
        torch.testing.assert_close(torch.cat([first[0], second[0]], 1), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(whole[0], expected, atol=1e-4, rtol=1e-4)
        return
    # Two tokens of padding before the texts move nothing: positions count from the first real one.
    expected = model.project(model(ids))
    shifted = torch.cat([torch.zeros(3, 2, dtype=torch.long), ids], 1)
    mask = torch.ones_like(shifted).index_fill(1, torch.arange(2), 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    first = decoder(shifted[:, :6], mask[:, :6], positions[:, :6], no_cache(model, 3), [])
    second = decoder(shifted[:, 6:], mask, positions[:, 6:], list(first[1:]), [])
    torch.testing.assert_close(torch.cat([first[0], second[0]], 1)[:, 2:], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", CLASSIFIERS)
@pytest.mark.parametrize("outputs", [Outputs("one", ("a", "b", "c")), Outputs("number", (), 40.0, 2.5)])
def test_the_graph_of_any_classifier_is_the_model_beside_padding(settings, outputs):
    model = made(settings, outputs=outputs)
    source = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    types = (torch.arange(7) > 2).long().expand(3, -1) if model.token_type is not None else None
    found = Classifier(model)(source, mask.long(), types)[0]
    hidden = model(source[:, :0], source, mask, None, types)
    expected = model.project(hidden).squeeze(1) * outputs.scale + outputs.offset
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if types is not None:
        assert not torch.allclose(Classifier(model)(source, mask.long(), None)[0], found, atol=1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["the quick brown fox", "jumps over a lazy dog while", "eleven good boys sing"]
    return {
        pairs: Tokenizer.train(TokenizerConfig(kind="bpe", vocab_size=270), texts, word_initial_space=pairs)
        for pairs in (True, False)
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    onnx = pytest.importorskip("onnx")
    """An encoder-decoder and a language model, exported; the second also in 8 bits, half of it on its own grid."""
    here = tmp_path_factory.mktemp("onnx")
    pairs = LoadedModel(
        made(EVERY[2] | {"kv_heads": 2, "width": 32, "activation": "geglu"}, tokenizer[True].vocab_size),
        *(tokenizer[True], EvaluationConfig(), Path("ours"), []),
    )
    model = made(EVERY[5] | {"width": 32, "decoder_layers": 1}, tokenizer[False].vocab_size)
    codes = torch.randint(100, 150, model.output.weight.shape, dtype=torch.uint8)
    grid = Grid(codes, 8, scale=torch.full((len(codes), 1), 0.01))
    with torch.no_grad():
        model.embedding.weight.copy_(grid.values())
    texts = LoadedModel(model, tokenizer[False], EvaluationConfig(), Path("ours"), [], {"embedding.weight": grid})
    rows = tokenizer[True].encode(["the fox", "a lazy dog sing", "eleven good boys jumps over"])
    split = Pairs(Ragged.from_lists(rows, np.int64), Ragged.from_lists(rows[::-1], np.int64))
    found = export(pairs, TARGETS["onnx"], here / "pairs", "float32", partial(compare_texts, split=split, count=3))
    stream = Stream(np.arange(5, 200), 1)
    compared = partial(compare_texts, split=stream, count=3)
    assert export(texts, TARGETS["onnx"], here / "texts", "float32", compared).largest < 1e-4
    # What the target does for int8, without another run of the exporter.
    graph = onnx.load(here / "texts" / "model.onnx")
    quantize(graph, texts)
    (here / "coarse").mkdir()
    onnx.save(graph, here / "coarse" / "model.onnx")
    coarse = compared(texts, TARGETS["onnx"].reopen(here / "coarse", texts))
    return {"pairs": (pairs, found), "texts": (texts, coarse)}, here


@needs_onnx
def test_onnxruntime_gives_the_same_scores_and_outputs(folders):
    made, here = folders
    found = made["pairs"][1]
    assert found.largest < 1e-4
    assert found.equal == 1.0
    assert {file.name for file in (here / "pairs").iterdir()} == {
        *("encoder.onnx", "decoder.onnx", "generation_config.json", "tokenizer.json")
    }
    roles = json.loads((here / "pairs" / "generation_config.json").read_text())
    assert roles["eos_token_id"] == made["pairs"][0].tokenizer.eos


@needs_onnx
def test_a_batch_of_any_lengths_is_decoded_as_each_row_alone(folders):
    prompts = [[5, 6, 7], [9], [20, 21, 22, 23, 24]]
    (pairs, _), (texts, _) = folders[0]["pairs"], folders[0]["texts"]
    twin = copy.copy(texts.model)
    twin.engine = OnnxModel(folders[1] / "texts", texts)
    pick = make_picker(EvaluationConfig(method="greedy"), 0, torch.device("cpu"))

    def continued(*rows, most=6):
        config = EvaluationConfig(new_tokens=most)
        return [one.tokens for one in continue_texts(twin, rows, ends_of(texts.tokenizer), config, pick)]

    alone = [continued(prompt)[0] for prompt in prompts]
    assert continued(*prompts) == alone
    assert continued(*prompts, most=2) == [ids[:2] for ids in alone]
    # When the context is full, the later half is read again.
    assert len(continued(prompts[0], most=40)[0]) == 40 or texts.tokenizer.eos in alone[0]
    twin = copy.copy(pairs.model)
    twin.engine = OnnxModel(folders[1] / "pairs", pairs)
    search, own = Search(twin, ends_of(pairs.tokenizer)), Search(pairs.model, ends_of(pairs.tokenizer))
    sources = [[*prompt, pairs.tokenizer.eos] for prompt in prompts]
    assert search.beam(sources, 8, 3) == own.beam(sources, 8, 3)
    # Sentences that are done leave the batch, and the scores stay those of the model.
    config = EvaluationConfig(method="beam", beam=3, repetition_penalty=1.5, min_length=2)
    ids, mask = (torch.tensor(sources[2]).unsqueeze(0), None)
    found = [
        outputs_for(model, ids, mask, torch.tensor([7]), search.ends, config, wanted=Wanted(best=3, detailed=True))[0]
        for model in (twin, pairs.model)
    ]
    assert [one.tokens for one in found[0]] == [one.tokens for one in found[1]]
    assert [one.score for one in found[0]] == pytest.approx([one.score for one in found[1]], abs=1e-4)


@needs_onnx
def test_int8_keeps_the_codes_of_the_run_and_rounds_what_has_none(folders):
    import onnx
    from onnx import numpy_helper

    (texts, found), here = folders[0]["texts"], folders[1]
    assert 0 < found.mean < 0.1
    graph = onnx.load(here / "coarse" / "model.onnx").graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    codes = {name: value for name, value in arrays.items() if value.dtype == np.int8}
    own = texts.grids["embedding.weight"].codes_RC.numpy().astype(int) - 128
    # The tied table of embedding and output is there once, or once more turned round.
    assert any(value.shape == own.shape and (value == own).all() for value in codes.values())
    assert not any(value.dtype == np.float32 and value.size > 1024 for value in arrays.values())
    block = texts.model.decoder.blocks[0]
    expected = rounded(block.attention.q.weight.detach().numpy())[0]
    assert any(value.shape == expected.shape and (expected == value.T).all() for value in codes.values())
    assert (TARGETS["onnx"].kept(texts, "int8"), own_matrices(texts)) == (1, 1)
    kinds = {node.op_type for node in graph.node}
    assert {"DynamicQuantizeLinear", "DequantizeLinear"} <= kinds


def test_rounding_is_nearest_by_rows_with_a_row_of_zeros():
    matrix = np.asarray([[1.27, -0.634, 0.004], [0, 0, 0]], np.float32)
    codes, scale = rounded(matrix)
    assert codes.tolist() == [[127, -63, 0], [0, 0, 0]]
    np.testing.assert_allclose(scale, [0.01, 1.0], rtol=1e-6)
