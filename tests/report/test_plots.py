"""Plots as a reader of the page's tables meets them."""

import re

from tfx.report.plots import Point, differences, front


def test_many_points_of_a_front_have_the_numbers_of_the_table():
    numbers = [101, 103, 104, 108, 111, 115, 116, 123]  # those between have no such cost, and no point
    points = [Point(n, f"config {n}", 1.0 + n / 100, n / 1000, None, None, n % 2 == 0, n == 108) for n in numbers]
    plot = front(points, "file, kB", "bleu", "bleu by file")
    shown = re.findall(r">(\d+)</text>", plot.svg)
    assert [int(text) for text in shown if len(text) == 3] == numbers
    assert [int(row[0]) for row in plot.rows] == numbers


def test_what_trained_for_less_is_not_called_worse():
    long = [Point(0, "best", 1.0, 0.9, None, None, True, True), Point(1, "worse", 2.0, 0.8, None, None, False, False)]
    short = Point(2, "short", 3.0, 0.1, None, None, False, False, trained_less=True)
    without, plot = (front(points, "file, kB", "bleu", "bleu by file") for points in (long, [*long, short]))
    assert [row[-1] for row in plot.rows] == ["on the front", "another is better", "trained for less"]
    assert "Grey crosses: trained for less." in plot.svg
    for standing in ("on the front", "another is better", "trained for less"):
        assert f">{standing}</text>" in plot.svg  # the legend
    assert "trained for less" not in without.svg  # nor is there a legend for two marks that the page explains


def test_a_difference_without_an_interval_has_none_in_the_table():
    rows = [("one run", 0.016, 0.016, 0.016), ("five", 0.02, 0.01, 0.03)]
    plot = differences(rows, "accuracy", None, "the start", higher_is_better=True)
    assert plot.rows == [["one run", "+0.016", "–", "–"], ["five", "+0.02", "+0.01", "+0.03"]]
