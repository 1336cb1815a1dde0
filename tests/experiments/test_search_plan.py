"""The parts of a search that train nothing: axes, goals, the sampler, halving, the front."""

import itertools
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.config.compose import compose
from tfx.config.schema import Budget, Root
from tfx.config.search import SearchBudget, SearchConfig
from tfx.errors import UserError
from tfx.experiments.search.axes import Axis, named_axes
from tfx.experiments.search.book import spent
from tfx.experiments.search.front import non_dominated, ranks, worth_of_axes
from tfx.experiments.search.goal import Goal, Measured
from tfx.experiments.search.halving import at_full_length, best_of, costs, course, evenly, lengths
from tfx.experiments.search.outcome import expected_largest
from tfx.experiments.search.sampler import Outcome, propose
from tfx.experiments.search.size import Observation, SizeModel, corrections
from tfx.experiments.search.space import make_space, named_techniques
from tfx.record.summary import TrainingCost

AXES = {
    "width": Axis("width", 8, 256, whole=True, step=8),
    "rate": Axis("rate", 1.0, 4.0, log=True),
    "layers": Axis("layers", 1, 6, whole=True),
    "kind": Axis("kind", choices=("a", "b", "c")),
    "dropout": Axis("dropout", 0.0, 0.5),
}
ROUND, ROUNDS = 6, 10


def quality(values) -> float:
    """Its only maximum, 0, lies at width 96, rate 2, 4 layers, kind b and dropout 0.1."""
    return -(
        math.log(values["width"] / 96) ** 2
        + 4 * math.log(values["rate"] / 2) ** 2
        + 0.1 * (values["layers"] - 4) ** 2
        + {"a": 0.5, "b": 0.0, "c": 0.8}[values["kind"]]
        + 8 * (values["dropout"] - 0.1) ** 2
    )


def found_by_search(seed: int) -> float:
    outcomes: list[Outcome] = []
    for number in range(ROUNDS):
        outcomes += [Outcome(v, (quality(v),)) for v in propose(AXES, outcomes, ROUND, seed, number)]
    assert len(outcomes) == ROUND * ROUNDS
    return max(outcome.merits[0] for outcome in outcomes)


def drawn(random_: random.Random) -> dict:
    """A config at random, by the same ranges."""
    return {
        "width": 8 * random_.randint(1, 32),
        "rate": math.exp(random_.uniform(0, math.log(4))),
        "layers": random_.randint(1, 6),
        "kind": random_.choice("abc"),
        "dropout": random_.uniform(0, 0.5),
    }


def found_at_random(seed: int) -> float:
    random_ = random.Random(seed)
    return max(quality(drawn(random_)) for _ in range(ROUND * ROUNDS))


def test_sixty_trials_find_the_optimum_and_beat_sixty_random_ones():
    searched = [found_by_search(seed) for seed in range(10)]
    by_chance = [found_at_random(seed) for seed in range(10)]
    assert sum(a > b for a, b in zip(searched, by_chance, strict=True)) >= 8
    # Within 5 % of the range that random configs have (about 3 from the 5th to the 95th of a hundred).
    assert sum(value > -0.15 for value in searched) >= 8, searched


def test_a_round_depends_on_seed_number_and_results_alone():
    outcomes = [Outcome(v, (quality(v),)) for v in propose(AXES, [], 12, seed=3, number=0)]
    again = propose(AXES, outcomes, 4, seed=3, number=1)
    assert propose(AXES, outcomes, 4, seed=3, number=1) == again
    assert propose(AXES, outcomes, 4, seed=4, number=1) != again
    best = max(outcomes, key=lambda outcome: outcome.merits)
    assert propose(AXES, [o for o in outcomes if o is not best], 4, seed=3, number=1) != again
    known = [tuple(outcome.values.values()) for outcome in outcomes]
    assert all(tuple(values.values()) not in known for values in again)


