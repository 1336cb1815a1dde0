"""Text survives the way to ids and back, and tokenizers of other tools are used as they are or refused."""

import json

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tfx.config.schema import TokenizerConfig
from tfx.data import tokenizer as module
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError

TEXTS = ["the cat sat on the mat at 12:30", "üñí 世界 \U0001f468‍\U0001f469", "a\r\nb", "3 4 567"] * 20
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


def train(kind: str = "bpe", *, texts=TEXTS, word_initial_space: bool = False, **options) -> Tokenizer:
    config = TokenizerConfig(kind=kind, **{"vocab_size": 300, **options})
    return Tokenizer.train(config, texts, word_initial_space=word_initial_space)


BPE = {
    (split, space): train(split_digits=split, word_initial_space=space)
    for split in (False, True)
    for space in (False, True)
}


@pytest.mark.parametrize(("split_digits", "word_initial_space"), BPE)
@settings(max_examples=60, deadline=None)
@given(text=UNICODE)
@example("a<eos>b <pad> <unk><bos>")
@example("12  3\n4 ٣ ½ ²")
@example("\u2028\0\r\n\ufeff")
@example("<")
def test_bytelevel_bpe_gives_every_text_back(split_digits, word_initial_space, text):
    tokenizer = BPE[split_digits, word_initial_space]
    # A space is put before the first word, so one that is there already cannot be told from it.
    text = text.lstrip(" ") if word_initial_space else text
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk} & set(ids)


@settings(max_examples=60, deadline=None)
@given(text=UNICODE)
@example("a<eos>b\r\n\u2028\u0085\x0b")
@example("e\u0301 \U0001f468\u200d\U0001f469")
def test_characters_give_every_text_that_they_were_trained_on_back(text):
    tokenizer = train("char", texts=[text], vocab_size=10_000)
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_without_case_a_text_has_the_same_tokens_however_it_is_written(kind):
    tokenizer = train(
        kind, texts=[*TEXTS, "The Dog \u2581 SAT"], lowercase=True, vocab_size=290 if kind == "bpe" else 40
    )
    again = Tokenizer.from_json(tokenizer.to_json())
    for each in (tokenizer, again):
        assert each.encode(["THE CAT sat"]) == each.encode(["the cat sat"])
        assert "Lowercase" in each.changes
    assert train(kind, vocab_size=290 if kind == "bpe" else 40).changes == []


def test_a_character_that_training_never_saw_is_unknown():
    tokenizer = train("char", texts=["abc"])
    assert tokenizer.encode(["abxc"])[0].count(tokenizer.unk) == 1
    assert tokenizer.vocab_size == 4 + 3


def test_characters_keep_the_most_frequent():
    tokenizer = train("char", texts=["aaabbc"], vocab_size=8 - 2)
    assert tokenizer.decode(tokenizer.encode(["abc"])[0]) == "ab<unk>"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_split_digits_makes_each_digit_a_token(kind):
    texts = [f"in {year} and {year} again words" for year in range(1900, 2000)]
    tokenizer = train(kind, texts=texts, split_digits=True, vocab_size=300 if kind == "bpe" else 60)
    tokens = [tokenizer.token(i) for i in tokenizer.encode(["in 1984 and 1985"])[0]]
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("19841985")
    assert tokenizer.decode(tokenizer.encode(["in 1984 and 1985"])[0]) == "in 1984 and 1985"


def test_word_initial_space_makes_the_first_word_like_the_others():
    tokenizer = train(word_initial_space=True, texts=["hello hello hello"] * 9)
    first, second = tokenizer.encode(["hello hello"])[0]
    assert first == second


@pytest.mark.parametrize("split_digits", [False, True])
@pytest.mark.parametrize("text", ["\u2581", "\u2581x", "a\u2581b", "a \u2581 1", "\u2581\u2581"])
def test_unigram_tells_a_typed_sign_of_the_space_from_a_space(split_digits, text):
    tokenizer = train("unigram", texts=["a\u2581b \u2581x 1 the cat"] * 20, vocab_size=40, split_digits=split_digits)
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids) == text
    # A token of a space alone has no bytes of its own: it is the one that unigram puts before a text.
    assert sum(map(tokenizer.token_bytes, ids)) == len(text.replace(" ", "").encode())
    assert tokenizer.changes == []
    assert not tokenizer.mistakes_sign


def test_unigram_trained_on_no_sign_of_the_space_says_that_it_takes_one_for_a_space():
    kinds = {kind: train(kind, texts=["the cat"] * 20).mistakes_sign for kind in ("unigram", "bpe", "char")}
    assert kinds == {"unigram": True, "bpe": False, "char": False}


def test_unigram_gives_words_back():
    tokenizer = train("unigram", texts=["the cat sat on the mat"] * 50, vocab_size=40)
    assert tokenizer.decode(tokenizer.encode(["the mat sat"])[0]) == "the mat sat"


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [("bpe", {"vocab_size": 259}, "below 260"), ("unigram", {"vocab_size": 8}, "larger vocab_size")],
)
def test_a_vocabulary_too_small_is_refused(kind, options, says):
    with pytest.raises(UserError, match=says):
        train(kind, texts=["abcdefghijklmnopqrstuvwxyz"] * 9, **options)


