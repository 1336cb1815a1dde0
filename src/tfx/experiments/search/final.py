"""The end of a search: the winner on test data, once; or trained again at full length, over seeds of its own."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from tfx.experiments.jobs import Job
from tfx.experiments.pool import run_jobs
from tfx.experiments.search.outcome import command_of, run_of
from tfx.experiments.search.search import Search
from tfx.record.directory import RunDirectory


def finish(search: Search) -> None:
    """Scores the winner on test data, if that was not done, and keeps it in the book."""
    best = search.found.best()
    if best is None or not search.goal.is_met(search.found.mean_of(best)):
        return
    if search.settings.final:
        search.book.outcome["final"] = _train_again(search)
    else:
        run = run_of(search.found, best)
        if search.book.outcome.get("test", {}).get("run") != run:
            search.book.outcome["test"] = {"run": run, **_score(search, Path(run))}
    search.keep()


def _train_again(search: Search) -> dict[str, Any]:
    """Runs the winner with seeds that no trial had, and the test split."""
    best = search.found.best()
    assert best is not None
    first = search.request.config.seed + search.settings.seeds
    jobs: list[Job] = []
    for seed in range(first, first + search.settings.final_seeds):
        folder = search.folder / "final" / f"{best.number:04d}-seed{seed}"
        words = [*command_of(search.found, best), f"seed={seed}"]
        jobs.append(Job(len(jobs), words, folder, search.request.flags, f"winner, seed {seed}"))
    search.jobs += jobs
    run_jobs(jobs, search.folder, search.request.launcher, search.machine)
    ended = [(job, result) for job in jobs if (result := job.result) is not None]
    metric = search.goal.metric
    return {
        "config": best.number,
        "runs": [str(job.folder) for job, _ in ended],
        "test_split": ended[0][1].test_split if ended else None,
        "test": [result.test[metric] for _, result in ended],
        "valid": [result.valid[metric] for _, result in ended],
        "bytes": [result.bytes.file for _, result in ended],
        "mean_test": mean(result.test[metric] for _, result in ended) if ended else None,
    }


def _score(search: Search, run: Path) -> dict[str, Any]:
    """The metrics of a trial's final file on the test split, which the trial itself has not read."""
    from tfx.compression.checkpoint import load
    from tfx.config.compose import load as load_config
    from tfx.evaluation.quality import measure_quality
    from tfx.tasks.prepare import prepare_data

    config = load_config(RunDirectory(run).config)
    config.dataset.splits.test = list(search.request.config.dataset.splits.test)
    loaded = load(run, config.trainer.device)
    data = prepare_data(config.dataset, loaded.model.architecture.context, loaded.tokenizer)
    split = data.splits[data.test_split]
    quality = measure_quality(
        loaded.model, split, loaded.tokenizer, config.evaluation, config.dataset.metrics, seed=config.seed
    )
    return {"split": data.test_split, "metrics": quality.metrics, "signatures": quality.signatures}
