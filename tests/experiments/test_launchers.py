"""Hydra's launchers that come as extras; each test is left out where its extra is not installed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tfx.experiments.queue import Queue

# Joblib and Hydra's submitit start and end their processes at the start and end of the one that runs them.
whole_process = pytest.mark.whole_process

TINY = [
    "model.width=16",
    "dataset=json",
    "dataset.path=rows",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "model.encoder_layers=1",
    "evaluation.latency_inputs=2",
    "evaluation.beam=1",
    "dataset.metrics=[]",
    "trainer.budget.steps=2",
    "hydra.sweep.dir=s",
]


@pytest.fixture
def here(here):
    """With rows to read: a new process takes longer to make the embedded data than to train."""
    (here / "rows").mkdir()
    for split in ("train", "valid", "test"):
        rows = [{"source": f"{split} {row} is a number", "target": f"the number {row}"} for row in range(10)]
        (here / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here


def sweep(*overrides: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tfx", "train", *TINY, *overrides, "-m"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def statuses(folder) -> dict[str, str]:
    return {file.parent.name: json.loads(file.read_text())["status"] for file in folder.glob("s/*/summary.json")}


@whole_process
def test_joblib_runs_the_jobs_and_a_failure_is_not_lost_in_its_processes(here):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    # Pruning so little that no weight goes is found out when the run is over.
    failing = ["technique=prune", "technique.prune.sparsity=0.5,0.00000001"]
    done = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *failing)
    assert done.returncode == 1, done.stderr
    assert statuses(here) == {"0": "completed", "1": "failed"}
    assert "changed nothing" in done.stderr


@whole_process
def test_input_at_fault_in_a_process_of_joblibs_is_one_line_with_status_2(here):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1", "optimizer.lr=-1")
    assert done.returncode == 2
    assert "tfx: optimizer.lr=-1 is out of range" in done.stderr


@whole_process
def test_submitit_runs_the_jobs_by_its_local_executor(here):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = sweep("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert statuses(here) == {"0": "completed", "1": "completed"}
    rows = [line.split()[:3] for line in done.stdout.splitlines()]
    assert ["0", "seed=1", "done"] in rows
    assert ["1", "seed=2", "done"] in rows


@whole_process
def test_input_at_fault_under_submitit_is_one_line_and_leaves_nothing(here):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = sweep("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "dataset=parallel", "dataset.path=no")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "[HYDRA]" not in line]
    assert lines == [line for line in lines if line.startswith("tfx: dataset.path=")]
    assert len(lines) == 1
    assert not (here / "s").exists()


def test_a_queue_that_is_not_here_is_one_line_and_leaves_nothing(here, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(here))
    done = sweep("hydra/launcher=submitit_slurm")
    assert done.returncode == 2
    assert "tfx: hydra/launcher=submitit_slurm: there is no srun here" in done.stderr
    assert "cannot be composed" not in done.stderr
    assert not (here / "s").exists()


_TELLS = """
import atexit, os, pathlib

if "SUBMITIT_LOCAL_GLOBALID" in os.environ:
    pathlib.Path("told-" + os.environ["SUBMITIT_LOCAL_NTASKS"]).touch()
    atexit.register(pathlib.Path("cleaned-" + os.environ["SUBMITIT_LOCAL_GLOBALID"]).touch)
"""


@whole_process
def test_several_tasks_of_a_job_by_its_local_executor_are_the_processes_of_one_run(here, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    # Each task tells of its cleaning, which torch's threads now and then abort: it is to end before.
    (here / "sitecustomize.py").write_text(_TELLS)
    monkeypatch.setenv("PYTHONPATH", str(here))
    tasks = ["hydra.launcher.nodes=1", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5"]
    done = sweep("hydra/launcher=submitit_local", *tasks, "trainer.device=cpu")
    assert done.returncode == 0, done.stderr
    assert statuses(here) == {"0": "completed"}
    assert json.loads((here / "s" / "0" / "summary.json").read_text())["train"]["processes"] == 2
    assert (here / "s" / "0" / "train.log").read_text().count("2 processes (ddp)") == 1
    assert [file.name for file in here.glob("told-*")] == ["told-2"]
    assert not list(here.glob("cleaned-*"))


SEARCH = [
    "max_bytes=14000",
    "budget.trials=2",
    "candidates=2",
    "rungs=1",
    "seeds=1",
    "model.width=range(8,41,4)",
    *TINY[1:],
    "dataset.tokenizer.vocab_size=300",
    "model.dropout=0",
]


def run_search(*overrides: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tfx", "search", *SEARCH, *overrides]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_trials_of_a_search_run_in_a_queue_by_its_local_executor(here):
    pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = run_search("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    assert done.returncode == 0, done.stderr
    found = json.loads((here / "s" / "search.json").read_text())
    assert found["ended"] == 2
    assert all(
        json.loads((here / "s" / "trials" / f"{n:04d}-rung0-seed1" / "summary.json").read_text()) for n in (0, 1)
    )
    queued = list((here / "s" / ".submitit").glob("*/*_result.pkl"))
    assert len(queued) == 2  # both went through the queue


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_job_that_is_taken_out_of_the_queue_saves_its_state(here, handler):
    """Also where SIGINT is ignored, as in the background of a script: processes inherit that."""
    pytest.importorskip("submitit")
    queue = Queue.named("submitit_local", {"timeout_min": 5}, here)
    words = [word for word in TINY if not word.startswith(("trainer.budget", "hydra."))]
    words += ["trainer.budget.seconds=600", f"hydra.run.dir={here / 'run'}"]
    before = signal.signal(signal.SIGINT, handler)
    try:
        process = queue.start(["train", *words], here / "run.log", 0, goes_on=False)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: '"step"' in read(here / "run" / "metrics.jsonl"))
    assert process.poll() is None
    process.signal(signal.SIGINT)
    until(lambda: process.poll() is not None)
    until(lambda: "interrupted" in read(here / "run" / "summary.json"))
    assert list((here / "run" / "state").glob("step-*"))


def read(path) -> str:
    return path.read_text() if path.is_file() else ""


def until(holds) -> None:
    """Waits for what another process does."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_other_launchers_and_several_processes_are_refused_with_what_fits(here):
    pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = run_search("hydra/launcher=joblib")
    assert done.returncode == 2
    assert "submitit_slurm" in done.stderr
    done = run_search("hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2")
    assert done.returncode == 2
    assert "hydra.launcher.nodes=2" in done.stderr


def test_a_queue_leaves_the_logging_of_the_process_alone(tmp_path):
    pytest.importorskip("submitit")
    script = """
import logging, pathlib, sys
from tfx.experiments.queue import Queue
closed = []
handler = logging.StreamHandler(sys.stderr)
handler.close = lambda: closed.append(True)
logging.getLogger().addHandler(handler)
Queue.named("submitit_local", {}, pathlib.Path("."))
assert "submitit" in sys.modules
assert not closed
assert not logging.getLogger("submitit").handlers
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
