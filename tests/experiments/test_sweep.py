"""Sweeps as a user starts them: processes of their own, failures that stop nothing, and the same command again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from tfx.config import grammar
from tfx.config.schema import LauncherConfig
from tfx.errors import UserError
from tfx.experiments.jobs import Job, Metrics
from tfx.experiments.machine import Machine
from tfx.experiments.pool import run_jobs
from tfx.experiments.table import print_results

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "model.encoder_layers=1",
    "trainer.log_every=1",
    "evaluation.latency_inputs=2",
    "evaluation.beam=1",
    *(f"dataset.limit.{split}=10" for split in ("train", "valid", "test")),
]


def command(folder: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "tfx", "train", "-m", *TINY, f"hydra.sweep.dir={folder}", *overrides]


def sweep(folder: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *overrides), capture_output=True, text=True, check=False)


def weights(folder) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*/model.safetensors"))]


def test_failures_stop_nothing_two_at_a_time_give_the_same_bits_and_again_runs_what_is_left(here):
    jobs = ["optimizer.lr=0.01,-1", "seed=1,2", "trainer.budget.steps=2"]
    first = sweep("two", *jobs, "hydra.launcher.jobs=2")
    assert first.returncode == 1, first.stderr
    assert "2 with a result, 2 without" in first.stdout
    assert first.stdout.count("optimizer.lr=-1 is out of range") == 2
    assert not (here / "two" / "2").exists()  # input at fault leaves nothing partial

    assert sweep("one", *jobs, "hydra.launcher.jobs=1").returncode == 1
    assert len(set(weights(here / "two"))) == 2
    assert weights(here / "one") == weights(here / "two")

    # One result is lost as by a kill; it and the two failures run again, the other result is not touched.
    (here / "two" / "1" / "summary.json").unlink()
    untouched = (here / "two" / "0" / "summary.json").stat().st_mtime_ns
    before = weights(here / "two")
    again = sweep("two", *jobs)
    assert again.returncode == 1
    assert [line.split()[1] for line in again.stderr.splitlines() if " started: " in line] == ["1", "2", "3"]
    assert (here / "two" / "0" / "summary.json").stat().st_mtime_ns == untouched
    assert weights(here / "two") == before

    other = sweep("two", "seed=7", "trainer.budget.steps=2")
    assert other.returncode == 2
    assert "other overrides" in other.stderr
    assert weights(here / "two") == before


@pytest.mark.slow
def test_jobs_that_would_share_a_folder_are_refused_before_one_starts(here):
    done = sweep("shared", "trainer.budget.steps=2,3", "seed=1,2", "hydra.sweep.subdir=s${seed}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "jobs 0 and 2 of this sweep have one folder" in done.stderr
    assert not (here / "shared").exists()


def test_a_config_that_two_jobs_have_runs_once(here):
    """What a technique is set to makes no difference to the jobs without it."""
    words = ["technique=[],[quantize]", "+technique.quantize.bits=4,8", "technique.quantize.granularity=channel"]
    done = sweep("once", *words, "trainer.budget.steps=1", "hydra.launcher.jobs=1")
    assert done.returncode == 0, done.stderr
    assert "job 1 is job 0 (" in done.stderr
    assert "3 jobs: 3 with a result" in done.stdout
    assert len(list((here / "once").glob("*/summary.json"))) == 3
    again = sweep("once", *words, "trainer.budget.steps=1", "hydra.launcher.jobs=1")
    assert "3 jobs: 3 with a result" in again.stdout


def test_a_folder_of_a_single_run_is_refused_in_a_sweep(here):
    done = sweep("named", "seed=1,2", "hydra.run.dir=elsewhere")
    assert done.returncode == 2
    assert "hydra.run.dir is for a single run: name the folder of a sweep with hydra.sweep.dir" in done.stderr
    assert not (here / "named").exists()


def test_of_twenty_jobs_three_fail_and_one_is_killed_and_again_runs_these_four(here):
    # Pruning that rounds to no weight at all is found out when the run is over: a run fails where a technique did
    # nothing.
    fail = {5: "0.000001", 9: "0.0000001", 14: "0.00000001"}
    sparsities = [fail.get(number, f"0.{number + 10}") for number in range(20)]
    jobs = ["+technique=prune", "trainer.budget.steps=2", f"technique.prune.sparsity={','.join(sparsities)}"]
    with open(here / "out", "w") as out, open(here / "err", "w") as err:
        running = subprocess.Popen(command("s", *jobs, "hydra.launcher.jobs=2"), stdout=out, stderr=err)
    try:
        lock = here / "s" / "7" / ".lock"  # a run writes its process there
        while not (lock.is_file() and lock.read_text()):
            assert running.poll() is None, (here / "err").read_text()
            time.sleep(0.01)
        os.kill(int(lock.read_text()), signal.SIGKILL)
        assert running.wait() == 1
    finally:
        running.kill()
        running.wait()
    shown = (here / "out").read_text()
    assert "20 jobs: 16 with a result, 4 without" in shown
    assert "job 7 interrupted: killed by SIGKILL" in shown
    for number in fail:
        assert f"job {number} failed: NoEffectError: technique 'prune' changed nothing" in shown
    results = {
        number: (here / "s" / str(number) / "summary.json") for number in range(20) if number not in (5, 7, 9, 14)
    }
    before = {number: file.stat().st_mtime_ns for number, file in results.items()}

    again = sweep("s", *jobs)
    assert again.returncode == 1
    started = [line.split()[1] for line in again.stderr.splitlines() if " started: " in line]
    assert sorted(started, key=int) == ["5", "7", "9", "14"]
    assert "20 jobs: 17 with a result, 3 without" in again.stdout
    assert {number: file.stat().st_mtime_ns for number, file in results.items()} == before

    few = [*jobs[:2], f"technique.prune.sparsity={','.join(sparsities[6:9])}", "hydra.launcher.jobs=1"]
    assert sweep("one", *few).returncode == 0
    assert weights(here / "one") == [weights(here / "s")[i] for i in _places(here / "s", ("6", "7", "8"))]


def _places(folder, names) -> list[int]:
    found = [file.parent.name for file in sorted(folder.glob("*/model.safetensors"))]
    return [found.index(name) for name in names]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGKILL, -9)])
def test_no_job_outlives_its_sweep(here, number, status):
    with open(here / "out", "w") as out:
        running = subprocess.Popen(command("s", "seed=1", "trainer.budget.seconds=300"), stdout=out, stderr=out)
    try:
        metrics = here / "s" / "0" / "metrics.jsonl"
        while not metrics.is_file() or not metrics.stat().st_size:
            assert running.poll() is None, (here / "out").read_text()
            time.sleep(0.1)
        children = [int(pid) for pid in _children(running.pid)]
        assert children
        running.send_signal(number)
        assert running.wait() == status
    finally:
        running.kill()
        running.wait()
    for child in children:
        while _runs(child):  # ends, or the test does not
            time.sleep(0.05)
    if number == signal.SIGHUP:
        assert json.loads((here / "s" / "0" / "summary.json").read_text())["status"] == "interrupted"


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_gpus_are_handed_out_one_a_job_and_threads_do_not_depend_on_how_many_jobs_there_are(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machines = [Machine.of(LauncherConfig(jobs=jobs), "auto") for jobs in (1, 2, 4)]
    assert len({machine.threads for machine in machines}) == 1
    given = [machines[2].environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert given == ["3", "5", "3", "5"]
    assert Machine.of(LauncherConfig(), "auto").jobs == 2
    on_cpu = Machine.of(LauncherConfig(), "cpu")
    assert on_cpu.gpus == ()
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu.environment(0)


@pytest.mark.parametrize(("named", "gpus"), [("0,-1,1", ("0",)), ("NoDevFiles", ()), ("-1", ()), ("GPU-5,MIG-7", None)])
def test_gpus_are_named_as_cuda_reads_their_names(named, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert Machine.of(LauncherConfig(), "auto").gpus == (("GPU-5", "MIG-7") if gpus is None else gpus)


def test_jobs_of_several_processes_get_as_many_gpus_or_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine = Machine.of(LauncherConfig(), "auto", 2)
    assert (machine.jobs, machine.gpus) == (2, ("0,1", "2,3"))
    assert machine.environment(1)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert Machine.of(LauncherConfig(), "auto", 8).gpus == ("0,1,2,3,4",)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert Machine.of(LauncherConfig(), "cpu", 3).jobs == 4


def test_jobs_that_name_their_gpu_run_there_one_after_the_other(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    machine = Machine.of(LauncherConfig(), "cuda:1")
    assert (machine.jobs, machine.gpus) == (1, ("5",))
    # Hidden, the others would give it another number.
    assert "CUDA_VISIBLE_DEVICES" not in machine.environment(0)
    assert Machine.of(LauncherConfig(jobs=2), "cuda:1").jobs == 2
    assert Machine.of(LauncherConfig(), "cuda:7").gpus == ()


def test_metrics_that_are_being_written_are_read_once_they_are_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.update("loss")  # no file yet
    path.write_text('{"split": "train", "step": 4, "seconds": 2.0, "progress": 0.25}\n{"split": "valid", "st')
    metrics.update("loss")
    assert (metrics.step, metrics.seconds_left, metrics.valid) == (4, 6.0, None)
    with open(path, "a") as file:
        file.write('ep": 5, "seconds": 2.5, "loss": 1.5}\nbroken\n')
    metrics.update("bleu")
    assert (metrics.step, metrics.valid) == (5, ("loss", 1.5))


def test_a_job_without_a_summary_gives_the_signal_or_its_last_line_as_reason(tmp_path):
    job = Job(0, [], tmp_path / "0")
    job.log.write_text("something\ntfx: no such thing\n\n")
    job.end(2)
    assert (job.state, job.reason) == ("failed", "no such thing")
    job.end(-signal.SIGKILL)
    assert (job.state, job.reason) == ("interrupted", "killed by SIGKILL")
    # As one that has saved its state says: the same signal came before it could.
    for status in (-signal.SIGINT, 128 + signal.SIGINT):
        job.end(status)
        assert (job.state, job.reason) == ("interrupted", "stopped by SIGINT")


COMPLETED = {
    "status": "completed",
    "task": "seq2seq",
    "dataset": "normalize",
    "seed": 1,
    "primary_metric": "bleu",
    "valid": {"bleu": 20.0},
    "test": {"bleu": 21.0},
    "bytes": {"file": 1000},
    "train": {"seconds": 5.0},
}


def made(folder, overrides: list[str], summary: str) -> Job:
    """A job whose folder an earlier sweep left."""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "overrides.yaml").write_text(json.dumps(overrides))
    (folder / "summary.json").write_text(summary)
    return Job(0, overrides, folder)


def test_a_job_that_has_its_result_is_done_however_its_process_ended(tmp_path):
    job = made(tmp_path / "0", [], json.dumps(COMPLETED))
    for status in (1, -signal.SIGKILL):
        job.end(status)
        assert (job.state, job.reason, job.objective) == ("done", "", 20.0)


def test_what_may_be_a_result_is_not_removed(tmp_path):
    job = made(tmp_path / "0", ["seed=1"], '{"status": "comp')
    with pytest.raises(
        UserError, match=r"summary\.json is not readable JSON.*nothing was removed: mend the file, or move"
    ):
        job.take_over()
    assert sorted(file.name for file in job.folder.iterdir()) == ["config.yaml", "overrides.yaml", "summary.json"]


def test_a_job_that_failed_starts_over_and_other_files_of_its_folder_stay(tmp_path):
    job = made(tmp_path / "0", [], '{"status": "failed"}')
    (job.folder / "notes.txt").write_text("mine")
    assert job.take_over() == "train"
    assert [file.name for file in job.folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["it's", "a\\b", "a\\'b\\", "${seed}", "{x},[y] =z"])
def test_a_job_gets_its_folder_whatever_the_name(tmp_path, monkeypatch, name):
    given = []

    class Ended:
        pid = 0

        def __init__(self, arguments, **settings):
            given.extend(arguments)

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Ended)
    job = Job(0, [], tmp_path / name)
    run_jobs([job], tmp_path, LauncherConfig(), Machine(1, 1, ()))
    (word,) = [word for word in given if word.startswith("hydra.run.dir=")]
    assert OmegaConf.create({"folder": grammar.parse(word)[1]}).folder == str(job.folder)


def test_the_table_shows_the_names_of_runs(tmp_path, capsys):
    named = made(tmp_path / "0", ["seed=1"], json.dumps(COMPLETED | {"name": "from-yaml"}))
    named.end(0)
    print_results([named, Job(1, ["seed=2", "name='to be'"], tmp_path / "1")])
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:4] == ["job", "name", "overrides", "state"]
    assert rows[0][:4] == ["0", "from-yaml", "seed=1", "done"]
    assert rows[1] == ["1", "to", "be", "seed=2", "waiting"]
