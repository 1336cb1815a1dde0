"""Threads give their cores away soon, unless the user said how they are to wait."""

import subprocess
import sys

import pytest

from tfx.cli import main
from tfx.system import threads
from tfx.system.threads import how_they_wait, others_compute

QUIET, BUSY = "0.00 0.10 0.20 1/87 4242\n", "1.00 0.50 0.20 2/87 4242\n"


@pytest.mark.parametrize(
    ("given", "load", "expected"),
    [
        ({}, QUIET, "GOMP_SPINCOUNT=3000"),
        ({}, BUSY, "GOMP_SPINCOUNT=1000"),
        ({}, None, "GOMP_SPINCOUNT=1000"),
        ({}, "not Linux", "GOMP_SPINCOUNT=1000"),
        ({"GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": ""}, QUIET, "GOMP_SPINCOUNT=3000"),
        ({"GOMP_SPINCOUNT": "7"}, QUIET, "GOMP_SPINCOUNT=7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, BUSY, "OMP_WAIT_POLICY=ACTIVE"),
    ],
)
def test_a_command_says_how_threads_wait_where_the_user_has_not(given, load, expected, monkeypatch, capsys, tmp_path):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "_LOADAVG", tmp_path / "loadavg")
    if load is not None:
        (tmp_path / "loadavg").write_text(load)
    assert main(["--version"]) == 0
    assert how_they_wait() == expected
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert main(["train", "dry_run=true", "dataset.limit.train=10", "trainer.device=cpu"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("device")]
    assert row.endswith(f"2 threads, {expected}")


def test_a_process_that_computes_is_seen():
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as other:
        try:
            other.stdout.readline()
            assert others_compute()
        finally:
            other.kill()


@pytest.mark.parametrize(("looks", "expected"), [("12111", False), ("22111", False), ("21221", True)])
def test_a_process_that_computes_for_a_moment_does_not_count(looks, expected, monkeypatch):
    class Load:
        def __init__(self):
            self.left = iter(looks)

        def read_text(self):
            return f"0.00 0.00 0.00 {next(self.left)}/87 4242\n"

    monkeypatch.setattr(threads, "_LOADAVG", Load())
    assert others_compute() == expected
