"""What an ablation compares, and how much each arm trains so that the comparison is fair. Plans only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tfx.config.schema import Budget

BASELINE = "baseline"


def plan_subsets(techniques: Sequence[str], design: str) -> list[tuple[str, ...]]:
    """The stacks of a design, each once, smallest first; a stack keeps the order of ``techniques``."""
    every = [subset for size in range(len(techniques) + 1) for subset in combinations(techniques, size)]
    if design == "all_subsets":
        return every
    return [subset for subset in every if len(subset) in (0, 1, len(techniques) - 1, len(techniques))]


def arm_name(subset: Sequence[str]) -> str:
    """The name of a stack's arm, and of its folder."""
    return "+".join(subset) or BASELINE


@dataclass(frozen=True)
class Rates:
    """Rates measured in a few steps of one config.

    ``seconds`` and ``flops`` are per token of training, including the teacher's forward passes; ``steps`` is the
    fraction of a step per token.
    """

    seconds: float
    flops: float
    steps: float

    def tokens(self, budget: Budget) -> int | None:
        """A budget in tokens, None if it names nothing. At least 1, except for a budget of zero."""
        if not budget.unit:
            return None
        a_token = {"tokens": 1.0, "steps": self.steps, "seconds": self.seconds}[budget.unit]
        return 0 if budget.is_zero else max(1, round(budget.amount / a_token))


@dataclass(frozen=True)
class ArmCost:
    """What an arm's training costs: per token of the student, and for a teacher that is trained first."""

    rates: Rates
    teacher_tokens: int = 0
    teacher_seconds: float = 0.0
    teacher_flops: float = 0.0

    def flops(self, tokens: int) -> float:
        """All of it, for this number of student tokens."""
        return tokens * self.rates.flops + self.teacher_flops


def match_budgets(match: str, tokens: int, costs: Mapping[str, ArmCost]) -> dict[str, int]:
    """The student's tokens in each arm: ``tokens``, or as many as the FLOPs of the most expensive arm allow.

    The most expensive arm sets the FLOPs and not the baseline, because a teacher may cost more than the baseline.
    """
    if match == "tokens":
        return dict.fromkeys(costs, tokens)
    whole = max(cost.flops(tokens) for cost in costs.values())
    return {name: round((whole - cost.teacher_flops) / cost.rates.flops) for name, cost in costs.items()}
