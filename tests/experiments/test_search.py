"""The course of a search, with trials whose results are a formula: what it asks, trains, promotes and goes on with."""

import json
import math
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest

from tfx.compression.checkpoint import FileBytes
from tfx.config.compose import compose
from tfx.config.schema import ModelConfig
from tfx.config.search import SearchBudget, SearchConfig
from tfx.errors import UserError
from tfx.experiments.jobs import DONE
from tfx.experiments.request import compose_request
from tfx.experiments.search import final, size, space
from tfx.experiments.search import search as search_module
from tfx.experiments.search.axes import named_axes
from tfx.experiments.search.fitting import Fitter
from tfx.experiments.search.front import ranks
from tfx.experiments.search.goal import Goal
from tfx.experiments.search.page import write_search_page
from tfx.experiments.search.search import Search
from tfx.experiments.search.shown import notes
from tfx.model.architecture import Architecture
from tfx.model.transformer import count_parameters
from tfx.record import summary as records
from tfx.record.directory import RunDirectory
from tfx.record.seeds import derive_seed
from tfx.record.summary import COMPLETED, Facts, Result, Speed, Summary, TrainingCost
from tfx.system.signals import StoppedBySignal
from tfx.tasks.prepare import prepare_data
from tfx.techniques.quantize.settings import LEAST_RATE

WORDS = [
    "model.width=range(16,129,8)",
    "model.decoder_layers=range(1,5)",
    "model.dropout=interval(0,0.3)",
    "model.heads=2",
    "model.encoder_layers=1",
    "optimizer.weight_decay=0.1",
    "dataset.metrics=[]",
    "dataset.tokenizer.vocab_size=300",
    "trainer.device=cpu",
    "trainer.budget.steps=90",
]
SETTINGS = SearchConfig(max_bytes=60_000, candidates=3, rungs=2, keep=3, seeds=2, budget=SearchBudget(trials=16))
OVERHEAD = 4000
WRITTEN = size.untrained_bytes
DATA: list = []


@cache
def weights(width: int, ffn_width: int, layers: int) -> int:
    config = ModelConfig(width=width, heads=2, ffn_width=ffn_width, encoder_layers=1, decoder_layers=layers)
    return count_parameters(Architecture.from_config(config, 300))


def estimate(config, tokenizer, outputs=None, origin=None) -> FileBytes:
    """Bytes at the rate of the config, 3 % less than those of the trials."""
    model = config.model
    count = weights(model.width, model.ffn_width, model.decoder_layers)
    size_ = round(count * (config.technique["quantize"]["rate"] or 8) / 8)
    return FileBytes(size_ + OVERHEAD, size_, 1000, 3000)


@cache
def composed(words: tuple[str, ...]):
    """What `compose` gives, once for all searches here."""
    return compose(words)


def prepared(dataset, context):
    """The data of all searches here, which differ in nothing that it depends on."""
    if not DATA:
        DATA.append(prepare_data(dataset, context))
    return DATA[0]


