"""An ablation: it tries its arms, plans them at one budget, and runs them as jobs, last a narrower dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

from tfx.config.schema import AblateConfig, Budget, Root
from tfx.errors import UserError
from tfx.experiments.design import BASELINE, ArmCost, Rates, arm_name, match_budgets, plan_subsets
from tfx.experiments.jobs import ENDED_BADLY, Job
from tfx.experiments.pool import run_jobs
from tfx.experiments.request import Request
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json, write_json, write_text
from tfx.report.statistics import minimum_detectable_difference
from tfx.terminal.console import clock, plain_console, size
from tfx.terminal.tables import Column, Sheet

# The arm of the narrower dense model in 8 bits.
_DENSE = "dense_int8"


@dataclass
class Plan:
    """The content of `ablation.json`: the same command continues the same arms. ``flops`` is the cost per arm."""

    typed: list[str]
    design: str
    match: str
    tokens: dict[str, int]
    costs: dict[str, ArmCost]
    compresses: bool
    flops: float

    @property
    def same(self) -> tuple[Any, ...]:
        """What identifies an ablation; another number of seeds is still the same ablation."""
        return (self.typed, self.design, self.match)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The inverse of writing it as JSON; raises `UserError` if the file is not readable."""
        values = read_json(path)
        try:
            costs = {
                name: ArmCost(**cost | {"rates": Rates(**cost["rates"])}) for name, cost in values["costs"].items()
            }
            return cls(**values | {"costs": costs})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not the plan of an ablation: {error}") from error


