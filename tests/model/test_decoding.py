from __future__ import annotations

import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.model.decoding import (
    Decoder,
    Ends,
    Rules,
    Wanted,
    continue_text,
    continue_texts,
    make_picker,
    output_limit,
    outputs_for,
    sampling_distribution,
    translate,
)
from tfx.model.decoding.beam import beam_search

ENDS = Ends(bos=1, eos=2, pad=0)
CPU = torch.device("cpu")


def without_pad(ids):
    return [i for i in ids if i != ENDS.pad]


def log_probs(model, source, prefix):
    """Of the next token behind ``prefix``, computed anew from the start."""
    hidden = model(torch.tensor([[ENDS.bos, *prefix]]), source)
    return model.project(hidden[0, -1]).log_softmax(-1).tolist()


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def best_of_all_sequences(model, source, limit, alpha):
    """The best of every sequence that ends within the limit, one by one."""
    vocab = range(model.architecture.vocab_size)
    words = [i for i in vocab if i != ENDS.eos]
    sums, ended = {(): 0.0}, {}
    for length in range(limit):
        for prefix in itertools.product(words, repeat=length):
            following = log_probs(model, source, prefix)
            ended[prefix] = (sums[prefix] + following[ENDS.eos]) / penalty(length + 1, alpha)
            sums |= {(*prefix, token): sums[prefix] + following[token] for token in words}
    return without_pad(max(ended, key=ended.get))


def plain_beams(next_log_probs, vocab, beam, limit, alpha):
    """The search that `beam_search` describes, with lists, for one sentence: (tokens, score) from the best one on."""
    living, ended = [((), 0.0)], []
    for length in range(1, limit + 1):
        children = []
        for prefix, score in living:
            following = next_log_probs(prefix)
            children += [((*prefix, token), score + following[token]) for token in range(vocab)]
        children.sort(key=lambda child: -child[1])
        ended += [(p[:-1], s / penalty(length, alpha)) for p, s in children[:beam] if p[-1] == ENDS.eos]
        ended = sorted(ended, key=lambda pair: -pair[1])[:beam]
        living = [child for child in children if child[0][-1] != ENDS.eos][:beam]
        if len(ended) == beam and living[0][1] / penalty(length, alpha) <= ended[-1][1]:
            break
    return ended + [(prefix, score / penalty(length, alpha)) for prefix, score in living]


def plain_beam_search(*arguments):
    return without_pad(plain_beams(*arguments)[0][0])


class Chain:
    """Stands in for a decoder: the next token depends on sentence, position and last token, by a table (B, T, V, V)."""

    def __init__(self, tables, is_near=True):
        self.tables, self.position, self.device, self.is_near = tables, -1, CPU, is_near
        self.model = SimpleNamespace(architecture=SimpleNamespace(vocab_size=tables.shape[-1]))

    def step(self, last_N):
        self.position += 1
        tables = self.tables[:, self.position].repeat_interleave(len(last_N) // len(self.tables), 0)
        return tables[torch.arange(len(last_N)), last_N].clone()

    def logits(self, hidden):
        return hidden

    def reorder(self, parents):
        pass

    def keep(self, going):
        self.tables = self.tables[going]
        return torch.tensor(going)


def search_chain(tables, beam, limits, alpha, is_near=True):
    config = EvaluationConfig(method="beam", beam=beam, length_penalty=alpha)
    found = beam_search(Chain(tables, is_near), limits, ENDS, Rules(ENDS, config, CPU), config)
    return [outputs[0].tokens for outputs in found]


@pytest.fixture
def model(make_model):
    return make_model(vocab=5, seed=4)


@pytest.fixture
def sources():
    source = torch.randint(3, 5, (4, 5), generator=torch.Generator().manual_seed(3))
    return source, torch.arange(5) < torch.tensor([[5], [2], [4], [1]])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0])
