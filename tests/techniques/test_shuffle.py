"""Shuffle: what a permutation may and may not do, for any input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.config.compose import compose
from tfx.config.schema import TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import IGNORE, Batch
from tfx.tasks.batches import training_batches
from tfx.tasks.lm import Stream, collate_windows
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.contract import Instant
from tfx.techniques.shuffle import Shuffle, ShuffleSettings, permutation
from tfx.techniques.stack import Stack

TOKENIZER = Tokenizer.train(
    TokenizerConfig(kind="char", vocab_size=64), ["abcdefghijklmnopqrstuvwxyz"], word_initial_space=False
)
MOMENT = Instant(seed=1, step=3, batch=0, progress=0.5)


def pairs_batch() -> Batch:
    rng = np.random.default_rng(0)
    sides = [[rng.integers(4, 30, size=n).tolist() for n in lengths] for lengths in ([9, 5, 7], [6, 8, 3])]
    source, target = (Ragged.from_lists(side, np.int64) for side in sides)
    return collate_pairs(Pairs(source, target), np.arange(3), TOKENIZER)


@settings(max_examples=150, deadline=None)
@given(
    movable=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4),
    mode=st.sampled_from(["whole", "window", "spans"]),
    window=st.integers(1, 5),
    span=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_a_permutation_keeps_fixed_points_bounds_and_barriers(movable, mode, window, span, seed):
    movable_BT = torch.tensor(movable)
    generator = torch.Generator().manual_seed(seed)
    order = permutation(movable_BT, mode, window=window, span=span, generator=generator)
    position = torch.arange(12)
    assert (order.sort(1).values == position).all(), "not a permutation"
    assert (order == position)[~movable_BT].all(), "a fixed position moved"
    if mode == "window":
        assert ((order - position).abs() <= window).all(), "a token moved further than the window"
    segment = (~movable_BT).cumsum(1)
    assert (segment.gather(1, order) == segment).all(), "a token crossed a fixed position"


def test_whole_reaches_every_order_and_spans_stay_together():
    movable = torch.ones(4000, 3, dtype=torch.bool)
    whole = permutation(movable, "whole", window=1, span=1, generator=torch.Generator().manual_seed(0))
    counts = torch.unique(whole, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 550  # 667 expected, standard deviation 24
    spans = permutation(
        torch.ones(50, 12, dtype=torch.bool), "spans", window=1, span=3, generator=torch.Generator().manual_seed(0)
    )
    assert (spans.view(50, 4, 3).diff(dim=2) == 1).all()
    assert (spans != torch.arange(12)).any()


@pytest.mark.parametrize("side", ["source", "target", "both"])
def test_padding_and_special_tokens_keep_their_places_and_labels_follow_inputs(side):
    batch = pairs_batch()
    shuffled = Shuffle(ShuffleSettings(mode="whole", share=1.0, side=side, anneal="none", end=1.0)).transform_batch(
        batch, MOMENT
    )
    for name in ("source_BS", "target_in_BT", "target_out_BT"):
        before, after = getattr(batch, name), getattr(shuffled, name)
        changes = side == "both" or name.startswith(side)
        assert bool((before != after).any()) == changes
        fixed = (before == TOKENIZER.pad) | (before == TOKENIZER.eos) | (before == TOKENIZER.bos) | (before == IGNORE)
        assert (before == after)[fixed].all()
        assert (before.sort(1).values == after.sort(1).values).all()
    real = shuffled.target_out_BT[:, :-1] >= 0
    inner = real & (shuffled.target_out_BT[:, :-1] != TOKENIZER.eos)
    assert (shuffled.target_in_BT[:, 1:] == shuffled.target_out_BT[:, :-1])[inner].all()


def test_a_language_model_sees_one_permuted_sequence_as_inputs_and_labels():
    stream = Stream(np.random.default_rng(0).integers(4, 30, size=200), 200)
    batch = collate_windows(stream, np.asarray([0, 50, 100]), 20, TOKENIZER)
    shuffled = Shuffle(ShuffleSettings(share=1.0, anneal="none", end=1.0)).transform_batch(batch, MOMENT)
    assert (shuffled.target_in_BT != batch.target_in_BT).any()
    assert (shuffled.target_in_BT[:, 1:] == shuffled.target_out_BT[:, :-1]).all()


def test_a_prompt_without_labels_stays_and_what_continues_it_moves():
    """As a student's own outputs come: the first half of a window has no labels, and is no padding."""
    batch = collate_windows(Stream(np.arange(4, 30), 26), np.arange(3), 8, TOKENIZER)
    labels_BT = batch.target_out_BT.clone()
    labels_BT[:, :3] = IGNORE
    batch = replace(batch, target_out_BT=labels_BT)
    for share in (0.0001, 1.0):  # no row, and each one
        shuffled = Shuffle(ShuffleSettings(share=share, anneal="none", mode="whole", end=1.0)).transform_batch(
            batch, MOMENT
        )
        assert torch.equal(shuffled.target_in_BT[:, :4], batch.target_in_BT[:, :4])
        assert torch.equal(shuffled.target_out_BT < 0, labels_BT < 0)
        moved, own = shuffled.target_out_BT[:, 3:], labels_BT[:, 3:]
        assert torch.equal(moved.sort(1).values, own.sort(1).values)
        assert torch.equal(moved, own) == (share < 1)
        assert torch.equal(shuffled.target_in_BT[:, 4:], moved[:, :-1])