class Trials:
    """Stands for the pool: the loss of a trial is a formula of its config, its length and its seed."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stop_after = math.inf

    def __call__(self, jobs, folder, launcher, machine) -> None:
        for job in jobs:
            if len(self.ran) >= self.stop_after:
                raise StoppedBySignal(15)
            self.ran.append(job.folder.name)
            typed = dict(word.split("=", 1) for word in job.overrides)
            width, layers = int(typed["model.width"]), int(typed.get("model.decoder_layers", 4))
            loss = 3 + (layers - 3) ** 2 / 10 + 10 * (float(typed.get("model.dropout", 0.15)) - 0.1) ** 2
            loss += 20 / int(typed["trainer.budget.steps"]) + abs(math.log(width / 64))
            loss += derive_seed(int(typed["seed"]), "noise", width) % 100 / 1e4
            count = weights(width, int(typed["model.ffn_width"]), layers)
            weights_ = round(1.03 * round(count * float(typed.get("technique.quantize.rate", 8)) / 8))
            if wanted := typed.get("technique.quantize.bytes"):
                weights_ = round(0.998 * int(wanted)) - OVERHEAD
            job.folder.mkdir(parents=True)
            # Outputs of a short training do not end.
            latency = layers * (1 if typed["trainer.budget.steps"] == "90" else 10)
            steps = int(typed["trainer.budget.steps"])
            write_summary(RunDirectory(job.folder), loss, weights_, latency, int(typed["seed"]), steps)
            job.state = DONE


def write_summary(run: RunDirectory, loss: float, weights: int, latency: float, seed: int, steps: int) -> None:
    facts = Facts(1, "seq2seq", None, [], "m", "d", ["quantize"], [], seed, "loss")
    quality = {"loss": loss, "perplexity": math.exp(loss)}
    result = Result(
        test=quality,
        test_split="valid",
        valid=quality,
        signatures={},
        reference=None,
        stages=[],
        bytes=records.FileBytes(4 * weights, weights + OVERHEAD, weights, 1000, 3000),
        parameters=weights,
        train=TrainingCost(seconds=float(steps), flops=1e9),
        inference={"file": Speed({"p50": latency})},
        data={},
        quality_drops=[],
        evidence={},
        resumed=[],
    )
    Summary(COMPLETED, facts, result=result).write(run.summary)


@pytest.fixture(scope="module")
def request_of(tmp_path_factory):
    """Makes the request of the command line, in a folder."""
    folder = tmp_path_factory.mktemp("data")
    for file in ("train.en", "train.de", "val.en", "val.de"):
        (folder / file).write_text("a few words\n" * 8)
    data = ["dataset=multi30k", f"dataset.path={folder}"]
    request_by = {}
    for rate in ("2", "interval(1.5,3)"):
        fixed, axes = named_axes([*WORDS, *data, "technique=quantize", f"technique.quantize.rate={rate}"])
        request_by[rate] = (compose_request(fixed, "search"), axes)

    def request(folder, rate="2"):
        found, axes = request_by[rate]
        return replace(found, folder=folder), axes

    return request


def stand_in(patch) -> Trials:
    found = Trials()
    patch.setattr(search_module, "run_jobs", found)
    patch.setattr(final, "run_jobs", found)
    patch.setattr(size, "untrained_bytes", estimate)
    patch.setattr(space, "compose", lambda words: composed(tuple(words)))
    patch.setattr("tfx.tasks.prepare.prepare_data", prepared)
    return found


@pytest.fixture
def trials(monkeypatch):
    return stand_in(monkeypatch)


def run(request_of, folder, settings=SETTINGS, **which) -> Search:
    request, axes = request_of(folder, **which)
    search = Search(request, settings, axes)
    search.run()
    return search


def state(folder) -> dict:
    return json.loads((folder / "search.json").read_text())["state"]


@pytest.fixture(scope="module")
def course(request_of, tmp_path_factory):
    """A whole search, its folder, and the names of the trials that it ran."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    with pytest.MonkeyPatch.context() as patch:
        found = stand_in(patch)
        return run(request_of, folder), folder, found.ran


