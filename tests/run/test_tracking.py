"""Trackers: what each receives, that a resumed run goes on in the same one, and that a failure is only a note."""

import importlib
import json
import struct
import sys
from types import ModuleType

import pytest
import yaml

from tfx.cli import main
from tfx.config import compose
from tfx.errors import UserError
from tfx.run.tracking.contract import NEEDS, Tracker

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "model.encoder_layers=1",
    "trainer.log_every=1",
    "trainer.budget.steps=4",
    "evaluation.latency_inputs=1",
    "evaluation.beam=1",
    "dataset.metrics=[]",
    *(f"dataset.limit.{split}=10" for split in ("train", "valid", "test")),
]


def train(folder, *words: str) -> int:
    return main(["train", *TINY, *words, f"hydra.run.dir={folder}"])


def half(folder) -> None:
    """Takes a finished run back to its state after two of its four steps."""
    for file in [
        *folder.glob("*.safetensors"),
        folder / "summary.json",
        folder / "state" / "step-000000004.safetensors",
    ]:
        file.unlink()


SAVED = ["trainer.save.every_steps=2", "trainer.save.keep=9"]


def losses(folder) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows if row["split"] == "train"]


# --- a tracker that tells what it was asked, and fails where it is told to --------------------------------


class Recording(Tracker):
    def __init__(self, run, identity, step):
        self.run, self.known, self.said = run, identity, []
        self.said.append(("open", identity, step))
        if run.project == "broken at open":
            raise ConnectionError("no network\nand more")

    @property
    def identity(self):
        return "number 7"

    def log(self, values, step):
        if self.run.project == "broken at log":
            raise OSError("disk full")
        self.said.append(("log", step, dict(values)))

    def summarize(self, values, table):
        self.said.append(("summarize", dict(values), table))

    def upload(self, files):
        self.said.append(("upload", [file.name for file in files]))

    def close(self, completed):
        self.said.append(("close", completed))


@pytest.fixture
def opened(monkeypatch):
    """The trackers that were opened, all in the place of Trackio."""
    found = []

    def open_run(*arguments):
        found.append(Recording(*arguments))
        return found[-1]

    module = ModuleType("tfx.run.tracking.trackio")
    module.open_run = open_run
    monkeypatch.setitem(sys.modules, "tfx.run.tracking.trackio", module)
    monkeypatch.setitem(NEEDS, "trackio", "json")
    return found


def test_a_tracker_gets_config_rows_result_and_files_and_a_resumed_run_is_the_same_run(here, opened):
    assert train("run", *SAVED, "tracking.to=[trackio]", "name=first", "tags=[a]", "tracking.artifacts=true") == 0
    (tracker,) = opened
    assert tracker.run.name == "first"
    assert tracker.run.tags == ["a"]
    assert (tracker.run.config["optimizer.lr"], tracker.run.config["dataset.name"]) == (0.002, "normalize")
    rows = [(step, values["train/loss"]) for kind, step, values in tracker.said[1:-3] if "train/loss" in values]
    assert rows == losses(here / "run")
    assert any("valid/loss" in said[2] for said in tracker.said if said[0] == "log")
    _, values, table = tracker.said[-3]
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert values["test.loss"] == summary["test"]["loss"]
    assert values["bytes.file"] == summary["bytes"]["file"]
    assert "validation" in table
    assert "\x1b" not in table
    assert tracker.said[-2:] == [("upload", ["model.safetensors", "report.html"]), ("close", True)]

    half(here / "run")
    assert main(["resume", "run"]) == 0
    assert opened[1].said[0] == ("open", "number 7", 2)
    assert [said[1] for said in opened[1].said if said[0] == "log" and "train/loss" in said[2]] == [3, 4]


@pytest.mark.parametrize(
    ("project", "says"),
    [
        ("broken at open", "trackio gets no more of this run: ConnectionError: no network"),
        ("broken at log", "trackio gets no more of this run: OSError: disk full"),
    ],
)
def test_a_tracker_that_fails_is_one_note_and_changes_nothing(here, opened, project, says):
    assert train("run", "tracking.to=[trackio]", f"tracking.project={project}") == 0
    assert (here / "run" / "train.log").read_text().count(says) == 1
    assert train("plain") == 0
    assert (here / "run" / "model.safetensors").read_bytes() == (here / "plain" / "model.safetensors").read_bytes()