class Ablation:
    """One ablation in its folder."""

    def __init__(self, request: Request, settings: AblateConfig) -> None:
        self.config, self.folder, self.settings = request.config, request.folder, settings
        self.typed, self.launcher = request.typed, request.launcher
        self.machine = request.machine
        self.jobs: list[Job] = []

    def run(self) -> int:
        """Runs the jobs that are left, or only shows the plan in a dry run; returns the exit status."""
        path = self.folder / "ablation.json"
        if path.is_file():
            plan = Plan.read(path)
            asked = (self.typed, self.settings.design, self.settings.match)
            if plan.same != asked:
                raise UserError(
                    f"{self.folder} holds another ablation ({' '.join(plan.typed)} design={plan.design} "
                    f"match={plan.match}): repeat its command, or name another hydra.sweep.dir"
                )
        else:
            plan, arms = self._make_plan()
            if not self.config.dry_run:
                for name, config in arms.items():
                    self._write_arm(name, config)
                write_json(path, asdict(plan))
        self._show(plan)
        if self.config.dry_run:
            return 0
        self._run_arms([name for name in plan.tokens if name != _DENSE])
        stopped = self.launcher.on_failure == "stop" and any(job.state in ENDED_BADLY for job in self.jobs)
        if plan.compresses and not stopped and self._plan_dense(plan, path):
            self._run_arms([_DENSE])
        return int(any(job.state in ENDED_BADLY for job in self.jobs))

    def _make_plan(self) -> tuple[Plan, dict[str, Root]]:
        """Tries each arm for a few steps, and turns the budget into tokens."""
        from tfx.experiments.trial import try_configs

        steps, config = self.settings.trial_steps, replace(self.config, dry_run=False)
        subsets = {arm_name(s): s for s in plan_subsets(list(config.technique), self.settings.design)}
        configs = {name: _with_techniques(config, subset) for name, subset in subsets.items()}
        plain_console(stderr=True).print(f"trying {len(configs)} arms for {steps} steps each")
        trials = try_configs(configs, steps, self.machine.environment(0))
        tokens = trials[BASELINE].rates.tokens(config.trainer.budget)
        assert tokens is not None  # a checked config has a budget
        costs = {}
        for name, trial in trials.items():
            teachers = []
            for technique, teacher in trial.teachers.items():
                # In tokens, so that there is one teacher per seed, whatever each arm's own budget is.
                count = teacher.rates.tokens(teacher.budget)
                count = 2 * tokens if count is None else count
                configs[name] = _with_teacher_budget(configs[name], technique, count)
                teachers.append((count, count * teacher.rates.seconds, count * teacher.rates.flops))
            costs[name] = ArmCost(trial.rates, *(sum(parts) for parts in zip(*teachers, strict=True)))
        spent = match_budgets(self.settings.match, tokens, costs)
        arms = {name: _with_tokens(configs[name], spent[name]) for name in configs}
        compresses = any(trial.compresses for trial in trials.values())
        flops = max(costs[name].flops(spent[name]) for name in costs)
        plan = Plan(self.typed, self.settings.design, self.settings.match, spent, costs, compresses, flops)
        return plan, arms

    def _plan_dense(self, plan: Plan, path: Path) -> bool:
        """Chooses the width of the narrower dense model by the bytes of the runs with all techniques; False: it cannot.

        It trains on as many tokens as they do, including those of the model that they start from.
        """
        from tfx.experiments.narrow_dense import narrow_int8
        from tfx.experiments.trial import try_configs

        if _DENSE in plan.tokens:
            return True
        whole = arm_name(list(self.config.technique))
        done, plain = (
            [job for job in self.jobs if job.folder.parent.name == name and job.objective is not None]
            for name in (whole, BASELINE)
        )
        origin = Path(self.config.init_from) if self.config.init_from is not None else None
        if not done or not plain or (origin is not None and not RunDirectory(origin).summary.is_file()):
            without = whole if not done else BASELINE
            why = f"{origin} is no run" if done and plain else f"{without} has no result"
            plain_console(stderr=True).print(
                f"no narrower dense model is trained for comparison: {why}", soft_wrap=True
            )
            return False
        before = RunDirectory(origin).read_summary().result if origin is not None else None
        bytes_ = [result.bytes.weights + result.bytes.header for job in done if (result := job.result) is not None]
        config = narrow_int8(replace(self.config, dry_run=False), plain[0].run.final, mean(bytes_))
        if (config.model.width, config.technique) == (self.config.model.width, self.config.technique):
            return False  # all techniques together are this very model
        trial = try_configs({_DENSE: config}, self.settings.trial_steps, self.machine.environment(0))[_DENSE]
        tokens = int(plan.tokens[whole] + (before.train.tokens if before else 0))
        if plan.match == "flops":
            tokens = round((plan.flops + (before.train.flops if before else 0.0)) / trial.rates.flops)
        plan.tokens[_DENSE], plan.costs[_DENSE] = tokens, ArmCost(trial.rates)
        self._write_arm(_DENSE, _with_tokens(config, tokens))
        write_json(path, asdict(plan))
        plain_console(stderr=True).print(
            f"{_DENSE}: width {config.model.width} (the other arms: {self.config.model.width}), nearest to the "
            f"{size(mean(bytes_))} of {whole}; {tokens:,} tokens",
            soft_wrap=True,
        )
        return True

    # --- runs -----------------------------------------------------------------------------------------

    def _write_arm(self, name: str, config: Root) -> None:
        from tfx.config.compose import to_yaml

        file = self.folder / "arms" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, to_yaml(config))

    def _run_arms(self, names: Sequence[str]) -> None:
        """All arms of a seed before the next seed, so that a stopped sweep has complete seeds."""
        flags = ["--config-dir", str(self.folder / "arms"), "--config-name"]
        jobs: list[Job] = []
        for index in range(self.settings.seeds):
            seed = self.config.seed + index
            for name in names:
                folder = self.folder / name / str(seed)
                number = len(self.jobs) + len(jobs)
                jobs.append(Job(number, [f"seed={seed}"], folder, [*flags, name], f"{name} seed={seed}"))
        self.jobs += jobs
        run_jobs(jobs, self.folder, self.launcher, self.machine)

    # --- what is shown before -------------------------------------------------------------------------

    def _show(self, plan: Plan) -> None:
        """Shows the arms, their cost, and the difference that this number of seeds can detect."""
        console = plain_console(stderr=not self.config.dry_run)
        seeds = self.settings.seeds
        table = Sheet(
            Column("arm"),
            Column("runs", number=True),
            Column("tokens per run", number=True),
            Column("TFLOPs per run", number=True, spare=1),
            Column("training per run", number=True, spare=2),
            lines=False,
        )
        for name, tokens in plan.tokens.items():
            cost = plan.costs[name]
            seconds = clock(tokens * cost.rates.seconds)
            table.add_row(name, str(seeds), f"{tokens:,}", f"{cost.flops(tokens) / 1e12:,.3g}", seconds)
        is_dense_to_come = plan.compresses and _DENSE not in plan.tokens
        if is_dense_to_come:
            table.add_row(_DENSE, str(seeds), "", "", "")
        console.print(table)
        for line in self._notes(plan, is_dense_to_come):
            console.print(line, soft_wrap=True, highlight=False)

    def _notes(self, plan: Plan, is_dense_to_come: bool) -> list[str]:
        seeds, arms = self.settings.seeds, len(plan.tokens) + is_dense_to_come
        lines = []
        if is_dense_to_come:
            lines.append(
                f"{_DENSE} is a narrower dense model in 8 bits of the same size: its width is chosen once the files "
                "with all techniques are measured"
            )
        what = {
            "tokens": "the student's tokens; a teacher costs extra, which the TFLOPs include",
            "flops": "FLOPs of training, with the teacher's forward passes and its training",
        }
        lines.append(f"equal in all arms: {what[plan.match]}")
        teacher = max(plan.costs.values(), key=lambda cost: cost.teacher_seconds)
        own = sum(tokens * plan.costs[name].rates.seconds for name, tokens in plan.tokens.items())
        whole = seeds * (own + teacher.teacher_seconds)
        taught = clock(seeds * teacher.teacher_seconds)
        lines.append(
            f"about {clock(whole)} of training in all runs together ({taught} of it for one teacher per seed), "
            f"{self.machine.jobs} at a time; estimated from trials run one by one, without start-up, validation and "
            "tests"
        )
        single, corrected = (minimum_detectable_difference(seeds, count) for count in (1, max(1, arms - 1)))
        if single is None or corrected is None:
            lines.append("with one seed nothing is known of another training: intervals resample sentences only")
        else:
            lines.append(
                f"{seeds} seeds per arm can detect, at 5 % and with a power of 80 %, a difference of {single:.2g} "
                f"standard deviations between seeds in one comparison, of {corrected:.2g} after Holm's correction "
                f"for {arms - 1}"
            )
        return lines


# --- pieces -----------------------------------------------------------------------------------------


def _with_techniques(config: Root, names: Sequence[str]) -> Root:
    return replace(config, technique={name: config.technique[name] for name in names})


def _with_tokens(config: Root, tokens: int) -> Root:
    return replace(config, trainer=replace(config.trainer, budget=Budget(tokens=tokens)))


def _with_teacher_budget(config: Root, technique: str, tokens: int) -> Root:
    from tfx.config.registry import technique_class

    names = [f.name for f in fields(technique_class(technique).Settings) if f.default_factory is Budget]
    budget = {name: asdict(Budget(tokens=tokens)) for name in names}
    return replace(config, technique=config.technique | {technique: config.technique[technique] | budget})
