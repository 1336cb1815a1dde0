"""The end of a search: the winner on test data, once; or trained again at full length, over seeds of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfx.config.compose import load as load_config
from tfx.config.registry import technique_class
from tfx.config.schema import Root
from tfx.experiments.jobs import Job
from tfx.experiments.narrow_dense import INT8
from tfx.experiments.pool import run_jobs
from tfx.experiments.search.book import Entry
from tfx.experiments.search.outcome import command_of, run_of
from tfx.experiments.search.search import Search
from tfx.experiments.search.size import FIRST_MARGIN, at_width
from tfx.experiments.search.space import key_of
from tfx.record.directory import RunDirectory

# What a plain dense model does without.
_SMALLER = {"distill", "prune", "factorize"}


def finish(search: Search) -> None:
    """Scores the winner on test data, if that was not done, and keeps it in the book."""
    best = search.found.best()
    if best is None or not search.goal.is_met(search.found.mean_of(best)):
        return
    if search.settings.final:
        search.book.outcome["final"] = _train_again(search, best)
    elif search.found.is_whole(best):  # a shorter training is no model to judge
        run = run_of(search.found, best)
        known = search.book.outcome.get("test")
        if known is None or known["run"] != run:
            earlier = 0 if known is None else known["earlier"] + 1
            search.book.outcome["test"] = {"run": run, "earlier": earlier, **_score(search, Path(run))}
    search.keep()


def _train_again(search: Search, best: Entry) -> dict[str, Any]:
    """Runs the winner, and the dense model beside it, with seeds that no trial had, and with the test split."""
    arms = {f"{best.number:04d}": command_of(search.found, best)}
    if search.settings.dense:
        # Chosen once: what is learned later would choose another width for the folders of the same name.
        search.book.dense = search.book.dense or _dense_words(search)
        search.keep()
        if search.book.dense:
            arms["dense_int8"] = search.book.dense
    first = search.request.config.seed + search.settings.seeds
    jobs: dict[str, list[Job]] = {name: [] for name in arms}
    for seed in range(first, first + search.settings.final_seeds):
        for name, words in arms.items():
            folder = search.folder / "final" / f"{name}-seed{seed}"
            number = sum(map(len, jobs.values()))
            jobs[name].append(
                Job(number, [*words, f"seed={seed}"], folder, search.request.flags, f"{name}, seed {seed}")
            )
    together = [job for found in zip(*jobs.values(), strict=True) for job in found]
    search.jobs += together
    run_jobs(together, search.folder, search.request.launcher, search.machine)
    winner, *others = (_ended(found, search.goal.metric) for found in jobs.values())
    return {"config": best.number, **winner, **({"dense": others[0]} if others else {})}


def _ended(jobs: Sequence[Job], metric: str) -> dict[str, Any]:
    """The metric and the bytes of those of the jobs that have a result."""
    ended = [(job, result) for job in jobs if (result := job.result) is not None]
    return {
        "runs": [str(job.folder) for job, _ in ended],
        "test_split": ended[0][1].test_split if ended else None,
        "test": [result.test[metric] for _, result in ended],
        "valid": [result.valid[metric] for _, result in ended],
        "bytes": [result.bytes.file for _, result in ended],
        "training_seconds": [result.train.seconds for _, result in ended],
    }


def _dense_words(search: Search) -> list[str]:
    """The words of the widest dense model in 8 bits whose file keeps ``max_bytes``; none if there is none.

    It has all that the command line fixes but its techniques, and else the defaults. Only its width is chosen, and a
    feed-forward width that fills what the step between two widths would leave.
    """
    config = search.request.config
    if search.goal.max_bytes is None or config.init_from is not None:
        return []
    words = [word for word in search.space.outside(search.space.base) if not key_of(word).startswith("technique")]
    words.append("technique=[quantize]")
    if _SMALLER & search.space.compose(words).technique.keys():  # an experiment brings them
        words = [word for word in words if key_of(word) != "experiment"]
    words += _plain_int8(search.space.compose(words))
    dense = search.space.compose(words)
    unit = search.space.unit(dense)
    widths = list(range(unit, 4 * dense.model.width, unit))
    factor = dense.model.ffn_width / dense.model.width
    data = search.fitter.data(dense)
    limit = search.goal.max_bytes * (1 - FIRST_MARGIN)  # no trial tells how its trained weights differ
    width = search.fitter.sizes.widest(dense, data, widths, factor, limit)
    if width is None:
        return []
    ffn = search.fitter.sizes.fullest(at_width(dense, width, factor), data, limit)
    whole = search.budgets[-1]
    words += [f"model.width={width}", f"model.ffn_width={ffn}", "model.name=dense_int8"]
    return [*words, f"trainer.budget.{whole.unit}={whole.amount:.10g}"]


def _plain_int8(config: Root) -> list[str]:
    """The words that make the quantization of ``config`` a plain one in 8 bits, whatever its experiment says of it."""
    plain = asdict(technique_class("quantize").Settings()) | INT8["quantize"]
    given = config.technique["quantize"]
    return [
        f"technique.quantize.{key}={'null' if value is None else str(value).lower()}"
        for key, value in plain.items()
        if given[key] != value
    ]


def _score(search: Search, run: Path) -> dict[str, Any]:
    """The metrics of a trial's final file on the test split, which the trial itself has not read."""
    from tfx.compression.checkpoint import load
    from tfx.evaluation.quality import measure_quality
    from tfx.tasks.prepare import prepare_data

    config = load_config(RunDirectory(run).config)
    config.dataset.splits.test = list(search.request.config.dataset.splits.test)
    loaded = load(run, config.trainer.device)
    architecture = loaded.model.architecture
    data = prepare_data(config.dataset, architecture.context, loaded.tokenizer, outputs=architecture.outputs)
    split = data.splits[data.test_split]
    quality = measure_quality(
        loaded.model, split, loaded.tokenizer, config.evaluation, config.dataset.metrics, seed=config.seed
    )
    return {"split": data.test_split, "metrics": quality.metrics, "signatures": quality.signatures}
