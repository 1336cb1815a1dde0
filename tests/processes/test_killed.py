"""Runs of two processes that are killed: the other ends too and says why, and resumed they end with the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.whole_process]

TINY = [
    *("model=seq2seq_tiny", "model.width=16", "model.heads=2", "model.ffn_width=32", "model.decoder_layers=1"),
    *("model.encoder_layers=1", "dataset=normalize", "dataset.limit.train=400", "dataset.limit.valid=30"),
    *("dataset.limit.test=30", "dataset.batch_tokens=256", "evaluation.latency_inputs=2", "evaluation.beam=2"),
    *("trainer.budget.steps=160", "trainer.log_every=2", "trainer.save.every_steps=10", "trainer.averaging.kind=ema"),
    "trainer.save.keep=100",
]
# Weights divided by rows, seen through masks and grids that are chosen by what all rows add up to.
DIVIDED = [
    *("trainer.parallel=fsdp", "trainer.averaging.kind=none", "optimizer=adamw", "technique=[prune,quantize]"),
    *("technique.prune.score=movement", "technique.quantize.rate=2", "technique.quantize.start=0.4"),
]
# Steps that each process takes by itself; states are saved between two meetings too.
BY_THEMSELVES = ["trainer.parallel=local", "trainer.local.steps=8"]
FILES = ("config.yaml", "tokenizer.json", "model.safetensors", "predictions.jsonl")


def start(folder: Path, *more: str) -> subprocess.Popen:
    """Begins the run of two processes, or goes on with it."""
    words = ["resume", str(folder)] if (folder / "config.yaml").is_file() else ["train", *TINY, "trainer.devices=2"]
    where = [] if words[0] == "resume" else [f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", "tfx", *words, *more, *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def members(parent: int) -> dict[int, int]:
    """The processes of a run, by rank."""
    found = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(b"RANK="):
                found[int(word[5:])] = int(pid)
    return found


def steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def wait_for(folder: Path, step: int, process: subprocess.Popen) -> None:
    while steps(folder) < step:
        assert process.poll() is None, process.communicate()[0][-2000:]
        time.sleep(0.02)


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in found]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The folder of a run, and the cache that it makes."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(folder / "cache"))
        yield folder / "run"


@pytest.fixture
def alone(left_alone):
    """A run of two processes that was left alone."""
    if not left_alone.exists():
        process = start(left_alone)
        words, _ = process.communicate()
        assert process.returncode == 0, words[-2000:]
    return left_alone


def test_killed_five_times_either_process_it_ends_with_the_same_bytes(alone, tmp_path):
    run = tmp_path / "run"
    for kill, rank in enumerate((0, 1, 0, 1, 1)):
        process = start(run)
        wait_for(run, 25 * (kill + 1), process)
        os.kill(members(process.pid)[rank], signal.SIGKILL)
        words, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        if rank == 0:
            assert "process 0 of the run was killed (SIGKILL): continue with `tfx resume" in words
        else:
            assert "another process of the run ended without a word" in words
        assert json.loads((run / "summary.json").read_text())["status"] == "failed"
        assert words.splitlines()[-1] in (run / "train.log").read_text()
    process = start(run)
    words, _ = process.communicate()
    assert process.returncode == 0, words[-2000:]
    assert all((run / name).read_bytes() == (alone / name).read_bytes() for name in FILES)
    assert rows(run) == rows(alone)


def test_divided_weights_with_masks_and_grids_end_with_the_same_bytes_and_go_on_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    whole, cut, other = (tmp_path / name for name in ("whole", "cut", "other"))
    process = start(whole, *DIVIDED)
    words, _ = process.communicate()
    assert process.returncode == 0, words[-2000:]
    # In the ramp of the masks, and where the grid has been chosen.
    for kill, step in enumerate((60, 110)):
        process = start(cut, *(DIVIDED if not kill else ()))
        wait_for(cut, step, process)
        os.kill(members(process.pid)[kill], signal.SIGKILL)
        process.communicate(timeout=60)
        if kill:
            shutil.copytree(cut, other)
    for run, more in ((cut, ()), (other, ("trainer.devices=1",))):
        process = start(run, *more)
        words, _ = process.communicate()
        assert process.returncode == 0, words[-2000:]
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in (*FILES, "compressed.safetensors"))
    assert rows(cut) == rows(whole)
    for one, two in zip(rows(other), rows(whole), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.05)


def test_steps_that_each_process_takes_by_itself_end_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(whole, *BY_THEMSELVES)
    words, _ = process.communicate()
    assert process.returncode == 0, words[-2000:]
    for rank, step in ((0, 36), (1, 74), (0, 110)):
        process = start(cut, *(() if (cut / "config.yaml").is_file() else BY_THEMSELVES))
        wait_for(cut, step, process)
        os.kill(members(process.pid)[rank], signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == 1
    process = start(cut)
    words, _ = process.communicate()
    assert process.returncode == 0, words[-2000:]
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in FILES)
    assert rows(cut) == rows(whole)


@pytest.mark.parametrize("rank", [None, 1])
def test_a_signal_to_the_launcher_or_to_one_process_stops_all_with_the_state_of_one_step(alone, tmp_path, rank):
    run = tmp_path / "run"
    process = start(run)
    wait_for(run, 20, process)
    os.kill(process.pid if rank is None else members(process.pid)[rank], signal.SIGTERM)
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 143, words[-2000:]
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    process = start(run)
    words, _ = process.communicate()
    assert process.returncode == 0, words[-2000:]
    assert all((run / name).read_bytes() == (alone / name).read_bytes() for name in FILES)


def test_on_another_number_of_processes_the_data_go_on(alone, tmp_path):
    run = tmp_path / "run"
    process = start(run)
    wait_for(run, 20, process)
    process.terminate()
    process.communicate(timeout=60)
    process = start(run, "trainer.devices=1")
    words, _ = process.communicate()
    assert process.returncode == 0, words[-2000:]
    assert "processes changed from 2 to 1" in words
    ours, theirs = rows(run), rows(alone)
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert [row.get("padding") for row in ours] == [row.get("padding") for row in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.02)


def test_started_again_by_torchrun_a_run_goes_on_to_the_same_bytes(alone, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"),
            *("-m", "tfx", "train", *TINY, f"hydra.run.dir={run}"),
        ],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(run, 25, process)
    os.kill(members(process.pid)[1], signal.SIGKILL)
    words, _ = process.communicate(timeout=120)
    assert process.returncode == 0, words[-2000:]
    assert "continuing after step" in words
    assert (run / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def test_processes_that_torchrun_starts_again_go_on_with_their_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "-m", "tfx"]
    with open(tmp_path / "words", "w+") as words:
        process = subprocess.Popen([*launcher, "train", *TINY, f"hydra.run.dir={run}"], stdout=words, stderr=words)
        wait_for(run, 45, process)
        os.kill(members(process.pid)[1], signal.SIGKILL)
        status = process.wait(timeout=300)
        words.seek(0)
        told = words.read()
    assert status == 0, told[-2000:]
    assert "continuing after step 4" in told
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert steps(run) == 160
