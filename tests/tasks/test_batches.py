"""Batches hold every example once, within their size, well filled, in an order that a resumed run repeats."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.config.schema import TokenizerConfig
from tfx.data.batching import bucket, most_rows
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import IGNORE, Batch
from tfx.tasks.batches import scoring_batches, training_batches
from tfx.tasks.lm import Stream, collate_windows
from tfx.tasks.seq2seq import Pairs, collate_pairs

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char"), ["abcdef"], word_initial_space=False)
PAD, BOS, EOS = TOKENIZER.pad, TOKENIZER.bos, TOKENIZER.eos


def make_pairs(source_lengths, target_lengths) -> Pairs:
    """Pairs whose ids tell their row, side and place."""

    def side(lengths, start: int) -> Ragged:
        return Ragged.from_lists(
            [[start + 100 * row + i for i in range(n)] for row, n in enumerate(lengths)], np.uint32
        )

    return Pairs(side(source_lengths, 1_000), side(target_lengths, 1_000_000))


def like_multi30k(count: int, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    source = np.clip(rng.gamma(10.0, 1.4, count).round(), 3, 45).astype(int)
    target = np.clip((source * rng.normal(1.05, 0.2, count)).round(), 2, 50).astype(int)
    return make_pairs(source, target)


def epoch_of(split, batch_tokens: int, context: int = 64, seed: int = 1, epoch: int = 0) -> list[Batch]:
    """The batches of one epoch, told by their number, which the order does not change."""
    options = {"batch_tokens": batch_tokens, "context": context, "seed": seed}
    count = 0
    rows: Counter[int] = Counter()
    for batch in training_batches(split, TOKENIZER, **options):
        rows.update(batch.rows.tolist())
        count += 1
        if len(rows) == len(split):
            break
    return list(islice(training_batches(split, TOKENIZER, **options), epoch * count, (epoch + 1) * count))


def same(first: Batch, second: Batch) -> bool:
    return (
        first.rows.tolist() == second.rows.tolist()
        and torch.equal(first.target_in_BT, second.target_in_BT)
        and torch.equal(first.target_out_BT, second.target_out_BT)
    )


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)

# --- text to text -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200), seed=st.integers(0, 9))
def test_each_example_is_in_one_batch_of_bounded_size(lengths, batch_tokens, seed):
    source, target = np.asarray(lengths).T
    batches = bucket(source, target, batch_tokens, np.random.default_rng(seed).permutation(len(source)))
    assert sorted(row for rows in batches for row in rows.tolist()) == list(range(len(source)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * (source[rows].max() + target[rows].max()) <= batch_tokens


def test_no_examples_make_no_batch():
    assert bucket(np.empty(0, np.int64), np.empty(0, np.int64), 100, np.empty(0, np.int64)) == []


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_pairs_are_aligned_shifted_and_padded(lengths):
    pairs = make_pairs(*zip(*lengths, strict=True))
    rows = np.arange(len(pairs))[::-1].copy()
    batch = collate_pairs(pairs, rows, TOKENIZER)
    assert batch.source_BS is not None
    for i, row in enumerate(rows):
        source, target = pairs.source[row].tolist(), pairs.target[row].tolist()
        assert batch.source_BS[i].tolist() == [*source, EOS] + [PAD] * (batch.source_BS.shape[1] - len(source) - 1)
        rest = batch.target_in_BT.shape[1] - len(target) - 1
        assert batch.target_in_BT[i].tolist() == [BOS, *target] + [PAD] * rest
        assert batch.target_out_BT[i].tolist() == [*target, EOS] + [IGNORE] * rest
        if batch.source_mask_BS is not None:
            assert batch.source_mask_BS[i].tolist() == [True] * (len(source) + 1) + [False] * (
                batch.source_BS.shape[1] - len(source) - 1
            )
    assert (batch.source_mask_BS is None) == (len({source for source, _ in lengths}) == 1)
    assert batch.tokens == sum(source + target + 2 for source, target in lengths)
    assert batch.targets == sum(target + 1 for _, target in lengths) == int((batch.target_out_BT != IGNORE).sum())
    assert batch.positions == batch.source_BS.numel() + batch.target_in_BT.numel()


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_epoch_has_every_example_once(epoch):
    pairs = make_pairs([3] * 50, [4] * 50)  # equal lengths: each epoch has as many batches
    batches = epoch_of(pairs, 60, epoch=epoch)
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(50))
    assert all(batch.positions <= 60 for batch in batches)


def test_little_is_padded():
    batches = epoch_of(like_multi30k(29_000), 4096)
    tokens, positions = sum(batch.tokens for batch in batches), sum(batch.positions for batch in batches)
    assert max(batch.positions for batch in batches) <= 4096
    assert 1 - tokens / positions < 0.05
    assert positions / len(batches) > 0.9 * 4096


@pytest.mark.parametrize("kind", ["pairs", "stream"])
def test_the_order_depends_on_seed_and_epoch_alone(kind):
    split = like_multi30k(300) if kind == "pairs" else Stream(np.arange(20_000, dtype=np.uint16), 1)

    def first_rows(seed: int, count: int = 400) -> list[list[int]]:
        batches = training_batches(split, TOKENIZER, batch_tokens=256, context=64, seed=seed)
        return [batch.rows.tolist() for batch in islice(batches, count)]

    once = first_rows(1)
    assert once == first_rows(1)
    assert once[:20] != first_rows(2)[:20]
    assert len({str(rows) for rows in once}) > len(once) // 2, "epochs repeat each other"


@pytest.mark.parametrize("start", [0, 1, 7, 19, 20, 40, 63])
@pytest.mark.parametrize("kind", ["pairs", "stream"])
def test_a_resumed_run_sees_the_batches_that_it_would_have_seen(kind, start):
    split = like_multi30k(60) if kind == "pairs" else Stream(np.arange(1_500, dtype=np.uint16), 1)
    options = {"batch_tokens": 100, "context": 64, "seed": 5}
    whole = list(islice(training_batches(split, TOKENIZER, **options), start, start + 8))
    resumed = list(islice(training_batches(split, TOKENIZER, **options, start=start), 8))
    assert all(same(*pair) for pair in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_scoring_has_every_pair_once(batch_tokens):
    pairs = like_multi30k(200)
    batches = list(scoring_batches(pairs, TOKENIZER, batch_tokens=batch_tokens, context=64))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(200))
    assert sum(batch.targets for batch in batches) == int(pairs.target.lengths.sum()) + 200


# --- language model ---------------------------------------------------------------------------------


def target_positions(batches: list[Batch]) -> Counter[int]:
    """How often each position of a stream that counts up is a target; inputs are the tokens before."""
    found: Counter[int] = Counter()
    for batch in batches:
        real = batch.target_out_BT != IGNORE
        assert torch.equal(batch.target_out_BT[real], batch.target_in_BT[real] + 1)
        assert batch.targets == batch.tokens == int(real.sum())
        assert batch.source_BS is None
        found.update(batch.target_out_BT[real].tolist())
    return found


@settings(max_examples=80, deadline=None)
@given(length=st.integers(2, 400), context=st.integers(1, 50), batch_tokens=st.integers(1, 300))
def test_scoring_windows_have_every_token_but_the_first_once(length, context, batch_tokens):
    stream = Stream(np.arange(length, dtype=np.uint16), length)
    batches = list(scoring_batches(stream, TOKENIZER, batch_tokens=batch_tokens, context=context))
    assert target_positions(batches) == Counter(range(1, length))
    assert all(batch.positions <= max(context, batch_tokens) for batch in batches)


@settings(max_examples=80, deadline=None)
@given(length=st.integers(3, 400), context=st.integers(2, 50), batch_tokens=st.integers(1, 300), seed=st.integers(0, 9))
def test_training_windows_tile_the_stream(length, context, batch_tokens, seed):
    stream = Stream(np.arange(length, dtype=np.uint16), length)
    options = {"batch_tokens": batch_tokens, "context": context, "seed": seed}
    if length < context + 1:
        with pytest.raises(UserError, match=r"model\.context"):
            next(training_batches(stream, TOKENIZER, **options))
        return
    rows = max(1, batch_tokens // context)
    first = next(training_batches(stream, TOKENIZER, **options))
    phase = int(first.rows[0]) % context
    windows = len(range(phase, length - context, context))
    count = max(1, windows // rows)
    batches = list(islice(training_batches(stream, TOKENIZER, **options), count))
    found = target_positions(batches)
    assert set(found.values()) == {1}, "a token is a target twice in an epoch"
    assert all((batch.target_out_BT != IGNORE).all() for batch in batches)
    assert all(batch.positions <= max(context, batch_tokens) for batch in batches)
    assert len(found) == min(windows, count * rows) * context
    assert {int(start) % context for batch in batches for start in batch.rows} == {phase}


def test_a_window_past_the_end_is_padded():
    batch = collate_windows(Stream(np.arange(10, dtype=np.uint16), 10), np.asarray([7]), 4, TOKENIZER)
    assert batch.target_out_BT.tolist() == [[8, 9, IGNORE, IGNORE]]
    assert batch.target_in_BT[0, :2].tolist() == [7, 8]


@pytest.mark.parametrize("batch_tokens", [8, 32, 200])
def test_the_mean_batch_has_no_more_rows_than_is_said(batch_tokens):
    lengths = np.random.default_rng(1).integers(2, 40, (2, 500))
    batches = bucket(*lengths, batch_tokens, np.arange(500))
    most = most_rows(lengths.sum(0), batch_tokens)
    assert 0.6 * most < 500 / len(batches) <= most