def test_rounds_halve_and_leaders_get_a_second_seed(course):
    search, _, ran = course
    assert len(ran) == len(set(ran)) == 16
    for number in range(search.book.rounds):
        entries = search.book.of_round(number)
        if len(entries) == 1:  # it trains for all of the budget at once
            continue
        first = [(search.found.first(entry, 0).quality, entry.number) for entry in entries]
        longer = {trial.number for trial in search.book.trials if trial.rung == 1}
        went_on = [number for _, number in sorted(first) if number in longer]
        assert went_on == [number for _, number in sorted(first)][: max(1, len(entries) // 3)]
    assert search.book.rounds >= 3
    extra = [trial for trial in search.book.trials if trial.seed == 2]
    assert 2 <= len(extra) <= 3
    assert all(trial.rung == 1 for trial in extra)


def test_the_widths_fill_the_limit_once_trials_have_said_how_far_predictions_are_off(course):
    search, _, _ = course
    sizes = [search.found.mean_of(entry).bytes for entry in search.found.ended]
    later = [search.found.mean_of(e).bytes for e in search.found.ended if e.round > 0 and e.values["model.width"] < 128]
    assert search.fitter.sizes.factors["quantize+rate"] == pytest.approx(1.03, abs=1e-3)
    assert max(later) <= 60_000
    assert sum(bytes_ > 0.8 * 60_000 for bytes_ in later) > len(later) / 2
    assert max(sizes) <= 60_000 * 1.02  # the first round did not know of the 3 %


def test_the_best_meets_the_limit_and_the_front_has_it(course):
    search, folder, _ = course
    outcome = json.loads((folder / "search.json").read_text())
    best = search.found.best()
    assert outcome["best_is_met"]
    assert search.found.mean_of(best).bytes <= 60_000
    whole = [entry for entry in search.found.ended if search.found.longest(entry)[0] == 1]
    met = [entry for entry in whole if search.goal.is_met(search.found.mean_of(entry))]
    assert search.found.mean_of(best).quality == min(search.found.mean_of(entry).quality for entry in met)
    front = {row["config"] for row in outcome["front"]}
    assert best.number in front
    assert {row["part_of_budget"] for row in outcome["front"]} == {1.0}  # short trainings say nothing there
    assert outcome["looked_at"] == len(search.book.entries)
    assert outcome["selection"]["optimism"] > 0
    assert outcome["size"]["mean_absolute_error"] < 0.03
    assert {row["key"] for row in outcome["worth"]} >= {"model.decoder_layers", "model.dropout"}


def test_an_error_of_a_predicted_size_says_in_which_direction(course):
    outcome = course[0].book.outcome
    for error, says in (
        (-0.03, "3.00%, the file was larger;"),
        (0.02, "2.00%, the file was smaller;"),
        (0.0, "0.00%;"),
    ):
        lines = notes(outcome | {"size": outcome["size"] | {"largest_error": error}})
        assert [line for line in lines if f"(largest error {says}" in line]
    assert outcome["size"]["largest_error"] < 0  # as of predictions that are 3 % too small


def test_the_page_fills_what_trained_longest_alone(course):
    search, _, _ = course
    page = write_search_page(search).read_text()
    (by_bytes, *_) = re.findall(r"On the Pareto front, filled: (.*?)\.", page)
    filled = {int(name.removeprefix("config ")) for name in by_bytes.split(", ")}
    assert filled
    assert all(search.found.longest(search.book.entries[number])[0] == 1 for number in filled)
    assert re.search(r"config \d+ \(33% trained\)", page)


def test_the_page_says_of_short_trainings_that_they_are_short(course):
    search, _, _ = course
    page = write_search_page(search).read_text()
    text, cell = '<td class="text">', r"<td>[^<]*</td>"
    row = rf"{text}(\d+)</td>{text}config (\d+)( \(33% trained\))?</td>{cell * 2}<td>([a-z ]+)</td></tr>"
    rows = re.findall(row, page)
    assert len(rows) == 2 * len(search.book.entries)
    assert all(number == config for number, config, *_ in rows)
    assert {state for *_, short, state in rows if short} == {"trained for less"}
    assert {state for *_, short, state in rows if not short} <= {"on the front", "another is better"}


def test_the_latency_of_a_short_training_is_the_predicted_one(request_of, trials, tmp_path):
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1))
    long = next(entry for entry in search.book.entries if search.found.longest(entry)[0] == 1)
    measured = search.found.mean_of(long).latency_ms
    layers = long.values["model.decoder_layers"]
    assert (search.found.first(long, 0).latency_ms, measured) == (10 * layers, layers)
    for entry in search.book.entries:
        known = float(entry.values["model.decoder_layers"])
        entry.predicted = replace(entry.predicted, latency_ms=7.5, untrained_latency_ms=known)
    assert search.found.first(long, 0).latency_ms == 7.5
    assert search.found.mean_of(long).latency_ms == measured
    search._learn()  # from whole trainings alone, whose latency was known
    assert set(search.fitter.latencies._factors.values()) == {1.0}


@pytest.mark.parametrize("count", [5, 6, 11, 16, 23])
def test_what_seeds_have_no_use_for_trains_more_configs(request_of, trials, tmp_path, count):
    search = run(request_of, tmp_path / "s", replace(SETTINGS, budget=SearchBudget(trials=count)))
    assert (len(search.book.trials), len(trials.ran), search.left) == (count, count, 0)
    # A fifth of what was left is kept again, for seeds of what the rounds after the first seeds have found.
    seeds = [trial.seed for trial in search.book.trials]
    assert count < 11 or 1 in seeds[seeds.index(2) :]


def test_trainings_without_use_are_counted(request_of, trials, tmp_path, monkeypatch):
    first = search_module.propose
    monkeypatch.setattr(search_module, "propose", lambda *given: first(*given) if given[4] == 0 else [])
    search = run(request_of, tmp_path / "s", replace(SETTINGS, budget=SearchBudget(trials=7)))
    assert (len(search.book.trials), search.left) == (4, 3)