def test_a_wide_enough_beam_finds_the_best_of_all_sequences(model, sources, alpha):
    source, mask = sources
    limits = [4, 3, 2, 4]
    with torch.no_grad():
        expected = [
            best_of_all_sequences(model, source[i : i + 1, : mask[i].sum()], limit, alpha)
            for i, limit in enumerate(limits)
        ]
    config = EvaluationConfig(method="beam", beam=5**4, length_penalty=alpha)
    assert translate(model, source, mask, torch.tensor(limits), ENDS, config) == expected
    if alpha == 3.0:
        assert max(map(len, expected)) > 1


@pytest.mark.parametrize("beam", [2, 3, 4])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "alibi"])
def test_a_narrow_beam_keeps_what_a_search_without_cache_and_batch_keeps(make_model, sources, beam, positions):
    model = make_model(vocab=7, seed=5, positions=positions, kv_heads=2, tied_embeddings="none")
    with torch.no_grad():
        # Choices that hang on the whole prefix, and ends that come late: else a wrong cache would not show.
        model.output.weight *= 1.5
        model.output.weight[ENDS.eos] *= 0.2
    source, mask = sources
    limits = [6, 9, 4, 7]
    expected = []
    for i, limit in enumerate(limits):
        row = source[i : i + 1, : mask[i].sum()]
        expected.append(plain_beam_search(partial(log_probs, model, row), 7, beam, limit, 3.0))
    assert max(map(len, expected)) > 2
    config = EvaluationConfig(method="beam", beam=beam, length_penalty=3.0)
    assert translate(model, source, mask, torch.tensor(limits), ENDS, config) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(3, 7),
    beam=st.integers(1, 6),
    limits=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 4.0]),
    eos=st.floats(-4, 2),
    is_near=st.booleans(),
)
def test_beam_search_equals_a_search_with_lists(seed, vocab, beam, limits, alpha, eos, is_near):
    """Also where the host looks at the results of several steps together."""
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(len(limits), max(limits), vocab, vocab, generator=generator, dtype=torch.float64) * 2
    tables[..., ENDS.eos] += eos
    tables = tables.log_softmax(-1).float()
    expected = [
        plain_beam_search(
            lambda prefix, table=table: table[len(prefix), (ENDS.bos, *prefix)[-1]].tolist(),
            vocab,
            beam,
            limit,
            alpha,
        )
        for table, limit in zip(tables, limits, strict=True)
    ]
    assert search_chain(tables, beam, limits, alpha, is_near) == expected


@pytest.mark.parametrize(("beam", "limits"), [(4, [6, 3]), (6, [2, 7])])
def test_the_best_outputs_have_the_scores_and_log_probabilities_of_a_search_with_lists(beam, limits):
    generator = torch.Generator().manual_seed(beam)
    tables = (torch.randn(2, 7, 7, 7, generator=generator) * 2).log_softmax(-1)
    config = EvaluationConfig(method="beam", beam=beam, length_penalty=0.6)
    rules = Rules(ENDS, config, CPU)
    found = beam_search(Chain(tables), limits, ENDS, rules, config, 3, detailed=True)
    for outputs, table, limit in zip(found, tables, limits, strict=True):
        expected = plain_beams(
            lambda prefix, table=table: table[len(prefix), (ENDS.bos, *prefix)[-1]].tolist(), 7, beam, limit, 0.6
        )
        assert [output.tokens for output in outputs] == [without_pad(ids) for ids, _ in expected[:3]]
        assert [output.score for output in outputs] == pytest.approx([score for _, score in expected[:3]], abs=1e-5)
        for output, (ids, _) in zip(outputs, expected, strict=False):
            if ENDS.pad in ids:
                continue
            chain = [ENDS.bos, *ids, ENDS.eos][: len(output.log_probs) + 1]
            values = [table[place, chain[place], chain[place + 1]].item() for place in range(len(chain) - 1)]
            assert output.log_probs == pytest.approx(values, abs=1e-5)
            assert sum(values) / penalty(len(values), 0.6) == pytest.approx(output.score, abs=1e-5)


