"""The tables of labels of a report count what the predictions say."""

from tfx.report.confusion import confusion


def row(reference, hypothesis):
    return {"reference": reference, "hypothesis": hypothesis, "f1_macro": [[0], [0], 3]}


def test_labels_are_counted_by_what_is_right_and_what_is_said():
    rows = [row("a", "a"), row("a", "b"), row("b", "b"), row("a", "a"), row("c\nd", "a")]
    found = confusion(rows)
    assert found.matrix_columns == ["right", "a", "b", "c d"]
    assert found.matrix == [["a", "2", "1", "0"], ["b", "0", "1", "0"], ["c d", "1", "0", "0"]]
    assert found.labels[0] == ["a", "3", "3", "0.667", "0.667", "0.667"]
    assert found.labels[2] == ["c d", "1", "0", "–", "0.000", "0.000"]


def test_several_labels_have_rows_and_no_matrix():
    found = confusion([row(["a", "b"], ["a"]), row([], ["b"])])
    assert found.matrix == []
    assert found.labels == [["a", "1", "1", "1.000", "1.000", "1.000"], ["b", "1", "1", "0.000", "0.000", "0.000"]]


def test_predictions_of_other_tasks_have_no_labels():
    assert confusion([]) is None
    assert confusion([{"reference": "a", "hypothesis": "b", "bleu": [1]}]) is None
    assert confusion([row("a", "a"), {"reference": 1.5, "hypothesis": 2.0, "pearson": [1, 2]}]) is None