def test_another_winner_is_not_scored_once(request_of, trials, tmp_path, monkeypatch):
    monkeypatch.setattr(final, "_score", lambda search, run: {"split": "test", "metrics": {"loss": 3.0}})
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1, budget=SearchBudget(trials=4)))
    final.finish(search)
    assert "on test, once, for the winner: loss 3" in notes(search.book.outcome)
    first = search.book.outcome["test"]["run"]
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1, budget=SearchBudget(trials=40)))
    assert search.book.outcome["best"] != first
    assert not [line for line in notes(search.book.outcome) if line.startswith("on test")]
    final.finish(search)
    assert "on test (as 1 earlier winner of this search), for the winner: loss 3" in notes(search.book.outcome)


def test_what_breaks_the_limits_is_said_to_be_the_nearest(request_of, trials, tmp_path):
    request, axes = request_of(tmp_path / "s")
    search = Search(request, replace(SETTINGS, max_bytes=None, min_quality=0.5, objective="bytes"), axes)
    search.run()
    assert any("* is the nearest" in line for line in notes(search.book.outcome))


@pytest.mark.parametrize("stop_after", [2, 9, 13, 14, 15])
def test_a_search_that_is_killed_goes_on_to_the_same_trials(course, request_of, trials, tmp_path, stop_after):
    _, whole, ran = course
    folder = tmp_path / "s"
    trials.stop_after = stop_after
    with pytest.raises(StoppedBySignal):
        run(request_of, folder)
    trials.stop_after = math.inf
    run(request_of, folder)
    assert trials.ran == ran  # none twice, none other
    ours, theirs = state(folder), state(whole)
    assert ours["entries"] == theirs["entries"]
    assert ours["trials"] == theirs["trials"]


def test_it_finds_more_than_chance_with_the_same_trainings(course):
    search, _, _ = course
    found = search.found.mean_of(search.found.best())
    # Of what the first round drew at random, the best after the same length of training.
    drawn = [search.found.first(entry, 0).quality for entry in search.book.of_round(0)]
    assert search.found.first(search.found.best(), 0).quality <= min(drawn)
    assert found.quality < 3.6  # 3.22 is the least that there is


def test_a_larger_budget_goes_on(course, request_of, trials, tmp_path):
    folder = tmp_path / "s"
    run(request_of, folder, replace(SETTINGS, budget=SearchBudget(trials=4), seeds=1))
    before = list(trials.ran)
    run(request_of, folder, replace(SETTINGS, budget=SearchBudget(trials=8), seeds=1))
    assert trials.ran[: len(before)] == before
    assert len(before) <= 4 < len(trials.ran) <= 8


def test_a_front_around_the_limit_has_files_on_both_sides(request_of, trials, tmp_path):
    settings = replace(SETTINGS, spread=2.0, seeds=1, candidates=8, budget=SearchBudget(trials=10))
    search = run(request_of, tmp_path / "s", settings)
    sizes = [search.found.mean_of(entry).bytes for entry in search.found.ended]
    assert min(sizes) < 45_000
    # Each size is tried in a round, and beside the best for the limit the ends of the front are trained for long.
    limits = [entry.values["file_bytes"] for entry in search.book.entries]
    assert set(limits[:6]) == {30_000, 42_426, 60_000, 84_853, 120_000}
    whole = {trial.number for trial in search.book.trials if trial.rung == 1}
    ended = [search.found.first(entry, 0) for entry in search.book.entries]
    points = [(search.goal.gain_of(found), -found.bytes) for found in ended]
    front = [place for place, rank in enumerate(ranks(points)) if rank == 0]
    assert min(front, key=lambda place: ended[place].bytes) in whole
    assert max(front, key=lambda place: search.goal.key(ended[place])) in whole
    assert 60_000 < max(sizes) <= 120_000 * 1.02
    best = search.found.best()
    assert search.found.mean_of(best).bytes <= 60_000


def test_the_winner_and_a_dense_model_of_its_size_train_again_with_new_seeds(request_of, trials, tmp_path):
    settings = replace(SETTINGS, seeds=1, budget=SearchBudget(trials=4), final=True, final_seeds=2)
    search = run(request_of, tmp_path / "s", settings)
    before = list(trials.ran)
    final.finish(search)
    number = search.found.best().number
    names = [f"{number:04d}-seed2", "dense_int8-seed2", f"{number:04d}-seed3", "dense_int8-seed3"]
    assert trials.ran == before + names
    outcome = json.loads((tmp_path / "s" / "search.json").read_text())["final"]
    assert len(outcome["test"]) == len(outcome["dense"]["test"]) == 2
    # The dense model is as large as the limit allows; the stand-in has eight bits a weight, 3 % more than a file.
    dense = outcome["dense"]["bytes"][0]
    assert 57_000 < dense / 1.03 <= 60_000
    words = next(job.overrides for job in search.jobs if job.folder.name == "dense_int8-seed2")
    assert "technique=[quantize]" in words
    assert "technique.quantize.bits=8" in words
    assert "dataset.splits.test=[]" not in words
    assert "trainer.budget.steps=90" in words