def test_an_end_token_takes_no_place_of_a_living_prefix():
    table = torch.full((1, 2, 5, 5), 1e-9)
    table[0, 0, ENDS.bos, [ENDS.eos, 3, 4]] = torch.tensor([0.5, 0.3, 0.2])
    table[0, 1, 3] = 0.2
    table[0, 1, 4, ENDS.eos] = 1.0
    # The second living prefix, third of all children, wins: log(0.2) / (7/6)^10 is above log(0.5).
    assert search_chain(table.log(), 2, [2], 10.0) == [[4]]


def test_beam_search_gives_the_likeliest_prefix_where_nothing_ends():
    table = torch.full((1, 3, 5, 5), -1e4)
    table[..., ENDS.eos] = -torch.inf
    table[0, :, ENDS.bos, 3] = table[0, :, 3, 4] = table[0, :, 4, 3] = 0.0
    assert search_chain(table, 2, [3], 1.0) == [[3, 4, 3]]


def test_beam_one_is_greedy(model, sources):
    source, mask = sources
    limits = torch.tensor([9, 3, 6, 8])
    greedy = translate(model, source, mask, limits, ENDS, EvaluationConfig(method="greedy"))
    config = EvaluationConfig(method="beam", beam=1)
    assert translate(model, source, mask, limits, ENDS, config) == greedy
    with torch.inference_mode():
        decoder = Decoder(model, 4, 1, model.encode(source, mask), mask)
        searched = beam_search(decoder, limits.tolist(), ENDS, Rules(ENDS, config, CPU), config)
    assert [outputs[0].tokens for outputs in searched] == [without_pad(ids) for ids in greedy]


def test_greedy_takes_the_likeliest_token_until_the_end_or_the_limit(make_model, sources):
    source, mask = sources
    model = make_model(vocab=5, seed=6)
    limits = [9, 3, 6, 8]
    expected = []
    for i, limit in enumerate(limits):
        ids = []
        while len(ids) < limit:
            following = log_probs(model, source[i : i + 1, : mask[i].sum()], ids)
            if following.index(max(following)) == ENDS.eos:
                break
            ids.append(following.index(max(following)))
        expected.append(ids)
    config = EvaluationConfig(method="greedy")
    assert translate(model, source, mask, torch.tensor(limits), ENDS, config) == expected
    assert len({len(ids) for ids in expected}) > 1


@pytest.mark.parametrize("config", [EvaluationConfig(method="greedy"), EvaluationConfig(method="auto", beam=4)])
@pytest.mark.parametrize("seed", [4, 6, 8])
def test_other_sentences_of_the_batch_change_no_output(make_model, sources, config, seed):
    source, mask = sources
    model = make_model(vocab=5, seed=seed)
    limits = torch.tensor([9, 3, 6, 8])
    together = translate(model, source, mask, limits, ENDS, config)
    alone = [
        translate(model, source[i : i + 1, : mask[i].sum()], None, limits[i : i + 1], ENDS, config)[0] for i in range(4)
    ]
    assert together == alone


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize("context", [32, 8, 7, 2])
def test_texts_go_on_as_if_computed_anew_and_slide_past_the_context(make_model, positions, context):
    """Prompts of different lengths together, each as if alone, with the log-probabilities of what is chosen."""
    model = make_model(family="lm", positions=positions, context=context, tied_embeddings="none")
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 11, (length,), generator=generator).tolist() for length in (5, 8, 13, 1)]
    pick = make_picker(EvaluationConfig(method="greedy"), 0, CPU)
    found = continue_texts(
        model, prompts, Ends(-1, -1, 0), EvaluationConfig(new_tokens=20), pick, Wanted(detailed=True)
    )
    for prompt, output in zip(prompts, found, strict=True):
        everything, start, values = list(prompt), max(0, len(prompt) - context), []
        for _ in range(20):
            if len(everything) - start > context:
                start = len(everything) - context // 2
            with torch.no_grad():
                log_probs = model.project(model(torch.tensor([everything[start:]]))[0, -1]).log_softmax(-1)
            everything.append(int(log_probs.argmax()))
            values.append(float(log_probs.max()))
        assert output.tokens == everything[len(prompt) :]
        assert output.log_probs == pytest.approx(values, abs=1e-5)
        assert output.score == pytest.approx(sum(values) / penalty(20, 1.0), abs=1e-5)


