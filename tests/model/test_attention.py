from __future__ import annotations

import math

import pytest
import torch

from tfx.model.attention import Attention, Bias
from tfx.model.positions import distances, rotary_table, rotate


def make(heads=4, kv_heads=4, head_width=6, **settings) -> Attention:
    torch.manual_seed(5)
    options = {"bias": True, "qk_norm": False, "dropout": 0.0} | settings
    return Attention(12, heads, kv_heads, head_width, **options).double().eval()


def by_hand(attention: Attention, x, memory, added=None, change=lambda x: x):
    """Attention one head at a time; adds ``added`` (H, T, S) to the scores and applies ``change`` to each q and k."""
    width, group = attention.head_width, attention.heads // attention.kv_heads
    heads = []
    for head in range(attention.heads):
        own = slice(head * width, (head + 1) * width)
        shared = slice(head // group * width, (head // group + 1) * width)
        q = change(attention.q(x)[..., own])
        k = change(attention.k(memory)[..., shared])
        scores = q @ k.transpose(1, 2) / math.sqrt(width)
        if added is not None:
            scores = scores + added[head]
        heads.append(scores.softmax(-1) @ attention.v(memory)[..., shared])
    return attention.o(torch.cat(heads, dim=-1))


@pytest.fixture
def x():
    return torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def memory():
    return torch.randn(2, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_read_the_head_of_their_group(x, memory, kv_heads):
    attention = make(kv_heads=kv_heads)
    torch.testing.assert_close(attention(x, memory, Bias()), by_hand(attention, x, memory))


def test_grouped_queries_equal_full_heads_with_repeated_weights(x):
    grouped, full = make(kv_heads=2), make(kv_heads=4)
    full.load_state_dict(
        grouped.state_dict()
        | {
            f"{part}.{kind}": getattr(getattr(grouped, part), kind)
            .unflatten(0, (2, 6))
            .repeat_interleave(2, 0)
            .flatten(0, 1)
            for part in ("k", "v")
            for kind in ("weight", "bias")
        }
    )
    torch.testing.assert_close(grouped(x, None, Bias(causal=True)), full(x, None, Bias(causal=True)))


def test_qk_norm_divides_each_heads_query_and_key_by_its_root_mean_square(x):
    attention = make(qk_norm=True)
    with torch.no_grad():
        attention.q_norm.weight.uniform_(0.5, 2.0)
        attention.k_norm.weight.copy_(attention.q_norm.weight)

    def normalise(part):
        return part / (part.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * attention.q_norm.weight

    torch.testing.assert_close(attention(x, None, Bias()), by_hand(attention, x, x, change=normalise))


def test_qk_norm_comes_before_the_rotation(x):
    attention = make(qk_norm=True)
    with torch.no_grad():
        attention.q_norm.weight.uniform_(0.5, 2.0)
        attention.k_norm.weight.copy_(attention.q_norm.weight)
    cos, sin = (table.double() for table in rotary_table(5, 6))

    def change(part):
        part = part / (part.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * attention.q_norm.weight
        return rotate(part, cos, sin)

    actual = attention(x, None, Bias(), rotary=(cos, sin))
    torch.testing.assert_close(actual, by_hand(attention, x, x, change=change))


def test_boolean_mask_hides_exactly_the_keys_that_are_false(x, memory):
    attention = make()
    visible = torch.arange(7) < torch.tensor([[7], [2]])
    added = torch.zeros(2, 1, 7, dtype=torch.float64).masked_fill(~visible[:, None], -math.inf)
    expected = by_hand(attention, x, memory, added=[added] * 4)
    torch.testing.assert_close(attention(x, memory, Bias(visible[:, None, None])), expected)


@pytest.mark.parametrize("heads", [2, 3, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_alibi_subtracts_slope_times_distance(x, heads, causal):
    attention = make(heads=heads, kv_heads=heads, alibi=True)
    # The paper's slopes for 2 and 4 heads; 3 heads have those of 2 and then the first of 4.
    slopes = {2: [2**-4, 2**-8], 3: [2**-4, 2**-8, 2**-2], 4: [2**-2, 2**-4, 2**-6, 2**-8]}[heads]
    added = torch.tensor(
        [
            [[-math.inf if causal and j > i else -slope * abs(i - j) for j in range(5)] for i in range(5)]
            for slope in slopes
        ],
        dtype=torch.float64,
    )
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if causal else None
    actual = attention(x, None, Bias(mask, distance_TS=distances(5, 5, 0, x.device)))
    torch.testing.assert_close(actual, by_hand(attention, x, x, added=added))


def test_alibi_slopes_are_stored_so_that_a_pruned_head_keeps_its_own(x):
    attention, pruned = make(alibi=True), make(heads=1, kv_heads=1, alibi=True, bias=False)
    assert attention.state_dict()["slopes"].tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    pruned.load_state_dict(pruned.state_dict() | {"slopes": attention.slopes[2:3]})
    added = -(2.0**-6) * distances(5, 5, 0, x.device)
    actual = pruned(x, None, Bias(distance_TS=distances(5, 5, 0, x.device)))
    torch.testing.assert_close(actual, by_hand(pruned, x, x, added=[added]))


def test_attention_dropout_acts_in_training_only(x):
    attention = make(dropout=0.5)
    expected = by_hand(attention, x, x)
    torch.testing.assert_close(attention(x, None, Bias()), expected)
    assert not torch.allclose(attention.train()(x, None, Bias()), expected)