def test_where_the_rate_is_an_axis_files_are_made_to_fill_the_limit(request_of, trials, tmp_path):
    settings = replace(SETTINGS, seeds=1, budget=SearchBudget(trials=8))
    search = run(request_of, tmp_path / "s", settings, rate="interval(1.5,3)")
    found = [search.found.mean_of(entry) for entry in search.found.ended]
    assert {one.bytes for one in found} == {round(0.998 * 60_000)}
    outcome = json.loads((tmp_path / "s" / "search.json").read_text())
    assert outcome["size"]["mean_absolute_error"] == 0  # the size of such a file is known
    assert search.fitter.sizes.factors == {}  # and teaches nothing about rates
    assert "technique.quantize.bytes=60000" in outcome["command"]
    # Bytes decide the rate: the one of its axis has led to the width alone.
    assert all("technique.quantize.rate" not in row["values"] for row in outcome["tried"] + outcome["front"])
    assert all("technique.quantize.bytes=60000" in job.overrides for job in search.jobs)
    # The width is the widest whose file has the rate of the axis: eight more do not fit.
    for entry in search.book.entries:
        width, rate = entry.values["model.width"], entry.values["technique.quantize.rate"]
        config = search.space.config(entry.values)
        assert estimate(config, None).file <= 60_000
        wider = {**entry.values, "model.width": width + 8}
        assert width == 128 or estimate(search.fitter.config(wider), None).file > 60_000, rate


def test_two_trials_are_two_configs(request_of, trials, tmp_path):
    settings = replace(SETTINGS, rungs=3, budget=SearchBudget(trials=2))
    search = run(request_of, tmp_path / "s", settings)
    assert trials.ran == ["0000-rung2-seed1", "0001-rung2-seed1"]
    assert search.found.best() is not None


@pytest.mark.parametrize("rate", ["2", "interval(1.5,3)"])
def test_the_first_config_is_the_command_s_own(request_of, trials, tmp_path, rate):
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1, budget=SearchBudget(trials=4)), rate=rate)
    own, first = search.request.config, search.book.entries[0].values
    # The own dropout, and the nearest to its layers that the axes have.
    assert first["model.dropout"] == own.model.dropout
    assert first["model.decoder_layers"] == own.model.decoder_layers == 4
    if rate != "2":  # the rate is the one that brings the width nearest to its own
        others = [search.fitter.accept(first | {"technique.quantize.rate": at}) for at in (1.6, 2.0, 2.5, 3.0)]
        off = [abs(one["model.width"] - own.model.width) for one in others if one is not None]
        assert abs(first["model.width"] - own.model.width) <= min(off)


def test_of_models_of_one_width_the_limit_decides_the_rate(request_of, tmp_path):
    request, _ = request_of(tmp_path / "s", rate="interval(1.5,3)")
    typed = [*(word for word in request.typed if "quantize.rate" not in word), "model.width=64"]
    space_ = space.make_space(typed, {}, request.config, Goal.of(SETTINGS, request.config))
    assert not {"technique.quantize.rate", "embedding_rate_factor", "model.width"} & space_.axes.keys()
    assert "technique.quantize.bytes=60000" in space_.words({"ffn_factor": 2, "model.width": 64})
    least = space_.config({"ffn_factor": 2, "model.width": 64}).technique["quantize"]["rate"]
    assert least == LEAST_RATE  # what the smallest file of such a model has


