"""The rules of decoding, against their definitions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.config.schema import EvaluationConfig
from tfx.model.decoding import Ends, Rules

CPU = torch.device("cpu")
ENDS = Ends(bos=1, eos=2, pad=0)
TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=3)


def applied(config, texts, produced=5, ends=ENDS, prefixes=None, seed=0):
    before = torch.randn(len(texts), 6, generator=torch.Generator().manual_seed(seed))
    after = before.clone()
    Rules(ends, config, CPU, prefixes).apply(after, produced, texts, list(range(len(texts))))
    return before.tolist(), after.tolist()


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 4))
def test_a_token_is_forbidden_if_it_would_repeat_an_n_gram(texts, n):
    _, after = applied(EvaluationConfig(no_repeat_ngram=n), texts)
    for text, logits in zip(texts, after, strict=True):
        seen = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
        for token in range(6):
            gram = tuple([*text, token][-n:])
            assert (logits[token] == -torch.inf) == (len(gram) == n and gram in seen)


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.floats(1.01, 5), st.integers(0, 99))
def test_tokens_that_a_text_has_become_less_likely(texts, strength, seed):
    before, after = applied(EvaluationConfig(repetition_penalty=strength), texts, seed=seed)
    for text, old, new in zip(texts, before, after, strict=True):
        for token in range(6):
            expected = old[token]
            if token in text:
                expected = expected / strength if expected > 0 else expected * strength
            assert abs(new[token] - expected) < 1e-5


def test_no_output_ends_before_the_shortest_length():
    config = EvaluationConfig(min_length=4)
    before, after = applied(config, [[3], [3], [3]], produced=[3, 4, 0])
    assert [row[ENDS.eos] for row in after] == [-torch.inf, before[1][ENDS.eos], -torch.inf]
    assert [row[:2] + row[3:] for row in after] == [row[:2] + row[3:] for row in before]
    assert applied(config, [[3]], produced=4)[1] == applied(EvaluationConfig(), [[3]], produced=4)[1]


def test_what_no_output_has_is_forbidden_and_a_prefix_is_certain():
    ends = Ends(1, 2, 0, never=(3, 5))
    before, after = applied(EvaluationConfig(), [[], []], produced=1, ends=ends, prefixes=[[4, 3], [4]])
    assert after[0] == [-torch.inf] * 3 + [0.0] + [-torch.inf] * 2
    assert after[1] == [*before[1][:3], -torch.inf, before[1][4], -torch.inf]
