"""Input that nobody checked: bad configs, broken data files and damaged model files, and what tfx does with them.

    python scripts/fuzz_inputs.py [--seed 1] [--configs 100] [--data 50] [--checkpoints 100] [--shell 0]
    python scripts/fuzz_inputs.py --seed 1 --case configs:17      # one case again, with all that it prints

Each case is a command of tfx on input that a seeded generator made. It must end with status 0, or with status 2 and
one line on stderr; with no other exception, within 10 seconds of processor time and 2 GB; and it must write nothing
beside the cache, start no process and unpickle nothing. Cases run in forks of one process that has everything
imported; of each kind `--shell` cases run through the `tfx` command too. Ends with status 1 where a case fails.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import fuzz_checkpoints
import fuzz_configs
import fuzz_data

# Of processor time, so that what else the machine does makes no case fail; and on the clock, for one that waits.
SECONDS = 10
PATIENCE = 60
BYTES = 2 << 30
# A line that is longer than this is no message any more.
LONGEST_MESSAGE = 2000
GENERATORS: dict[str, Any] = {"configs": fuzz_configs, "data": fuzz_data, "checkpoints": fuzz_checkpoints}


@dataclass
class Place:
    """Where a case plays: ``inputs`` holds what it made, ``work`` is the working directory; ``base`` is shared."""

    root: Path
    base: Path

    def __post_init__(self) -> None:
        for folder in (self.inputs, self.work, self.temporary):
            folder.mkdir(parents=True)

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Size and time of the last change of everything below the place."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (a name may be no valid path text)
                is_folder = name in folders
                found[f"{folder}/{name}"] = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
        return found


@dataclass
class Outcome:
    """How a case ended: ``word`` is one of accepted, refused, and what can be wrong with it."""

    word: str
    detail: str = ""
    stderr: str = field(default="", repr=False)

    @property
    def is_good(self) -> bool:
        return self.word in ("accepted", "refused")


class Fuzzer:
    """Makes and runs the cases below one temporary folder."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed, self.root, self.base, self.cache = seed, root, root / "base", root / "cache"
        for folder in (self.base, self.cache):
            folder.mkdir()
        os.environ |= {
            "TFX_CACHE": str(self.cache / "tfx"),
            "XDG_CACHE_HOME": str(self.cache),
            "HF_HOME": str(self.cache / "hf"),
            "MPLCONFIGDIR": str(self.cache / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache / "inductor"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "120",
        }
        sys.dont_write_bytecode = True
        _import_everything()
        for generator in GENERATORS.values():
            generator.prepare(self.base)

    def case(self, kind: str, number: int) -> tuple[Place, str, list[str]]:
        """The place of a case with its input made, what is wrong with it in a word, and the command's arguments."""
        rng = Random(f"{self.seed}/{kind}/{number}")
        place = Place(self.root / "case", self.base)
        label, arguments = GENERATORS[kind].make(rng, place)
        return place, label, arguments

    def run(self, kind: str, number: int, *, shell: bool, show: bool = False) -> tuple[str, Outcome]:
        """Makes a case, runs it, and removes it."""
        place, label, arguments = self.case(kind, number)
        try:
            before = place.snapshot()
            outcome = (self._in_shell if shell else self._in_fork)(place, arguments)
            after = place.snapshot()
            changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            left = [str(path) for path in self.cache.rglob("*.tmp")]
            if outcome.is_good and (changed or left):
                outcome = Outcome("left files", ", ".join([*changed, *left][:5]), outcome.stderr)
            for name in left:
                shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
            if show:
                print(f"{label}: tfx {shlex.join(arguments)}\n{outcome.stderr}{outcome.word} {outcome.detail}")
            return label, outcome
        finally:
            shutil.rmtree(place.root)

    def _in_shell(self, place: Place, arguments: list[str]) -> Outcome:
        command = [str(Path(sys.executable).with_name("tfx")), *arguments]
        environment = os.environ | {"TMPDIR": str(place.temporary)}
        try:
            ran = subprocess.run(
                command,
                cwd=place.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=2 * PATIENCE,
                preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_DATA, (2 * BYTES, 2 * BYTES)),
            )
        except subprocess.TimeoutExpired:
            return Outcome("hang")
        except (ValueError, OSError) as error:  # what no shell can say: a NUL byte, a line of megabytes
            return Outcome("refused", f"by the shell: {error}")
        return _judge(ran.returncode, ran.stderr.decode("utf-8", "replace"))

    def _in_fork(self, place: Place, arguments: list[str]) -> Outcome:
        error_file = self.root / "stderr"
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _be_the_command(place, arguments, error_file, [self.root / "case", self.cache])
        _, status, usage = os.wait4(child, 0)
        stderr = error_file.read_text(encoding="utf-8", errors="replace")
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return Outcome("hang" if name in ("SIGALRM", "SIGPROF") else f"killed by {name}", stderr=stderr)
        outcome = _judge(os.waitstatus_to_exitcode(status), stderr)
        if outcome.is_good and usage.ru_maxrss << 10 > BYTES:
            return Outcome("memory", f"{usage.ru_maxrss / 2**20:.1f} GiB", stderr)
        return outcome