@pytest.mark.parametrize("is_near", [True, False])
def test_what_ends_leaves_the_batch_and_changes_no_other_text(make_model, is_near, monkeypatch):
    """Also where the host looks at the tokens of several steps together."""
    monkeypatch.setattr(Decoder, "is_near", is_near)
    model = make_model(family="lm", tied_embeddings="none")
    config, ends = EvaluationConfig(method="sample", new_tokens=25), Ends(1, 2, 0)
    prompts = [[3, 4], [5], [6, 7, 8], [9, 10, 3, 4, 5]]
    together = continue_texts(model, prompts, ends, config, make_picker(config, 1, CPU, range(4)))
    alone = [continue_text(model, prompt, 25, 2, make_picker(config, 1, CPU, [i])) for i, prompt in enumerate(prompts)]
    assert [output.tokens for output in together] == alone
    assert len({len(tokens) for tokens in alone}) > 2


def test_text_ends_before_the_end_token_and_at_the_number_of_new_tokens(make_model):
    model = make_model(family="lm", tied_embeddings="none")
    pick = make_picker(EvaluationConfig(method="sample"), 0, CPU)
    added = continue_text(model, [3, 4], 15, -1, pick)
    assert len(added) == 15
    eos = added[6]
    pick = make_picker(EvaluationConfig(method="sample"), 0, CPU)
    assert continue_text(model, [3, 4], 15, eos, pick) == added[: added.index(eos)]
    assert continue_text(model, [3, 4], 0, -1, pick) == []


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_outputs_begin_with_their_prefix_and_go_on_as_the_model_would(make_model, sources, method):
    source, mask = sources
    model = make_model(vocab=7, seed=5, tied_embeddings="none")
    prefixes, limits = [[3, 6], [], [4], [5, 5, 5]], [7, 6, 5, 8]
    config = EvaluationConfig(method=method, beam=3 if method == "beam" else 1)
    wanted = Wanted(detailed=True, prefixes=prefixes)
    found = outputs_for(model, source, mask, torch.tensor(limits), ENDS, config, wanted=wanted)
    for i, (prefix, limit, outputs) in enumerate(zip(prefixes, limits, found, strict=True)):

        def next_log_probs(text, i=i, prefix=prefix):
            if len(text) < len(prefix):
                return [0.0 if token == prefix[len(text)] else -math.inf for token in range(7)]
            return log_probs(model, source[i : i + 1, : mask[i].sum()], text)

        with torch.no_grad():
            expected = plain_beam_search(next_log_probs, 7, config.beam, limit, 1.0)
        if method == "beam":
            assert outputs[0].tokens == expected
        assert outputs[0].tokens[: len(prefix)] == prefix
        assert outputs[0].log_probs[: len(prefix)] == [0.0] * len(prefix)


def test_output_limit_grows_with_the_source_and_stays_inside_the_context():
    config = EvaluationConfig(max_length_ratio=1.5)
    assert [output_limit(n, config, 100) for n in (1, 10, 90)] == [11, 25, 99]
    assert output_limit(5, config, 1) == 1


# --- sampling ---------------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12).map(torch.tensor)


@settings(deadline=None)
@given(LOGITS, st.floats(0.2, 5))
def test_without_cuts_sampling_is_the_softmax_at_the_temperature(logits, temperature):
    expected = (logits.double() / temperature).softmax(-1)
    actual = sampling_distribution(logits, temperature, None, None)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-6)