def test_share_says_how_many_sequences_move():
    rng = np.random.default_rng(0)
    sides = [[rng.permutation(np.arange(4, 30))[:12].tolist() for _ in range(3000)] for _ in range(2)]
    source, target = (Ragged.from_lists(side, np.int64) for side in sides)
    batch = collate_pairs(Pairs(source, target), np.arange(3000), TOKENIZER)
    for settings_, expected in (
        ({"share": 0.4, "anneal": "none", "end": 1.0}, 0.4),
        ({"share": 1.0, "anneal": "none", "end": 1.0}, 1.0),
        # Half of the time has passed: half of the share.
        ({"share": 0.4, "anneal": "linear", "end": 1.0}, 0.2),
        ({"share": 0.4, "anneal": "cosine", "end": 0.75}, 0.1),
    ):
        shuffled = Shuffle(ShuffleSettings(mode="whole", side="both", **settings_)).transform_batch(batch, MOMENT)
        for name in ("source_BS", "target_in_BT"):
            moved = (getattr(shuffled, name) != getattr(batch, name)).any(1).double().mean()
            # The standard deviation of a share of 3,000 is below 0.0092; one order in 12! leaves all in place.
            assert moved == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("anneal", "halfway", "three_quarters"),
    [("none", 0.4, 0.4), ("linear", 0.2, 0.1), ("cosine", 0.2, 0.2 * (1 - 0.5**0.5))],
)
def test_the_share_falls_from_start_to_end_as_it_is_annealed(anneal, halfway, three_quarters):
    technique = Shuffle(ShuffleSettings(share=0.4, anneal=anneal, start=0.2, end=0.7))
    assert technique.share(0.1) == technique.share(0.7) == technique.share(0.9) == 0.0
    assert technique.share(0.2) == pytest.approx(0.4)
    assert technique.share(0.45) == pytest.approx(halfway)
    assert technique.share(0.575) == pytest.approx(three_quarters)


