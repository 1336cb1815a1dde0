"""Mixup against a combination of embeddings and losses by hand."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from tfx.config.schema import ModelConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.model.architecture import Architecture
from tfx.model.attention import Bias
from tfx.model.batch import IGNORE, Batch
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.model.transformer import Transformer, initialise, run_batch
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.contract import Instant
from tfx.techniques.mixup import Mixup, MixupSettings

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefghijklm"], word_initial_space=False)
MOMENT = Instant(seed=1, step=3, batch=0, progress=0.5)


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    rng = np.random.default_rng(0)
    sides = [[rng.integers(4, 17, size=pair[side]).tolist() for pair in lengths] for side in (0, 1)]
    source, target = (Ragged.from_lists(side, np.int64) for side in sides)
    return collate_pairs(Pairs(source, target), np.arange(len(lengths)), TOKENIZER)


def tiny_model() -> Transformer:
    config = ModelConfig(width=16, heads=2, ffn_width=32, encoder_layers=1, decoder_layers=1, dropout=0.0)
    model = Transformer(Architecture.from_config(config, TOKENIZER.vocab_size)).eval()
    initialise(model, 1)
    return model


def mixed_whole(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The batch with all rows mixed, and the row of each partner, found by its tokens."""
    mixed = Mixup(MixupSettings(alpha=1.0, share=1.0)).transform_batch(batch, MOMENT)
    rows = [[bool((own == other).all()) for other in batch.target_in_BT] for own in mixed.mix.target.partner_BL]
    assert all(sum(row) == 1 for row in rows), "rows of the test differ"
    return mixed, torch.tensor([row.index(True) for row in rows])


def test_losses_are_the_same_combination_as_the_embeddings_and_padding_adds_nothing():
    model = tiny_model()
    mixed, partner = mixed_whole(batch_of([(5, 4), (3, 6), (4, 2)]))
    weight = mixed.mix.weight_B
    assert (partner != torch.arange(3)).all()
    assert ((weight >= 0.5) & (weight < 1)).all()

    tokens, real = mixed.target_in_BT, (mixed.target_out_BT >= 0).unsqueeze(-1)
    plain = model.embedding(tokens) * 4.0 * real
    expected = (
        weight.view(-1, 1, 1) * plain
        + (1 - weight.view(-1, 1, 1)) * plain[partner]
        + model.sinusoids[: tokens.shape[1]]
    )
    torch.testing.assert_close(model.embed(tokens, model.embedding, None, mixed.mix.target), expected)

    hidden = run_batch(model, mixed).flatten(0, 1)
    total, _ = projected_losses(hidden, model.output.weight, [(CrossEntropy(mixed.targets_and_weights()), 1.0)])
    logits = (hidden @ model.output.weight.t()).view(*tokens.shape, -1).transpose(1, 2)
    own = functional.cross_entropy(logits, mixed.target_out_BT, ignore_index=IGNORE, reduction="none").sum(1)
    theirs = functional.cross_entropy(logits, mixed.target_out_BT[partner], ignore_index=IGNORE, reduction="none").sum(
        1
    )
    torch.testing.assert_close(total, (weight * own + (1 - weight) * theirs).sum())
    assert not torch.allclose(total, own.sum()), "mixing changed nothing"


def test_sources_of_unequal_lengths_are_mixed_over_the_longer_one():
    model, lengths = tiny_model(), [5, 3, 8, 1]
    batch = batch_of([(length, 4) for length in lengths])
    mixed, partners = mixed_whole(batch)
    weight, partner = mixed.mix.weight_B.tolist(), partners.tolist()
    memory = model.encode(mixed.source_BS, mixed.source_mask_BS, mixed.mix)
    for row, other in enumerate(partner):
        longest = max(lengths[row], lengths[other]) + 1  # with the end token
        combined = torch.zeros(longest, 16)
        for example, share in ((row, weight[row]), (other, 1 - weight[row])):
            tokens = batch.source_BS[example, : lengths[example] + 1]
            combined[: len(tokens)] += share * 4.0 * model.embedding.weight[tokens]
        # Alone, without padding: what is behind the longer one must not be seen.
        expected = model.encoder((combined + model.sinusoids[:longest]).unsqueeze(0), Bias(None))[0]
        torch.testing.assert_close(memory[row, :longest], expected)


