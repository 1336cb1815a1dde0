"""BPE dropout: words of a batch in other pieces, by the rule of the paper, the same in a resumed run."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from tfx.config.compose import compose
from tfx.config.schema import TokenizerConfig
from tfx.data.merges import Merges
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.tasks.lm import Stream
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.bpe_dropout import BpeDropout, BpeDropoutSettings
from tfx.techniques.contract import Instant
from tfx.techniques.stack import Stack

WORDS = ["unrelated", "related", "relation", "nation", "national", "international", "lowest", "newest", "wider,"]
WORDS += ["winter.", "don't", "naïve", "2024!"]
TEXTS = [" ".join(random.Random(seed).sample(WORDS, 6)) for seed in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TokenizerConfig(kind="bpe", vocab_size=360), TEXTS, word_initial_space=True)


@pytest.fixture(scope="module")
def architecture():
    return Architecture.from_config(compose(["trainer.budget.steps=1", "model.context=64"]).model, 360)


class Data:
    """What the technique reads of prepared data."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def technique(tokenizer, architecture, **settings):
    found = BpeDropout(BpeDropoutSettings(**settings))
    found.receive_data(Data(tokenizer), architecture)
    return found


def pairs(tokenizer):
    ids = tokenizer.encode(TEXTS)
    whole = Pairs(Ragged.from_lists(ids, np.int64), Ragged.from_lists(ids[::-1], np.int64))
    return collate_pairs(whole, np.arange(len(ids)), tokenizer)


def texts_of(batch, tokenizer):
    """The texts of sources, decoder inputs and targets."""
    sides = [batch.target_in_BT, batch.target_out_BT]
    sides += [] if batch.source_BS is None else [batch.source_BS]
    return [[tokenizer.decode([int(i) for i in row if i >= 0]) for row in side] for side in sides]


# --- merges -----------------------------------------------------------------------------------------


def test_without_dropout_merges_give_what_the_library_gives(tokenizer):
    merges = Merges(tokenizer, "technique.x")
    for text in [*TEXTS, "  two  spaces ", "née\n\nline", "ünï 🙂 x", ""]:
        [ids] = tokenizer.encode([text])
        words = merges.words(ids)
        assert [token for word in words for token in word] == ids
        for word in words:
            characters = merges.characters(word)
            assert characters is None or merges.apply(characters) == word
    assert merges.characters(tokenizer.encode(["related"])[0]) is not None


def brute_force(merges, symbols, rate):
    """The probability of each outcome of the paper's algorithm 1, over all draws."""
    found = Counter()

    def go(pieces, chance):
        places = [i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) in merges._rules]
        # Of the places in the order of their ranks the first that is not left out is merged.
        places.sort(key=lambda i: (merges._rules[pieces[i], pieces[i + 1]][0], i))
        for order, i in enumerate(places):
            merged = merges._rules[pieces[i], pieces[i + 1]][1]
            go([*pieces[:i], merged, *pieces[i + 2 :]], chance * rate**order * (1 - rate))
        found[tuple(pieces)] += chance * rate ** len(places)

    go(list(symbols), 1.0)
    return found


def test_the_pieces_have_the_distribution_of_the_papers_algorithm(tokenizer):
    merges = Merges(tokenizer, "technique.x")
    [word] = merges.words(tokenizer.encode(["related"])[0])
    symbols = merges.characters(word)
    expected = brute_force(merges, symbols, 0.4)
    assert sum(expected.values()) == pytest.approx(1.0)
    assert len(expected) > 4
    rng = random.Random(0)
    draws = 4000
    seen = Counter(tuple(merges.apply(symbols, 0.4, rng)) for _ in range(draws))
    assert seen.keys() <= expected.keys()
    for pieces, chance in expected.items():
        assert seen[pieces] / draws == pytest.approx(chance, abs=4 * (chance * (1 - chance) / draws) ** 0.5 + 1e-3)


def test_at_rate_one_nothing_is_merged_and_at_a_small_one_little_changes(tokenizer):
    merges = Merges(tokenizer, "technique.x")
    [word] = merges.words(tokenizer.encode(["lowest"])[0])
    assert merges.apply(merges.characters(word), 1.0, random.Random(0)) == merges.characters(word)


# --- batches ----------------------------------------------------------------------------------------