LENGTHS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    side=st.sampled_from(["source", "target", "both"]),
    mode=st.sampled_from(["whole", "window", "spans"]),
    is_lm=st.booleans(),
    step=st.integers(0, 10_000),
    data=st.data(),
)
def test_each_label_follows_its_input_and_padding_and_special_tokens_stay(lengths, side, mode, is_lm, step, data):
    rng = np.random.default_rng(step)
    special = [TOKENIZER.pad, TOKENIZER.bos, TOKENIZER.eos]
    if is_lm:
        tokens = rng.integers(4, 30, size=120)
        tokens[rng.random(120) < 0.1] = TOKENIZER.eos  # ends of documents
        batch = collate_windows(Stream(tokens, 120), np.asarray([0, 7, 60]), data.draw(st.integers(1, 40)), TOKENIZER)
        side = "source"
    else:
        sides = [[rng.integers(4, 30, size=pair[i]).tolist() for pair in lengths] for i in (0, 1)]
        pairs = Pairs(*(Ragged.from_lists(rows, np.int64) for rows in sides))
        batch = collate_pairs(pairs, np.arange(len(lengths)), TOKENIZER)
    technique = Shuffle(ShuffleSettings(mode=mode, share=1.0, side=side))
    shuffled = technique.transform_batch(batch, Instant(1, step, 0, 0.5))

    def sequences(of: Batch) -> list[list[int]]:
        rows = zip(of.target_in_BT.tolist(), of.target_out_BT.tolist(), strict=True)
        return [[inputs[0], *(label for label in labels if label != IGNORE)] for inputs, labels in rows]

    for before, after, inputs in zip(
        sequences(batch), sequences(shuffled), shuffled.target_in_BT.tolist(), strict=True
    ):
        assert sorted(before) == sorted(after)
        assert [token if token in special else None for token in before] == [
            token if token in special else None for token in after
        ]
        assert inputs[: len(after) - 1] == after[:-1], "a label does not follow its input"
    assert torch.equal(shuffled.target_out_BT == IGNORE, batch.target_out_BT == IGNORE)
    assert torch.equal(shuffled.target_in_BT == TOKENIZER.pad, batch.target_in_BT == TOKENIZER.pad)
    if not is_lm:
        fixed = sum(batch.source_BS == token for token in special).bool()
        assert torch.equal(shuffled.source_BS[fixed], batch.source_BS[fixed])
        assert torch.equal(shuffled.source_BS.sort(1).values, batch.source_BS.sort(1).values)


def test_the_same_moment_gives_the_same_batch_and_evidence_counts_what_moved():
    batch = pairs_batch()
    first, second = (Shuffle(ShuffleSettings(share=1.0, end=1.0)) for _ in range(2))
    a, b = first.transform_batch(batch, MOMENT), second.transform_batch(batch, MOMENT)
    assert torch.equal(a.source_BS, b.source_BS)
    later = second.transform_batch(batch, Instant(1, 4, 0, 0.5))
    assert not torch.equal(a.source_BS, later.source_BS)
    moved = (a.source_BS != batch.source_BS).sum().item()
    assert first.evidence()["tokens_moved"] >= moved / 21 > 0
    assert not Shuffle(ShuffleSettings()).acted()


def test_the_curriculum_sorts_the_first_epoch_only_and_loses_no_batch():
    rng = np.random.default_rng(0)
    rows = [[5] * int(n) for n in rng.integers(1, 30, size=60)]
    pairs = Pairs(Ragged.from_lists(rows, np.int64), Ragged.from_lists(rows, np.int64))
    technique = Shuffle(ShuffleSettings(examples="by_length", share=0))

    def two_epochs(reorder) -> list[list[tuple[int, ...]]]:
        options = {"batch_tokens": 120, "context": 64, "seed": 1, "reorder": reorder}
        found, seen = [], 0
        for batch in training_batches(pairs, TOKENIZER, **options):
            found.append(tuple(batch.rows.tolist()))
            seen += len(batch.rows)
            if seen == 120:
                return [found[: len(found) // 2], found[len(found) // 2 :]]

    plain, sorted_ = two_epochs(None), two_epochs(technique.order_batches)
    assert sorted(plain[0]) == sorted(sorted_[0])
    lengths = [float(np.mean([len(rows[row]) for row in batch])) for batch in sorted_[0]]
    assert lengths == sorted(lengths)
    assert plain[0] != sorted_[0]
    assert plain[1] == sorted_[1]
    assert technique.evidence()["batches_reordered"] > 0


def test_an_epoch_whose_order_is_made_again_counts_once():
    technique = Shuffle(ShuffleSettings(examples="by_length", share=0))
    for _ in range(2):
        technique.order_batches(np.asarray([5.0, 1.0, 3.0]), 0, np.asarray([0, 1, 2]))
    assert technique.evidence()["batches_reordered"] == 3


@pytest.mark.parametrize("setting", ["examples=by_length", "side=target"])
def test_what_a_language_model_has_not_is_refused(setting):
    words = ["model=gpt_nano", "dataset=stdlib", "technique=shuffle"]
    Stack.from_config(compose(words))
    with pytest.raises(UserError, match=f"technique.shuffle.{setting} is for text to text: .* one "):
        Stack.from_config(compose([*words, f"technique.shuffle.{setting}"]))
