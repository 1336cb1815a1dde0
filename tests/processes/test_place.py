"""Which process of a run this is, by the environment of each launcher; and what becomes of the status of a lost one."""

import signal
import socket
import subprocess
import sys

import pytest
from torch.distributed import HashStore

from tfx.cli import main
from tfx.config.compose import compose
from tfx.errors import UserError
from tfx.processes import group
from tfx.processes import place as places
from tfx.processes.failure import Failure, LostProcessError
from tfx.processes.launch import _what_failed, launch
from tfx.processes.place import NO_LAUNCHER, Place, find_place
from tfx.run.launch import check_processes
from tfx.run.setup import Setup
from tfx.system.signals import StoppedBySignal

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
}
LOCAL = ["trainer.parallel=local", "trainer.devices=2", "trainer.budget.steps=150"]
SRUN = {
    **{"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
    **{"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_NTASKS": "16"},
}
SUBMITIT = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_JOB_ID": "123"}


def test_torchrun_says_all():
    assert find_place(TORCHRUN) == Place(5, 16, 1, 4, "node1", 29500)
    assert find_place(TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}) == NO_LAUNCHER
    with pytest.raises(UserError, match=r"WORLD_SIZE=16 .*MASTER_PORT is not set"):
        find_place({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"})


def test_srun_has_the_first_host_in_its_list_and_the_port_in_its_job(monkeypatch):
    asked = []

    def scontrol(words, **_):
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, "gpu07\ngpu08\n")

    monkeypatch.setattr(places.subprocess, "run", scontrol)
    found = find_place(SRUN)
    assert (found.rank, found.size, found.local_rank, found.local_size, found.address) == (9, 16, 1, 8, "gpu07")
    assert asked == [["scontrol", "show", "hostnames", "gpu[07-08]"]]
    # All processes of a step choose one port, two steps of a job mostly not the same.
    assert find_place(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == found.port
    assert find_place(SRUN | {"SLURM_STEP_ID": "1"}).port != found.port
    assert find_place(SRUN | {"SLURM_STEP_NODELIST": "alpha,beta"}).address == "alpha"
    assert find_place(SRUN | {"MASTER_ADDR": "other", "MASTER_PORT": "1234"}).address == "other"


def test_a_batch_script_is_one_process_although_its_job_has_several():
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "4711"}
    assert find_place(script) == NO_LAUNCHER
    assert find_place({}) == NO_LAUNCHER


@pytest.mark.parametrize(
    ("tasks", "node", "count"),
    [("8(x2)", "1", 8), ("8(x2),4", "1", 8), ("8(x2),4", "2", 4), ("4,8", "1", 8), ("", "0", 16)],
)
def test_srun_tells_the_processes_of_each_node(tasks, node, count):
    given = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node, "MASTER_ADDR": "gpu07"}
    assert find_place(SRUN | given).local_size == count


def started(restarts, store, rank=0):
    """One of two processes, at a start by the launcher whose store this is."""
    several = group._Several.__new__(group._Several)
    several.place, several._store, several._connected = Place(rank, 2, rank, 2, "", 0, restarts), store, True
    return several


def test_processes_that_are_started_again_know_their_run_and_nothing_of_the_failure_before():
    store = HashStore()
    first = started(0, store)
    assert first.began() is None
    first.begins("run")
    first.begins("teacher")  # which the run trains
    first.fail(Failure.of(ValueError("odd"), 0))
    assert first._last_word().message == "ValueError: odd"
    second = started(1, store)
    assert second.began() == "run"
    assert second._last_word() is None
    assert started(2, store).began() == "run"
    assert second._key("group") != first._key("group")
    assert find_place(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}).restarts == 2


@pytest.mark.parametrize(
    ("gpus", "own"),
    [(["a", "b"], [True, True]), (["a", "a"], [False, False]), (["", ""], [False, False]), (["", "b"], [False, True])],
)
def test_a_process_has_its_own_gpu_where_no_other_one_sees_that(gpus, own):
    store = HashStore()
    several = [started(0, store, rank) for rank in (0, 1)]
    for each, gpu in zip(several, gpus, strict=True):
        store.set(each._key("gpu", each.rank), gpu)
    assert [each.has_own_gpu() for each in several] == own


