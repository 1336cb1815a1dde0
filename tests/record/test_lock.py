"""One process at a time in a run directory or at a cache entry, and a killed one holds nothing."""

import errno
import subprocess
import sys

import pytest

from tfx.errors import UserError
from tfx.record.lock import locked, making

HOLD = """
import sys, time
from pathlib import Path
from tfx.record.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by another tfx process \\(id {other.pid}\\)"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with locked(tmp_path):
        pass


def test_the_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            pass


# Reads and writes a counter with nothing but the lock between the processes.
COUNT = """
import sys, time
from pathlib import Path
from tfx.record.lock import making
counter = Path(sys.argv[1])
for _ in range(20):
    with making(counter):
        value = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(value + 1))
"""


def test_processes_that_wait_for_each_other_lose_no_update(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    counter = tmp_path / "counter"
    counter.write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", COUNT, counter]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert counter.read_text() == "60"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_disk_without_locks_a_run_goes_on_with_a_note(tmp_path, monkeypatch, capsys, number):
    def refused(*_):
        raise OSError(number, "no locks")

    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fcntl.flock", refused)
    with locked(tmp_path), making(tmp_path / "entry"):
        pass
    assert "on a disk without locks" in capsys.readouterr().err
    number = errno.EIO
    with pytest.raises(OSError, match="no locks"), locked(tmp_path):
        pass
