"""The Hydra launcher behind `tfx train -m`: passes the jobs of a sweeper to the pool, and returns objectives."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from tfx.config.checks import check_values
from tfx.config.grammar import of_job
from tfx.config.schema import LauncherConfig
from tfx.errors import UserError
from tfx.experiments.jobs import DONE, ENDED_BADLY, PLANNED, SKIPPED, WAITING, Job
from tfx.experiments.machine import Machine
from tfx.experiments.pool import run_jobs

# Hydra keys of the sweep itself; all others (hydra.searchpath, …) also go to the jobs.
_OF_THE_SWEEP = ("hydra.mode", "hydra.sweep.", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher")


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep on this machine, each in its own process (`tfx.experiments.pool`)."""

    # Hydra accepts launchers only from its own packages and from `hydra_plugins`, by module name (`register`).
    __module__ = "hydra_plugins.tfx"

    # The jobs of the sweep in this process, over all batches of its sweeper.
    jobs: ClassVar[list[Job]] = []

    def __init__(self, **settings: Any) -> None:
        self.settings = LauncherConfig(**settings)
        check_values(self.settings, "hydra.launcher.")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configs = []
        batch = []
        flags = self._flags()
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = str(number)
                config.hydra.job.num = number
            HydraConfig.instance().set_config(config)
            folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
            own, _ = of_job(filter_overrides(overrides))
            batch.append(Job(number, own, folder, flags))
            configs.append(config)
        unique = self._unique(batch)
        stopped = self.settings.on_failure == "stop" and any(job.state in ENDED_BADLY for job in self.jobs)
        self.jobs.extend(unique)
        if not stopped:
            device = str(OmegaConf.select(self.config, "trainer.device"))
            devices = int(OmegaConf.select(self.config, "trainer.devices"))
            machine = Machine.of(self.settings, device, devices)
            run_jobs(unique, Path(str(self.config.hydra.sweep.dir)), self.settings, machine)
        done = {tuple(job.overrides): job for job in self.jobs}
        return [self._return(done[tuple(job.overrides)], config) for job, config in zip(batch, configs, strict=True)]

    def _unique(self, batch: Sequence[Job]) -> list[Job]:
        """The jobs of configs that no other one has. Raises `UserError` if two share a folder.

        A setting of a technique makes no difference to the jobs without it.
        """
        first: dict[tuple[str, ...], Job] = {tuple(job.overrides): job for job in self.jobs}
        folders = {job.folder: job for job in self.jobs}
        unique = []
        for job in batch:
            if (other := first.setdefault(tuple(job.overrides), job)) is not job:
                words = " ".join(job.overrides) or "no override"
                print(f"job {job.number} is job {other.number} ({words}), which runs once", file=sys.stderr)
                continue
            if (other := folders.setdefault(job.folder, job)) is not job:
                raise UserError(
                    f"jobs {other.number} and {job.number} of this sweep have one folder, {job.folder}: tell them "
                    "apart in hydra.sweep.subdir, as by '${hydra.job.num}', or leave it out"
                )
            unique.append(job)
        return unique

    def _flags(self) -> list[str]:
        """The arguments that a job's command needs besides its overrides, to compose the same configs as the sweep."""
        hydra = self.config.hydra
        sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        flags = [word for path in sources for word in ("--config-dir", str(path))]
        if hydra.job.config_name is not None:
            flags += ["--config-name", str(hydra.job.config_name)]
        return flags + [o for o in hydra.overrides.hydra if not o.lstrip("+~").startswith(_OF_THE_SWEEP)]

    def _return(self, job: Job, config: DictConfig) -> JobReturn:
        """A job without an objective returns None: an exception would end the sweep."""
        assert job.state in (DONE, SKIPPED, PLANNED, WAITING, *ENDED_BADLY)
        hydra = OmegaConf.create({"hydra": config.hydra})
        with open_dict(config):
            del config["hydra"]
        return JobReturn(
            overrides=job.overrides,
            cfg=config,
            hydra_cfg=hydra,
            working_dir=str(job.folder),
            task_name="tfx",
            status=JobStatus.COMPLETED,
            _return_value=job.objective,
        )


def check_is_sweep() -> None:
    """Raises `UserError` inside a single run if the user set something of a sweep for it, which nothing would read."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        return
    for word in settings.overrides.hydra:
        key = word.lstrip("+~").partition("=")[0]
        # Hydra adds the mode itself.
        if key.startswith(_OF_THE_SWEEP) and key != "hydra.mode":
            raise UserError(f"{key} is for a sweep, and this is a single run: add -m, or leave it out")


@contextmanager
def noting_results(jobs: list[Job]) -> Iterator[None]:
    """Inside, a job that another launcher has completed is added to ``jobs`` when Hydra's sweeper reads its result.

    A failure is raised there without Hydra's own words about it.
    """

    def value(done: JobReturn) -> Any:
        if done.status != JobStatus.COMPLETED:
            raise done._return_value
        assert done.hydra_cfg is not None
        settings: Any = done.hydra_cfg.hydra
        if settings.mode == RunMode.MULTIRUN and settings.launcher._target_ != LauncherConfig()._target_:
            folder = Path(str(settings.runtime.output_dir))  # which jobs of tfx's own launcher do not name
            if all(job.folder != folder for job in jobs):
                jobs.append(Job(int(settings.job.num), [str(word) for word in settings.overrides.task], folder))
                jobs[-1].end(0)
        return done._return_value

    def keep(done: JobReturn, returned: Any) -> None:
        done._return_value = returned

    before = JobReturn.return_value
    JobReturn.return_value = property(value, keep)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        JobReturn.return_value = before  # type: ignore[method-assign]


def register() -> list[Job]:
    """Makes the launcher known to Hydra; returns the list that will hold the jobs of a sweep."""
    LocalLauncher.jobs = []
    plugins = Plugins.instance()  # searches for installed plugins, so it must come first
    plugins.register(LocalLauncher)
    # The module exists only in memory, so that no second top-level package is shipped for one class.
    package, _, name = LocalLauncher.__module__.partition(".")
    parent = sys.modules.setdefault(package, ModuleType(package))
    module = sys.modules.setdefault(LocalLauncher.__module__, ModuleType(LocalLauncher.__module__))
    vars(module)[LocalLauncher.__name__] = LocalLauncher
    setattr(parent, name, module)
    return LocalLauncher.jobs
