"""Kills real runs again and again, also inside saves, and compares what they end with to runs that were left alone.

    python scripts/fault_test.py --kills 100 --seed 1

Each kind of run is a process of the public command, resumed until it is done: its final files must be those of an
uninterrupted run, byte by byte, and its metrics the same line by line, times apart. Then come a full disk, a loss that
is not a number, and damaged states. Ends with status 1, and the seed, where anything differs. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=32", "model.decoder_layers=1", "trainer.log_every=3"),
    *("evaluation.latency_inputs=2", "evaluation.beam=2", "trainer.save.every_steps=5", "trainer.validate_every=0.2"),
]
PAIRS = [
    *("model.encoder_layers=1", "dataset.limit.train=400", "dataset.limit.valid=30", "dataset.limit.test=30"),
    "dataset.batch_tokens=256",
]
STACK = [
    "+technique=[distill,prune,quantize]",
    *("technique.distill.teacher_budget.steps=60", "technique.quantize.granularity=channel"),
]
TEXT = ["model=gpt_nano", "model.context=16", "dataset=text", "dataset.tokenizer.kind=char", "dataset.batch_tokens=64"]
KINDS = {
    "dense": [*TINY, *PAIRS, "trainer.accumulation=3", "trainer.averaging.kind=ema", "trainer.budget.steps=90"],
    "stack": [*TINY, *PAIRS, *STACK, "trainer.budget.steps=90"],
    "processes": [*TINY, *PAIRS, "trainer.devices=2", "trainer.averaging.kind=ema", "trainer.budget.steps=90"],
    "processes_stack": [*TINY, *PAIRS, *STACK, "trainer.devices=2", "trainer.budget.steps=90"],
    "processes_local": [
        *TINY,
        *PAIRS,
        "trainer.devices=2",
        "trainer.parallel=local",
        "trainer.local.steps=7",
        "trainer.budget.steps=90",
    ],
    "lm": [*TINY, *TEXT, "dataset.path={folder}/text.txt", "trainer.keep=best", "trainer.budget.steps=300"],
}
FINAL = ("config.yaml", "tokenizer.json", "model.safetensors", "compressed.safetensors", "predictions.jsonl")
TIMES = re.compile(r'"(seconds|tokens_per_second)": [^,}]+')

# Makes the loss of one step no number, in a process of its own.
POISON = """
import sys
from tfx.cli import main
from tfx.training import step
plain, calls = step.projected_losses, []
def poisoned(*arguments, **settings):
    loss, reported = plain(*arguments, **settings)
    calls.append(loss)
    return (loss * float("nan"), [r * float("nan") for r in reported]) if len(calls) == 7 else (loss, reported)
