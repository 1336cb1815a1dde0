"""The decoder that keeps keys and values, against teacher forcing, which computes everything anew."""

from __future__ import annotations

import pytest
import torch

from tfx.model.decoding.decoder import Decoder

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