def test_limits_turn_configs_down_and_the_sampler_learns_from_violations():
    # Without limits more width is better: what is allowed lies below 100 for kind a and below 40 for others.
    def room(values):
        return (100 if values["kind"] == "a" else 40) - values["width"]

    outcomes: list[Outcome] = []
    for number in range(6):
        for values in propose(AXES, outcomes, 6, 1, number):
            outcomes.append(Outcome(values, (values["width"],), (-room(values),)))
    kept = [outcome for outcome in outcomes if outcome.violations[0] <= 0]
    assert max(outcome.merits[0] for outcome in kept) >= 88
    late = outcomes[len(outcomes) // 2 :]
    early = outcomes[: len(outcomes) // 2]
    assert sum(o.violations[0] <= 0 for o in late) > sum(o.violations[0] <= 0 for o in early)
    narrow = propose(AXES, outcomes, 5, 1, 9, lambda values: values if values["width"] < 80 else None)
    assert len(narrow) == 5
    assert all(values["width"] < 80 for values in narrow)
    # Where nothing fits, a large round gives up as soon as a small one: a draw may take seconds.
    asked: list = []
    assert propose(AXES, [], 8, 1, 0, asked.append) == []
    assert 0 < len(asked) <= 60


def test_a_failed_config_does_no_harm_to_the_next_round():
    values = propose(AXES, [], 10, 1, 0)
    outcomes = [Outcome(v, (-math.inf,), (1.0,)) if n % 2 else Outcome(v, (quality(v),)) for n, v in enumerate(values)]
    assert len(propose(AXES, outcomes, 3, 1, 1)) == 3


# --- axes -------------------------------------------------------------------------------------------


def test_words_with_several_values_are_axes():
    words = ["seed=1", "a=1,2,4", "b=range(8,65,8)", "c=interval(0.1,0.5)", "d=tag(log,interval(1e-4,1e-2))", "--x"]
    words += ["model.positions=rotary,alibi", "evaluation=greedy"]
    fixed, axes = named_axes(words)
    assert fixed == ["seed=1", "--x", "evaluation=greedy"]
    assert axes["a"].choices == (1, 2, 4)
    assert (axes["b"].low, axes["b"].high, axes["b"].step, axes["b"].points) == (8, 64, 8, 8)
    assert axes["c"].holds(0.3)
    assert not axes["c"].holds(0.6)
    assert axes["d"].log
    assert axes["model.positions"].choices == ("rotary", "alibi")
    # A range in parts of one is so many choices.
    assert named_axes(["a=range(0,1,0.25)"])[1]["a"].choices == (0.0, 0.25, 0.5, 0.75)
    for wrong in ("a=interval(2,1)", "a=range(5,5)", "a=tag(log,interval(0,1))"):
        with pytest.raises(UserError, match="a="):
            named_axes([wrong])


@pytest.mark.parametrize("word", ["ffn_factor=2", "ffn_factor=2,2", "+ffn_factor=2"])
def test_one_factor_is_an_axis_of_one_choice(word):
    assert named_axes(["model.heads=2", word]) == (["model.heads=2"], {"ffn_factor": Axis("ffn_factor", choices=(2,))})


@pytest.mark.parametrize(
    ("word", "choice"),
    [("teacher=yes", "yes"), ("embedding_rate_factor=0.7", 0.7), ("embedding_rate_factor=none", None),
     ("embedding_rate_factor=null", None)],
)  # fmt: skip
def test_the_other_axes_of_the_search_s_own_are_fixed_by_one_value_too(word, choice):
    key = word.partition("=")[0]
    fixed, named = named_axes(["technique.distill.teacher=T", word])
    assert (fixed, named) == (["technique.distill.teacher=T"], {key: Axis(key, choices=(choice,))})
    config = compose([*fixed, "technique=[distill,quantize]"])
    space = make_space(fixed, named, config, Goal("bleu", "bleu", max_bytes=400_000))
    assert space.axes[key].choices == (choice,)
    words = space.words({"technique.quantize.rate": 2.0, key: choice})
    assert ("technique=[distill,quantize]" in words) == (choice == "yes")
    assert ("technique.quantize.embedding_rate=1.4" in words) == (choice == 0.7)


def test_several_factors_of_the_rate_may_have_none_among_them():
    assert named_axes(["embedding_rate_factor=none,1.4"])[1]["embedding_rate_factor"].choices == (None, 1.4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=yes"], "name that one"),
        (["technique.distill.teacher=T", "teacher=maybe"], "it is yes or no"),
        (["embedding_rate_factor=no"], "is no multiple of technique.quantize.rate: name none"),
        (["embedding_rate_factor=0.7", "technique.quantize.bits=4"], "name technique.quantize.embedding_rate instead"),
        (["embedding_rate_factor=0.7", "model.width=64"], "name technique.quantize.embedding_rate instead"),
    ],
)
def test_axes_of_the_search_s_own_with_nothing_to_act_on_are_refused(words, message):
    fixed, named = named_axes(words)
    config = compose([*fixed, f"technique=[{','.join(named_techniques(fixed))}]"])
    with pytest.raises(UserError, match=message):
        make_space(fixed, named, config, Goal("bleu", "bleu", max_bytes=400_000))


# --- goals ------------------------------------------------------------------------------------------


def goal(**settings) -> Goal:
    config = Root()
    config.dataset.metrics = ["bleu", "chrf"]
    return Goal.of(SearchConfig(**settings), config)


def space_of(*words, **goal):
    stack = [f"technique=[{','.join(named)}]"] if (named := named_techniques(words)) else []
    goal_ = Goal("bleu", "bleu", **goal)
    return make_space(list(words), {}, compose([*words, *stack]), goal_)


def test_what_embeddings_take_and_how_often_blocks_run_are_axes(tmp_path):
    space = space_of(max_bytes=400_000)
    assert space.axes["model.passes"].choices == (1, 2)
    values = {"technique.quantize.rate": 2.0, "embedding_rate_factor": 1.4, "model.passes": 2, "model.width": 64}
    words = space.words(values)
    assert "technique.quantize.embedding_rate=2.8" in words
    assert "model.passes=2" in words
    assert not any("embedding_rate" in word for word in space.words(values | {"embedding_rate_factor": None}))
    planned = space.config(values).technique["quantize"]
    assert (planned["rate"], planned["embedding_rate"], planned["bytes"]) == (2.0, 2.8, None)
    # They are no axes where the user has said what they are.
    fixed = space_of("technique.quantize.embedding_rate=2", "model.passes=1", max_bytes=400_000).axes
    assert not {"embedding_rate_factor", "model.passes"} & fixed.keys()


def test_what_only_trials_have_is_in_no_command_and_no_training_depends_on_it():
    space = space_of(max_bytes=400_000)
    words = space.words({"technique.quantize.rate": 2.0})
    few = {"dataset.splits.test=[]", "evaluation.latency_inputs=10", "trainer.validate_every=1"}
    assert few <= set(words)
    assert not few & set(space.outside(words))
    best = space_of("trainer.keep=best", "evaluation.latency_inputs=30", max_bytes=400_000)
    assert best.of_trials == ("dataset.splits.test=[]",)


def test_with_a_teacher_named_configs_have_it_or_not_and_its_vocabulary(tmp_path):
    alone, taught = space_of(max_bytes=400_000), space_of("technique.distill.teacher=T", max_bytes=400_000)
    assert "teacher" not in alone.axes
    assert "dataset.tokenizer.vocab_size" in alone.axes
    assert taught.axes["teacher"].choices == ("yes", "no")
    assert "dataset.tokenizer.vocab_size" not in taught.axes
    values = {"technique.quantize.rate": 2.0}
    words = {answer: taught.words(values | {"teacher": answer}) for answer in ("yes", "no")}
    assert "technique=[distill,quantize]" in words["yes"]
    assert "technique.distill.teacher=T" in words["yes"]
    assert "technique=[quantize]" in words["no"]
    assert not any("distill" in word for word in words["no"])
    for found in words.values():
        assert any(re.fullmatch(r"dataset.tokenizer.path=.*T/tokenizer.json", word) for word in found)


def test_a_trellis_ends_whole_trainings_alone_after_training_with_a_grid():
    assert space_of(max_bytes=400_000).ending == ()
    space = space_of("technique.quantize.method=trellis", max_bytes=400_000)
    values = {"technique.quantize.rate": 2.0}
    for whole in (True, False):
        words = space.words(values, whole=whole)
        assert ("technique.quantize.method=trellis" in words) == whole
        assert "technique.quantize.aware=true" in words
    assert space.config(values).technique["quantize"]["method"] == "nearest"
    # Whether to train with the grid is the user's to say.
    words = space_of("technique.quantize.method=trellis", "technique.quantize.aware=false", max_bytes=400_000).base
    assert [word for word in words if "aware" in word] == ["technique.quantize.aware=false"]


def test_a_trellis_at_a_fixed_rate_ends_whole_trainings_alone_too():
    space = space_of("technique.quantize.method=trellis", "technique.quantize.rate=2", max_bytes=400_000)
    assert space.ending == ("technique.quantize.method=trellis",)
    assert "technique.quantize.rate=2" in space.words({})


def test_a_sparsity_that_is_fixed_is_one_that_all_configs_have():
    for sparsity, is_pruned in ((0.5, True), (0, False)):
        space = space_of(f"technique.prune.sparsity={sparsity}", "technique.prune.score=wanda", max_bytes=400_000)
        assert "technique.prune.sparsity" not in space.axes
        words = space.words({"technique.quantize.rate": 2.0})
        assert ("technique=[prune,quantize]" in words) == is_pruned
        assert (f"technique.prune.sparsity={sparsity}" in words) == is_pruned
        assert ("technique.prune.score=wanda" in words) == is_pruned
        config = space.config({"technique.quantize.rate": 2.0})
        assert config.technique.get("prune", {"sparsity": 0})["sparsity"] == sparsity


def test_the_steps_of_an_axis_of_widths_are_kept():
    named = {"model.width": Axis("model.width", 64, 256, whole=True, step=64)}
    config = compose(["technique=quantize", "model.heads=2"])
    space = make_space(["model.heads=2"], named, config, Goal("bleu", "bleu", max_bytes=400_000))
    assert space.widths(config) == [64, 128, 192, 256]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seed", "seeds=3"),
        ("trainer.budget.steps", "rungs and keep"),
        ("technique.quantize.rate", "max_bytes=400000 decides the rate"),
    ],
)
def test_several_values_of_what_the_search_decides_are_refused(key, message):
    config = compose(["technique=quantize", "model.width=64"])
    with pytest.raises(UserError, match=message):
        make_space(
            ["model.width=64"], {key: Axis(key, choices=(1, 2))}, config, Goal("bleu", "bleu", max_bytes=400_000)
        )


