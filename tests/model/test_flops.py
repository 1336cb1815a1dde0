from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tfx.model.flops import forward_flops

SETTINGS = [
    {},
    {"kv_heads": 2, "activation": "swiglu", "positions": "rotary"},
    {"encoder_layers": 1, "decoder_layers": 3, "positions": "alibi", "qk_norm": True},
]


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_flops_are_those_that_torch_counts(make_model, example, family, settings):
    model = make_model(family=family, dtype=torch.float32, **settings)
    target, source, mask = example(family)
    # torch counts no fused attention on a CPU; as plain products its two are counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.project(model(target, source, mask))
    source_length = 0 if source is None else source.shape[1]
    assert forward_flops(model.architecture, 3, source_length, 7) == counter.get_total_flops()