step.projected_losses = poisoned
sys.exit(main(sys.argv[1:]))
"""


class FaultError(Exception):
    """Something did not end as promised."""


class Case:
    """One kind of run in folders of its own: a cache, and a run directory."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.run = folder / "run"
        self.overrides = [word.format(folder=folder.parent) for word in KINDS[kind]]
        self.environment = os.environ | {"TFX_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}

    def start(self, *more: str, prefix: tuple[str, ...] = ("-m", "tfx")) -> subprocess.Popen[str]:
        """Goes on with the run where there is one, else begins it."""
        if (self.run / "config.yaml").is_file():
            arguments = ["resume", str(self.run), *more]
        else:
            arguments = ["train", *self.overrides, *more, f"hydra.run.dir={self.run}"]
        return subprocess.Popen(
            [sys.executable, *prefix, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, *more: str) -> str:
        """Runs to the end; returns what was printed. Raises `FaultError` for any status but 0."""
        process = self.start(*more)
        words, _ = process.communicate(timeout=600)
        if process.returncode:
            raise FaultError(f"status {process.returncode}: {words[-2000:]}")
        return words

    def is_done(self) -> bool:
        """Whether it has a result: a process that outlives another one writes a summary without."""
        summary = self.run / "summary.json"
        return summary.is_file() and json.loads(summary.read_text())["status"] == "completed"

    def result(self) -> dict[str, object]:
        """The final files' content, and the metrics without times."""
        found: dict[str, object] = {
            name: (self.run / name).read_bytes() for name in FINAL if (self.run / name).is_file()
        }
        found["metrics.jsonl"] = TIMES.sub("", (self.run / "metrics.jsonl").read_text()).splitlines()
        return found


def require_equal(expected: dict[str, object], found: dict[str, object]) -> None:
    differing = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    if differing:
        raise FaultError(f"not the same as in the uninterrupted run: {', '.join(differing)}")


def kill(process: subprocess.Popen[str], case: Case, generator: random.Random, longest: float) -> bool:
    """Kills at a random moment, half of the times inside a write; returns whether it came before the end."""
    inside = generator.random() < 0.5
    moment = time.monotonic() + generator.uniform(0, longest)
    while process.poll() is None:
        if time.monotonic() >= moment:
            folders = [case.run, case.run / "state", *Path(case.environment["TFX_CACHE"]).glob("teachers/.*/state")]
            if not inside or any(path.suffix == ".tmp" for f in folders if f.is_dir() for path in f.iterdir()):
                members = [process.pid, *children(process.pid)]
                os.kill(generator.choice(members), signal.SIGKILL)
                process.communicate()
                while any(is_running(member) for member in members):
                    time.sleep(0.05)
                return process.returncode != 0
        time.sleep(0.0005 if inside else 0.005)
    process.communicate()
    return False


def children(parent: int) -> list[int]:
    """The processes that another one has started, such as those of a run on several devices."""
    with suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return []


def is_running(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def kills(folder: Path, kind: str, count: int, generator: random.Random) -> None:
    """Kills runs of a kind so many times in all, and lets each end after at most eight."""
    case = Case(folder / f"{kind}-alone", kind)
    start = time.monotonic()
    case.finish()
    alone, longest = case.result(), time.monotonic() - start
    done, runs, shape = 0, 0, "?"
    while done < count:
        runs += 1
        case = Case(folder / f"{kind}-{runs}", kind)
        for _ in range(min(8, count - done)):
            if not kill(case.start(), case, generator, longest):
                break
            done += 1
            if generator.random() < 0.2 and (states := sorted(case.run.glob("state/step-*"))):
                damage(states[-1], generator)
        words = "" if case.is_done() else case.finish()
        require_equal(alone, case.result())
        shape = words.splitlines()[0] if words else "ended by itself"
        print(f"{kind}: {done} of {count} kills, {runs} runs, no difference ({shape[:80]})", flush=True)
        shutil.rmtree(case.run.parent)


def damage(path: Path, generator: random.Random) -> None:
    """Cuts a file, or flips a byte of it."""
    content = bytearray(path.read_bytes())
    at = generator.randrange(len(content))
    if generator.random() < 0.5:
        del content[at:]
    else:
        content[at] ^= generator.randrange(1, 256)
    path.write_bytes(content)


def full_disk(folder: Path, generator: random.Random) -> None:
    """A file system that is too small for the run: it stops in words, and goes on when there is room."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        print("full disk: left out, for it needs the right to mount a file system")
        return
    try:
        alone = Case(folder / "disk-alone", "dense")
        alone.finish()
        case = Case(disk, "dense")
        case.environment["TFX_CACHE"] = alone.environment["TFX_CACHE"]
        process = case.start("trainer.save.keep=1000")
        words, _ = process.communicate(timeout=600)
        if process.returncode != 1 or "No space left on device" not in words or "Traceback" in words:
            raise FaultError(f"a full disk: status {process.returncode}: {words[-2000:]}")
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        case.finish("trainer.save.keep=2")
        expected, found = alone.result(), case.result()
        for each in (expected, found):
            each.pop("config.yaml")
        require_equal(expected, found)
        print("full disk: stopped in words, went on to the same bits")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def not_a_number(folder: Path, generator: random.Random) -> None:
    """A loss that is not a number at one step, under each policy."""
    for policy, status in (("stop", 1), ("skip", 0), ("back_off", 0)):
        case = Case(folder / f"nan-{policy}", "dense")
        process = case.start(f"trainer.instability.policy={policy}", prefix=("-c", POISON))
        words, _ = process.communicate(timeout=600)
        text = " ".join(words.split())
        if process.returncode != status or "the loss is nan; examples" not in text or "Traceback" in text:
            raise FaultError(f"not a number, {policy}: status {process.returncode}: {words[-2000:]}")
        summary = json.loads((case.run / "summary.json").read_text())
        if policy == "stop":
            if summary["status"] != "failed":
                raise FaultError(f"not a number, stop: status {summary['status']}")
            case.finish()  # the fault is gone, and the run goes on before it
        elif summary["train"]["skipped_steps"] != 1:
            raise FaultError(f"not a number, {policy}: {summary['train']['skipped_steps']} steps skipped")
        print(f"not a number: {policy} does what it says")


def cut_states(folder: Path, generator: random.Random) -> None:
    """A damaged newest state falls back to the one before; with none left the run starts over."""
    alone = Case(folder / "cut-alone", "lm")
    alone.finish()
    for which in ("newest", "all"):
        case = Case(folder / f"cut-{which}", "lm")
        process = case.start()
        while process.poll() is None and len(list(case.run.glob("state/step-*"))) < 2:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        states = sorted(case.run.glob("state/step-*"))
        for path in states[-1:] if which == "newest" else states:
            damage(path, generator)
        words = " ".join(case.finish().split())
        wanted = "going back to the state before" if which == "newest" else "the run starts over"
        if wanted not in words:
            raise FaultError(f"damaged states, {which}: {words[:2000]}")
        require_equal(alone.result(), case.result())
        print(f"damaged states, {which}: {wanted}, to the same bits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, over the kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--no-faults", action="store_true", help="only the kills")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("".join(f"line {i} of a little text, {i * i}\n" for i in range(1500)))
        try:
            shares = [options.kills // len(options.kinds)] * len(options.kinds)
            shares[-1] += options.kills - sum(shares)
            for kind, count in zip(options.kinds, shares, strict=True):
                kills(folder, kind, count, generator)
            for fault in () if options.no_faults else (full_disk, not_a_number, cut_states):
                fault(folder, generator)
        except FaultError as fault:
            sys.exit(f"seed {options.seed}: {fault}")


if __name__ == "__main__":
    main()