def test_with_bits_named_there_is_no_rate_to_fill_a_limit_with():
    assert space_of("technique.quantize.bits=4", max_bytes=400_000).max_bytes is None
    # With no limit of bytes the rate is that of its axis.
    free = space_of(max_latency_ms=5.0)
    assert free.max_bytes is None
    assert "technique.quantize.rate=2" in free.words({"technique.quantize.rate": 2.0})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "bleuu"}, "did you mean 'bleu'"),
        ({"objective": "bytes"}, "min_quality"),
        ({"min_quality": 139.5}, "0 to 100"),
        ({"objective": "exact_match"}, "objective 'exact_match' is unknown"),
        ({"spread": 2.0}, "max_bytes"),
    ],
)
def test_goals_that_cannot_be_are_told_with_what_can(settings, words):
    with pytest.raises(UserError, match=words):
        goal(**settings)


@pytest.mark.parametrize(
    ("metric", "within", "beyond"),
    [
        *(("bleu", 30.0, -1.0), ("chrf", 99.0, 101.0), ("rouge_2", 0.3, 30.0), ("f1_macro", 0.5, 1.5)),
        *(("spearman", -0.5, 2.0), ("loss", 35.0, -0.1), ("squared_error", 2.0, -1.0)),
    ],
)
def test_a_quality_is_in_the_range_of_its_metric(metric, within, beyond):
    Goal(metric, "bytes", min_quality=within)._check()
    with pytest.raises(UserError, match=f"{metric} is .*; name one in this range"):
        Goal(metric, "bytes", min_quality=beyond)._check()