@pytest.mark.parametrize(("bits", "highest"), [([], 6), (["technique.quantize.bits=5"], 3)], ids=["8 bits", "5 bits"])
def test_a_file_is_no_larger_than_its_highest_rate_makes_it(request_of, trials, tmp_path, bits, highest):
    request, _ = request_of(tmp_path / "s", rate="interval(1.5,3)")
    typed = [word for word in request.typed if not word.startswith("technique")]
    typed += ["model.width=64", "technique=quantize"]
    config = compose(typed)
    for limit, is_filled in ((60_000, True), (900_000, False)):
        goal = replace(Goal.of(SETTINGS, config), max_bytes=limit)
        space_ = space.make_space(typed, {}, config, goal)
        space_ = replace(space_, base=(*space_.base, *bits))  # as an experiment sets them
        found = Fitter(space_, goal, config).predict({"ffn_factor": 2})
        most = OVERHEAD + round(found.untrained_weights * highest / LEAST_RATE)
        assert found.bytes == (round(0.998 * limit) if is_filled else most) <= limit


def test_a_pruned_file_has_what_its_own_weights_have_room_for(request_of, trials, tmp_path, monkeypatch):
    monkeypatch.setattr(size, "untrained_bytes", WRITTEN)
    request, _ = request_of(tmp_path / "s", rate="interval(1.5,3)")
    typed = [word for word in request.typed if not word.startswith("technique")]
    typed += ["model.width=64", "technique=[prune,quantize]", "technique.prune.sparsity=0.5"]
    config = compose(typed)
    goal = replace(Goal.of(SETTINGS, config), max_bytes=900_000)
    fitter = Fitter(space.make_space(typed, {}, config, goal), goal, config)

    def at(rate):
        found = fitter.config({"ffn_factor": 2})
        quantize = found.technique["quantize"] | {"rate": rate}
        return fitter.sizes.predict(
            replace(found, technique=found.technique | {"quantize": quantize}), prepared(None, 0)
        )

    # Half of the blocks' weights are zero: they have no room for six bits, and embeddings have.
    most = fitter.predict({"ffn_factor": 2}).bytes
    assert at(4.0) < most == at(6.0) < 6.0 / 4.0 * at(4.0)


def test_sizes_that_a_model_cannot_fill_are_one(request_of, trials, tmp_path):
    request, _ = request_of(tmp_path / "s", rate="interval(1.5,3)")
    typed = [*(word for word in request.typed if "quantize.rate" not in word), "model.width=64"]
    goal = replace(Goal.of(SETTINGS, request.config), max_bytes=400_000, spread=2.0)
    fitter = Fitter(space.make_space(typed, {}, request.config, goal), goal, request.config)
    kept = [size for size in (200_000, 282_843, 400_000, 565_685, 800_000)
            if fitter.accept({"ffn_factor": 2, "file_bytes": size}) is not None]  # fmt: skip
    most = fitter.predict({"ffn_factor": 2, "file_bytes": 800_000}).bytes
    assert kept[-2] < most <= kept[-1]
    assert fitter.own(request.config)["file_bytes"] == max(size for size in kept if size <= 400_000)


@pytest.mark.parametrize(("sparsity", "most"), [(0.7, 2.68), (0.5, 4.0), (0, 6.0)])
def test_a_rate_that_pruned_weights_cannot_have_is_not_tried(request_of, trials, tmp_path, sparsity, most):
    request, _ = request_of(tmp_path / "s", rate="interval(1.5,3)")
    typed = [word for word in request.typed if "technique" not in word]
    typed += ["model.width=64"]
    goal = Goal.of(replace(SETTINGS, max_bytes=None, min_quality=3.0, objective="bytes"), request.config)
    fitter = Fitter(space.make_space(typed, {}, request.config, goal), goal, request.config)
    rest = {"ffn_factor": 2, "embedding_rate_factor": None, "technique.prune.sparsity": sparsity}
    for rate, is_tried in ((most - 0.05, True), (most + 0.05, False)):
        if rate <= 6:
            assert (fitter.accept(rest | {"technique.quantize.rate": rate}) is not None) is is_tried