def test_a_batch_has_the_same_texts_in_more_pieces_and_its_own_counts(tokenizer, architecture):
    batch = pairs(tokenizer)
    made = technique(tokenizer, architecture, rate=0.3)
    found = made.resize_batch(batch, Instant(1, 0, 0, 0.0))
    assert texts_of(found, tokenizer) == texts_of(batch, tokenizer)
    assert found.tokens > 1.1 * batch.tokens
    # Counted by hand: what is not padding.
    sources = int((found.source_BS != tokenizer.pad).sum())
    targets = int((found.target_out_BT >= 0).sum())
    assert (found.tokens, found.targets) == (sources + targets, targets)
    assert found.positions == found.source_BS.numel() + found.target_out_BT.numel()
    assert torch.equal(found.source_mask_BS, found.source_BS != tokenizer.pad)
    # Decoder inputs are the targets, one later, after the begin token.
    for entering, leaving in zip(found.target_in_BT, found.target_out_BT, strict=True):
        real = leaving[leaving >= 0]
        assert entering[0] == tokenizer.bos
        assert real[-1] == tokenizer.eos
        assert torch.equal(entering[1 : len(real)], real[:-1])
    evidence = made.evidence()
    # The begin token of the decoder's input is read too.
    added = (found.tokens - batch.tokens) / (batch.tokens + len(batch.rows))
    assert evidence["tokens_added"] == pytest.approx(added)
    assert 0.2 < evidence["words_changed"] <= 1
    assert made.acted()


def test_draws_differ_between_steps_and_are_the_same_in_a_resumed_run(tokenizer, architecture):
    batch = pairs(tokenizer)
    first, resumed = (technique(tokenizer, architecture) for _ in range(2))
    at = [first.resize_batch(batch, Instant(1, step, 0, 0.0)) for step in range(3)]
    assert at[0].source_BS.shape != at[1].source_BS.shape or not torch.equal(at[0].source_BS, at[1].source_BS)
    resumed.load_state_dict(first.state_dict())
    assert resumed.evidence() == first.evidence()
    again = resumed.resize_batch(batch, Instant(1, 2, 0, 0.0))
    assert torch.equal(again.source_BS, at[2].source_BS)
    assert torch.equal(again.target_out_BT, at[2].target_out_BT)


def test_windows_of_a_stream_are_split_anew_and_cut_to_the_context(tokenizer, architecture):
    tokens = np.concatenate([np.asarray(ids) for ids in tokenizer.encode(TEXTS)])
    batch = Stream(tokens, 1, np.zeros(0)).collate(np.asarray([0, 100]), 64, tokenizer)
    made = technique(tokenizer, architecture, rate=0.5)
    found = made.resize_batch(batch, Instant(1, 0, 0, 0.0))
    assert found.target_in_BT.shape == (2, 64)
    assert torch.equal(found.target_in_BT[:, 1:], found.target_out_BT[:, :-1])
    for before, after in zip(texts_of(batch, tokenizer)[0], texts_of(found, tokenizer)[0], strict=True):
        assert before.startswith(after.rstrip("\ufffd"))
        assert len(after) < len(before)
    assert found.tokens == found.targets == 128


def test_a_row_that_would_pass_the_context_stays(tokenizer, architecture):
    longest = [tokenizer.encode([" ".join(TEXTS)])[0][:63]]
    whole = Pairs(Ragged.from_lists(longest, np.int64), Ragged.from_lists(longest, np.int64))
    batch = collate_pairs(whole, np.arange(1), tokenizer)
    made = technique(tokenizer, architecture, rate=0.5)
    found = made.resize_batch(batch, Instant(1, 0, 0, 0.0))
    assert torch.equal(found.source_BS, batch.source_BS)
    assert torch.equal(found.target_out_BT, batch.target_out_BT)
    assert not made.acted()


def test_it_waits_for_its_start(tokenizer, architecture):
    batch = pairs(tokenizer)
    made = technique(tokenizer, architecture, start=0.5)
    assert made.resize_batch(batch, Instant(1, 0, 0, 0.4)) is batch
    assert made.resize_batch(batch, Instant(1, 0, 0, 0.5)) is not batch


def test_types_go_with_the_words_that_pieces_come_from(tokenizer, architecture):
    from dataclasses import replace

    batch = pairs(tokenizer)
    types = (torch.arange(batch.source_BS.shape[1]) >= 7).long().expand_as(batch.source_BS)
    made = technique(tokenizer, architecture, rate=0.4)
    found = made.resize_batch(replace(batch, types_BS=types), Instant(1, 0, 0, 0.0))
    for row in range(len(batch.rows)):
        kept = batch.source_BS[row][:7].tolist()
        if batch.source_BS[row][7] not in (tokenizer.pad, tokenizer.eos) and not tokenizer.token(
            int(batch.source_BS[row][7])
        ).startswith("Ġ"):
            continue  # the border lies inside a word
        first = found.source_BS[row][found.types_BS[row] == 0]
        real = [int(i) for i in first if i != tokenizer.pad]
        assert tokenizer.decode(real) == tokenizer.decode(kept)


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_a_tokenizer_without_merges_is_refused_in_one_line(kind, architecture):
    with pytest.raises(UserError, match=r"dataset\.tokenizer\.kind=bpe") as error:
        Stack(
            [BpeDropout(BpeDropoutSettings())],
            compose(["trainer.budget.steps=1", f"dataset.tokenizer.kind={kind}"]),
        )
    assert "\n" not in str(error.value)
    other = Tokenizer.train(TokenizerConfig(kind=kind, vocab_size=60), TEXTS, word_initial_space=False)
    with pytest.raises(UserError, match="the tokenizer is"):
        technique(other, architecture)
