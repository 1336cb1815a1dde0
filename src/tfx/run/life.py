"""The life of one run, from its config to its summary: what `train`, `resume` and `reproduce` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.processes.failure import Failure, LostProcessError
from tfx.processes.group import Group, join
from tfx.processes.launch import launcher_is_gone
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json, write_json, write_text
from tfx.record.lock import locked
from tfx.record.summary import COMPLETED, FAILED, INTERRUPTED, Facts, Result, Summary
from tfx.run.closing import closing_table
from tfx.run.launch import ReportedError, check_processes, is_to_be_launched, run_in_processes
from tfx.run.other_processes import announce, follow
from tfx.run.resuming import changed_settings
from tfx.run.tracking.contract import Trackers
from tfx.system.signals import StoppedBySignal, defer_signals, ending_deferral, leaving_on_signals
from tfx.terminal.console import RunConsole, plain_text

if TYPE_CHECKING:
    from tfx.record.summary import TrainingCost
    from tfx.run.measure import Measurer
    from tfx.run.setup import Parts, Setup


_LAUNCHER_KILLED = "the tfx process that started this one was killed"


def status_of(work: Callable[[], Summary | None]) -> tuple[int, Summary | None]:
    """Runs ``work``, one of the functions below, and returns the exit status of its command and the summary.

    Of several processes only the first one has a summary.
    """
    summary = None
    try:
        group = join()
        with leaving_on_signals(once=group.size > 1), ending_deferral(), _telling(group):
            summary = work()
        return 0, summary
    except StoppedBySignal as stopped:
        if group.is_first and not stopped.is_told:
            why = _LAUNCHER_KILLED if launcher_is_gone() else str(stopped)
            when = "before training began: nothing new was saved" if summary is None else "after the run was complete"
            print(f"tfx: {why} {when}", file=sys.stderr)
        return stopped.status, None
    except LostProcessError as lost:
        if lost.failure is not None:
            raise
        print(f"tfx: {lost}; this was before training began: nothing new was saved", file=sys.stderr)
        return 1, None
    except KeyboardInterrupt:  # no signal's: it was raised where nothing catches signals
        return 130, None
    except ReportedError as error:
        return error.status, None


@contextmanager
def _telling(group: Group) -> Iterator[None]:
    """Tells the other processes why this one ends. The first one reports it, and its exit status counts."""
    try:
        yield
    except BaseException as error:
        cause = group.cause(error)
        if isinstance(error, StoppedBySignal) and error.is_told:
            cause = error
        failure = Failure.of(cause.__cause__ or cause if isinstance(cause, ReportedError) else cause, group.rank)
        # That another was killed is no word of its own: it would stand as the cause for the rest.
        group.fail(None if isinstance(cause, LostProcessError) and cause.failure is None else failure)
        if group.is_first:
            raise cause from (None if cause is error else error)
        raise ReportedError(failure.status) from error
    try:
        group.leave()
    except LostProcessError as error:
        if not group.is_first:
            raise ReportedError(1) from error
        print(f"tfx: the run is complete; after that {error}", file=sys.stderr)


def begin(config: Root, typed: Sequence[str], folder: Path) -> Summary | None:
    """A new run, as `train` makes it; or the rest of the one that a launcher has started the processes of again."""
    from tfx.config.compose import load

    group = join()
    began = group.began() if group.is_first else None
    began = group.first(began if began is not None and RunDirectory(Path(began)).config.is_file() else None)
    if began is None:
        return train(config, typed, folder)
    run = RunDirectory(Path(began))
    summary = run.read_summary() if group.is_first and run.summary.is_file() else None
    if group.first(summary is not None and summary.status == COMPLETED):
        return summary
    with locked(run.path) if group.is_first else nullcontext():
        return resume(load(run.config), typed, run)


def train(config: Root, typed: Sequence[str], folder: Path, recorded: Sequence[float] = ()) -> Summary | None:
    """A new run, from config to `summary.json`, which is returned; None after a dry run.

    ``recorded`` is the progress after each step of a run that is being repeated (`Clock`). Raises `UserError`, and
    leaves nothing behind, if config or data are wrong.
    """
    from tfx.run.setup import Setup

    group = _joined(config)
    if not group.is_first:
        if not config.dry_run:
            follow(config, group, train_teacher, recorded)
        return None
    console = RunConsole(stderr=not config.dry_run)
    if RunDirectory(folder).config.exists():
        RunDirectory.create(folder)  # says that it is not overwritten
    setup = Setup(config, group)
    if config.dry_run:
        _show(setup.prepare(), folder, console)
        console.close()
        return None
    if is_to_be_launched(config, group.place):
        return run_in_processes("train", setup, typed, folder, recorded)
    is_new = not folder.exists()
    run = RunDirectory.create(folder)
    with locked(folder):
        RunDirectory.create(folder)  # another process may have run there in the meantime
        begun = None
        try:
            group.begins(str(folder.absolute()))
            announce(group, folder, None)
            begun = _Life(setup, typed, run, console, recorded=recorded)
            return begun.live()
        except BaseException as error:
            # Before it lives nothing is there that could be resumed, whatever the reason, such as one of the others.
            if begun is None or (isinstance(error, UserError) and not begun.is_prepared):
                run.remove()
                if is_new:
                    with suppress(OSError):  # something else is in it
                        folder.rmdir()
            raise


def resume(
    config: Root,
    typed: Sequence[str],
    run: RunDirectory,
    *,
    extends: bool = False,
    release: Callable[[], None] = lambda: None,
) -> Summary | None:
    """Continues the run of ``config`` from its newest undamaged state, or from the start if there is none.

    With ``extends`` the run is finished, and continues with a longer budget: its result stays until there is a new one,
    and without a state `UserError` is raised. The caller holds the lock of the run directory, and ``release`` gives it
    up: where the run has several processes, the first of them takes it.
    """
    from tfx.run.setup import Setup
    from tfx.training.state import newest_state

    group = _joined(config)
    if not group.is_first:
        follow(config, group, train_teacher)
        return None
    console = RunConsole()
    setup = Setup(config, group)
    if is_to_be_launched(config, group.place):
        release()
        return run_in_processes("resume", setup, typed, run.path, extends=extends)
    state = newest_state(run.state, console.note)
    if state is None and extends:
        raise UserError(
            f"{run.path} is finished and its saved state is gone: continue from its model with init_from={run.path}"
        )
    known = read_json(run.environment) if run.environment.is_file() else None
    if state is None:
        console.note(f"{run.path} has no saved state: the run starts over")
        run.clear()
    else:
        for change in changed_settings(state.get("settings", {}), config):
            console.note(change)
        run.tidy()
        console.note(f"continuing after step {state['training']['clock']['steps']:,}")
    announce(group, run.path, None if state is None else state["training"]["clock"]["steps"])
    return _Life(setup, typed, run, console, state=state, extends=extends, known=known).live()


def _joined(config: Root) -> Group:
    """The processes of the run, which may all use GPUs. Raises `UserError` if there are not as many as it says."""
    group = join()
    check_processes(config, group.place)
    if config.trainer.device != "cpu":
        group.show_gpu()
    return group


class _Life:
    """One run with its directory open: whatever happens from now on leaves a `summary.json`.

    ``state`` and ``known`` are the saved state and the environment of a run that is resumed.
    """

    def __init__(
        self,
        setup: Setup,
        typed: Sequence[str],
        run: RunDirectory,
        console: RunConsole,
        state: dict[str, Any] | None = None,
        recorded: Sequence[float] = (),
        extends: bool = False,
        known: dict[str, Any] | None = None,
    ) -> None:
        self.setup, self.config, self.typed, self.run, self.console = setup, setup.config, typed, run, console
        self.state, self.recorded, self.extends, self.known = state, recorded, extends, known
        # The steps after which the run was resumed.
        self.resumed = [] if state is None else [*state["resumed"], state["training"]["clock"]["steps"]]
        self.is_prepared = False
        self.trackers = Trackers(self.config, run, console.note)

    def live(self) -> Summary:
        """Trains, compresses and evaluates; writes the summary with its status, also after an error."""
        from tfx.model.device import is_asynchronous
        from tfx.run.compress import compress
        from tfx.run.result import facts_of, measure_result

        try:
            # A new run's first of all, so that it can be resumed where it is killed while a teacher trains; that of one
            # that goes on once nothing can refuse it any more.
            if self.known is None:
                self._write_config()
            self.console.open_log(self.run.log)
            with self.setup.group.watched(self._lost, on_devices=is_asynchronous(self.setup.device)):
                parts = self._prepare()
                if self.known is not None:
                    self._write_config()
                measurer = self._measurer(parts)
                training = self._train(parts, measurer)
                with measurer.helped():
                    file = compress(parts, self.run, measurer, training.seconds)
                    result = measure_result(parts, self.run, measurer, training, file, self.resumed)
            summary = Summary(COMPLETED, facts_of(self.config, self.setup.stack), result=result)
            summary.write(self.run.summary)
        except BaseException as raised:
            error = self.setup.group.cause(raised)
            self._failed(error)
            if isinstance(error, Exception) and not isinstance(error, UserError):
                raise ReportedError from error
            if error is raised:
                raise
            raise error from raised
        else:
            # The result is complete: an error after this point is not a failure of the run.
            try:
                self._write_page()
                self._close(summary.facts, result)
                self._track(summary, file)
            except StoppedBySignal as stopped:
                self.console.note(f"{stopped}, after the run was complete: see {self.run.path}")
                stopped.is_told = True
                raise
            # A signal that came while Python frees what the run held would be lost with its error.
            defer_signals()
            return summary
        finally:
            self.console.close()

    def _write_config(self) -> None:
        from omegaconf import OmegaConf

        from tfx.config.compose import to_yaml

        write_text(self.run.overrides, OmegaConf.to_yaml(OmegaConf.create(list(self.typed))))
        write_text(self.run.config, to_yaml(self.config))

    def _prepare(self) -> Parts:
        from tfx.run.batch_size import with_batch_tokens
        from tfx.run.teacher import make_teachers

        setup = self.setup
        if any(not need.paths for _, need in setup.stack.teacher_needs()):
            self._check_plan()
        teachers = make_teachers(self.config, setup.stack, setup.device, self.console, train_teacher, setup.group)
        config = with_batch_tokens(setup, teachers, self.console.note)
        if config is not self.config:
            # A run that goes on or is repeated has this number.
            self.config = setup.config = config
            self.trackers = Trackers(config, self.run, self.console.note)
            if self.known is None:
                self._write_config()
        parts = setup.prepare(teachers)
        _show(parts, self.run.path, self.console)
        self._write_environment(parts)
        return parts

    def _check_plan(self) -> None:
        """Raises `UserError` for settings that do not fit the model, before a teacher is trained in vain."""
        from tfx.run.setup import Setup

        parts = Setup(replace(self.config, dry_run=True), self.setup.group).prepare()
        parts.stack.plan_for(parts.model)

    def _write_environment(self, parts: Parts) -> None:
        from tfx.record.environment import BEFORE, describe_environment, environment_differences

        fingerprints = {"data": parts.data.fingerprint, "corpus": parts.data.corpus}
        fingerprints["content"] = parts.data.content
        fingerprints["tokenizer"] = parts.data.tokenizer.fingerprint
        for name, teachers in parts.teachers.items():
            for number, teacher in enumerate(teachers, 1):
                fingerprints[f"teacher of {name}" + (f" ({number})" if number > 1 else "")] = teacher.sha256
        fingerprints |= {f"streamed file {name}": digest for name, digest in parts.data.streamed.items()}
        environment = describe_environment(parts.device, fingerprints, parts.group.size)
        if parts.data.modified:  # which a copy changes too, and what was not compared may have changed without
            environment["streamed files last modified"] = parts.data.modified
        if self.known is not None:
            differences = environment_differences(self.known, environment)
            environment[BEFORE] = {name: before for name, (before, _) in differences.items()}
            environment[BEFORE] |= self.known.get(BEFORE, {})
            for name, (before, now) in differences.items():
                self.console.note(
                    f"{name} changed from {before} to {now}: the result may differ from that of a run that was never "
                    "interrupted"
                )
            # What an earlier version did not record cannot be compared.
            changed = [
                name.removeprefix("fingerprints.")
                for name, (before, _) in differences.items()
                if name.startswith("fingerprints.") and before is not None
            ]
            if changed:
                # The data are the corpus in the tokens of the tokenizer: where one of those changed, it is the cause.
                causes = [name for name in changed if name not in ("data", "content")] or changed
                raise UserError(
                    f"{self.run.path} cannot go on: changed since it began: {' and '.join(causes)}: put back what "
                    "it began with, or begin another run"
                )
        write_text(self.run.tokenizer, parts.data.tokenizer.to_json())
        if parts.data.tokenizer.roles is not None:
            write_json(self.run.tokenizer_roles, parts.data.tokenizer.roles.to_dict())
        write_json(self.run.environment, environment)

    def _measurer(self, parts: Parts) -> Measurer:
        from tfx.run.measure import Measurer

        measurer = Measurer(self.config, parts.data, parts.device, self.run, self.console, parts.group)
        with measurer.helped():
            if self.state is not None:
                measurer.load_state_dict(self.state["measurer"])
            elif (reference := _reference(parts)) is not None:
                measurer.measure_reference(*reference)
        return measurer

    def _train(self, parts: Parts, measurer: Measurer) -> TrainingCost:
        from tfx.run.train import Recorder, build_trainer, train

        place = None if self.state is None else self.state["metrics"]
        self.trackers.open(self.resumed[-1] if self.resumed else 0)
        recorder = Recorder(parts, self.run, self.console, measurer, self.resumed, place, self.trackers)
        trainer = build_trainer(parts, recorder, self.state, self.recorded)
        self.is_prepared = True
        self.state = None  # its tensors are not needed any more
        return train(trainer, recorder)

    def _write_page(self) -> None:
        """Writes the page. If that fails, a note says so: the result exists already."""
        from tfx.report.comparison import compare_runs
        from tfx.report.page import write_page

        try:
            write_page(compare_runs([self.run.path]), self.run.report)
        except Exception as error:
            self.console.failure(error)
            self.console.note(f"no {self.run.report.name}: {type(error).__name__}: {error}")

    def _track(self, summary: Summary, file: Path) -> None:
        """Sends the result to the trackers, which then close."""
        facts, result = summary.facts, summary.result
        assert result is not None
        files = [file, self.run.report]
        self.trackers.finish(summary, lambda: plain_text(closing_table(facts, result)), files)
        self.trackers.close(summary.status)

    def _close(self, facts: Facts, result: Result) -> None:
        """Shows the result. If that fails, a note says so."""
        try:
            self.console.result(closing_table(facts, result))
            self.console.result(f"run: {self.run.path}")
        except Exception as error:
            self.console.failure(error)
            self.console.note(f"the closing table cannot be shown: {type(error).__name__}: {error}")

    def _lost(self, error: BaseException) -> None:
        """Reports the end of another process where this one is about to be ended, too."""
        self._failed(error)
        if isinstance(error, UserError):
            print(f"tfx: {error}", file=sys.stderr)

    def _failed(self, error: BaseException) -> None:
        """Reports the error in summary, log and console."""
        from tfx.run.result import facts_of

        if isinstance(error, StoppedBySignal):
            error.is_told = True
        interrupted = isinstance(error, KeyboardInterrupt)
        status = INTERRUPTED if interrupted else FAILED
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename} cannot be written or read: {error.strerror}"
        else:
            message = str(error) or "stopped by the user" if interrupted else f"{type(error).__name__}: {error}"
        if interrupted and launcher_is_gone():  # the system sent the signal, and nobody else did
            message = _LAUNCHER_KILLED
        self.console.failure(error)
        try:
            # A run that went on from its end still has the result of then, and the files of it; one that is refused
            # is as it was.
            is_refused = isinstance(error, UserError) and self.known is not None and not self.is_prepared
            if self.extends or is_refused:
                if self.run.summary.is_file():  # a run that was killed has none
                    self.console.note(f"{self.run.summary} still describes the run as it was before")
            else:
                Summary(status, facts_of(self.config, self.setup.stack), message).write(self.run.summary)
        except OSError as trouble:
            self.console.note(f"{self.run.summary} cannot be written: {trouble.strerror}")
        if not isinstance(error, UserError):  # that is printed by the command line
            # A process that was killed is no fault of the run.
            was_killed = isinstance(error, LostProcessError) and error.failure is None
            goes_on = interrupted or was_killed
            advice = f"continue with `tfx resume {self.run.path}`" if goes_on else f"see {self.run.log}"
            self.console.note(f"{status}: {' '.join(message.split())} ({advice})")
        self.trackers.close(status)  # last, as it may wait for a network


def _show(parts: Parts, folder: Path, console: RunConsole) -> None:
    """Prints the header, and a note if training would fill the zeros of the model that it starts from."""
    from tfx.run.header import header, zeros_given_up

    console.header(header(parts, folder))
    if (lost := zeros_given_up(parts)) is not None:
        console.note(lost)


def _reference(parts: Parts) -> tuple[Path, str] | None:
    """The dense model that results are compared with, and its role: reference, init_from or teacher."""
    if parts.config.reference is not None:
        return Path(parts.config.reference), "reference"
    if parts.config.init_from is not None:
        return Path(parts.config.init_from), "init_from"
    return next(((teachers[0].path, "teacher") for teachers in parts.teachers.values()), None)


def train_teacher(config: Root, folder: Path) -> None:
    """Trains a teacher as a run in ``folder``; a run that was interrupted there is resumed."""
    run, group = RunDirectory(folder), join()
    with ending_deferral():
        if group.first(not run.config.is_file()):
            train(config, [], folder)
        elif group.first(not run.training_cost()):
            with locked(folder) if group.is_first else nullcontext():
                resume(config, [], run)
