"""Plots as a reader of the page's tables meets them."""

import re

from tfx.report.plots import Point, differences, front


def test_many_points_of_a_front_have_the_numbers_of_the_table():
    numbers = [101, 103, 104, 108, 111, 115, 116, 123]  # those between have no such cost, and no point
    points = [Point(n, f"config {n}", 1.0 + n / 100, n / 1000, None, None, n % 2 == 0, n == 108) for n in numbers]
    shown = re.findall(r">(\d+)</text>", front(points, "file, kB", "bleu", "bleu by file").svg)
    assert [int(text) for text in shown if len(text) == 3] == numbers


def test_a_difference_without_an_interval_has_none_in_the_table():
    rows = [("one run", 0.016, 0.016, 0.016), ("five", 0.02, 0.01, 0.03)]
    plot = differences(rows, "accuracy", None, "the start", higher_is_better=True)
    assert plot.rows == [["one run", "+0.016", "–", "–"], ["five", "+0.02", "+0.01", "+0.03"]]