def test_the_best_meets_the_limits_first_and_then_the_objective():
    small, good, large = Measured(30, 90, 5), Measured(31, 100, 5), Measured(40, 130, 5)
    limited = goal(max_bytes=100)
    assert max((small, good, large), key=limited.key) == good
    assert [limited.is_met(found) for found in (small, good, large)] == [True, True, False]
    # Nothing meets 80 bytes: the nearest leads.
    assert max((good, large, small), key=goal(max_bytes=80).key) == small
    assert max((small, good, large), key=goal(objective="bytes", min_quality=30.5).key) == good
    assert max((small, large), key=goal(objective="loss").key) == small  # less loss is better
    assert goal(objective="loss", min_quality=35.0).is_met(small)
    assert not goal(objective="loss", min_quality=35.0).is_met(large)


def test_another_metric_decides_between_equals_alone():
    equal, better = Measured(0, 100, 5, other=3), Measured(0, 100, 5, other=7)
    assert max((equal, better), key=goal().key) == better
    assert max((better, Measured(0.01, 100, 5, other=0)), key=goal().key).quality == 0.01
    # In whatever unit it is: the squared error of a number in millions.
    assert max((Measured(0.2, 100, 5, other=-1e10), Measured(0.8, 100, 5, other=-2e10)), key=goal().key).quality == 0.8


