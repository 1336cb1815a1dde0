"""The statistics agree with scipy and sacreBLEU, and raise false alarms as often as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from scipy import stats

from tfx.evaluation.metrics import score_text
from tfx.record.metric_vocabulary import scorer
from tfx.report.arms import Arm, Sentences, group
from tfx.report.runs import read_run
from tfx.report.statistics import (
    compare,
    holm,
    minimum_detectable_difference,
    pareto_front,
    resample_sentences,
    seed_interval,
    sentence_weights,
    student_quantile,
    student_tail,
)

TOKENS = "der Hund läuft schnell über die grüne Wiese , a b .".split()  # noqa: SIM905
WORDS = st.lists(st.sampled_from(TOKENS), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=8)


@given(PAIRS)
def test_summed_statistics_give_sacrebleus_corpus_scores(pairs):
    hypotheses, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(3)]
    score = score_text(hypotheses, references, ["bleu", "bleu_lowercase", "chrf"])
    metrics = {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True), "chrf": CHRF()}
    for name, metric in metrics.items():
        sums = np.sum([scorer(name).sentence(row) for row in score.sentences], axis=0, dtype=float)
        expected = metric.corpus_score(hypotheses, streams).score
        assert float(scorer(name).corpus(sums)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 2.5, 4, 30, 1e6])
@pytest.mark.parametrize("t", [-3.0, 0.0, 0.1, 1.0, 2.5, 12.0])
def test_students_distribution_is_scipys(t, freedom):
    assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-8, abs=1e-13)
    for probability in (0.025, 0.5, 0.9, 0.975, 0.9995):
        assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=1e-6)


def test_the_interval_over_seeds_is_scipys():
    values = [31.2, 30.4, 32.0, 31.1]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert seed_interval(values) == pytest.approx(expected)
    assert seed_interval([1.0]) is None


def test_resampled_bits_per_byte_are_those_of_the_drawn_windows_and_their_unknown_bytes(run_writer, tmp_path):
    random = np.random.default_rng(5)
    rows = [{"nll": float(random.uniform(20, 40)), "targets": 16, "unknown_bytes": 3 * (i % 4)} for i in range(40)]
    rows = [row if row["unknown_bytes"] else {"nll": row["nll"], "targets": 16} for row in rows]
    bits = np.asarray([row["nll"] / np.log(2) + 8 * row.get("unknown_bytes", 0) for row in rows])
    # Two bytes to a token, in each window.
    summary = {"primary_metric": "bits_per_byte", "test": {"loss": 2.0, "bits_per_byte": bits.sum() / (40 * 32)}}
    run = read_run(run_writer(tmp_path / "run", rows=rows, summary=summary))
    (arm,), _ = group([run])
    sampled_SR = Sentences(arm).resampled(arm)
    weights_RN = sentence_weights(40)
    assert sampled_SR[0] == pytest.approx(weights_RN @ bits / (40 * 32), rel=1e-5)
    # A model that is a tenth of a bit a byte better is so in each sample, however much is charged to both.
    better = [row | {"nll": row["nll"] - 0.1 * 32 * np.log(2)} for row in rows]
    summary["test"] = {"loss": 1.9, "bits_per_byte": bits.sum() / (40 * 32) - 0.1}
    other = read_run(run_writer(tmp_path / "other", rows=better, summary=summary))
    assert sampled_SR - Sentences(arm).resampled(Arm("", [other])) == pytest.approx(0.1, abs=1e-4)


def test_resampling_sentences_gives_sacrebleus_paired_bootstrap():
    random = np.random.default_rng(3)
    words = [f"w{i}" for i in range(12)]
    references = [" ".join(random.choice(words, 12)) for _ in range(150)]

    def spoil(share):
        return [" ".join(w if random.random() > share else "x" for w in line.split()) for line in references]

    systems = [("a", spoil(0.2)), ("b", spoil(0.225))]
    test = PairedTest(systems, {"BLEU": BLEU(references=[references])}, None, test_type="bs", n_samples=2000)
    result = test()[1]["BLEU"]
    weights = sentence_weights(150, 2000)
    sampled = []
    for _, lines in systems:
        rows = score_text(lines, [[line] for line in references], ["bleu"]).sentences
        table = np.asarray([scorer("bleu").sentence(row) for row in rows])
        sampled.append(resample_sentences(table, weights, scorer("bleu")))
    for values, expected in zip(sampled, result, strict=True):
        half = (np.quantile(values, 0.975) - np.quantile(values, 0.025)) / 2
        assert half == pytest.approx(expected.ci, rel=0.1)
        assert values.mean() == pytest.approx(expected.mean, abs=0.15)
    ours = compare([result[0].score], [result[1].score], sampled[0][None], sampled[1][None], higher_is_better=True)
    assert ours is not None
    assert not ours.seeds_resampled
    # sacreBLEU's p-value is a one-sided tail of the recentred absolute differences (Riezler 2005).
    shifted = np.abs(sampled[1] - sampled[0])
    shifted -= shifted.mean()
    assert (shifted > abs(ours.value)).mean() == pytest.approx(result[1].p_value, abs=0.03)
    assert ours.p / 2 == pytest.approx(result[1].p_value, abs=0.05)


@pytest.mark.parametrize(("of_seeds", "of_both"), [(0.25, 0.5), (1.0, 0.2), (0.0, 0.0)])
@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (5, 5), (1, 3), (2, 5)])
def test_the_same_technique_under_other_seeds_raises_false_alarms_as_promised(counts, of_seeds, of_both):
    """No difference in truth: seeds, sentences and their interaction vary. At most 5 % of trials may see one."""
    random = np.random.default_rng(7)
    trials, sentences = 400, 60
    weights = sentence_weights(sentences, 200)
    alarms = inside = 0
    for trial in range(trials):
        difficulty_N = random.normal(0, 1, sentences)
        arms = []
        for seeds in counts:
            skill_S = random.normal(0, of_seeds, (seeds, 1))
            chance = 1 / (1 + np.exp(-(difficulty_N + skill_S + random.normal(0, of_both, (seeds, sentences)))))
            arms.append((random.random((seeds, sentences)) < chance).astype(float))
        tables = [np.stack([np.stack([run, np.ones(sentences)], 1) for run in arm]) for arm in arms]
        sampled = [np.stack([resample_sentences(run, weights, scorer("f1")) for run in table]) for table in tables]
        means = [arm.mean(1).tolist() for arm in arms]
        found = compare(*means, *sampled, higher_is_better=True, margin=0.0, seed=trial)
        assert found is not None
        alarms += found.p < 0.05
        inside += found.low <= 0 <= found.high
    assert alarms / trials <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / trials)
    assert inside == trials - alarms


def test_a_real_difference_is_found_and_more_seeds_narrow_its_interval():
    random = np.random.default_rng(1)
    widths = []
    for seeds in (3, 12):
        a, b = random.normal(31, 0.2, seeds), random.normal(29, 0.2, seeds)
        found = compare(a.tolist(), b.tolist(), None, None, higher_is_better=True, margin=0.5)
        assert found.p < 0.01
        assert found.p_worse < 0.01
        assert found.low < 2 < found.high or abs(found.value - 2) < 0.3
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


def test_seeds_alone_give_welchs_test():
    a, b = [31.0, 31.8, 30.9, 31.5, 31.3], [30.1, 30.9, 30.5, 29.2, 30.8]
    found = compare(a, b, None, None, higher_is_better=True)
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=0.25)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.15)


def test_a_single_run_each_without_sentences_says_nothing():
    assert compare([1.0], [2.0], None, None, higher_is_better=True) is None


def test_scores_that_never_vary_prove_nothing():
    """Two models that get every sentence wrong are not thereby shown to be as good as each other."""
    zeros = np.zeros((3, 100))
    assert compare([0.0] * 3, [0.0] * 3, zeros, zeros, higher_is_better=True, margin=1.0) is None


@pytest.mark.parametrize("higher", [True, False])
def test_non_inferiority_follows_the_metrics_direction(higher):
    loses = [30.0, 30.1, 29.9] if higher else [2.3, 2.31, 2.29]
    base = [31.0, 31.1, 30.9] if higher else [2.0, 2.01, 1.99]
    small, large = (0.3, 5.0) if higher else (0.05, 1.0)
    narrow = compare(loses, base, None, None, higher_is_better=higher, margin=small)
    wide = compare(loses, base, None, None, higher_is_better=higher, margin=large)
    assert wide.p_worse < 0.05 < narrow.p_worse


@pytest.mark.parametrize("comparisons", [1, 7])
@pytest.mark.parametrize("runs", [2, 3, 5, 20])
def test_the_detectable_difference_is_found_as_often_as_promised(runs, comparisons):
    """By scipy's noncentral t: at that difference the test's power is what was asked for."""
    freedom = 2 * (runs - 1)
    critical = stats.t.ppf(1 - 0.025 / comparisons, freedom)
    for power in (0.5, 0.8):
        shift = minimum_detectable_difference(runs, comparisons, power) / np.sqrt(2 / runs)
        reached = stats.nct.sf(critical, freedom, shift)  # the other tail is far below what is compared
        assert reached == pytest.approx(power, abs=1e-3)
    assert minimum_detectable_difference(1) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(p_values):
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) > alpha:
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=14))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front([p[0] for p in points], [p[1] for p in points])
    for i, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert front[i] == (not beaten)