def test_the_same_text_trains_the_same_tokenizer():
    assert train().to_json() == train().to_json()
    again = Tokenizer.from_json(train().to_json())
    assert again.fingerprint == train().fingerprint
    assert again.encode(TEXTS) == train().encode(TEXTS)


def test_special_tokens_are_left_out_of_text():
    tokenizer = train()
    ids = tokenizer.encode(["the cat"])[0]
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos, tokenizer.pad]) == "the cat"
    assert len({tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk}) == 4


@pytest.mark.parametrize("filling", ["word ", "line\n", "x", "x" * 999 + "é"])
def test_a_long_text_is_encoded_in_pieces_and_comes_back(monkeypatch, filling):
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(module, "_CALL_CHARACTERS", 5000)
    texts = ["short", filling * (30_000 // len(filling)), "", "last"]
    assert [train().decode(ids) for ids in train().encode(texts)] == texts
    assert "".join(module._pieces(texts[1])) == texts[1]
    assert max(map(len, module._pieces(texts[1]))) <= 2000


@pytest.mark.parametrize("filling", ["the cat\n", "thecat"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_piece_of_a_long_text_begins_with_no_space_of_its_own(monkeypatch, kind, filling):
    tokenizer = train(kind, word_initial_space=True)
    text = filling * 40
    whole = tokenizer.decode(tokenizer.encode([text])[0])
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 20)
    monkeypatch.setattr(module, "_CALL_CHARACTERS", 50)
    assert tokenizer.decode(tokenizer.encode([text])[0]) == whole


def test_a_text_that_is_not_utf8_is_refused():
    with pytest.raises(UserError, match="surrogate"):
        train().encode(["\ud800"])


# --- files of other tools ---------------------------------------------------------------------------


def foreign(vocabulary: dict[str, int], special: tuple[str, ...] = (), unk: str = "<unk>") -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    return backend


@pytest.mark.parametrize(
    "names",
    [
        ("<pad>", "<s>", "</s>", "<unk>"),
        ("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
        ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>"),
    ],
)
def test_special_tokens_of_other_tools_are_recognised(tmp_path, names):
    words = {token: index for index, token in enumerate(["cat", "dog", *names])}
    foreign(words, names, unk=names[3]).save(str(tmp_path / "t.json"))
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (2, 3, 4, 5)
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode(["dog cow"])[0] == [1, 5]


SPECIALS = ("<pad>", "[CLS]", "</s>", "<unk>")
TYPED = "<pad> [CLS] </s> <unk> a[CLS]b</s><pad>c"


def typed_kinds() -> dict[str, tokenizers.Tokenizer]:
    """A tokenizer of each kind that knows every character of `TYPED`, and its special tokens as pieces of its model."""
    letters = sorted(set(TYPED) - {" "})
    pieces = {piece: index for index, piece in enumerate([*SPECIALS, *letters, *(f"##{c}" for c in letters)])}
    joined = {piece: index for index, piece in enumerate([*SPECIALS, *letters, "</", "</s"])}
    scores = [(piece, 0.0) for piece in SPECIALS] + [(piece, -9.0) for piece in letters]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    kinds = {
        "word level": tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="<unk>")),
        "WordPiece": tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="<unk>")),
        "unigram": tokenizers.Tokenizer(models.Unigram(scores, unk_id=3)),
        "BPE": tokenizers.Tokenizer(models.BPE(joined, [("<", "/"), ("</", "s"), ("</s", ">")], unk_token="<unk>")),
        "whole words": tokenizers.Tokenizer(models.BPE(joined, [], unk_token="<unk>", ignore_merges=True)),
        "byte level": tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate([*SPECIALS, *alphabet])}, [])),
    }
    for kind, backend in kinds.items():
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if kind == "byte level":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
    return kinds


@pytest.mark.parametrize("kind", typed_kinds())
@pytest.mark.parametrize("added", ["special", "plain", "normalized", "none"])
def test_no_text_becomes_a_special_token_whether_the_file_marks_it_or_not(kind, added):
    backend = typed_kinds()[kind]
    if added != "none":
        options = {"special": added == "special", "normalized": added == "normalized"}
        # The library knows a token as special from how it was added first.
        add = backend.add_special_tokens if added == "special" else backend.add_tokens
        add([tokenizers.AddedToken(name, **options) for name in SPECIALS])
    tokenizer = Tokenizer.from_json(backend.to_str())
    special = (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk)
    assert special == (0, 1, 2, 3)
    ids = tokenizer.encode([TYPED])[0]
    if kind == "word level":  # a word that it does not have is unknown, whatever it spells
        assert ids == [tokenizer.unk] * 5
        assert tokenizer.unknown_bytes(TYPED) == [len(word) for word in TYPED.split()]
    else:
        assert not set(special) & set(ids)
        assert tokenizer.decode(ids).replace(" ", "").replace("##", "") == TYPED.replace(" ", "")
    for name in SPECIALS[:3]:
        assert backend.token_to_id(name) not in tokenizer.encode([name])[0]
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode([TYPED])[0] == ids


