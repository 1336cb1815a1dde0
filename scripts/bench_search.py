"""How well a search knows its configs before they are trained: bytes of the file, and latency, predicted and true.

    python scripts/bench_search.py --configs 50 --steps 300 --output FOLDER

Draws configs from the axes of a search, at random, with or without pruning, trains each, and prints the errors of the
prediction: as it is for the first config, and taught by the ones before (as a search does it). Files have
the rate that was drawn; a search makes them fill its limit, and then their size needs no prediction. Interrupted, the
same command goes on. More words are overrides of `tfx train`. With ``--latency`` each file is timed at the end, in turn
with the prediction, on validation inputs: let the machine be quiet then, and train long enough for outputs that end.
Where they do not, the errors at equal lengths tell: there the file's outputs are held to the lengths of the targets.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

from tfx.cli import main as tfx
from tfx.compression.checkpoint import load
from tfx.config import compose
from tfx.config.search import SearchBudget, SearchConfig
from tfx.evaluation.speed import Candidate, measure_speed
from tfx.experiments.jobs import Job
from tfx.experiments.request import compose_request
from tfx.experiments.search.axes import named_axes
from tfx.experiments.search.latency import held_latency_ms, untrained_latency_ms
from tfx.experiments.search.sampler import propose
from tfx.experiments.search.search import Search
from tfx.experiments.search.size import Observation, corrections
from tfx.record.directory import RunDirectory

# Of each latency, beside the truth.
_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--max-bytes", type=int, default=200_000)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--latency", action="store_true", help="predict and compare latency too")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="keeps the errors in a file")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    fixed, axes = named_axes([*options.overrides, f"trainer.budget.steps={options.steps}"])
    request = compose_request([*fixed, f"hydra.sweep.dir={options.output}"], "search")
    settings = SearchConfig(
        max_bytes=options.max_bytes,
        budget=SearchBudget(trials=options.configs),
    )
    search = Search(request, settings, axes)
    search.space = search.fitter.space = replace(search.space, max_bytes=None, ending=())
    plan = options.output / "configs.json"
    plan.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(plan.read_text()) if plan.is_file() else []
    while len(rows) < options.configs:  # kept one by one: each takes a few files to be written
        values = propose(search.fitter.sampled_axes(), [], 1, 1, len(rows), search.fitter.accept)[0]
        rows.append({"words": search.space.words(values), "predicted": vars(search.fitter.predict(values))})
        plan.write_text(json.dumps(rows))
    budget = f"trainer.budget.steps={options.steps}"
    jobs = [Job(n, [*row["words"], budget], options.output / f"{n:03d}") for n, row in enumerate(rows)]
    left = [job for job in jobs if job.result is None]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for number, status in zip((job.number for job in left), pool.map(train, left), strict=True):
            print(f"{number}: status {status}", flush=True)
    found = report(jobs, rows, latencies(jobs, search) if options.latency else [])
    if options.json:
        command = " ".join(["python scripts/bench_search.py", *sys.argv[1:]])
        options.json.write_text(json.dumps({"command": command, **found}, indent=1) + "\n")


def train(job: Job) -> int:
    """`tfx train` in this process, which others were trained in: nothing is loaded again. Returns its status."""
    import torch

    torch.set_num_threads(1)
    job.take_over()  # what is left of one that was stopped goes away
    words = ["train", *job.overrides, f"hydra.run.dir={job.folder}"]
    with open(job.log, "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        return tfx(words)


def latencies(jobs: list[Job], search: Search) -> list[tuple[float, float]]:
    """The predicted latency of each file, as a multiple of its own, and of its own with outputs as long as the targets.

    Each is the median of rounds of all three in turn.
    """
    import torch

    torch.set_num_threads(1)
    found = []
    for job in jobs:
        if job.result is None:
            continue
        run = RunDirectory(job.folder)
        config, model = compose.load(run.config), load(run.compressed).model
        data = search.fitter.data(config)
        candidates = {"file": Candidate(model, data.splits["valid"], data.tokenizer)}
        ratios = []
        for _ in range(_ROUNDS):
            predicted = untrained_latency_ms(config, data)
            truth = measure_speed(candidates, config.evaluation)["file"].latency_ms["p50"]
            ratios.append((predicted / truth, predicted / held_latency_ms(model, config.evaluation, data)))
        found.append((median(ratio for ratio, _ in ratios), median(ratio for _, ratio in ratios)))
        print("{}: latency predicted {:.3f} of it, {:.3f} at equal lengths".format(job.number, *found[-1]), flush=True)
    return found


def taught(seen: list[Observation]) -> list[float]:
    """The predictions, each corrected by those before it, as a search does it."""
    return [one.predicted * corrections(seen[:place]).get(one.stack, 1.0) for place, one in enumerate(seen)]


def report(jobs: list[Job], rows: list[dict], slow: list[tuple[float, float]]) -> dict:
    """Prints the relative errors over the configs that have a result, and returns them; ``slow`` is of `latencies`."""
    ended = [(row["predicted"], job.result) for job, row in zip(jobs, rows, strict=True) if job.result is not None]
    weights = [
        Observation(predicted["stack"], predicted["untrained_weights"], result.bytes.weights)
        for predicted, result in ended
    ]
    times = [Observation(one.stack, ratio, 1.0) for one, (ratio, _) in zip(weights, slow, strict=True)] if slow else []
    rest = [predicted["bytes"] - predicted["untrained_weights"] for predicted, _ in ended]
    truths = [result.bytes.file for _, result in ended]
    errors = {
        "bytes": [predicted["bytes"] / truth - 1 for (predicted, _), truth in zip(ended, truths, strict=True)],
        "bytes_taught": [
            (found + other) / truth - 1 for found, other, truth in zip(taught(weights), rest, truths, strict=True)
        ],
        "latency": [ratio - 1 for ratio, _ in slow],
        "latency_at_equal_lengths": [ratio - 1 for _, ratio in slow],
        "latency_taught": [ratio - 1 for ratio in taught(times)],
    }
    for name, found in errors.items():
        if found:
            limit = 0.2 if name.startswith("latency") else 0.03
            inside = sum(abs(error) <= limit for error in found)
            print(
                f"{name}: {inside} of {len(found)} within {limit:.0%}; mean error {mean(map(abs, found)):.2%}, "
                f"median {median(found):+.2%}, largest {max(found, key=abs):+.2%}"
            )
    print(f"corrections: of bytes {corrections(weights)}, of latency {corrections(times)}")
    return {
        "configs": len(ended),
        "pruned": sum("prune" in predicted["stack"] for predicted, _ in ended),
        **errors,
    }


if __name__ == "__main__":
    main()
