"""Texts with labels: which outputs a data set asks for, what a batch holds, and what bad data is told."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tfx.config.compose import compose
from tfx.config.schema import DatasetConfig, EvaluationConfig, LimitConfig, ModelConfig, TokenizerConfig
from tfx.data.corpus import load_corpus
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.evaluation.scoring import score_loss
from tfx.model.architecture import Architecture, Outputs
from tfx.model.transformer import Transformer, initialise
from tfx.tasks.batches import training_batches
from tfx.tasks.classification import Classification, classify
from tfx.tasks.contract import Prompts
from tfx.tasks.prepare import prepare_data
from tfx.tasks.texts import Texts, collate_texts, cut, in_windows, named, one_line

CHAR = TokenizerConfig(kind="char")
TRAIN = [("ab ab", "yes"), ("ba", "no"), ("abab", "yes"), ("b", "no, never"), ("bb", "no")]
VALID = [("a", "no"), ("bbb", "yes")]
OUTPUTS = Outputs("one", ("no", "yes"))
TOKENIZER = Tokenizer.train(CHAR, ["abcdefgh"], word_initial_space=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_of(folder: Path, train=TRAIN, valid=VALID, kind: str = "json", **settings) -> DatasetConfig:
    """A data set of rows (text, label) or (text, pair, label) in files of this kind."""
    for name, rows in (("train", train), ("valid", valid)):
        columns = ("text", "label") if len(rows[0]) == 2 else ("text", "pair", "label")
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        if kind == "json":
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        elif kind == "csv":
            lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
            (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        else:
            parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet")
    if len(train[0]) == 3:
        settings = {"pair": "pair", **settings}
    settings = {"task": "classification", "format": kind, "path": str(folder), "tokenizer": CHAR, **settings}
    return DatasetConfig(**settings)


def refusal(config: DatasetConfig) -> str:
    with pytest.raises(UserError) as error:
        prepare_data(config, context=16)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_labels_are_those_of_the_training_split_in_one_order(kind, tmp_path):
    data = prepare_data(config_of(tmp_path, kind=kind), context=16)
    assert data.outputs == Outputs("one", ("no", "no, never", "yes"))
    assert data.splits["train"].truth.tolist() == [2, 0, 2, 1, 0]
    assert data.splits["valid"].truth.tolist() == [0, 2]
    batch = data.splits["valid"].collate(np.asarray([0, 1]), 16, data.tokenizer)
    a, b, eos, bos, pad = (*(data.tokenizer.encode([text])[0][0] for text in "ab"), 2, 1, 0)
    assert (data.tokenizer.pad, data.tokenizer.bos, data.tokenizer.eos) == (pad, bos, eos)
    assert batch.source_BS.tolist() == [[bos, a, eos, pad, pad], [bos, b, b, b, eos]]
    assert batch.target_out_BT.tolist() == [[0], [2]]
    assert (batch.tokens, batch.positions, batch.targets, batch.target_in_BT.shape) == (8, 10, 2, (2, 0))


def test_numbers_as_labels_stand_by_value_and_class_names_of_a_table_are_read(tmp_path):
    rows = [("a", 10), ("b", 9), ("ab", -1), ("ba", 9)]
    assert prepare_data(config_of(tmp_path, rows, rows[:2]), context=16).outputs.labels == ("-1", "9", "10")
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for name in ("train", "valid"):
        columns = {"text": ["a", "b", "ab"], "label": [1, 0, 1]}
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / f"{name}.parquet")
    data = prepare_data(DatasetConfig(task="classification", format="parquet", path=str(tmp_path), tokenizer=CHAR), 16)
    assert (data.outputs.labels, data.splits["train"].truth.tolist()) == (("bad", "good"), [1, 0, 1])


def test_named_labels_keep_their_order_and_may_have_no_text(tmp_path):
    data = prepare_data(config_of(tmp_path, TRAIN[:3], VALID, labels=["yes", "perhaps", "no"]), context=16)
    assert data.outputs.labels == ("yes", "perhaps", "no")
    assert data.splits["train"].truth.tolist() == [0, 2, 0]


def test_several_labels_are_lists_or_texts_with_separators_and_may_be_none(tmp_path):
    rows = [("a", ["x", "y"]), ("b", []), ("ab", ["y"])]
    data = prepare_data(config_of(tmp_path, rows, rows, predict="several"), context=16)
    assert data.outputs == Outputs("several", ("x", "y"))
    assert data.splits["train"].truth.tolist() == [[True, True], [False, False], [False, True]]
    rows = [("a", "x; y"), ("b", ""), ("ab", "y")]
    table = config_of(tmp_path, rows, rows, kind="csv", predict="several", label_separator=";")
    assert prepare_data(table, context=16).splits["valid"].truth.tolist() == data.splits["train"].truth.tolist()


def test_numbers_are_in_units_of_their_spread(tmp_path):
    rows = [("a", "1.5"), ("b", "2.5"), ("ab", "1e1")]
    data = prepare_data(config_of(tmp_path, rows, rows, predict="number"), context=16)
    outputs, truth = data.outputs, data.splits["valid"].truth
    assert (outputs.offset, outputs.scale) == pytest.approx((np.mean([1.5, 2.5, 10]), np.std([1.5, 2.5, 10])))
    np.testing.assert_allclose(truth[:, 0] * outputs.scale + outputs.offset, [1.5, 2.5, 10], rtol=1e-6)
    answers = data.splits["valid"].answers(truth.astype(np.float32))
    np.testing.assert_allclose(answers.given, answers.truth, rtol=1e-6)


def test_pairs_are_told_apart_by_type_and_an_end_token(tmp_path):
    rows = [("ab", "b", "yes"), ("b", "aa", "no")]
    data = prepare_data(config_of(tmp_path, rows, rows), context=16)
    assert data.outputs.pairs
    batch = data.splits["train"].collate(np.arange(2), 16, data.tokenizer)
    eos = data.tokenizer.eos
    assert (batch.source_BS == eos).sum(1).tolist() == [2, 2]
    assert batch.types_BS.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]


def test_rare_labels_count_more_when_labels_are_balanced(tmp_path):
    data = prepare_data(config_of(tmp_path, class_weights="balanced"), context=16)
    # 5 texts, 3 labels: n / (labels * texts of the label), scikit-learn's "balanced".
    np.testing.assert_allclose(data.splits["train"].counts, [5 / 6, 5 / 6, 5 / 6, 5 / 3, 5 / 6], rtol=1e-6)
    assert data.splits["valid"].counts is None
    batch = next(training_batches(data.splits["train"], data.tokenizer, batch_tokens=100, context=16, seed=1))
    assert batch.counts_B.tolist() == data.splits["train"].counts[batch.rows].tolist()


BAD = {
    "a label that only the validation split has": (
        {"valid": [("a", "yse")]},
        "the valid split of dataset 'custom', example 1: the label 'yse' is none of the 3 that the model has: give "
        "training texts with it, leave such rows out, or name all labels with dataset.labels=[…]: did you mean 'yes'?",
    ),
    "a label in two lines that only the validation split has": (
        {"train": [*TRAIN, ("a", "no\nyes")], "valid": [("a", "no\n\nyes")]},
        "the label 'no\\n\\nyes' is none of the 4 that the model has: give training texts with it, leave such rows "
        "out, or name all labels with dataset.labels=[…]: did you mean 'no\\nyes'?",
    ),
    "an empty text": (
        {"train": [*TRAIN, ("  ", "no")]},
        "the train split of dataset 'custom', example 6: the text is empty (",
    ),
    "an empty second text": (
        {"train": [("a", "b", "yes"), ("b", " ", "no")], "valid": [("a", "b", "yes")]},
        "the train split of dataset 'custom', example 2: the pair is empty (",
    ),
    "an empty label": ({"train": [*TRAIN, ("a", " ")]}, "example 6: the label is empty ("),
    "one label": (
        {"train": [("a", "x\ny"), ("b", "x\ny")]},
        "all training texts of dataset 'custom' have the label 'x\\ny'",
    ),
    "one label, since the validation split took the rows with the other": (
        {"train": [("a", "x"), ("b", "x")], "valid": [("c", "y")]},
        "those for validation have others: set another dataset.valid_fraction",
    ),
    "two labels": (
        {"train": [*TRAIN, ("a", ["u", "v"])]},
        "example 6, has 2 labels (u, v): set dataset.predict=several",
    ),
    "a column of numbers": (
        {"train": [("a", f"{number / 7:.4f}") for number in range(120)]},
        "dataset.label=label has 120 different labels in 120 training texts, such as '0.0000', so that it holds no "
        "labels: to predict a number, set dataset.predict=number",
    ),
    "a column of texts": (
        {"train": [("a", f"text {number}") for number in range(120)]},
        "such as 'text 0', so that it holds no labels: dataset.label names the column",
    ),
    "words as numbers": (
        {"predict": "number", "train": [("a", "1"), ("b", "2"), ("b", "high")], "valid": [("a", "1")]},
        "the train split of dataset 'custom', example 3: dataset.label=label is 'high', which is no number",
    ),
    "a label that is named twice": ({"labels": ["yes", "no", "no"]}, "dataset.labels names 'no' twice: leave one"),
    "numbers beyond the range of their spread": (
        {"predict": "number", "train": [("a", "1e300"), ("b", "-1e308"), ("c", "1e308")], "valid": [("a", "1")]},
        "are too large to be scaled, as -1e+308 is: divide them",
    ),
    "one number": ({"predict": "number", "train": [("a", "1")]}, "have the number 1: name another column"),
    "windows of pairs": (
        {"train": [("a", "b", "x"), ("b", "a", "y")], "valid": [("a", "b", "x")], "long_texts": "windows"},
        "dataset.long_texts=windows is for single texts",
    ),
    "a stream of unknown labels": ({"streaming": True}, "name them with dataset.labels=[…]"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_data_is_refused_in_one_line(name, tmp_path):
    changes, says = BAD[name]
    assert says in refusal(config_of(tmp_path, **changes))


def test_rows_without_text_or_label_are_dropped_and_counted_on_request(tmp_path):
    rows = [*TRAIN, ("", "no"), ("a", "")]
    data = prepare_data(config_of(tmp_path, rows, empty="drop"), context=16)
    assert len(data.splits["train"]) == 5
    assert "train: 2 rows with an empty text or label dropped" in data.notes


def test_a_validation_split_that_is_held_out_has_rows_of_its_own(tmp_path):
    rows = [(f"text {number}" if number not in (7, 41) else "", ("yes", "no")[number % 2]) for number in range(60)]
    config = config_of(tmp_path, train=rows, valid=rows[:1], empty="drop", valid_fraction=0.1)
    (tmp_path / "valid.jsonl").unlink()
    data = prepare_data(config, context=32)
    texts = {name: [row["text"] for row in split.dataset] for name, split in data.splits.items()}
    held = [int(text.split()[1]) for text in texts["valid"]]
    # One from each ten rows; labels that take turns are both among them.
    assert [number // 10 for number in held] == list(range(6))
    assert {number % 2 for number in held} == {0, 1}
    assert texts["train"] == [f"text {number}" for number in range(60) if number not in {*held, 7, 41}]
    assert not [note for note in data.notes if "also in" in note or "repeat" in note]
    assert [note for note in data.notes if "dropped" in note] == ["train: 2 rows with an empty text or label dropped"]


def test_the_number_of_an_empty_text_says_how_it_is_counted(tmp_path):
    rows = [(f"text {row}" if row != 30 else " ", "ab"[row % 2]) for row in range(40)]
    config = config_of(tmp_path, train=rows, valid_fraction=0.1)
    with pytest.raises(UserError, match=r"example 31: the text is empty \([^;]*; dataset.empty"):
        prepare_data(config, context=16)
    (tmp_path / "valid.jsonl").unlink()
    with pytest.raises(UserError, match=r"the text is empty .* counted among those that were taken from all over"):
        prepare_data(config, context=16)


def test_limits_take_rows_from_all_over_a_split(tmp_path):
    rows = [(f"text {number}", "yes" if number < 30 else "no") for number in range(60)]
    data = prepare_data(config_of(tmp_path, train=rows, limit=LimitConfig(train=6)), context=32)
    numbers = [int(row["text"].split()[1]) for row in data.splits["train"].dataset]
    assert [number // 10 for number in numbers] == list(range(6))
    assert "train: 6 of 60 examples, from all over the split" in data.notes


def test_rows_that_an_older_version_took_from_the_start_of_a_split_are_not_taken_from_the_cache(tmp_path, monkeypatch):
    rows = [(f"text {number}", "yes" if number < 30 else "no") for number in range(60)]
    config = config_of(tmp_path, train=rows, kind="parquet", limit=LimitConfig(train=6))

    def first(config, split, dataset, notes, rules):
        return dataset.select(range(min(len(dataset), getattr(config.limit, split) or len(dataset))))

    with monkeypatch.context() as older:
        older.setattr("tfx.data.corpus._capped", first)
        before = load_corpus(config)
    now = load_corpus(config)
    assert [int(row["text"].split()[1]) for row in before.splits["train"]] == list(range(6))
    assert [int(row["text"].split()[1]) // 10 for row in now.splits["train"]] == list(range(6))
    assert now.fingerprint != before.fingerprint


def test_a_stream_with_named_labels_gives_the_rows_of_the_prepared_split(tmp_path):
    config = config_of(tmp_path, labels=["no", "no, never", "yes"], streaming=True, buffer=5)
    data = prepare_data(config, context=16)
    batch = next(training_batches(data.splits["train"], data.tokenizer, batch_tokens=1000, context=16, seed=1))
    assert sorted(batch.target_out_BT.flatten().tolist()) == [0, 0, 1, 2, 2]


def test_labels_with_line_ends_are_one_line_of_output():
    outputs = Outputs("one", ("a\nb", "c, d"))
    assert one_line(named(outputs, np.asarray([0.9, 0.1]))) == "a\\nb"
    assert one_line(named(outputs, np.asarray([0.1, 0.9]))) == "c, d"
    several = Outputs("several", ("a\nb", "c, d"))
    assert json.loads(one_line(named(several, np.asarray([0.9, 0.9])))) == ["a\nb", "c, d"]
    assert one_line(named(Outputs("number"), np.asarray([2.5]))) == "2.5"


# --- long texts -------------------------------------------------------------------------------------


def texts_of(first: list[int], second: list[int] | None = None) -> Texts:
    """Texts of these lengths; each token is another number."""
    numbers = iter(range(10_000))
    sides = [
        None if lengths is None else Ragged.from_lists([[next(numbers) for _ in range(n)] for n in lengths], np.int64)
        for lengths in (first, second)
    ]
    return Texts(OUTPUTS, sides[0], sides[1], np.zeros(len(first), dtype=np.int64))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=8), st.integers(5, 40))
def test_pairs_are_cut_from_the_longer_text_until_they_fit(lengths, context):
    whole = texts_of(*map(list, zip(*lengths, strict=True)))
    found_ = cut(whole, context)
    for row, (first, second) in enumerate(lengths):
        while first + second + 3 > context:  # by hand: one token at a time
            first, second = (first - 1, second) if first > second else (first, second - 1)
        found = (found_.first.lengths[row], found_.second.lengths[row])
        assert sum(found) == first + second
        assert abs(found[0] - first) <= 1
        assert found_.first[row].tolist() == whole.first[row][: found[0]].tolist()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(4, 20))
def test_windows_cover_every_token_and_fit(lengths, context):
    whole = texts_of(lengths)
    windows = in_windows(whole, context)
    assert windows.positions.max() <= context
    owner = np.arange(len(lengths)) if windows.owner is None else windows.owner
    for row in range(len(lengths)):
        own = [windows.first[place].tolist() for place in np.flatnonzero(owner == row)]
        assert len(own) == max(1, -(-lengths[row] // (context - 2)))
        assert sorted({token for window in own for token in window}) == whole.first[row].tolist()
        assert len(own) == 1 or all(len(window) == context - 2 for window in own)


def tiny_model(outputs: Outputs, context: int = 16) -> Transformer:
    config = ModelConfig(
        family="classification",
        encoder_layers=1,
        decoder_layers=0,
        width=16,
        heads=2,
        ffn_width=16,
        context=context,
        dropout=0.0,
    )
    model = Transformer(Architecture.from_config(config, TOKENIZER.vocab_size, outputs), config).eval()
    initialise(model, 2)
    return model


def prompts_of(texts: list[str], notes: list[str] | None = None) -> Prompts:
    return Prompts(texts, TOKENIZER.encode(texts), 0, (notes if notes is not None else []).append)


def test_a_tab_in_a_text_of_a_model_without_pairs_is_said():
    notes: list[str] = []
    model = tiny_model(OUTPUTS, context=16)
    classify(model, TOKENIZER, prompts_of(["ab\tba", "ab", "ab\t"], notes), EvaluationConfig())
    assert notes == ["line 1: the model reads single texts: the tab is a part of this one"]


def test_a_long_text_is_cut_or_averaged_over_its_windows_as_it_was_scored(tmp_path):
    text = "abcdefgh" * 3
    for long_texts in ("cut", "windows"):
        config = config_of(tmp_path, [("ab", "no"), ("b", "yes")], [(text, "no"), ("b", "yes")], long_texts=long_texts)
        data = prepare_data(config, 10, TOKENIZER)
        model = tiny_model(data.outputs, context=10)
        pieces = [text[:8]] if long_texts == "cut" else [text[:8], text[8:16], text[16:]]
        rows = [collate_texts(texts_like(piece), np.asarray([0]), TOKENIZER) for piece in pieces]
        with torch.no_grad():
            shares = [model.project(model(b.target_in_BT, b.source_BS))[0, 0].softmax(0).numpy() for b in rows]
        expected = np.mean(shares, axis=0)
        score = score_loss(model, data.splits["valid"], TOKENIZER, batch_tokens=64, device=torch.device("cpu"))
        np.testing.assert_allclose(score.answers.given[0], expected, rtol=1e-5)
        assert score.metrics["loss"] == pytest.approx(score.answers.loss.mean())
        notes: list[str] = []
        found = classify(model, TOKENIZER, prompts_of([text, ""], notes), compose(["dataset=kinds"]).evaluation)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)
        assert found[1] is None
        assert bool(notes) == (long_texts == "cut")
        assert any("over 10 tokens" in n or "cut to 10 tokens" in n for n in data.notes)


def texts_like(text: str) -> Texts:
    return Texts(OUTPUTS, Ragged.from_lists(TOKENIZER.encode([text]), np.int64), None, None)


def test_a_pair_on_a_line_is_two_texts_and_another_line_is_refused():
    outputs = Outputs("one", ("no", "yes"), pairs=True)
    model = tiny_model(outputs)
    config = compose(["dataset=kinds"]).evaluation
    lines = ["ab\tcd", '{"pair": "cd", "text": " ab"}', "cd\tab"]
    found = classify(model, TOKENIZER, prompts_of(lines), config)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert abs(found[2] - found[0]).max() > 1e-4
    pair = Texts(outputs, *(Ragged.from_lists(TOKENIZER.encode([text]), np.int64) for text in ("ab", "cd")), None)
    batch = collate_texts(pair, np.asarray([0]), TOKENIZER)
    logits = model.project(model(batch.target_in_BT, batch.source_BS, None, None, batch.types_BS))[0, 0]
    np.testing.assert_allclose(found[0], logits.softmax(0).detach().numpy(), rtol=1e-5)
    for line in ("ab", "a\tb\tc", "ab\t ", '{"text": "ab"}', '{"text": "ab", "pair": 1}', "{ab"):
        with pytest.raises(UserError, match="line 2: the model reads pairs of texts, and this line is none"):
            classify(model, TOKENIZER, prompts_of(["ab\tcd", line]), config)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_in_another_tokenizers_tokens_has_the_same_texts(pairs):
    other = Tokenizer.train(TokenizerConfig(vocab_size=270), ["abcdefgh abcd"], word_initial_space=True)
    sides = [["abc", "da"], ["ef", "g"]] if pairs else [["abc", "d"]]
    own_ids = [Ragged.from_lists(TOKENIZER.encode([side[n] for n in range(2)]), np.int64) for side in sides]
    texts = Texts(OUTPUTS, own_ids[0], own_ids[1] if pairs else None, np.array([0, 1]))
    told = Classification().retold(collate_texts(texts, np.arange(2), TOKENIZER), TOKENIZER, other, 16)
    assert told.own_BT is None
    ids = [Ragged.from_lists(other.encode([side[n] for n in range(2)]), np.int64) for side in sides]
    expected = collate_texts(Texts(OUTPUTS, ids[0], ids[1] if pairs else None, None), np.arange(2), other)
    assert torch.equal(told.batch.source_BS, expected.source_BS)
    assert (told.batch.types_BS is None) == (not pairs)
    if pairs:
        assert torch.equal(told.batch.types_BS, expected.types_BS)
    short = Classification().retold(collate_texts(texts, np.arange(2), TOKENIZER), TOKENIZER, other, 5)
    assert short.batch.source_BS.shape[1] <= 5


@pytest.mark.parametrize("predicts", ["one", "several", "number"])
def test_texts_without_labels_get_some_that_can_be_read(predicts, tmp_path):
    labels = () if predicts == "number" else ("no", "yes")
    task = Classification(Outputs(predicts, labels, pairs=True))
    rows = task.unlabelled(Dataset.from_dict({"text": ["a b\tc", "d\te"]}))
    assert rows["text"][:] == ["a b", "d"]
    assert rows["pair"][:] == ["c", "e"]
    with pytest.raises(UserError, match=r"dataset\.monolingual: the model reads pairs"):
        task.unlabelled(Dataset.from_dict({"text": ["a b"]}))
    assert task.giving(Outputs(predicts, labels)).unlabelled(Dataset.from_dict({"text": ["a"]}))["pair"][:] == [""]
