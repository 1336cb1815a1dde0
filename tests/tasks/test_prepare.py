"""Tokens come from the training split alone, from the cache where they are whole, and every drop is counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.config.schema import DatasetConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.tasks.prepare import prepare_data
from tfx.tasks.seq2seq import Seq2Seq

CHAR = TokenizerConfig(kind="char")
TRAIN = [("one two", "eins zwei"), ("three", "drei"), ("four", "vier")]
VALID = [("six", "sechs"), ("a long line of words", "z")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pairs_config(tmp_path: Path, train=TRAIN, valid=VALID, **options) -> DatasetConfig:
    for split, rows in (("train", train), ("valid", valid)):
        for side, suffix in enumerate(("en", "de")):
            (tmp_path / f"{split}.{suffix}").write_text("".join(row[side] + "\n" for row in rows), encoding="utf-8")
    settings = {"path": str(tmp_path), "source": "en", "target": "de", "tokenizer": CHAR, **options}
    return DatasetConfig(**settings)


def text_config(tmp_path: Path, train: str, valid: str, **options) -> DatasetConfig:
    for split, text in (("train", train), ("valid", valid)):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8", newline="")
    return DatasetConfig(**{"path": str(tmp_path), "task": "lm", "format": "text", "tokenizer": CHAR, **options})


def decoded(data, split: str) -> list[tuple[str, str]]:
    pairs = data.splits[split]
    return [(data.tokenizer.decode(pairs.source[i]), data.tokenizer.decode(pairs.target[i])) for i in range(len(pairs))]


def test_pairs_become_ids_in_order(tmp_path):
    data = prepare_data(pairs_config(tmp_path, valid=TRAIN), context=64)
    assert decoded(data, "train") == decoded(data, "valid") == TRAIN
    assert data.splits["valid"].texts["references"][:] == [[target] for _, target in TRAIN]
    assert data.splits["train"].texts is None
    assert data.test_split == "valid"
    assert data.notes == ["valid: 3 rows are also in train, and are kept"]


def test_the_tokenizer_is_trained_on_the_training_split_only(tmp_path):
    data = prepare_data(pairs_config(tmp_path, valid=[("one ß", "ß")]), context=64)
    assert decoded(data, "valid") == [("one <unk>", "<unk>")]
    assert data.notes == ["valid: 2 tokens that the tokenizer does not know"]
    text = text_config(tmp_path, "aabb\n", "abßßc")
    data = prepare_data(text, context=4)
    assert data.tokenizer.decode(data.splits["valid"].tokens) == "ab<unk><unk><unk>"
    assert data.notes[0].startswith("valid: 5 bytes of characters that the tokenizer does not know: bits")
    assert data.notes[1:] == ["valid: 3 tokens that the tokenizer does not know"]


def test_a_typed_sign_of_the_space_comes_back_or_is_counted(tmp_path):
    unigram = TokenizerConfig(kind="unigram", vocab_size=40)
    plain, signs = [("a b", "c")] * 9, [("a\u2581b", "c\u2581"), ("a b", "c")]
    data = prepare_data(pairs_config(tmp_path, train=plain + signs, valid=signs, tokenizer=unigram), context=8)
    assert decoded(data, "valid") == signs
    assert not [note for note in data.notes if "sign" in note]
    data = prepare_data(pairs_config(tmp_path, train=plain, valid=signs, tokenizer=unigram), context=8)
    assert decoded(data, "valid")[0] == ("a b", "c ")
    assert "valid: 1 row with the sign '\u2581' (U+2581), which the tokenizer takes for a space" in data.notes


def test_the_bpe_of_pairs_learns_no_merge_from_valid(tmp_path):
    config = pairs_config(tmp_path, valid=[("qqqq", "qqqq")] * 50, tokenizer=TokenizerConfig(vocab_size=1000))
    data = prepare_data(config, context=64)
    assert [len(data.splits["valid"].source[0]), len(data.splits["valid"].target[0])] == [5, 5]  # and a space


def test_documents_are_closed_by_an_end_token_and_one_text_is_not(tmp_path):
    data = prepare_data(text_config(tmp_path, "ab\n", "ab"), context=4)
    assert data.tokenizer.decode(data.splits["train"].tokens) == "ab\n"
    assert data.tokenizer.eos not in data.splits["train"].tokens
    assert not data.tokenizer.ends_documents
    (tmp_path / "rows").mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ["ab", "", "ä"])
    for split in ("train", "valid"):
        (tmp_path / "rows" / f"{split}.json").write_text(rows)
    config = DatasetConfig(path=str(tmp_path / "rows"), task="lm", format="json", tokenizer=CHAR)
    documents = prepare_data(config, context=4, tokenizer=data.tokenizer)
    stream = documents.splits["train"]
    assert documents.tokenizer.ends_documents
    assert (stream.tokens == data.tokenizer.eos).tolist() == [False, False, True, False, True]
    assert stream.text_bytes == 4


def test_a_text_longer_than_one_call_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tfx.data.tokenizer._PIECE_CHARACTERS", 100)
    monkeypatch.setattr("tfx.data.tokenizer._CALL_CHARACTERS", 1000)
    text = "".join(f"line {number} of a text\n" for number in range(500))
    data = prepare_data(text_config(tmp_path, text, text, tokenizer=TokenizerConfig(vocab_size=300)), context=4)
    assert data.tokenizer.decode(data.splits["train"].tokens) == text
    assert data.splits["train"].text_bytes == len(text)


def test_a_fingerprint_tells_of_pieces_that_begin_with_no_space(tmp_path, monkeypatch):
    options = {"tokenizer": TokenizerConfig(kind="unigram", vocab_size=40)}
    prints = []
    for size in (1 << 15, 16):
        monkeypatch.setattr("tfx.data.tokenizer._PIECE_CHARACTERS", size)
        prints.append(
            [
                prepare_data(text_config(tmp_path, text, "a text", **options), context=4).fingerprint
                for text in ("a text\nof lines\n", "a text\nof lines\n" * 3)
            ]
        )
    assert [before == after for before, after in zip(*prints, strict=True)] == [True, False]


def test_a_text_of_one_token_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"valid split .* single token"):
        prepare_data(text_config(tmp_path, "aabb", "a"), context=4)


# --- what does not fit ------------------------------------------------------------------------------

LENGTHS = [("aaaa", "a"), ("aa", "aa"), ("a", "aaaaaaaa"), ("aaaaaaaaa", "a"), ("a", "a")]


@pytest.mark.parametrize(
    ("options", "context", "kept", "notes"),
    [
        ({}, 64, [0, 1, 2, 3, 4], []),
        ({}, 10, [0, 1, 2, 3, 4], []),
        ({}, 9, [0, 1, 2, 4], ["train: 1 pairs over 8 tokens per side dropped"]),
        ({"max_tokens": 4}, 64, [0, 1, 4], ["train: 2 pairs over 4 tokens per side dropped"]),
        ({"max_tokens": 99}, 6, [0, 1, 4], ["train: 2 pairs over 5 tokens per side dropped"]),
        ({"max_length_ratio": 4.0}, 64, [0, 1, 4], ["train: 2 pairs with one side over 4 times the other dropped"]),
        (
            {"max_length_ratio": 2.0, "max_tokens": 8},
            64,
            [1, 4],
            [
                "train: 1 pairs over 8 tokens per side dropped",
                "train: 2 pairs with one side over 2 times the other dropped",
            ],
        ),
    ],
)
def test_training_pairs_that_do_not_fit_are_dropped_and_counted(tmp_path, options, context, kept, notes):
    data = prepare_data(pairs_config(tmp_path, LENGTHS, [("a", "a")], **options), context=context)
    assert decoded(data, "train") == [LENGTHS[row] for row in kept]
    assert data.notes == notes


def test_scored_pairs_are_cut_and_counted_but_never_dropped(tmp_path):
    data = prepare_data(pairs_config(tmp_path, valid=LENGTHS, train=[("a", "a")], max_tokens=1), context=5)
    assert decoded(data, "valid") == [(source[:4], target[:4]) for source, target in LENGTHS]
    assert data.splits["valid"].texts["target"][:] == [target for _, target in LENGTHS]
    assert data.notes == ["valid: 2 examples cut to 4 tokens per side"]


@pytest.mark.parametrize(
    ("options", "context", "says"),
    [
        ({"max_tokens": 1}, 64, r"within 1 tokens .*dataset.max_tokens"),
        ({}, 2, r"within 1 tokens .*model.context"),
        ({"max_length_ratio": 1.5}, 64, r"1.5 times .*dataset.max_length_ratio"),
    ],
)
def test_no_training_pair_left_is_refused_with_a_remedy(tmp_path, options, context, says):
    with pytest.raises(UserError, match=says):
        prepare_data(pairs_config(tmp_path, [("aaaaaa", "aa")], [("a", "a")], **options), context=context)


# --- the cache --------------------------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """What was done and not found in the cache."""
    done: list[str] = []
    train, tokenize = Tokenizer.train.__func__, Seq2Seq.tokenize

    def trained(cls, *args, **options):
        done.append("train")
        return train(cls, *args, **options)

    def tokenized(*args):
        done.append("tokenize")
        return tokenize(*args)

    monkeypatch.setattr(Tokenizer, "train", classmethod(trained))
    monkeypatch.setattr(Seq2Seq, "tokenize", tokenized)
    return done


ALL = ["train", "tokenize", "tokenize"]


def test_the_second_run_tokenizes_nothing(tmp_path, work):
    first = prepare_data(pairs_config(tmp_path), context=64)
    assert work == ALL
    second = prepare_data(pairs_config(tmp_path), context=64)
    assert work == ALL
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer.to_json() == first.tokenizer.to_json()
    assert decoded(second, "train") == TRAIN


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"train": [*TRAIN[:2], ("four", "VIER")]}, ALL),
        ({"valid": [("six", "Sechs")]}, ALL),
        ({"tokenizer": TokenizerConfig(vocab_size=300)}, ALL),
        ({"batch_tokens": 7, "name": "other", "metrics": ["bleu"], "max_tokens": 50}, []),
    ],
)
def test_what_changes_the_ids_makes_a_new_cache_entry(tmp_path, work, change, redone):
    before = prepare_data(pairs_config(tmp_path), context=64).fingerprint
    work.clear()
    after = prepare_data(pairs_config(tmp_path, **change), context=64).fingerprint
    assert work == redone
    assert (after != before) == bool(redone)


def damage(entry: Path, how: str) -> None:
    array = entry / "source.npy"
    if how == "cut array":
        array.write_bytes(array.read_bytes()[:-2])
    elif how == "empty array":
        array.write_bytes(b"")
    elif how == "no array":
        array.unlink()
    elif how == "no manifest":
        (entry / "manifest.json").unlink()
    else:
        (entry / "manifest.json").write_text(how)


@pytest.mark.parametrize(
    "how", ["cut array", "empty array", "no array", "no manifest", "", "[]", "{}", "[1]", "3", "{"]
)
def test_a_damaged_entry_is_made_anew(tmp_path, cache, work, how):
    prepare_data(pairs_config(tmp_path), context=64)
    entries = list((cache / "tokenized").iterdir())
    assert len(entries) == 2
    damage(next(entry for entry in entries if "-train-" in entry.name), how)
    work.clear()
    assert decoded(prepare_data(pairs_config(tmp_path), context=64), "train") == TRAIN
    assert work == ["tokenize"]
    assert sorted((cache / "tokenized").iterdir()) == sorted(entries), "temporary files are left behind"


@pytest.mark.parametrize("part", ["rows", "tokenized", "tokenizers"])
def test_an_entry_of_another_user_is_named_with_the_remedy(tmp_path, cache, monkeypatch, part):
    prepare_data(pairs_config(tmp_path), context=64)
    entries = sorted((cache / part).iterdir())

    def refusing(read):
        def refuse(path, *arguments, **options):
            if f"/{part}/" in str(path):
                raise PermissionError(13, "Permission denied")
            return read(path, *arguments, **options)

        return refuse

    for where, name in ((np, "load"), (Path, "read_text")):
        monkeypatch.setattr(where, name, refusing(getattr(where, name)))
    with pytest.raises(UserError, match=rf"{part}/.* cannot be read.*Permission denied.*TFX_CACHE"):
        prepare_data(pairs_config(tmp_path), context=64)
    assert sorted((cache / part).iterdir()) == entries


@pytest.mark.parametrize("content", ["", "{}", '{"model"'])
def test_a_damaged_tokenizer_is_trained_anew(tmp_path, cache, work, content):
    prepare_data(pairs_config(tmp_path), context=64)
    (path,) = (cache / "tokenizers").iterdir()
    path.write_text(content)
    work.clear()
    assert decoded(prepare_data(pairs_config(tmp_path), context=64), "train") == TRAIN
    assert work == ["train"]


@pytest.mark.parametrize("blocked", [".", "tokenizers", "tokenized"])
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, cache, blocked):
    config = pairs_config(tmp_path)
    (cache / blocked).parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(cache / blocked, ignore_errors=True)
    (cache / blocked).resolve().write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cache folder .* cannot be written .*TFX_CACHE"):
        prepare_data(config, context=64)


# --- a given tokenizer ------------------------------------------------------------------------------


def test_a_given_tokenizer_file_is_used_as_it_is(tmp_path, work):
    given_one = Tokenizer.train(CHAR, ["abcdefghijklmnopqrstuvwxyz "], word_initial_space=False)
    path = tmp_path / "given.json"
    path.write_text(given_one.to_json(), encoding="utf-8")
    work.clear()
    data = prepare_data(pairs_config(tmp_path, tokenizer=TokenizerConfig(path=str(path))), context=64)
    assert work == ["tokenize", "tokenize"]
    assert data.tokenizer.fingerprint == given_one.fingerprint
    assert decoded(data, "train") == TRAIN


def test_the_tokenizer_of_a_model_overrides_the_config(tmp_path):
    config = pairs_config(tmp_path, tokenizer=TokenizerConfig(path=str(tmp_path / "none.json")))
    own = Tokenizer.train(CHAR, ["one two"], word_initial_space=False)
    assert prepare_data(config, context=64, tokenizer=own).tokenizer is own
    with pytest.raises(UserError, match=r"none.json does not exist"):
        prepare_data(config, context=64)


# --- ragged arrays ----------------------------------------------------------------------------------


@given(
    sequences=st.lists(st.lists(st.integers(0, 99), max_size=6)), longest=st.none() | st.integers(0, 4), data=st.data()
)
def test_ragged_rows_are_taken_and_cut(sequences, longest, data):
    ragged = Ragged.from_lists(sequences, np.uint16)
    assert len(ragged) == len(sequences)
    assert ragged.lengths.tolist() == list(map(len, sequences))
    rows = data.draw(st.lists(st.sampled_from(range(len(sequences))))) if sequences else []
    taken = ragged.take(np.asarray(rows, dtype=np.int64), longest)
    assert [taken[i].tolist() for i in range(len(taken))] == [sequences[row][:longest] for row in rows]
    assert taken.values.dtype == np.uint16
