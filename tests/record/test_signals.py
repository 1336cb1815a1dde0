"""The first signal unwinds the run with 128 + its number, the second leaves at once."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tfx.record.signals import StoppedBySignal, leaving_on_signals

STUBBORN = """
import time
from tfx.record.signals import leaving_on_signals
with leaving_on_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("leaving", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_raised_with_its_status_and_the_handlers_come_back(number, status):
    before = signal.getsignal(number)
    with pytest.raises(StoppedBySignal, match=number.name) as caught, leaving_on_signals():
        os.kill(os.getpid(), number)
    assert caught.value.status == status
    assert signal.getsignal(number) is before


def test_the_second_signal_leaves_at_once():
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "leaving\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.communicate()


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leaving_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def closing():
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_terminal_that_closes_says_so_twice_and_the_run_still_leaves_in_order():
    with pytest.raises(StoppedBySignal) as caught, leaving_on_signals(), closing():
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught.value.status == 129
