"""One process at a time in a run directory, and a killed one holds nothing."""

import subprocess
import sys

import pytest

from tfx.errors import UserError
from tfx.run.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from tfx.run.lock import locked
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