def test_a_search_has_exactly_one_budget():
    from tfx.experiments.search.search import budget_limits

    assert budget_limits(SearchConfig(budget=SearchBudget(hours=0.5))) == (1800, None)
    assert budget_limits(SearchConfig(budget=SearchBudget(trials=7))) == (None, 7)
    for wrong in (SearchBudget(), SearchBudget(hours=1, trials=2)):
        with pytest.raises(UserError, match=r"budget\.hours"):
            budget_limits(SearchConfig(budget=wrong))


# --- halving ----------------------------------------------------------------------------------------


def test_halving_trains_few_for_long():
    assert [b.steps for b in lengths(Budget(steps=900), 3, 3)] == [100, 300, 900]
    assert [b.seconds for b in lengths(Budget(seconds=90.0), 2, 3)] == [30.0, 90.0]
    assert [b.steps for b in lengths(Budget(steps=2), 3, 3)] == [1, 1, 2]
    assert course(9, 3, 3) == [(0, 9), (1, 3), (2, 1)]
    assert course(7, 3, 3) == [(0, 7), (1, 2), (2, 1)]
    # One that is alone is chosen already: shorter trainings of it would say nothing.
    assert course(3, 3, 3) == [(0, 3), (2, 1)]
    assert course(1, 3, 3) == [(2, 1)]
    assert costs(1, 3, 3) == 1
    assert costs(9, 3, 3) == pytest.approx(9 / 9 + 3 / 3 + 1)
    assert best_of([3, 1, 2], 2, lambda value: (value,)) == [3, 2]


def test_a_short_training_is_carried_to_the_whole_length_by_the_gains_of_others():
    curves = [{0: 10.0}, {0: 12.0, 1: 20.0}, {0: 13.0, 1: 22.0, 2: 25.0}]
    assert at_full_length(curves[0], curves, 2) == 10 + (8 + 9) / 2 + 3
    assert at_full_length(curves[2], curves, 2) == 25
    assert at_full_length({0: 5.0}, [{0: 5.0}], 2) == 5  # nothing is known yet
    assert at_full_length({0: 5.0}, [{0: 4.0, 2: 7.0}], 2) == 8  # no config went to the rung between


def test_a_teacher_that_trials_share_costs_once():
    taught = TrainingCost(seconds=10.0, flops=1e9, teacher_seconds=100.0, teacher_flops=5e9)
    other = TrainingCost(seconds=20.0, flops=2e9, teacher_seconds=30.0, teacher_flops=1e9)
    costs = [SimpleNamespace(train=cost) for cost in (taught, taught, other, TrainingCost(seconds=5.0, flops=1e9))]
    assert spent(costs) == {"training_seconds": 175.0, "training_flops": 11e9}


# --- the front --------------------------------------------------------------------------------------

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_brute_force_finds(points):
    def beaten(point):
        return any(all(a >= b for a, b in zip(o, point, strict=True)) and o != point for o in points)

    kept = [points[place] for place in non_dominated(points)]
    assert len(kept) == len(set(kept))
    assert set(kept) == {point for point in points if not beaten(point)}
    rank = ranks(points)
    assert {point for point, r in zip(points, rank, strict=True) if r == 0} == set(kept)
    assert sorted(set(rank)) == list(range(max(rank) + 1))


def test_the_worth_of_axes_ranks_what_matters_first():
    random_ = np.random.default_rng(1)
    axes = {name: Axis(name, 0, 1) for name in ("matters", "idle")} | {"kind": Axis("kind", choices=("x", "y"))}
    values = [
        {"matters": float(random_.uniform()), "idle": float(random_.uniform()), "kind": "xy"[n % 2]} for n in range(40)
    ]
    merits = [3 * v["matters"] + 0.5 * (v["kind"] == "y") + 0.1 * float(random_.normal()) for v in values]
    worth = worth_of_axes(axes, values, merits)
    assert [one.key for one in worth] == ["matters", "kind", "idle"]
    assert worth[0].low > 0.5 > worth[2].high
    assert worth[1].best == "y"
    assert all(one.low <= one.share <= one.high + 0.1 for one in worth)
    assert worth_of_axes(axes, values[:4], merits[:4]) == []