def _be_the_command(place: Place, arguments: list[str], error_file: Path, writable: list[Path]) -> None:
    """Runs in the fork, and never returns."""
    status = 70
    try:
        os.chdir(place.work)
        os.environ["TMPDIR"] = tempfile.tempdir = str(place.temporary)
        for stream, path in ((0, os.devnull), (1, os.devnull), (2, str(error_file))):
            os.dup2(os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, used + BYTES))
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        _watch(writable)
        from tfx.cli import main

        status = main(arguments)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(writable: list[Path]) -> None:
    """Ends the process where Python writes beside the given folders, starts a process or unpickles."""
    # A run directory below /proc that a case names cannot be made: trying to is right.
    allowed = tuple(f"{folder}/" for folder in [*map(str, writable), "/dev", "/proc/self", "/proc/nope"])
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def stop(what: str) -> None:
        os.write(2, f"Traceback: {what}\n".encode())
        os._exit(71)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"):
            stop(f"{event} {values}")
        written: Any = None
        match event:
            case "open" if isinstance(values[2], int) and values[2] & changing:
                written = values[0]
            case "os.mkdir" | "os.remove" | "os.rmdir" | "os.truncate":
                written = values[0]
            case "os.rename" | "os.link" | "os.symlink":
                written = values[1]
        if isinstance(written, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(written))  # noqa: PTH100 (links stay)
            if not f"{path}/".startswith(allowed):
                stop(f"{event} outside: {path}")

    sys.addaudithook(hook)


def _judge(status: int, stderr: str) -> Outcome:
    last = (stderr.strip().splitlines() or [""])[-1][:300]
    if status not in (0, 2) or "Traceback" in stderr:
        return Outcome("crash", f"status {status}: {last}", stderr)
    if status == 0:
        return Outcome("accepted", stderr=stderr)
    if not stderr.startswith("tfx: ") or stderr.count("\n") != 1 or len(stderr) > LONGEST_MESSAGE:
        return Outcome("not one line", " | ".join(stderr.splitlines())[:600], stderr)
    return Outcome("refused", last, stderr)


def _import_everything() -> None:
    """Imports what any command needs, so that a fork has it already."""
    import importlib

    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    lazy = [
        "torch._inductor.config",  # torch itself imports these two at the first use of a default device
        "torch._dynamo",
        "datasets",
        "pyarrow.parquet",
        "sacrebleu",
        "matplotlib.figure",
        "jinja2",
        "tfx.experiments.hydra_launcher",
    ]
    modules = ["compression.checkpoint", "techniques.stack", "training.loop", "evaluation.quality", "report.page"]
    commands = ["train", "evaluate", "generate", "inspect", "report"]
    for name in [*lazy, *(f"tfx.{m}" for m in modules), *(f"tfx.commands.{c}" for c in commands)]:
        importlib.import_module(name)
    from tfx.config.registry import entry_points, technique_class

    for name in entry_points():
        technique_class(name)


# --- all of them ------------------------------------------------------------------------------------


def plan(counts: dict[str, int], shell: int) -> Iterator[tuple[str, int, bool]]:
    """Kind, number, and whether through the shell; the shell's cases are spread over all."""
    for kind, count in counts.items():
        yield from ((kind, number, False) for number in range(count))
    for kind, count in counts.items():
        yield from ((kind, number * count // shell, True) for number in range(min(shell, count)))


def fuzz(seed: int, counts: dict[str, int], shell: int, report: Callable[[str], None] = print) -> list[str]:
    """Runs the cases, reports a table of what is wrong with the input by how it ended, and returns the failures.

    Stopped by the keyboard, it reports on what it has run.
    """
    failures: list[str] = []
    table: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="tfx-fuzz-") as folder, contextlib.suppress(KeyboardInterrupt):
        fuzzer = Fuzzer(seed, Path(folder).resolve())
        for kind, number, in_shell in plan(counts, shell):
            label, outcome = fuzzer.run(kind, number, shell=in_shell)
            row = f"{kind}{' (shell)' if in_shell else ''}: {label}"
            table[row, outcome.word if outcome.is_good else "FAILED"] += 1
            if not outcome.is_good:
                again = f"--seed {seed} --case {kind}:{number}{' --shell 1' if in_shell else ''}"
                failures.append(f"{row}: {outcome.word} {outcome.detail} (again: {again})")
                report(failures[-1])
    rows = sorted({row for row, _ in table})
    columns = ("refused", "accepted", "FAILED")
    width = max(map(len, rows), default=0)
    report("  ".join([" " * width, *(f"{column:>9}" for column in columns)]))
    for row in [*rows, "all"]:
        cells = [sum(n for (r, c), n in table.items() if c == column and row in (r, "all")) for column in columns]
        report("  ".join([f"{row:<{width}}", *(f"{cell:>9}" for cell in cells)]))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    for kind, count in (("configs", 100), ("data", 50), ("checkpoints", 100)):
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"cases of this kind (default {count})")
    parser.add_argument("--shell", type=int, default=0, help="of each kind, how many run through the shell too")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="one case again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the failures")
    options = parser.parse_args()
    if options.case:
        kind, _, number = options.case.partition(":")
        with tempfile.TemporaryDirectory(prefix="tfx-fuzz-") as folder:
            fuzzer = Fuzzer(options.seed, Path(folder).resolve())
            _, outcome = fuzzer.run(kind, int(number), shell=options.shell > 0, show=True)
        return 0 if outcome.is_good else 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts = {kind: getattr(options, kind) for kind in GENERATORS}
    failures = fuzz(options.seed, counts, options.shell, functools.partial(print, flush=True))
    if options.json is not None:
        options.json.write_text(json.dumps(failures, indent=2))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
