"""Search by blocks, against torch's own search over everything."""

from __future__ import annotations

import pytest
import torch

from tfx.model.decoding.top import best_children, best_tokens


@pytest.mark.parametrize("vocab", [3, 63, 64, 128, 200, 641, 1000])
@pytest.mark.parametrize(("beam", "count"), [(1, 2), (4, 8), (5, 10), (3, 40)])
def test_the_best_children_are_those_of_a_search_over_all(vocab, beam, count):
    generator = torch.Generator().manual_seed(vocab + beam)
    log_probs = torch.randn(3 * beam, vocab, generator=generator).log_softmax(-1)
    log_probs[:, vocab // 2] = -torch.inf
    scores = torch.randn(3, beam, generator=generator)
    if beam > 1:
        scores[0, 1:] = -torch.inf
    found, parents, tokens = best_children(log_probs, scores, count)
    everything = (log_probs.view(3, beam, vocab) + scores.unsqueeze(-1)).view(3, -1)
    expected, place = everything.topk(min(count, beam * vocab))
    assert torch.equal(found, expected)
    alive = expected > -torch.inf
    assert torch.equal(parents[alive], (place // vocab)[alive])
    assert torch.equal(tokens[alive], (place % vocab)[alive])
    assert int(tokens.max()) < vocab
    assert int(parents.max()) < beam


@pytest.mark.parametrize("vocab", [1, 63, 64, 128, 200, 641])
def test_the_best_token_is_that_of_a_search_over_all(vocab):
    for seed in range(40):
        logits = torch.randn(9, vocab, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(best_tokens(logits), logits.argmax(-1))
        # Rows of something larger, such as the logits of the last of several positions.
        wider = torch.randn(9, 3, vocab, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(best_tokens(wider[:, -1]), wider[:, -1].argmax(-1))