def test_added_tokens_that_are_not_special_are_found_in_a_text():
    backend = typed_kinds()["BPE"]
    backend.add_tokens(["a[CLS]"])
    tokenizer = Tokenizer.from_json(backend.to_str())
    assert [tokenizer.token(i) for i in tokenizer.encode(["a[CLS]b"])[0]] == ["a[CLS]", "b"]


@pytest.mark.parametrize("kind", ["BPE", "unigram"])
def test_special_tokens_that_a_file_does_not_mark_stay_in_a_reduced_tokenizer(kind):
    tokenizer = Tokenizer.from_json(typed_kinds()[kind].to_str())
    smaller, kept = tokenizer.reduced(tokenizer.encode(["abc"])[0])
    assert [kept[i] for i in (smaller.pad, smaller.bos, smaller.eos, smaller.unk)] == [0, 1, 2, 3]
    assert len(kept) == smaller.vocab_size


def test_a_file_names_its_unknown_token_as_it_likes():
    backend = tokenizers.Tokenizer(models.WordLevel({"cat": 0, "??": 1}, unk_token="??"))
    tokenizer = Tokenizer.from_json(backend.to_str())
    assert tokenizer.unk == 1
    assert tokenizer.unknown_bytes("dog") == [3]


def test_special_tokens_that_a_file_lacks_are_added(tmp_path):
    foreign({"cat": 0, "<unk>": 1}).save(str(tmp_path / "t.json"))
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    assert sorted([tokenizer.pad, tokenizer.bos, tokenizer.eos]) == [2, 3, 4]
    assert tokenizer.vocab_size == 5


def test_a_file_that_cuts_and_pads_does_neither_here(tmp_path):
    backend = foreign({"cat": 0, "<unk>": 1})
    backend.enable_truncation(2)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "t.json"))
    assert Tokenizer.load(tmp_path / "t.json").encode(["cat " * 9, "cat"]) == [[0] * 9, [0]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "not a tokenizer.json"),
        ("{}", "not a tokenizer.json"),
        ('{"model": {"type": "BPE"}}', "not a tokenizer.json"),
        ("3", "not a tokenizer.json"),
        ("", "not a tokenizer.json"),
        ("{", "not a tokenizer.json"),
        (b"\xff\xfe", "cannot be read"),
        (foreign({"cat": 0, "dog": 700, "<unk>": 1}).to_str(), "not the numbers 0 to 2"),
        (json.dumps({"a": 1}), "not a tokenizer.json"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content, says):
    path = tmp_path / "t.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        Tokenizer.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "says"), [("none.json", "does not exist"), (".", "is not a file")])
def test_a_missing_file_is_refused(tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        Tokenizer.load(tmp_path / name)


REDUCIBLE = {
    "bpe": train(vocab_size=330),
    "spaced": train(vocab_size=330, word_initial_space=True),
    "unigram": train("unigram", vocab_size=60, texts=[*TEXTS, "abc abcd xyz"]),
}


@pytest.mark.parametrize("kind", REDUCIBLE)
@given(chosen=st.lists(st.sampled_from([*TEXTS[:4], "the mat", "cat 567", "12:30", ""]), max_size=3), other=UNICODE)
@example(chosen=[], other=" ")
@settings(max_examples=40, deadline=None)
def test_a_reduced_tokenizer_makes_the_same_pieces_of_what_it_was_reduced_for(kind, chosen, other):
    whole = REDUCIBLE[kind]
    ids = whole.encode(chosen)
    smaller, kept = whole.reduced({i for row in ids for i in row})
    assert kept == sorted(set(kept))
    assert smaller.vocab_size == len(kept)
    assert [[kept[i] for i in row] for row in smaller.encode(chosen)] == ids
    assert [smaller.token(new) for new in range(len(kept))] == [whole.token(old) for old in kept]
    assert [kept[i] for i in (smaller.pad, smaller.bos, smaller.eos, smaller.unk)] == [
        whole.pad,
        whole.bos,
        whole.eos,
        whole.unk,
    ]
    if kind != "unigram":  # the alphabet stays: every text can still be encoded
        # A space that is put before the first word cannot be told from one that is there already.
        assert smaller.decode(smaller.encode([other])[0]) == (other.lstrip(" ") if kind == "spaced" else other)
    assert smaller.reduced(range(len(kept)))[1] == list(range(len(kept)))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_what_nothing_needs_goes_and_characters_all_stay(kind):
    whole = REDUCIBLE[kind]
    smaller, _ = whole.reduced([])
    assert smaller.vocab_size < whole.vocab_size
    assert all(len(smaller.token(i)) == 1 or smaller.token(i).startswith("<") for i in range(smaller.vocab_size))
    characters = train("char")
    assert characters.reduced([])[0] is characters


def test_a_file_on_which_the_library_panics_is_refused_without_a_backtrace(capfd):
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=30), ["abc"], word_initial_space=False)
    content = json.loads(tokenizer.to_json())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.from_json(json.dumps(content))
    assert capfd.readouterr().err == ""
