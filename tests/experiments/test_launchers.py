"""Hydra's launchers that come as extras; each test is left out where its extra is not installed."""

import json
import subprocess
import sys

import pytest

# The launchers start and end their processes at the start and end of the one that runs them.
pytestmark = pytest.mark.whole_process

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "model.encoder_layers=1",
    "evaluation.latency_inputs=2",
    "evaluation.beam=1",
    "dataset.metrics=[]",
    *(f"dataset.limit.{split}=10" for split in ("train", "valid", "test")),
    "trainer.budget.steps=2",
    "hydra.sweep.dir=s",
]


def sweep(*overrides: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tfx", "train", *TINY, *overrides, "-m"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def statuses(folder) -> dict[str, str]:
    return {file.parent.name: json.loads(file.read_text())["status"] for file in folder.glob("s/*/summary.json")}


def test_joblib_runs_the_jobs_and_a_failure_is_not_lost_in_its_processes(here):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    # Pruning so little that no weight goes is found out when the run is over.
    failing = ["technique=prune", "technique.prune.sparsity=0.5,0.00000001"]
    done = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *failing)
    assert done.returncode == 1, done.stderr
    assert statuses(here) == {"0": "completed", "1": "failed"}
    assert "changed nothing" in done.stderr


def test_input_at_fault_in_a_process_of_joblibs_is_one_line_with_status_2(here):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1", "optimizer.lr=-1")
    assert done.returncode == 2
    assert "tfx: optimizer.lr=-1 is out of range" in done.stderr


def test_submitit_runs_the_jobs_by_its_local_executor(here):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = sweep("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert statuses(here) == {"0": "completed", "1": "completed"}