def timed_search(request_of, trials, folder, monkeypatch, settings, first=0.0):
    """A search of one trial at a time, each with ten seconds and one for each step; the ``first`` takes more."""
    now = [0.0]

    def timed(jobs, folder, launcher, machine) -> None:
        now[0] += 0.0 if trials.ran else first
        trials(jobs, folder, launcher, machine)
        steps = [int(word.partition("steps=")[2]) for job in jobs for word in job.overrides if "budget.steps=" in word]
        now[0] += math.ceil(len(jobs) / machine.jobs) * (10 + steps[0])

    monkeypatch.setattr(search_module, "run_jobs", timed)
    monkeypatch.setattr(search_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    request, axes = request_of(folder)
    search = Search(request, settings, axes)
    search.machine = replace(search.machine, jobs=1)
    return search, now


def test_time_bounds_trainings_that_are_counted_in_steps(request_of, trials, tmp_path, monkeypatch):
    settings = replace(SETTINGS, candidates=9, seeds=1, budget=SearchBudget(seconds=300.0))
    search, now = timed_search(request_of, trials, tmp_path / "s", monkeypatch, settings)
    search.run()
    # 40 seconds for a short training and 100 for a whole one: nine short ones alone would take 360.
    assert now[0] <= 300
    assert any(trial.rung == 1 for trial in search.book.trials)
    assert len(search.book.entries) == len(search.found.ended)  # what there is no time for is not planned
    assert 3 <= len(search.book.of_round(0)) < 9
    # A repeat asks for the same, and has no time for anything else.
    ran = list(trials.ran)
    request, axes = request_of(tmp_path / "s")
    again = Search(request, settings, axes)
    again.machine = search.machine
    again.run()
    assert trials.ran == ran


def test_what_the_first_trial_takes_once_is_not_expected_of_all(request_of, trials, tmp_path, monkeypatch):
    settings = replace(SETTINGS, candidates=3, seeds=1, budget=SearchBudget(seconds=300.0))
    search, _ = timed_search(request_of, trials, tmp_path / "s", monkeypatch, settings, first=60.0)
    search.run()
    assert "1" in search.book.clock
    search.book.clock = {"0": [100.0, 40.0]}
    assert search._expected(0) == 40
    assert search._expected(1) == 90 + 10


def test_the_first_whole_training_takes_what_is_left(request_of, trials, tmp_path, monkeypatch):
    settings = replace(SETTINGS, candidates=2, seeds=1, budget=SearchBudget(seconds=300.0))
    # By what the first trial took on top of its training, a whole one would take 190 seconds.
    search, now = timed_search(request_of, trials, tmp_path / "s", monkeypatch, settings, first=90.0)
    search.run()
    assert trials.ran == ["0000-rung0-seed1", "0000-rung1-seed1"]
    assert now[0] == 230


def test_time_that_seeds_have_no_use_for_trains_more_configs(request_of, trials, tmp_path, monkeypatch):
    settings = replace(SETTINGS, candidates=1, seeds=2, budget=SearchBudget(seconds=2000.0))
    search, now = timed_search(request_of, trials, tmp_path / "s", monkeypatch, settings)
    search.run()
    # Sixteen configs, a second seed of the three best, and another config.
    assert [trial.seed for trial in search.book.trials] == [1] * 16 + [2] * 3 + [1]
    assert now[0] == 2000


def test_the_dense_model_is_chosen_once(request_of, trials, tmp_path):
    settings = replace(SETTINGS, seeds=1, budget=SearchBudget(trials=4), final=True, final_seeds=1)
    final.finish(run(request_of, tmp_path / "s", settings))
    request, axes = request_of(tmp_path / "s")
    again = Search(request, replace(settings, final_seeds=2), axes)
    again.fitter.sizes._factors = {"quantize+8 bits": 1.3}  # a search that goes on has learned something else
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final, "run_jobs", lambda jobs, *_: asked.extend(jobs))
        final.finish(again)
    words = {job.folder.name: job.overrides[:-1] for job in asked}
    assert words["dense_int8-seed2"] == words["dense_int8-seed3"] == again.book.dense
    narrower = final._dense_words(again)
    assert [word for word in narrower if word not in again.book.dense]  # as it would have chosen now


def test_a_dense_model_of_an_experiment_is_a_plain_one_in_8_bits(request_of, trials, tmp_path):
    plain = compose(["technique=quantize", "technique.quantize.bits=8", "technique.quantize.granularity=channel"])
    recipe = ["technique=[quantize]", "technique.quantize.rate=1.9", "technique.quantize.start=0.0"]
    words = final._plain_int8(compose(recipe))
    assert compose([*recipe, *words]).technique == plain.technique
    # A recipe with a teacher is none for a model that has no teacher.
    request, axes = request_of(tmp_path / "s", rate="interval(1.5,3)")
    search = Search(request, SETTINGS, axes)
    search.space = replace(search.space, base=(*search.space.base, "experiment=small", "technique.distill.teacher=T"))
    dense = compose(final._dense_words(search))
    assert dense.technique == plain.technique
    assert dense.model.width < 128