def test_a_run_that_fails_is_closed_as_failed(here, opened):
    assert train("run", "tracking.to=[trackio]", "+technique=prune", "technique.prune.sparsity=1e-8") == 1
    assert opened[0].said[-1] == ("close", False)


# --- input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDS)
def test_a_tracker_whose_extra_is_missing_is_one_line(name, here, capsys, monkeypatch):
    monkeypatch.setitem(NEEDS, name, "tfx_no_such_module" if name != "tensorboard" else "tfx_no_such.module")
    assert train("run", f"tracking.to=[{name}]") == 2
    assert (
        capsys.readouterr().err.strip()
        == f"tfx: tracking.to=[{name}] needs an extra: pip install 'path/to/tfx[{name}]'"
    )
    assert not (here / "run").exists()


def test_an_unknown_tracker_is_named_with_what_was_meant(here, capsys):
    assert train("run", "tracking.to=[wanb]") == 2
    assert "did you mean 'wandb'?" in capsys.readouterr().err


def test_a_config_of_an_earlier_version_says_the_same_in_the_keys_of_today(tmp_path):
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(compose.to_yaml(compose.compose([])))
    del values["tracking"]
    values["trainer"]["tensorboard"] = True
    path.write_text(yaml.safe_dump(values))
    assert compose.load(path).tracking.to == ["tensorboard"]
    with pytest.raises(UserError, match=r"trainer\.tensorboard is gone: set tracking\.to=\[tensorboard\]"):
        compose.compose(["+trainer.tensorboard=true"])


# --- the real ones, each where its extra is installed -------------------------------------------------------


def test_tensorboard_has_each_step_once_also_after_resuming(here):
    pytest.importorskip("tensorboard")
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    assert train("run", *SAVED, "tracking.to=[tensorboard]") == 0
    half(here / "run")
    assert main(["resume", "run"]) == 0
    events = accumulator.EventAccumulator(str(here / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == losses(here / "run")
    assert "optimizer.lr" in str(events.Tensors("config/text_summary")[0])
    assert len(events.Scalars("summary/test.loss")) == 1


def wandb_records(file):
    """The records of a file of W&B's: LevelDB's log format after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (rest := 32768 - place % 32768) < 7:  # too short for a head: the block is filled up
            place += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_keeps_a_run_offline_and_goes_on_in_it(here, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train("run", *SAVED, "tracking.to=[wandb]", "tracking.artifacts=true", "name=ours") == 0
    half(here / "run")
    assert main(["resume", "run"]) == 0
    found, names, artifacts = {}, set(), 0
    for file in sorted((here / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                if "train/loss" in items:
                    found[items["step"]] = items["train/loss"]
            elif kind == "run":
                names.add((record.run.run_id, record.run.display_name))
            artifacts += kind == "artifact"
    assert sorted(found.items()) == losses(here / "run")
    assert {name for _, name in names} == {"ours"}
    assert len({identity for identity, _ in names}) == 1
    assert artifacts


def test_mlflow_keeps_a_run_in_sqlite_and_goes_on_in_it(here, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{here}/mlflow.db")
    assert train("run", *SAVED, "tracking.to=[mlflow]", "tracking.project=words", "tracking.artifacts=true") == 0
    half(here / "run")
    assert main(["resume", "run"]) == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.002"
    found = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")}
    assert sorted(found.items()) == losses(here / "run")
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert run.data.metrics["summary/test.loss"] == pytest.approx(summary["test"]["loss"])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"model.safetensors", "report.html"}


def test_trackio_keeps_a_run_on_this_machine_and_goes_on_in_it(here, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(here / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    project = f"words-{here.parent.name}"  # the store is chosen when the library is loaded
    assert train("run", *SAVED, "tracking.to=[trackio]", f"tracking.project={project}") == 0
    half(here / "run")
    assert main(["resume", "run"]) == 0
    (name,) = SQLiteStorage.get_runs(project)
    rows = SQLiteStorage.get_logs(project, name)
    found = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert sorted(found.items()) == losses(here / "run")