def test_the_decoder_sees_the_sources_of_both_and_nothing_of_padding():
    model, batch = tiny_model(), batch_of([(5, 4), (3, 6), (8, 2)])
    mixed, partner = mixed_whole(batch)
    own, other = batch.source_mask_BS, batch.source_mask_BS[partner]
    assert torch.equal(mixed.source_mask_BS, own | other)
    real = (batch.target_out_BT >= 0) | (batch.target_out_BT >= 0)[partner]
    hidden = run_batch(model, mixed)[real]
    padded = {
        "source_BS": batch.source_BS.where(own, 7),
        "target_in_BT": batch.target_in_BT.where(batch.target_out_BT >= 0, 7),
    }
    again = replace(batch, **padded).mixed(partner, mixed.mix.weight_B)
    torch.testing.assert_close(run_batch(model, again)[real], hidden)
    # The longest source is seen by the row that it is mixed into, to its end.
    (row,) = (partner == 2).nonzero().flatten().tolist()
    changed = batch.source_BS.clone()
    changed[2, 7] = 4 if changed[2, 7] != 4 else 5
    other = replace(batch, source_BS=changed).mixed(partner, mixed.mix.weight_B)
    assert not torch.allclose(run_batch(model, other)[row], run_batch(model, mixed)[row])


def test_rows_taken_out_of_a_mixed_batch_keep_their_partners():
    model, batch = tiny_model(), batch_of([(5, 4), (3, 6), (8, 2), (6, 3)])
    mixed, _ = mixed_whole(batch)
    hidden = run_batch(model, mixed)
    for rows in (slice(1, None, 2), slice(0, 1)):
        part = mixed.part(rows, batch)
        torch.testing.assert_close(run_batch(model, part), hidden[rows])
        assert part.targets == int((batch.target_out_BT[rows] >= 0).sum())
        assert part.tokens == part.targets + int(batch.source_mask_BS[rows].sum())


def test_a_weight_of_one_is_the_batch_itself():
    model = tiny_model()
    batch = batch_of([(5, 4), (5, 4)])
    technique = Mixup(MixupSettings(share=1e-12))
    mixed = technique.transform_batch(batch, MOMENT)
    torch.testing.assert_close(run_batch(model, mixed), run_batch(model, batch))
    assert not technique.acted()


def test_a_prompt_without_labels_is_mixed_like_the_rest():
    """As a student's own outputs come: the first half has no labels, and is no padding."""
    batch = batch_of([(5, 6), (5, 4)])
    padding_BT = batch.target_out_BT < 0
    labels_BT = batch.target_out_BT.clone()
    labels_BT[:, :2] = IGNORE
    model = tiny_model()
    technique = Mixup(MixupSettings(alpha=1.0, share=1.0))
    mixed = [technique.transform_batch(given, MOMENT) for given in (batch, replace(batch, target_out_BT=labels_BT))]
    assert torch.equal(mixed[1].mix.target.real_BL, ~padding_BT)
    torch.testing.assert_close(run_batch(model, mixed[1]), run_batch(model, mixed[0]))


def test_lambda_and_share_follow_their_settings_and_the_seed():
    batch = batch_of([(4, 4)] * 400)
    technique = Mixup(MixupSettings(alpha=1.0, share=0.25))
    first = technique.transform_batch(batch, MOMENT)
    evidence = technique.evidence()
    assert abs(evidence["examples_mixed"] - 0.25) < 0.08
    assert abs(evidence["mean_lambda"] - 0.75) < 0.05  # the larger part of a uniform split
    again = Mixup(MixupSettings(alpha=1.0, share=0.25)).transform_batch(batch, MOMENT)
    assert torch.equal(first.mix.weight_B, again.mix.weight_B)
    assert Mixup(MixupSettings(end=0.4)).transform_batch(batch, MOMENT) is batch
