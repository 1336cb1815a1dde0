from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tfx.config.schema import EvaluationConfig
from tfx.model.decoding import Ends, translate
from tfx.model.flops import decoding_flops, forward_flops

SETTINGS = [
    {},
    {"kv_heads": 2, "activation": "swiglu", "positions": "rotary"},
    {"encoder_layers": 1, "decoder_layers": 3, "positions": "alibi", "qk_norm": True},
]


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_flops_equal_torchs_count(make_model, example, family, settings):
    model = make_model(family=family, dtype=torch.float32, **settings)
    target, source, mask = example(family)
    # torch does not count fused attention on a CPU, but it counts the two plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.project(model(target, source, mask))
    source_length = 0 if source is None else source.shape[1]
    assert forward_flops(model.architecture, 3, source_length, 7) == counter.get_total_flops()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("beam", [1, 3])
def test_flops_of_decoding_equal_torchs_count(make_model, example, settings, beam):
    model = make_model(family="seq2seq", dtype=torch.float32, **settings).eval()
    _, source, _ = example("seq2seq")
    # Two at once, of a length that needs no padding: one alone takes more products, for fewer calls.
    source = source[:1].repeat(2, 3)[:, :16]
    # The end token is none of the vocabulary, so every hypothesis reaches the limit.
    ends = Ends(bos=1, eos=-1, pad=0)
    config = EvaluationConfig(method="beam" if beam > 1 else "greedy", beam=beam)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        translate(model, source, None, torch.tensor([6, 6]), ends, config)
    assert 2 * decoding_flops(model.architecture, source.shape[1], 6, beam) == counter.get_total_flops()
