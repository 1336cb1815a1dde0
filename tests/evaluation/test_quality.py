"""Scores and speed of a model: as brute force over single rows gives them, whatever the batching."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation import scoring
from tfx.evaluation.generation import generate
from tfx.evaluation.out_of_memory import in_memory
from tfx.evaluation.quality import measure_quality
from tfx.evaluation.scoring import score_loss
from tfx.evaluation.speed import Candidate, measure_speed, weight_bytes
from tfx.model.architecture import Architecture
from tfx.model.decoding import continue_text, make_picker
from tfx.model.transformer import Transformer, initialise
from tfx.tasks.lm import Stream
from tfx.tasks.seq2seq import Pairs, decode_sources

SOURCES = ["a b", "the cat sat on the mat", "", "one two three four", "dog", "a b c d e f g h"]
TARGETS = ["b a", "cat", "x", "four three two one", "god and dog", "h g"]
TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=60), SOURCES + TARGETS, word_initial_space=False)


def build(family: str) -> Transformer:
    layers = 2 if family == "seq2seq" else 0
    config = ModelConfig(family=family, encoder_layers=layers, decoder_layers=2, width=16, heads=2, context=40)
    model = Transformer(Architecture.from_config(config, TOKENIZER.vocab_size))
    initialise(model, 3)
    for parameter in model.parameters():
        parameter.data *= 3  # far from uniform, so that outputs differ
    return model.eval()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    class Texts(list):
        """Rows by slice, columns by name, as a data set has them."""

        def __getitem__(self, key):
            if isinstance(key, slice):
                return {name: [row[name] for row in list(self)[key]] for name in ("source", "target", "references")}
            return list.__getitem__(self, key)

    rows = [{"source": s, "target": t, "references": [t]} for s, t in zip(SOURCES, TARGETS, strict=True)]
    ragged = [Ragged.from_lists(TOKENIZER.encode(texts), np.uint16) for texts in (SOURCES, TARGETS)]
    return Pairs(*ragged, texts=Texts(rows))


@pytest.mark.parametrize("batch_tokens", [1, 37, 10_000])
def test_the_loss_of_a_split_is_that_of_its_rows_one_by_one(pairs, batch_tokens):
    model = build("seq2seq")
    expected = []
    with torch.no_grad():
        for source, target in zip(TOKENIZER.encode(SOURCES), TOKENIZER.encode(TARGETS), strict=True):
            ids = torch.tensor([[*target, TOKENIZER.eos]])
            inputs = torch.tensor([[TOKENIZER.bos, *target]])
            logits = model.project(model(inputs, torch.tensor([[*source, TOKENIZER.eos]])))
            expected.append(float(functional.cross_entropy(logits[0], ids[0], reduction="sum")))
    score = score_loss(model, pairs, TOKENIZER, batch_tokens=batch_tokens, device=torch.device("cpu"))
    assert score.nll == pytest.approx(expected, rel=1e-4)
    assert score.targets.tolist() == [len(ids) + 1 for ids in TOKENIZER.encode(TARGETS)]
    assert score.metrics["loss"] == pytest.approx(sum(expected) / score.targets.sum(), rel=1e-5)
    assert score.metrics["perplexity"] == pytest.approx(math.exp(score.metrics["loss"]))


def test_the_loss_of_a_stream_counts_each_token_once_and_bytes_of_the_text():
    text = "the cat sat on the mat and the dog sat on the hog "
    tokens = np.asarray(TOKENIZER.encode([text])[0], dtype=np.uint16)
    model = build("lm")
    stream = Stream(tokens, len(text))
    score = score_loss(model, stream, TOKENIZER, batch_tokens=80, device=torch.device("cpu"))
    assert score.total_targets == len(tokens) - 1
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 40):
            window = torch.from_numpy(tokens[start : start + 41].astype(np.int64))
            logits = model.project(model(window[None, :-1]))
            total += float(functional.cross_entropy(logits[0], window[1:], reduction="sum"))
    assert score.total_nll == pytest.approx(total, rel=1e-4)
    assert score.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / (len(text) - 1), rel=1e-4)


BYTES = Tokenizer.train(TokenizerConfig(vocab_size=260), ["a"], word_initial_space=False)
STREAMS = {
    "known": (TOKENIZER, "the cat sat on the mat and the dog sat on the hog ", 0, 1),
    "unknown": (TOKENIZER, "the cat sät on the mät and the 犬 sat on the hog ", 2 + 2 + 3, 1),
    "the first unknown": (TOKENIZER, "犬 sat on the mat and the cät sat on the hog ", 2, 3),
    "each unknown": (TOKENIZER, "犬ä" * 30, 5 * 30 - 3, 3),
    "part of a character": (BYTES, "犬 sät on the mat and the dog sat on the hog", 0, 1),
}


@pytest.mark.parametrize("case", STREAMS)
def test_bits_per_byte_are_those_of_all_tokens_but_the_first_and_8_for_each_byte_unknown(case):
    tokenizer, text, unknown, first = STREAMS[case]
    tokens = np.asarray(tokenizer.encode([text])[0], dtype=np.uint16)
    config = ModelConfig(family="lm", encoder_layers=0, decoder_layers=1, width=16, heads=2, context=20)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size))
    initialise(model, 3)
    stream = Stream(tokens, len(text.encode()), np.asarray(tokenizer.unknown_bytes(text), dtype=np.int64))
    quality = measure_quality(model, stream, tokenizer, EvaluationConfig(batch_tokens=80), [], seed=1)
    bits = 0.0
    with torch.no_grad():
        for place in range(1, len(tokens)):
            before = tokens[(place - 1) // 20 * 20 : place].astype(np.int64)
            logits = model.project(model(torch.from_numpy(before)[None])[0, -1])
            bits -= float(logits.log_softmax(-1)[int(tokens[place])]) / math.log(2)
    expected = (bits + 8 * unknown) / (len(text.encode()) - first)
    assert quality.metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert quality.metrics["loss"] == pytest.approx(bits * math.log(2) / (len(tokens) - 1), rel=1e-5)
    assert sum(row.get("unknown_bytes", 0) for row in quality.predictions) == unknown
    if case == "unknown":  # each is charged to the window that predicts it
        assert [row.get("unknown_bytes", 0) for row in quality.predictions] == [4, 3, 0]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_outputs_do_not_depend_on_the_batch_and_keep_their_order(pairs, method):
    model = build("seq2seq")
    outputs = []
    for batch_tokens in (1, 60, 10_000):
        config = EvaluationConfig(method=method, beam=3, batch_tokens=batch_tokens)
        outputs.append(decode_sources(model, pairs.source, TOKENIZER, config, seed=1))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(set(outputs[0])) > 1
    config = EvaluationConfig(method=method, beam=3)
    alone = [generate(model, TOKENIZER, [text], config)[0] for text in SOURCES]
    assert alone == ["" if not text else output for text, output in zip(SOURCES, outputs[0], strict=True)]


def test_text_to_text_gives_one_line_for_each_text_and_none_for_an_empty_one():
    config = EvaluationConfig(method="greedy", new_tokens=5)
    outputs = generate(build("seq2seq"), TOKENIZER, ["the cat", "", "a"], config)
    assert len(outputs) == 3
    assert outputs[1] == ""


def test_a_sign_of_the_space_that_is_taken_for_one_is_counted():
    tokenizer = Tokenizer.train(
        TokenizerConfig(kind="unigram", vocab_size=20), ["the cat"] * 20, word_initial_space=False
    )
    config = ModelConfig(family="lm", encoder_layers=0, decoder_layers=1, width=16, heads=2, context=20)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size))
    told: list[str] = []
    greedy = EvaluationConfig(method="greedy", new_tokens=1)
    generate(model, tokenizer, ["the", "the\u2581cat"], greedy, note=told.append)
    assert told == ["line 2: 1 signs '\u2581' (U+2581), which the tokenizer takes for spaces"]


def test_a_language_model_begins_where_there_is_no_text_and_says_behind_what():
    told: list[str] = []
    config = EvaluationConfig(method="greedy", new_tokens=5)
    outputs = generate(build("lm"), TOKENIZER, ["the cat", "", "a"], config, note=told.append)
    assert all(0 < len(output) <= 5 for output in outputs)
    assert len(told) == 1
    assert told[0].startswith("line 2: no text to continue: the model begins after ")


@pytest.mark.parametrize(
    ("letters", "ends_documents", "begins"),
    [("abc\n", False, "a line end"), ("abc\n", True, "the end of a document"), ("abc", False, "the end of a document")],
)
def test_a_language_model_begins_behind_what_stood_before_a_document_in_training(letters, ends_documents, begins):
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=60), [letters], word_initial_space=False)
    tokenizer.ends_documents = ends_documents
    config = ModelConfig(family="lm", encoder_layers=0, decoder_layers=1, width=16, heads=2, context=20)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size))
    initialise(model, 3)
    told: list[str] = []
    (output,) = generate(model, tokenizer, [""], EvaluationConfig(method="greedy", new_tokens=5), note=told.append)
    assert told == [f"line 1: no text to continue: the model begins after {begins}"]
    first = tokenizer.eos if begins == "the end of a document" else tokenizer.encode(["\n"])[0][0]
    pick = make_picker(EvaluationConfig(method="greedy"), 1, torch.device("cpu"))
    assert output == tokenizer.decode(continue_text(model, [first], 5, tokenizer.eos, pick))


def test_quality_keeps_for_each_sentence_what_its_metrics_are_made_of(pairs):
    model = build("seq2seq")
    config = EvaluationConfig(method="greedy")
    told = []
    quality = measure_quality(
        model, pairs, TOKENIZER, config, ["exact_match", "chrf"], seed=1, progress=lambda *done: told.append(done)
    )
    rows = quality.predictions
    assert [row["source"] for row in rows] == SOURCES
    assert [row["reference"] for row in rows] == TARGETS
    assert [row["hypothesis"] for row in rows] == decode_sources(model, pairs.source, TOKENIZER, config, seed=1)
    assert sum(row["nll"] for row in rows) / sum(row["targets"] for row in rows) == pytest.approx(
        quality.metrics["loss"], rel=1e-4
    )
    assert quality.metrics["exact_match"] == np.mean([row["hypothesis"] == row["reference"] for row in rows])
    assert "chrf" in quality.signatures
    assert told[-1] == (len(SOURCES), len(SOURCES))
    capped = measure_quality(model, pairs, TOKENIZER, config, ["exact_match"], seed=1, most_decoded=2)
    assert [row["hypothesis"] for row in capped.predictions] == [row["hypothesis"] for row in rows[:2]]
    assert capped.metrics["loss"] == pytest.approx(quality.metrics["loss"])


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
def test_speed_is_positive_and_memory_is_counted_by_weight(family, pairs):
    model = build(family)
    tokens = np.asarray(TOKENIZER.encode(["the cat sat on the mat " * 4])[0], dtype=np.uint16)
    split = pairs if family == "seq2seq" else Stream(tokens, len(tokens))
    candidates = {"a": Candidate(model, split, TOKENIZER), "b": Candidate(build(family), split, TOKENIZER)}
    measured = measure_speed(candidates, EvaluationConfig(method="greedy", latency_inputs=3))
    assert list(measured) == ["a", "b"]
    speed = measured["a"]
    assert 0 < speed.latency_ms["p50"] <= speed.latency_ms["p95"]
    assert speed.tokens_per_second > 0
    assert speed.memory_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert weight_bytes(model.bfloat16()) * 2 == speed.memory_bytes


def test_a_model_that_trains_goes_on_training_after_a_batch_that_did_not_fit(pairs, monkeypatch):
    model = build("seq2seq").train()
    runs, whole = [], scoring.run_batch

    def first_fails(*inputs):
        runs.append(model.training)
        if len(runs) == 1:
            raise torch.OutOfMemoryError("too many")
        return whole(*inputs)

    monkeypatch.setattr(scoring, "run_batch", first_fails)

    def score(tokens):
        return score_loss(model, pairs, TOKENIZER, batch_tokens=tokens, device=torch.device("cpu"))

    with pytest.warns(UserWarning, match="out of memory"):
        in_memory(64, score)
    assert model.training
    assert len(runs) > 2
    assert not any(runs)