def test_the_expected_largest_of_normal_draws():
    draws = np.random.default_rng(1).normal(size=(20_000, 9)).max(1).mean()
    assert expected_largest(9) == pytest.approx(draws, abs=0.02)
    assert expected_largest(1) == 0


# --- predictions ------------------------------------------------------------------------------------


def test_predictions_are_corrected_by_trials_of_the_same_stack():
    seen = [Observation("quantize", 100, 110), Observation("quantize", 200, 222), Observation("prune", 100, 90)]
    factors = corrections(seen)
    assert factors["quantize"] == pytest.approx(math.sqrt(1.0) * (1.1 + 1.11) / 2)
    assert factors["prune"] == pytest.approx(math.sqrt(0.9))  # one trial counts half
    model = SizeModel()
    before = model.margin
    model.learn([Observation("quantize", 100, 110 + n % 2) for n in range(8)])
    assert model.margin < before


def test_every_product_of_choices_is_asked_at_most_once():
    axes = {"a": Axis("a", choices=(1, 2)), "b": Axis("b", choices=(1, 2, 3))}
    found = propose(axes, [], 10, 1, 0)
    assert sorted((v["a"], v["b"]) for v in found) == sorted(itertools.product((1, 2), (1, 2, 3)))


def test_a_latency_is_that_of_targets_and_not_of_outputs_of_any_length(tmp_path, monkeypatch):
    from tfx.config.compose import compose
    from tfx.experiments.search.latency import untrained_latency_ms
    from tfx.tasks.prepare import prepare_data

    monkeypatch.setenv("TFX_CACHE", str(tmp_path))
    for name, length in (("short", 3), ("long", 40)):
        for side in ("en", "de"):
            for split in ("train", "val", "test"):
                (tmp_path / name).mkdir(exist_ok=True)
                words = "a b c" if side == "en" else " ".join("ab" for _ in range(length))
                (tmp_path / name / f"{split}.{side}").write_text(f"{words}\n" * 12)
    tiny = ["model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "trainer.device=cpu"]
    tiny += ["dataset=multi30k", "dataset.tokenizer.kind=char", "evaluation=greedy"]
    found = {}
    for name, layers in (("short", 1), ("long", 1), ("long", 4)):
        config = compose([*tiny, f"dataset.path={tmp_path / name}", f"model.decoder_layers={layers}"])
        found[name, layers] = untrained_latency_ms(config, prepare_data(config.dataset, 256))
    # The sources are the same, and so are the models: 120 tokens take longer than 9, and four layers than one.
    assert found["long", 1] > 1.5 * found["short", 1]
    assert found["long", 4] > 1.3 * found["long", 1]


@pytest.mark.parametrize(
    ("count", "length", "places"), [(3, 3, [0, 1, 2]), (3, 5, [0, 2, 4]), (2, 4, [0, 3]), (1, 4, [0])]
)
def test_members_of_a_front_are_evenly_spaced(count, length, places):
    assert evenly(count, length) == places
    assert evenly(0, 0) == []


def test_a_choice_that_cannot_be_had_keeps_no_others_from_their_turn():
    axes = {"size": Axis("size", choices=(1, 2, 3)), "x": Axis("x", 0.0, 1.0)}
    found = propose(axes, [], 6, 1, 0, lambda values: values if values["size"] > 1 else None, turns="size")
    assert sorted(values["size"] for values in found) == [2, 2, 2, 3, 3, 3]


def test_short_rounds_go_on_with_the_next_choices():
    axes = {"size": Axis("size", choices=(1, 2, 3, 4, 5)), "x": Axis("x", 0.0, 1.0)}
    outcomes: list[Outcome] = []
    for number in range(3):
        found = propose(axes, outcomes, 2, 1, number, turns="size")
        outcomes += [Outcome(values, (values["x"],)) for values in found]
    assert [outcome.values["size"] for outcome in outcomes] == [1, 2, 3, 4, 5, 1]
