"""What an ablation compares, and how much each arm may train so that the comparison is fair. Plans; runs nothing."""

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
    """What a few steps of one config have measured.

    ``seconds`` and ``flops`` are those of one token of training, the teacher's forward passes in it included;
    ``steps`` is the fraction of a step that it is.
    """

    seconds: float
    flops: float
    steps: float

    def tokens(self, budget: Budget) -> int | None:
        """A budget in tokens, None where it names nothing. At least 1, but for a budget of zero."""
        if not budget.unit:
            return None
        a_token = {"tokens": 1.0, "steps": self.steps, "seconds": self.seconds}[budget.unit]
        return 0 if budget.is_zero else max(1, round(budget.amount / a_token))


@dataclass(frozen=True)
class ArmCost:
    """What an arm's training costs: each token of the student, and a teacher that is trained for it beforehand."""

    rates: Rates
    teacher_tokens: int = 0
    teacher_seconds: float = 0.0
    teacher_flops: float = 0.0

    def flops(self, tokens: int) -> float:
        """All of it, for so many tokens of the student."""
        return tokens * self.rates.flops + self.teacher_flops


def match_budgets(match: str, tokens: int, costs: Mapping[str, ArmCost]) -> dict[str, int]:
    """The student's tokens of each arm: ``tokens``, or what the FLOPs of the dearest arm at ``tokens`` buy it.

    The dearest arm and not the baseline sets the FLOPs, for a teacher may cost more than the baseline's whole training.
    """
    if match == "tokens":
        return dict.fromkeys(costs, tokens)
    whole = max(cost.flops(tokens) for cost in costs.values())
    return {name: round((whole - cost.teacher_flops) / cost.rates.flops) for name, cost in costs.items()}
