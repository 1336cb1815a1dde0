"""Threads give their cores away soon, unless the user said how they are to wait."""

import pytest

from tfx.cli import main
from tfx.system.threads import how_they_wait


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "GOMP_SPINCOUNT=2000"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY=ACTIVE"),
    ],
)
def test_a_command_says_how_threads_wait_where_the_user_has_not(given, expected, monkeypatch, capsys):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert how_they_wait() == expected
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert main(["train", "dry_run=true", "dataset.limit.train=10", "trainer.device=cpu"]) == 0
    (row,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("device")]
    assert row.endswith(f"2 threads {expected}")