def test_a_missing_scontrol_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        find_place(SRUN)


def test_submitits_local_executor_has_all_processes_here():
    found = find_place(SUBMITIT)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (1, 2, 1, 2)
    assert found.address == "127.0.0.1"
    assert found.port == find_place(SUBMITIT | {"SUBMITIT_LOCAL_GLOBALID": "0"}).port


def test_devices_that_disagree_with_the_launcher_are_refused():
    check_processes(compose(["trainer.devices=4"]), NO_LAUNCHER)
    check_processes(compose(["trainer.devices=4"]), find_place(TORCHRUN))
    check_processes(compose([]), find_place(TORCHRUN))
    with pytest.raises(UserError, match=r"trainer\.devices=3, and a launcher has started 16"):
        check_processes(compose(["trainer.devices=3"]), find_place(TORCHRUN))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["technique=factorize"], "technique 'factorize' makes matrices products of two"),
        (["technique=prune", "technique.prune.structure.ffn=0.5"], "'prune' removes parts of the model while"),
        (["technique=[prune,factorize]", "technique.prune.structure.heads=0.5"], "'factorize' makes .* and .*'prune'"),
        (["technique=quantize", "technique.quantize.learned_step=true"], "'quantize' trains scales beside"),
        (["optimizer=muon"], "not go with optimizer=muon: Muon makes whole matrices orthogonal; set optimizer=adamw"),
        (["optimizer=adamw", "trainer.averaging.kind=ema"], "kind=ema: .* second copy.* trainer.averaging.kind=none"),
        (["optimizer=adamw", "trainer.averaging.kind=none", "model.layer_dropout=0.1"], "model.layer_dropout=0"),
        (["optimizer=adamw", "trainer.averaging.kind=none", "trainer.keep=best"], "trainer.keep=last"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_training_where_they_are_divided(overrides, words):
    with pytest.raises(UserError, match=f"trainer.parallel=fsdp.*{words}"):
        Setup(compose(["trainer.parallel=fsdp", *overrides]))
    Setup(compose(["trainer.parallel=ddp", *overrides]))


def test_the_status_of_the_first_process_counts_and_a_kill_is_known():
    assert _what_failed({0: 2, 1: 2}).status == 2
    assert _what_failed({0: 143, 1: 1}).status == 143
    # The launcher ended the others by SIGTERM.
    assert _what_failed({0: -signal.SIGTERM, 1: 2}).status == 2
    killed = _what_failed({0: -signal.SIGKILL, 1: 1})
    assert (killed.status, killed.killed, killed.signal_number) == (1, 0, signal.SIGKILL)
    # The first one has reported that the second was killed.
    assert _what_failed({0: 1, 1: -signal.SIGKILL}).killed is None
    # It was not there to report it: once because the launcher had ended it too, once because the run was over.
    assert _what_failed({0: -signal.SIGTERM, 1: -signal.SIGKILL}).killed == 1
    assert _what_failed({1: -signal.SIGABRT}).killed == 1


def test_a_port_that_another_program_has_is_told_in_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot connect .* at 127.0.0.1:{port} .*MASTER_PORT") as found:
            group._Several(Place(0, 2, 0, 2, "127.0.0.1", port))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("launched", [False, True])
def test_where_the_others_cannot_be_met_they_are_gone_or_the_network_is_closed(monkeypatch, capsys, launched):
    stores = []

    def refused(*_, store, **__):
        stores.append(store)
        raise RuntimeError("Gloo connectFullMesh failed\nat pair.cc")

    monkeypatch.setattr("torch.distributed.init_process_group", refused)
    monkeypatch.setattr(group, "_joined", None)
    if launched:
        monkeypatch.setenv("TFX_LAUNCHED", "1")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(group, "find_place", lambda: Place(0, 2, 0, 2, "127.0.0.1", 0))
    status = main(["train", "trainer.budget.steps=1"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if launched:
        assert (status, "another process of the run ended without a word" in said) == (1, True)
    else:
        assert (status, "(Gloo connectFullMesh failed): one of them has ended" in said) == (2, True)
    # By then the others know this process.
    assert stores[0].underlying_store.check(["tfx/0/process/0"])


_ENDING = """
import os, socket
from tfx.processes.group import _Several
from tfx.processes.place import Place
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
group = _Several(Place(0, 1, 0, 1, "127.0.0.1", port))
import torch._dynamo
group.leave()
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(*(name for name in names if "gloo" in name))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_a_group_runs_on_while_python_ends():
    """One that does takes Python's lock now and then, and aborts a process whose run is complete."""
    done = subprocess.run([sys.executable, "-c", _ENDING], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_a_failure_says_what_kind_it_is():
    assert Failure.of(UserError("no data"), 1).kind == "user"
    stopped = Failure.of(StoppedBySignal(signal.SIGTERM), 2)
    assert (stopped.kind, stopped.status) == ("signal", 143)
    error = Failure.of(ValueError("odd"), 3)
    assert (error.kind, error.status, error.message) == ("error", 1, "ValueError: odd")
    assert "process 3 failed: ValueError: odd" in str(LostProcessError(error))
    assert "killed" in str(LostProcessError(None))


def test_a_process_of_a_run_starts_no_others(monkeypatch, tmp_path):
    monkeypatch.setenv("TFX_LAUNCHED", "1")
    with pytest.raises(AssertionError, match="never starts others"):
        launch(["-c", "pass"], 2, threads=1, folder=str(tmp_path))


def test_what_the_launcher_writes_is_in_the_folder_of_the_run(monkeypatch, tmp_path):
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    launch(["-c", "pass"], 2, threads=1, folder=str(folder))
    assert list(temporary.iterdir()) == []
    assert folder.is_dir()


def test_a_fork_of_a_process_belongs_to_a_group_of_its_own(monkeypatch):
    assert group.join() is group.ALONE
    joined = []
    monkeypatch.setattr(group, "_Several", joined.append)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert group.join() is group.ALONE
    monkeypatch.setattr(group.os, "getpid", lambda: -1)
    group.join()
    assert joined == [find_place(TORCHRUN)]
    monkeypatch.setattr(group, "_joined", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.parallel=local"], "for several processes, and there is one: name trainer.devices=N"),
        (["trainer.devices=999", "dataset.batch_tokens=1000000"], "999 processes share"),
        (["trainer.devices=1"], None),
        (["trainer.local.average_moments=false"], "trainer.local.average_moments=false has no effect"),
        (["trainer.local.outer_lr=0.5"], "trainer.local.outer_lr=0.5 has no effect: it is for trainer.parallel=local"),
        ([*LOCAL, "trainer.local.steps=16"], "after at most 15 steps (trainer.validate_every=0.1)"),
        ([*LOCAL, "trainer.local.steps=15"], None),
    ],
)
def test_a_number_of_processes_that_is_hardly_meant_is_noted(here, words, said, capsys, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert main(["train", "trainer.device=cpu", "dry_run=true", *words]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert [said in note for note in notes] == ([True] if said else [])


@pytest.mark.parametrize("count", [1, 2])
def test_processes_are_counted_in_words(here, count, capsys):
    words = ["trainer.parallel=local", f"trainer.devices={count}"]
    assert main(["train", "trainer.device=cpu", "dry_run=true", *words]) == 0
    assert ("1 process (local)" if count == 1 else "2 processes (local)") in " ".join(capsys.readouterr().out.split())


_ON_CPU = """
from tfx.config.compose import compose
from tfx.processes import group
from tfx.processes.place import Place
from tfx.run import life

def only_gpu():
    print("asked")
    return ""

group._only_gpu = only_gpu
joined = group._Several(Place(0, 1, 0, 2, "127.0.0.1", 0))
life.join = lambda: joined
joined.place = Place(1, 2, 1, 2, "", 0)  # this one does nothing in a dry run
for device in ("cpu", "auto"):
    print(device)
    life.train(compose([f"trainer.device={device}", "dry_run=true"]), [], None)
joined.place = Place(0, 1, 0, 2, "", 0)
joined.leave()
"""


def test_processes_on_a_cpu_ask_for_no_gpu():
    """The question initialises CUDA, which takes memory of the GPU."""
    done = subprocess.run([sys.executable, "-c", _ON_CPU], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "cpu\nauto\nasked\n"), done.stderr
