from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.attention import Attention, Bias
from tfx.model.positions import distances, document_mask, rotary_table, rotate


def rotary_of(context: int, head_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_table(Architecture.from_config(ModelConfig(width=head_width, heads=1, context=context), 2))


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
    cos, sin = (table.double() for table in rotary_of(5, 6))

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
    added = -(2.0**-6) * distances(5, 5, 0, x.device).abs()
    actual = pruned(x, None, Bias(distance_TS=distances(5, 5, 0, x.device)))
    torch.testing.assert_close(actual, by_hand(pruned, x, x, added=[added]))


def test_attention_dropout_acts_in_training_only(x):
    attention = make(dropout=0.5)
    expected = by_hand(attention, x, x)
    torch.testing.assert_close(attention(x, None, Bias()), expected)
    assert not torch.allclose(attention.train()(x, None, Bias()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["alibi", "alibi, padded", "documents", "alibi, documents"])
def test_a_bias_and_a_mask_keep_the_fused_kernel_and_its_results(monkeypatch, kind, dtype):
    """Kernels refuse a bias of another type than the queries', or with a gradient; torch then falls back silently."""
    torch.manual_seed(5)
    attention = Attention(32, 4, 4, 8, bias=True, qk_norm=False, dropout=0.0, alibi="alibi" in kind).train()
    x, length = torch.randn(2, 40, 32), 40
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    if "padded" in kind:
        mask = mask & (torch.arange(length) < torch.tensor([[40], [30]]))[:, None, None]
    if "documents" in kind:
        mask = document_mask(torch.arange(length).remainder(torch.tensor([[7], [16]])))
    bias = Bias(mask, distance_TS=distances(length, length, 0, x.device) if "alibi" in kind else None)
    chosen, kernel = [], functional.scaled_dot_product_attention

    def watch(*inputs, **options):
        chosen.append(torch._fused_sdp_choice(*inputs, **options))
        return kernel(*inputs, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    found = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        attention.zero_grad()
        with sdpa_kernel(backend), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = attention(x, None, bias)
        out.float().square().sum().backward()
        found.append((out.detach().float(), attention.q.weight.grad.clone()))
    assert chosen == [SDPBackend.FLASH_ATTENTION.value, SDPBackend.MATH.value]
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, **close)
