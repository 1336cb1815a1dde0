"""Two processes train, score and decode as one does: the same batches and draws, and sums in another order."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tfx.processes.group import ALONE

ARMS = importlib.util.spec_from_file_location("arms", Path(__file__).with_name("arms.py"))
arms = importlib.util.module_from_spec(ARMS)
ARMS.loader.exec_module(arms)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A folder of runs of two processes; what one process did, and what each of two did, by arm."""
    folder = tmp_path_factory.mktemp("arms")
    teacher = folder / "teacher.safetensors"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(folder / "cache"))
        arms.make_teacher(teacher)
        arms.make_pairs(folder / "pairs")
        port = free_port()
        processes = [start(rank, port, teacher, folder) for rank in (0, 1)]
        one = json.loads(json.dumps(arms.all_of(teacher, ALONE)))
        for rank, process in enumerate(processes):
            assert process.wait() == 0, (folder / f"{rank}.log").read_text()
    torch.set_num_threads(threads)
    return folder, one, *(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))


def start(rank: int, port: int, teacher: Path, folder: Path) -> subprocess.Popen:
    """Begins one of two processes, which finds its place as torchrun would tell it.

    It is a new one: a fork would have the threads' locks and the groups of processes that other tests left here.
    """
    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, arms.__file__, str(teacher), str(folder)],
            env=os.environ | {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SAME = [name for name in arms.ARMS if not name.startswith("local")]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_give_the_loss_curve_of_one(found, name):
    one, first, second = (each[name] for each in found[1:])
    assert len(one["curve"]) == 12
    for ours, theirs in zip(first["curve"], one["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)
    assert first["cost"] == pytest.approx({**one["cost"], "processes": 2})
    # A key's bias changes no attention: it follows rounding errors, which Adam enlarges.
    known = {name: size for name, size in one["weights"].items() if not name.endswith("k.bias")}
    assert {name: first["weights"][name] for name in known} == pytest.approx(known, rel=1e-3)
    # Their weights are the same bits in both.
    assert first["weights"] == second["weights"]
    assert first["curve"] == second["curve"]


def test_local_steps_end_with_one_model_in_all_processes_near_that_of_all_gradients(found):
    one, first, second = (each["local"] for each in found[1:])
    assert first["weights"] == second["weights"]
    assert first["curve"] == second["curve"]
    dense = found[1]["dense"]
    assert first["cost"]["tokens"] == dense["cost"]["tokens"]
    ends = [each["curve"][-1]["valid"] for each in (first, dense)]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
    # They did not share each gradient.
    assert first["curve"][5] != pytest.approx(one["curve"][5], rel=1e-3)


def test_local_steps_on_batches_with_fewer_rows_than_processes_end_with_one_model(found):
    first, second = (each["local_one_row"] for each in found[2:])
    assert first["weights"] == second["weights"]
    assert first["curve"] == second["curve"]
    assert len(first["curve"]) == 12


@pytest.mark.parametrize("name", ["fsdp_prune", "fsdp_quantize", "fsdp_all", "fsdp_at_end"])
def test_divided_weights_end_with_the_zeros_of_one_process(found, name):
    one, first, second = (each[name] for each in found[1:])
    assert first["compressed"] == one["compressed"] == [n for n in ("prune", "quantize") if n in one["evidence"]]
    assert first["zeros"] == second["zeros"]
    assert first["zeros"].keys() == one["zeros"].keys()
    ours, theirs = ("".join(each["zeros"][key] for key in one["zeros"]) for each in (first, one))
    # Of weights that differ by rounding, one or two are on the other side of a threshold.
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) < 1e-3 * len(theirs)
    assert theirs.count("1") > 0.05 * len(theirs)


@pytest.mark.parametrize("name", SAME)
def test_the_evidence_is_that_of_all_processes(found, name):
    one, first, _ = (each[name] for each in found[1:])
    for technique, evidence in one["evidence"].items():
        assert first["evidence"][technique] == pytest.approx(evidence, rel=2e-3), technique


def test_shared_scoring_and_decoding_give_the_bits_of_one_process(found):
    one, first, second = (each["scores"] for each in found[1:])
    assert first == one
    assert {"loss", "chrf"} <= one["metrics"].keys()
    assert second["metrics"]["loss"] == one["metrics"]["loss"]


def test_one_of_two_processes_writes_the_run_directory(found):
    folder = found[0] / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["train"]["processes"] == 2
    assert [stage["name"] for stage in summary["stages"]] == ["reference", "trained", "prune", "file"]
    assert summary["train"]["teacher_steps"] == 4
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 7))
    assert (folder / "train.log").read_text().count("2 processes (ddp)") == 1
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    assert len(list((found[0] / "cache" / "teachers").iterdir())) == 1


def test_a_run_with_divided_weights_measures_each_stage_and_writes_its_file(found):
    folder = found[0] / "divided"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert [stage["name"] for stage in summary["stages"]] == ["trained", "prune", "quantize", "file"]
    assert summary["evidence"]["prune"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert summary["evidence"]["quantize"]["entropy_bits"] == pytest.approx(2, abs=0.3)
    assert (folder / "train.log").read_text().count("2 processes (fsdp)") == 1
    # A tied weight stands once in the state, with its two moments.
    with safe_open(next((folder / "state").glob("step-*.safetensors")), "pt") as state:
        shapes = [tuple(state.get_slice(name).get_shape()) for name in state.keys()]  # noqa: SIM118
    with safe_open(folder / "model.safetensors", "pt") as model:
        embedding = tuple(model.get_slice("embedding.weight").get_shape())
    assert shapes.count(embedding) == 3


def test_the_first_process_reports_why_another_one_failed(found):
    folder, _, first, second = found
    summary = json.loads((folder / "failed" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "process 1 failed: ValueError: a broken disk" in summary["error"]
    log = (folder / "failed" / "train.log").read_text()
    assert "in broken" in log, "the traceback of the other process is missing"
    assert first["status"] == second["status"] == 1
