"""How fast tfx trains: against its peers, beside a busy neighbour, and to a loss.

    python scripts/bench_train.py [--part peers|neighbour|shakespeare] [--rounds 5] [--steps 60] [--threads N]
        [--peer-python PATH] [--json FILE] [overrides of `tfx train` …]

Each measurement is a training in a fresh process; arms take turns, so that a slow minute of the machine hits all.
Tokens are real ones of both sides. Prints medians, the ratio to the first arm of the same round with its spread, and
the share of this machine's rate of matrix products, in bfloat16 or in fp32, whichever is faster.

``peers``, text to text: Seq2SeqTrainer of `transformers` on a Marian model of the same sizes and dropout, with its
defaults and with batches of similar lengths, in fp32 and in bfloat16. It needs a Python that has the peer:

    python3 -m venv peers && peers/bin/pip install torch transformers accelerate

``peers``, language models: nanoGPT's settings as a plain loop on its model, with the sizes and the batch of tfx.
``neighbour``: tfx alone and beside a busy process of the same priority, with threads that wait briefly (what tfx sets)
and with OpenMP's own waiting. ``shakespeare``: seconds until the validation loss is 1.88, against nanoGPT's settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peers import Result, nanogpt_task, require_transformers, run, trainer_task
from rich.console import Console
from rich.table import Table

from tfx.config.compose import compose
from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.model.device import choose_device, multiplies_bf16
from tfx.tasks.prepare import PreparedData, prepare_data

# GOMP_SPINCOUNT of OpenMP's own waiting.
SPINS = "300000"
SHAKESPEARE_LOSS = 1.88


def main() -> None:
    options, overrides = parsed()
    with tempfile.TemporaryDirectory() as name:
        part = {"peers": peers, "neighbour": neighbour, "shakespeare": shakespeare}[options.part]
        arms = part(options, overrides, Path(name))
        if options.arm:
            arms = {arm: measure for arm, measure in arms.items() if any(words in arm for words in options.arm)}
        kind, rate = matrix_rate(options.threads, Path(name))
        rounds: list[dict[str, Result]] = []
        for number in range(options.rounds):
            rounds.append({arm: measure() for arm, measure in arms.items()})
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            rows = shakespeare_rows(rounds) if options.part == "shakespeare" else speed_rows(rounds, rate)
            if options.json:  # after each round: hours of measuring are not lost with the last one
                report = {"part": options.part, "overrides": overrides, "threads": options.threads}
                report |= {"matrix_rate": rate, "matrix_type": kind, "arms": rows, "rounds": rounds}
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    show(rows, kind, rate)


def parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("peers", "neighbour", "shakespeare"), default="peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=None, help="steps that count (50); shakespeare: all steps of tfx (480)"
    )
    parser.add_argument("--warm", type=int, default=10, help="steps before them")
    parser.add_argument("--threads", type=int, default=None, help="of each process; default: torch's choice")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with transformers and accelerate")
    parser.add_argument("--peer-rows", type=int, default=128, help="pairs of a batch of the peer")
    parser.add_argument("--arm", action="append", help="only those with this in their names; may be repeated")
    parser.add_argument("--json", help="also write everything measured to this file")
    options, overrides = parser.parse_known_args()
    if options.steps is None:
        # A peer that groups by length takes the rows of 50 batches at a time, and of these the longest first.
        options.steps = 480 if options.part == "shakespeare" else 50
    return options, overrides


# --- the parts ------------------------------------------------------------------------------------


def peers(options: argparse.Namespace, overrides: list[str], folder: Path) -> Mapping[str, Callable[[], Result]]:
    """The peers of the data's task, and tfx with Muon (its default), with Muon by blocks of a head, and with AdamW."""
    base = compose([*overrides, "trainer.budget.steps=1"])
    if base.dataset.task == "seq2seq":
        require_transformers(options.peer_python)
    data = prepare_data(base.dataset, base.model.context)
    if data.task == "seq2seq":
        arms = trainers(options, base, data, folder)
    elif data.task == "lm":
        arms = {"nanoGPT's settings": nanogpt(options, base, data, folder)}
    else:
        raise UserError("there is a peer for text to text and for language models: name a dataset of one of them")
    of_a_head = base.model.width // base.model.heads
    return arms | {
        "tfx": tfx(options, overrides, folder),
        "tfx, Muon in blocks": tfx(options, [*overrides, f"optimizer.matrix_block={of_a_head}"], folder),
        "tfx, AdamW": tfx(options, [*overrides, "optimizer=adamw"], folder),
    }


def trainers(
    options: argparse.Namespace, base: Root, data: PreparedData, folder: Path
) -> dict[str, Callable[[], Result]]:
    """Seq2SeqTrainer with its defaults, then at its best; in bfloat16 where the device multiplies that by itself."""
    task = trainer_task(base, data, folder) | {"rows": options.peer_rows, "threads": options.threads}
    task |= {"warm": options.warm, "steps": options.steps}

    def peer(arm: str) -> Callable[[], Result]:
        return lambda: run("peer_trainer.py", {**task, "arm": arm}, folder, python=options.peer_python)

    arms = {"Seq2SeqTrainer, its defaults": peer("defaults"), "Seq2SeqTrainer, grouped by length": peer("grouped")}
    if multiplies_bf16(choose_device(base.trainer.device)):  # emulated it takes hours
        arms["Seq2SeqTrainer, grouped, bf16"] = peer("grouped_bf16")
    return arms


