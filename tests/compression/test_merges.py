"""Merges as pairs of ids: every tokenizer is restored exactly, or left as it is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.compression.container import compress
from tfx.compression.merges import join_merges, split_merges
from tfx.config.schema import TokenizerConfig
from tfx.data.tokenizer import Tokenizer


def trained(kind: str, size: int, texts: list[str]) -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind=kind, vocab_size=size), texts, word_initial_space=True)


def edited(change) -> str:
    """The JSON of a tokenizer with changed content, as the library writes it."""
    content = json.loads(trained("bpe", 300, ["the theatre there and then"] * 3).to_json())
    change(content, content["model"])
    return Tokenizer.from_json(json.dumps(content)).to_json()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=20), st.integers(260, 400), st.data())
def test_a_trained_or_reduced_tokenizer_is_restored_exactly(texts, size, data):
    tokenizer = trained("bpe", size, texts)
    if data.draw(st.booleans()):
        ids = st.integers(0, tokenizer.vocab_size - 1)
        tokenizer, _ = tokenizer.reduced(data.draw(st.lists(ids, max_size=10)))
    text = tokenizer.to_json()
    rest, planes = split_merges(text)
    merges = json.loads(text)["model"]["merges"]
    assert len(planes) == 8 * len(merges)
    if merges:
        assert len(rest) < len(text)
        assert not json.loads(rest)["model"]["merges"]
        assert len(json.loads(rest)["model"]["vocab"]) == tokenizer.vocab_size - len(merges)
        assert join_merges(rest, planes) == text


def test_a_large_vocabulary_takes_less_than_half_the_bytes():
    parts = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in "lnrst"]
    texts = [a + b for a in parts for b in parts[::7]]
    text = trained("bpe", 2000, texts).to_json()
    rest, planes = split_merges(text)
    assert len(compress(rest.encode())) + len(compress(planes)) < 0.5 * len(compress(text.encode()))


def test_tokens_added_after_the_merges_keep_their_ids():
    def add(content, model):
        token = content["added_tokens"][0] | {"content": "<|end|>", "id": len(model["vocab"])}
        content["added_tokens"].append(token)
        model["vocab"]["<|end|>"] = token["id"]

    text = edited(add)
    rest, planes = split_merges(text)
    assert planes
    assert json.loads(rest)["model"]["vocab"]["<|end|>"] == max(json.loads(text)["model"]["vocab"].values())
    assert join_merges(rest, planes) == text


def two_ways(content, model):
    # "th" + "e" is one of the merges; "t" + "he" makes the same piece once more.
    model["merges"].append(["t", "he"])


def other_order(content, model):
    first, second = (left + right for left, right in model["merges"][:2])
    model["vocab"][first], model["vocab"][second] = model["vocab"][second], model["vocab"][first]


@pytest.mark.parametrize("change", [two_ways, other_order])
def test_merges_that_do_not_imply_the_vocabulary_stay_as_they_are(change):
    text = edited(change)
    assert split_merges(text) == (text, b"")


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_a_tokenizer_without_merges_stays_as_it_is(kind):
    text = trained(kind, 60, ["the theatre there and then"] * 3).to_json()
    assert split_merges(text) == (text, b"")