@settings(deadline=None)
@given(LOGITS, st.integers(1, 14))
def test_top_k_keeps_the_k_likeliest_in_proportion_also_among_equals(logits, k):
    full = sampling_distribution(logits, 3.0, None, None)
    cut = sampling_distribution(logits, 3.0, k, None)
    kept = cut > 0
    assert kept.sum() == min(k, len(logits))
    assert full[kept].min() >= full[~kept].max() if (~kept).any() else True
    torch.testing.assert_close(cut, full * kept / (full * kept).sum())


@settings(deadline=None)
@given(LOGITS, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(logits, p):
    full = sampling_distribution(logits, 3.0, None, None)
    cut = sampling_distribution(logits, 3.0, None, p)
    kept = full[cut > 0]
    assert cut.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert kept.sum() >= p - 1e-5
    assert kept.sum() - kept.min() < p + 1e-5
    torch.testing.assert_close(cut, full * (cut > 0) / kept.sum())


@settings(deadline=None)
@given(st.permutations(list(range(9))), st.sampled_from([1e-3, 1e-10, 1e-30]))
def test_a_temperature_near_zero_is_the_argmax(order, temperature):
    logits = torch.tensor(order, dtype=torch.float32)
    expected = torch.nn.functional.one_hot(logits.argmax(), 9).float()
    assert torch.equal(sampling_distribution(logits, temperature, None, None), expected)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 1e-6), (3, 0.5)])
def test_top_k_comes_before_top_p_and_the_likeliest_stays(top_k, top_p):
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    expected = {(3, None): [0, 4 / 9, 2 / 9, 3 / 9], (None, 1e-6): [0, 1, 0, 0], (3, 0.5): [0, 4 / 7, 0, 3 / 7]}
    actual = sampling_distribution(logits, 1.0, top_k, top_p)
    assert actual[0].tolist() == pytest.approx(expected[top_k, top_p])


def test_sampling_follows_its_seed_and_its_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(4000, -1)
    config = EvaluationConfig(method="sample")
    torch.manual_seed(1)
    draws = make_picker(config, 1, CPU, range(4000))(logits, list(range(4000)))
    torch.manual_seed(2)
    assert torch.equal(make_picker(config, 1, CPU, range(4000))(logits, list(range(4000))), draws)
    assert not torch.equal(make_picker(config, 2, CPU, range(4000))(logits, list(range(4000))), draws)
    shares = draws.bincount(minlength=3) / 4000
    for share, p in zip(shares.tolist(), [0.5, 0.3, 0.2], strict=True):
        assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / 4000)


def test_sampled_translations_follow_the_seed(model, sources):
    source, mask = sources
    limits, config = torch.full((4,), 9), EvaluationConfig(method="sample")
    first, again, other = (translate(model, source, mask, limits, ENDS, config, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sampling_from_what_is_not_finite_is_a_user_error(value):
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    with pytest.raises(UserError, match="outputs are not finite"):
        make_picker(EvaluationConfig(method="sample"), 0, CPU, (0, 1))(logits, [0, 1])


def test_what_is_sampled_for_an_input_depends_on_its_stream_alone(model, sources):
    source, mask = sources
    config = EvaluationConfig(method="sample")

    def sample(rows: list[int], streams: list[int], seed: int = 1) -> list[list[int]]:
        batch = torch.tensor(rows)
        return translate(model, source[batch], mask[batch], torch.full((len(rows),), 9), ENDS, config, seed, streams)

    together = sample([0, 0, 0, 0, 0], [0, 1, 2, 3, 400])
    assert [sample([0], [stream])[0] for stream in (0, 1, 2, 3, 400)] == together
    assert len({tuple(output) for output in together}) >= 4  # two draws of one output are no fault
    # Another seed is no shift of this one.
    assert sample([0, 0, 0], [0, 1, 2], seed=2) != sample([0, 0, 0], [1, 2, 3], seed=1)