def nanogpt(options: argparse.Namespace, base: Root, data: PreparedData, folder: Path) -> Callable[[], Result]:
    """nanoGPT's loop for as many steps as tfx."""
    task = nanogpt_task(base, data, folder) | {"warm": options.warm, "threads": options.threads}
    task["settings"]["steps"] = options.warm + options.steps
    return lambda: run("peer_nanogpt.py", task, folder)


def neighbour(options: argparse.Namespace, overrides: list[str], folder: Path) -> Mapping[str, Callable[[], Result]]:
    """tfx alone and beside a busy process, with both ways of waiting."""
    spinning = {"GOMP_SPINCOUNT": SPINS}
    brief, own = tfx(options, overrides, folder), tfx(options, overrides, folder, spinning)
    return {
        "alone, OpenMP's own waiting": own,
        "alone, tfx's waiting": brief,
        "beside a neighbour, OpenMP's own waiting": lambda: beside_a_neighbour(own),
        "beside a neighbour, tfx's waiting": lambda: beside_a_neighbour(brief),
    }


def shakespeare(options: argparse.Namespace, overrides: list[str], folder: Path) -> Mapping[str, Callable[[], Result]]:
    """nanoGPT's loop and tfx's model of the same size, to the loss that nanoGPT's README names."""
    words = ["dataset=tinyshakespeare", "model=gpt_nano", *overrides, "trainer.validate_every=0.25"]
    base = compose([*words, "trainer.budget.steps=1"])
    data = prepare_data(base.dataset, base.model.context)
    task = nanogpt_task(base, data, folder) | {"loss": SHAKESPEARE_LOSS, "threads": options.threads}
    return {
        "nanoGPT's settings": lambda: run("peer_nanogpt.py", task, folder),
        "tfx": tfx(options, words, folder),
    }


# --- one measurement ------------------------------------------------------------------------------


def tfx(
    options: argparse.Namespace, overrides: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Callable[[], Result]:
    """A training of tfx; the validation at its end is short, since it is not timed."""
    is_to_a_loss = options.part == "shakespeare"
    words = [
        *overrides,
        f"trainer.budget.steps={options.steps if is_to_a_loss else options.warm + options.steps}",
        f"trainer.log_every={options.warm}",
        f"trainer.threads={options.threads or 'null'}",
    ]
    if not is_to_a_loss:
        words += ["trainer.validate_every=1", "dataset.limit.valid=64"]
    task = {"overrides": words, "warm": options.warm, "loss": SHAKESPEARE_LOSS if is_to_a_loss else 0.0}
    return lambda: run("train_worker.py", task, folder, environment)


def matrix_rate(threads: int | None, folder: Path) -> tuple[str, float]:
    """The type that this machine multiplies fastest, and the FLOP/s: some emulate bfloat16."""
    rates = {
        kind: run("train_worker.py", {"rate": kind, "threads": threads}, folder)["flops_per_second"]
        for kind in ("bfloat16", "float32")
    }
    fastest = max(rates, key=lambda kind: rates[kind])
    return fastest, rates[fastest]


def beside_a_neighbour(measure: Callable[[], Result]) -> Result:
    with busy_process():
        return measure()


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes without a pause, at the priority of this one."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# --- the table ------------------------------------------------------------------------------------


def speed_rows(rounds: list[dict[str, Result]], rate: float) -> list[Result]:
    """Per arm: the median of tokens a second, and of its ratio to the first arm, with the lowest and highest."""
    flops = next((r["flops_per_token"] for r in rounds[0].values() if "flops_per_token" in r), 0.0)
    speeds = {arm: [one[arm]["tokens"] / one[arm]["seconds"] for one in rounds] for arm in rounds[0]}
    first = next(iter(speeds.values()))
    return [
        row(arm, "tokens/s", values, [value / other for value, other in zip(values, first, strict=True)])
        | {"share_of_rate": statistics.median(values) * flops / rate}
        for arm, values in speeds.items()
    ]


def shakespeare_rows(rounds: list[dict[str, Result]]) -> list[Result]:
    """Per arm: the median of the seconds to the loss.

    Where the peer, the first arm, missed it in a round, all of its seconds count: it needs more, so that ratios are too
    low. Another arm never gets there.
    """
    peer = next(iter(rounds[0]))
    missed = {arm: [one[arm]["seconds"] if arm == peer else float("inf") for one in rounds] for arm in rounds[0]}
    seconds = {
        arm: [one[arm]["seconds_to_loss"] or other for one, other in zip(rounds, missed[arm], strict=True)]
        for arm in rounds[0]
    }
    return [
        row(arm, "seconds to the loss", values, [a / b for a, b in zip(seconds[peer], values, strict=True)])
        | {"reached": f"{sum(one[arm]['seconds_to_loss'] is not None for one in rounds)} of {len(rounds)}"}
        | {"last_loss": statistics.median(one[arm]["loss"] for one in rounds)}
        for arm, values in seconds.items()
    ]


def row(arm: str, unit: str, values: list[float], ratios: list[float]) -> Result:
    return {
        "arm": arm,
        unit: statistics.median(values),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def show(rows: list[Result], kind: str, rate: float) -> None:
    table = Table(*rows[0])
    for one in rows:
        table.add_row(*(cell(one[name]) for name in rows[0]))
    console = Console()
    console.print(table)
    console.print(f"{kind} products on this machine: {rate / 1e9:,.0f} GFLOP/s")


def cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value > 100 else f"{value:.3f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"bench_train: {error}")