def test_final_figures_are_those_of_the_winner(course):
    search, _, _ = course
    best = search.found.best().number
    arm = {"runs": [], "test_split": "test", "test": [3.0], "valid": [3.0], "bytes": [5], "training_seconds": [9.0]}
    said = {number: notes(search.book.outcome | {"final": {"config": number, **arm}}) for number in (best, best + 1)}
    assert [line for line in said[best] if line.startswith("the winner, trained for")]
    assert not [line for line in said[best + 1] if line.startswith("the winner, trained for")]


def test_a_winner_without_a_whole_training_is_said_to_be_one_and_reads_no_test_data(
    course, request_of, trials, tmp_path, monkeypatch
):
    monkeypatch.setattr(final, "_score", lambda search, run: {"split": "test", "metrics": {"loss": 3.0}})
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1, budget=SearchBudget(trials=4)))
    search.book.trials = [trial for trial in search.book.trials if trial.rung == 0]  # as if the time had ended
    search.keep()
    final.finish(search)
    assert "test" not in search.book.outcome
    assert [
        line for line in notes(search.book.outcome) if line.startswith("no config had a whole training: the winner")
    ]
    whole, _, _ = course
    best = whole.found.best()
    seeds = len(whole.found.at_full(best))
    assert seeds > 1
    assert f"the winner's loss is the mean of {seeds} seeds; `best` is the run of the best of them" in notes(
        whole.book.outcome
    )


def test_a_space_without_another_config_is_exhausted(request_of, trials, tmp_path, monkeypatch):
    first = search_module.propose
    monkeypatch.setattr(search_module, "propose", lambda *given: first(*given) if given[4] == 0 else [])
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1))
    assert search.book.rounds == 1
    assert search.is_exhausted
    enough = run(request_of, tmp_path / "t", replace(SETTINGS, seeds=1, budget=SearchBudget(trials=4)))
    assert not enough.is_exhausted


def test_what_breaks_a_limit_gets_no_more_seeds_where_others_keep_it(request_of, trials, tmp_path):
    search = run(request_of, tmp_path / "s", replace(SETTINGS, seeds=1))
    whole = [entry for entry in search.found.ended if search.found.at_full(entry)]
    assert len(whole) > 1
    smallest = min(whole, key=lambda entry: search.found.mean_of(entry).bytes)
    limit = round(search.found.mean_of(smallest).bytes)
    search.goal = replace(search.goal, max_bytes=limit)
    assert search._leaders(9)[0] == [smallest]
    search.goal = replace(search.goal, max_bytes=limit - 1)
    assert len(search._leaders(9)[0]) > 1  # none keeps it


def test_a_choice_whose_settings_do_not_fit_ends_no_search(request_of, trials, tmp_path, monkeypatch):
    request, axes = request_of(tmp_path / "s")
    fitter = Search(request, SETTINGS, axes).fitter
    values = {"model.decoder_layers": 2, "model.dropout": 0.1, "ffn_factor": 2, "optimizer.weight_decay": 0.1}
    assert fitter.accept(values) is not None

    def refused(*_):
        raise UserError("a group of 64 in a matrix of 32 columns")

    monkeypatch.setattr(fitter.sizes, "predict", refused)
    assert fitter.accept(values) is None
    assert "a group of 64" in str(fitter.refusal)


def test_the_smallest_config_is_pruned_most_and_one_whose_settings_fit(request_of, trials, tmp_path, monkeypatch):
    monkeypatch.setattr(size, "untrained_bytes", WRITTEN)
    request, _ = request_of(tmp_path / "s", rate="interval(1.5,3)")
    given = [word for word in request.typed if not word.startswith(("technique", "model.heads"))]
    given += ["model.decoder_layers=1", "technique.quantize.bits=4"]
    goal = Goal.of(SETTINGS, request.config)

    def smallest(*more):
        typed = [*given, *more]
        config = compose([*typed, "model.heads=4", "model.kv_heads=2", "technique=[prune,quantize]"])
        return Fitter(space.make_space(typed, {}, config, goal), goal, config)._smallest()[0]

    found = smallest("model.kv_heads=4")
    assert found["model.heads"] == 4  # two heads have no four of keys and values
    assert found["technique.prune.sparsity"] == 0.7
    with pytest.raises(UserError, match="kv_heads"):
        smallest("model.kv_heads=3")


def test_where_nothing_ended_none_goes_on(request_of, trials, tmp_path):
    request, axes = request_of(tmp_path / "s")
    search = Search(request, replace(SETTINGS, spread=2.0), axes)
    assert search._promote([], 0, 3) == []
