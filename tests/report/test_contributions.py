"""What each technique adds, against arithmetic done by hand."""

import json
from itertools import combinations, permutations

import numpy as np
import pytest

from tfx.cli import main
from tfx.report.comparison import compare_runs

NAMES = ("distill", "prune", "quantize")
SUBSETS = [subset for size in range(4) for subset in combinations(NAMES, size)]


def quality(subset: tuple[str, ...], seed: int) -> float:
    """Not additive: two techniques together give less than the sum, and each seed has its luck."""
    value = 0.4 + 0.2 * ("distill" in subset) - 0.1 * ("prune" in subset) - 0.02 * len(subset) ** 2
    return value + 0.003 * (seed * 5 % 7)


@pytest.fixture
def ablation(tmp_path, run_writer):
    """Every subset of three techniques with three seeds each, and the score of each run."""
    scores = {}
    for subset in SUBSETS:
        for seed in (1, 2, 3):
            folder = tmp_path / ("+".join(subset) or "baseline") / str(seed)
            run_writer(folder, techniques=subset, seed=seed, quality=quality(subset, seed), sentences=60)
            scores[subset, seed] = json.loads((folder / "summary.json").read_text())["test"]["exact_match"]
    return tmp_path, scores


def mean(scores, subset) -> float:
    return float(np.mean([scores[tuple(sorted(subset)), seed] for seed in (1, 2, 3)]))


def test_alone_given_the_others_and_on_average(ablation):
    folder, scores = ablation
    (family,) = compare_runs([folder]).families
    rows = {row.technique: row for row in family.contributions}
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        others = [other for other in NAMES if other != name]
        assert row.alone.value == pytest.approx(mean(scores, [name]) - mean(scores, []))
        assert row.given_others.value == pytest.approx(mean(scores, NAMES) - mean(scores, others))
        # Shapley's own definition: over all orders in which the techniques may come.
        orders = list(permutations(NAMES))
        gains = [mean(scores, o[: o.index(name) + 1]) - mean(scores, o[: o.index(name)]) for o in orders]
        assert row.average.value == pytest.approx(np.mean(gains))
        for found in (row.alone, row.given_others, row.average):
            assert found.low < found.value < found.high
    total = sum(row.average.value for row in rows.values())
    assert total == pytest.approx(mean(scores, NAMES) - mean(scores, []))


def test_what_was_not_run_is_not_claimed(ablation, capsys):
    folder, _ = ablation
    assert main(["report", str(folder), "--json"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert all(row["average"]["value"] is not None for row in family["contributions"])
    for file in (folder / "prune").glob("*/*"):
        file.unlink()
    assert main(["report", str(folder)]) == 0
    assert "What each technique adds" in (folder / "report.html").read_text()
    (family,) = compare_runs([folder]).families
    rows = {row.technique: row for row in family.contributions}
    assert rows["prune"].alone is None
    assert rows["prune"].given_others is not None
    assert all(row.average is None for row in rows.values())


def test_arms_with_other_settings_are_not_taken_for_the_same_technique(ablation, run_writer):
    folder, _ = ablation
    for seed in (1, 2, 3):
        config = folder / "quantize" / str(seed) / "config.yaml"
        config.write_text(config.read_text().replace("share: 0.5", "share: 0.9"))
        narrow = folder / "prune" / str(seed) / "config.yaml"
        narrow.write_text(narrow.read_text() + "trainer: {budget: {tokens: 7}}\n")
    rows = {row.technique: row for row in compare_runs([folder]).families[0].contributions}
    assert rows["quantize"].alone is None
    assert rows["prune"].alone is not None  # FLOPs may be matched instead of tokens


def test_two_arms_are_no_ablation(sweep):
    assert compare_runs([sweep]).families[0].contributions == []
