"""A process gets the signal that it asked for when its parent is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import os, sys, time
from tfx.system.parent import asks_for_signal
ask = asks_for_signal(int(sys.argv[1]))
child = os.fork()
if child == 0:
    ask()
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as file:  # one that nobody waits for stays as a zombie
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a signal")
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, True), (signal.SIGCHLD, False)])
def test_a_child_gets_the_signal_when_its_parent_is_killed(number, ends):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(int(number))], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.3)  # for the child to ask
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + (10 if ends else 0.5)
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        assert is_alive(child) != ends
    finally:
        if is_alive(child):
            os.kill(child, signal.SIGKILL)
