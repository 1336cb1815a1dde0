"""The plan of an ablation: which arms there are, and that their budgets match."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.config.schema import Budget
from tfx.experiments.design import ArmCost, Rates, arm_name, match_budgets, plan_subsets

NAMES = ["distill", "mixup", "prune", "quantize"]


@given(st.sets(st.sampled_from(NAMES), min_size=1).map(sorted))
def test_a_design_has_each_of_its_stacks_once(techniques):
    every = {subset for size in range(len(techniques) + 1) for subset in combinations(techniques, size)}
    subsets = plan_subsets(techniques, "all_subsets")
    assert len(subsets) == 2 ** len(techniques)
    assert set(subsets) == every
    some = plan_subsets(techniques, "leave_one_out")
    assert len(some) == len(set(some))
    asked = [set(), set(techniques), *({name} for name in techniques), *(set(techniques) - {n} for n in techniques)]
    assert {frozenset(subset) for subset in some} == {frozenset(subset) for subset in asked}


def test_arms_are_named_by_their_stack():
    assert arm_name(()) == "baseline"
    assert arm_name(("distill", "prune")) == "distill+prune"


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [
        (Budget(tokens=123), 123),
        (Budget(steps=3), 300),
        (Budget(seconds=0.5), 50),
        (Budget(steps=0), 0),
        (Budget(), None),
    ],
)
def test_every_budget_has_its_tokens(budget, tokens):
    assert Rates(seconds=0.01, flops=7.0, steps=0.01).tokens(budget) == tokens


costs = st.builds(
    ArmCost,
    rates=st.builds(Rates, seconds=st.just(1.0), flops=st.floats(1e3, 1e6), steps=st.just(0.1)),
    teacher_flops=st.one_of(st.just(0.0), st.floats(0, 1e12)),
)


@given(st.dictionaries(st.sampled_from(NAMES), costs, min_size=1), st.integers(10_000, 10**9))
def test_matched_flops_are_equal_and_no_arm_trains_on_less_than_the_budget(arms, tokens):
    assert match_budgets("tokens", tokens, arms) == dict.fromkeys(arms, tokens)
    spent = match_budgets("flops", tokens, arms)
    whole = max(cost.flops(tokens) for cost in arms.values())
    for name, cost in arms.items():
        assert spent[name] >= tokens
        assert cost.flops(spent[name]) == pytest.approx(whole, rel=1e-4)
