"""The decoder that keeps keys and values, against teacher forcing, which computes everything anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tfx.compression.int8 import use_int8
from tfx.config.schema import EvaluationConfig, ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.decoding import Ends, translate
from tfx.model.decoding.decoder import Decoder
from tfx.model.transformer import Transformer, initialise
from tfx.techniques.quantize.rounding import GridKind, nearest

POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "relative"]
OTHERS = {"kv_heads": 2, "qk_norm": True, "norm_position": "post", "norm": "layernorm", "bias": True}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("settings", [{}, OTHERS])
def test_steps_give_the_hidden_states_of_teacher_forcing(make_model, example, family, positions, settings):
    model = make_model(family=family, positions=positions, **settings)
    target, source, mask = example(family)
    memory = model.encode(source, mask) if source is not None else None
    decoder = Decoder(model, 3, 1, memory, mask)
    found = torch.stack([decoder.step(target[:, place]) for place in range(7)], dim=1)
    torch.testing.assert_close(found, model(target, source, mask))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("hypotheses", [4, 17])
@pytest.mark.parametrize("settings", [{}, {"kv_heads": 1, "norm_position": "post"}])
def test_hypotheses_are_reordered_and_sentences_leave(make_model, positions, hypotheses, settings):
    """Up to 16 hypotheses share the places of their sentence, more have their own."""
    model = make_model(positions=positions, context=80, **settings)
    generator = torch.Generator().manual_seed(hypotheses)
    source = torch.randint(0, 11, (4, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    decoder = Decoder(model, 4, hypotheses, model.encode(source, mask), mask)
    sentences = list(range(4))
    prefixes = torch.zeros(4 * hypotheses, 0, dtype=torch.long)
    leaving = {2: [0, 2, 3], 5: [1, 2], 40: [1]}
    for step in range(42):  # beyond the first memory of the caches
        token = torch.randint(0, 11, (len(prefixes),), generator=generator)
        prefixes = torch.cat([prefixes, token.unsqueeze(1)], 1)
        hidden = decoder.step(token)
        if step % 5 == 0 or step in (3, 6, 41):
            rows = torch.tensor(sentences).repeat_interleave(hypotheses)
            torch.testing.assert_close(hidden, model(prefixes, source[rows], mask[rows])[:, -1])
        parent = torch.randint(0, hypotheses, (len(sentences), hypotheses), generator=generator)
        parent = (parent + torch.arange(len(sentences)).unsqueeze(1) * hypotheses).flatten()
        prefixes = prefixes[parent]
        decoder.reorder(parent)
        if step in leaving:
            order = decoder.keep(leaving[step])
            assert sorted(order.tolist()) == list(range(len(leaving[step]))) or len(set(order.tolist())) == len(order)
            sentences = [sentences[i] for i in order.tolist()]
            prefixes = prefixes.view(-1, hypotheses, prefixes.shape[1])[order].flatten(0, 1)
    assert len(sentences) == 1


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("at_once", [2, 256])
def test_prompts_of_different_lengths_are_read_as_each_alone(make_model, positions, at_once, monkeypatch):
    monkeypatch.setattr("tfx.model.decoding.decoder._READ_AT_ONCE", at_once)
    model = make_model(family="lm", positions=positions, kv_heads=2)
    lengths = [5, 1, 7]
    tokens = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(1))
    prompts = torch.zeros(3, 7, dtype=torch.long)
    for row, length in enumerate(lengths):
        prompts[row, 7 - length :] = tokens[row, :length]
    decoder = Decoder(model, 3)
    hidden = [decoder.read(prompts, 7 - torch.tensor(lengths))]
    order = [0, 1, 2]
    for step in range(3):
        if step == 2:
            order = decoder.keep([1, 2]).tolist()
        hidden.append(decoder.step(torch.stack([tokens[row, lengths[row] + step] for row in order])))
        for place, row in enumerate(order):
            expected = model(tokens[row : row + 1, : lengths[row] + step + 1])[0]
            torch.testing.assert_close(hidden[-1][place], expected[-1])
            if step == 0:
                torch.testing.assert_close(hidden[0][row], expected[-2])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("positions", ["rotary", "alibi", "relative"])
def test_blocks_may_differ_in_heads(positions, example):
    """As structured pruning leaves them: fewer heads, no heads, no attention to the source."""
    config = ModelConfig(
        encoder_layers=1, decoder_layers=3, width=16, heads=4, kv_heads=2, ffn_width=8, context=16, dropout=0.0,
        positions=positions,
    )  # fmt: skip
    architecture = Architecture.from_config(config, 11)
    shape = architecture.decoder[0]
    least = 1 if positions == "alibi" else 0  # a head without a slope is none
    shapes = (replace(shape, heads=2, kv_heads=1), shape, replace(shape, heads=least, kv_heads=least, cross_heads=0))
    model = Transformer(replace(architecture, decoder=shapes)).double().eval()
    initialise(model, 1)
    target, source, mask = example("seq2seq")
    decoder = Decoder(model, 3, 1, model.encode(source, mask), mask)
    found = torch.stack([decoder.step(target[:, place]) for place in range(7)], dim=1)
    torch.testing.assert_close(found, model(target, source, mask))


@pytest.mark.parametrize("beam", [1, 3])
def test_layers_on_int8_kernels_are_used_as_they_are(make_model, beam):
    """Activations have one scale for a call, so a sentence alone is decoded as teacher forcing sees each step alone."""
    model = make_model(dtype=torch.float32, width=32, vocab=40, tied_embeddings="none")
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    grids = {name: nearest(p.detach(), GridKind(8)) for name, p in model.named_parameters() if p.ndim == 2}
    assert use_int8(model, grids, {}) > 20
    source = torch.tensor([[5, 6, 7, 8, 2]])
    config, ends = EvaluationConfig(method="beam", beam=beam), Ends(1, 2, 0)
    found = translate(model, source, None, torch.tensor([8]), ends, config)[0]
    rounded = make_model(dtype=torch.float32, width=32, vocab=40, tied_embeddings="none")
    rounded.load_state_dict(plain)
    tokens = torch.tensor([[1, *found]])
    exact = rounded.project(rounded(tokens, source)).log_softmax(-1)
    decoder = Decoder(model, 1, 1, model.encode(source, None))
    for place in range(tokens.shape[1]):
        log_probs = decoder.logits(decoder.step(tokens[:, place])).log_softmax(-1)
        assert float((log_probs - exact[:, place]).abs().max()) < 0.3
        assert not torch.equal(log_probs, exact[:, place])
