"""What a run cost is told with all that it stands on, whether its own summary counts that or not."""

import pytest

from tfx.report.comparison import compare_runs
from tfx.report.runs_file import keep, write_kept


def seconds(*paths) -> dict[str, float]:
    arms = compare_runs(paths).families[0].arms
    return {run.path.name: run.seconds for arm in arms for run in (*arm.runs, *arm.repetitions)}


@pytest.fixture
def line(tmp_path, run_writer):
    """A model, one that went on from it, its test with other decoding, and one taught by that test.

    Each of their summaries counts the last step before it at most.
    """

    def write(name, spent, techniques=(), settings="", **more):
        run = run_writer(tmp_path / name, techniques=techniques, summary={"train": spent, **more})
        (run / "config.yaml").write_text(settings + (run / "config.yaml").read_text())
        return run

    first = {"tokens": 100, "seconds": 100.0, "flops": 1e9}
    on = {"tokens": 10, "seconds": 10.0, "flops": 1e8}
    none = {"tokens": 0, "seconds": 0.0, "flops": 0.0}
    runs = [
        write("dense", first),
        write("on", on, settings=f"init_from: {tmp_path}/dense\n", reference={"name": "init_from", "train": first}),
        write("scored", none, settings=f"init_from: {tmp_path}/on\n", reference={"name": "init_from", "train": on}),
    ]
    for name, counted in (("taught", 0), ("paid", 10), ("all", 110)):
        # Two of its seconds went into the teacher's outputs.
        spent = first | {"teacher_tokens": counted, "teacher_seconds": 2.0 + counted}
        run = write(name, spent, ("distill",))
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("distill: {", f"distill: {{teacher: {tmp_path}/scored, "))
        runs.append(run)
    # One whose teacher is the model that it started from.
    spent = first | {"teacher_tokens": 110, "teacher_seconds": 2.0 + 110}
    run = write("both", spent, ("distill",), settings=f"init_from: {tmp_path}/scored\n")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("distill: {", f"distill: {{teacher: {tmp_path}/scored, "))
    return tmp_path, [*runs, run]


COSTS = {"dense": 100, "on": 110, "scored": 110, "taught": 212, "paid": 212, "all": 212, "both": 212}


def test_a_run_pays_for_the_whole_line_of_its_model_and_of_its_teacher(line):
    root, _ = line
    assert seconds(root) == COSTS
    # Nor does it matter which of them the report is about.
    assert seconds(root / "scored", root / "taught") == {"scored": 110, "taught": 212}


def test_kept_runs_cost_what_their_directories_do(line, tmp_path_factory):
    runs = line[1]
    folder = tmp_path_factory.mktemp("kept")
    names = {str(run): f"study/{run.name}" for run in runs}
    write_kept(folder / "study.runs.jsonl", [keep(run, run.name, names=names) for run in runs])
    assert seconds(folder) == COSTS


def test_where_an_ancestor_is_gone_the_summaries_stand(line):
    root, _ = line
    (root / "on" / "summary.json").write_text("{")
    assert seconds(root / "scored") == {"scored": 10}
    (root / "scored" / "summary.json").unlink()
    assert seconds(root / "paid") == {"paid": 112}


def test_a_run_that_started_from_itself_ends_the_line(line):
    root, _ = line
    config = root / "dense" / "config.yaml"
    config.write_text(f"init_from: {root}/scored\n{config.read_text()}")
    assert seconds(root / "dense")["dense"] == 210


def test_a_run_pays_for_the_lines_of_all_its_teachers(line, run_writer, tmp_path):
    root, _ = line
    # Of the second teacher's line it counts the last model alone, of the first one's nothing.
    spent = {"tokens": 5, "seconds": 5.0, "teacher_tokens": 10, "teacher_seconds": 10.0}
    run = run_writer(tmp_path / "ensemble", techniques=("distill",), summary={"train": spent})
    text = (run / "config.yaml").read_text()
    teachers = f"distill: {{teacher: [{root}/dense, {root}/on], "
    (run / "config.yaml").write_text(text.replace("distill: {", teachers))
    assert seconds(run)["ensemble"] == 5 + 100 + 110
