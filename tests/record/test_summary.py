"""`summary.json` by its one reader and writer: today's come back whole, and earlier ones are still read."""

import json
from pathlib import Path

import pytest

from tfx.errors import UserError
from tfx.record.summary import Facts, Summary, TrainingCost

KEPT = sorted((Path(__file__).parents[2] / "docs" / "results").rglob("*.runs.jsonl"))
FACTS = Facts(1, "lm", None, ["a"], "gpt_nano", "stdlib", ["prune"], [], 3, "loss")


def test_a_failed_run_has_its_facts_and_why(tmp_path):
    summary = Summary("failed", FACTS, "no space left")
    summary.write(tmp_path / "summary.json")
    assert list(json.loads((tmp_path / "summary.json").read_text()))[:3] == ["status", "error", "format_version"]
    assert Summary.read(tmp_path / "summary.json") == summary
    assert summary.objective is None


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_summaries_that_earlier_versions_wrote_are_read_and_written_again(file, tmp_path):
    for line in file.read_text().splitlines():
        content = json.loads(line)["summary"]
        summary = Summary.from_dict(content)
        assert summary.objective == content["valid"][content["primary_metric"]]
        assert summary.result.train.steps == content["train"]["steps"]
        assert [stage.bytes for stage in summary.result.stages] == [row["bytes"] for row in content["stages"]]
        summary.write(tmp_path / "summary.json")
        assert Summary.read(tmp_path / "summary.json") == summary
        again = json.loads((tmp_path / "summary.json").read_text())
        # What the file had is there still; what it lacked has a default.
        assert {name: again[name] for name in content}.keys() == content.keys()
        for name in ("test", "valid", "evidence", "signatures", "bytes"):
            assert again[name] | content[name] == again[name]


def test_the_kept_runs_are_there_to_be_read():
    assert len(KEPT) >= 5


@pytest.mark.parametrize("missing", ["seed", "task", "dataset", "test", "bytes", "train"])
def test_a_completed_run_that_lacks_what_every_version_wrote_is_no_summary(missing, tmp_path):
    content = json.loads(KEPT[0].read_text().splitlines()[0])["summary"]
    del content[missing]
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=missing):
        Summary.read(tmp_path / "summary.json")


def test_a_failed_run_of_an_earlier_version_may_lack_its_facts(tmp_path):
    (tmp_path / "summary.json").write_text('{"status": "failed", "error": "boom"}')
    assert Summary.read(tmp_path / "summary.json").error == "boom"


def test_what_a_later_version_adds_is_passed_over():
    content = json.loads(KEPT[0].read_text().splitlines()[0])["summary"]
    more = {**content, "train": {**content["train"], "watts": 3}, "carbon": 1}
    assert Summary.from_dict(more) == Summary.from_dict(content)
    assert TrainingCost().teacher_tokens == 0
