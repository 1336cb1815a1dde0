"""The first signal unwinds the run with 128 + its number, the second leaves at once."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tfx.system.signals import (
    StoppedBySignal,
    deferred_signal,
    deferring_signals,
    hold_signals,
    leave_signals,
    leaving_on_signals,
    stop_as_others,
)


@pytest.fixture(autouse=True)
def terminal():
    """As where the tests have a terminal: in the background of a script a hangup is ignored from the start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


STUBBORN = """
import time
from tfx.system.signals import leaving_on_signals
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


def signalled_thrice():
    with leaving_on_signals(once=True):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            # From the launcher, and from the terminal.
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)


def test_one_of_several_processes_takes_every_further_signal_for_the_same_one():
    with pytest.raises(StoppedBySignal) as caught:
        signalled_thrice()
    assert caught.value.status == 143


def stopped_as_others():
    with leaving_on_signals(once=True), deferring_signals():
        assert deferred_signal() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert deferred_signal() == signal.SIGINT
        try:
            stop_as_others(signal.SIGTERM)
        finally:
            assert deferred_signal() == 0
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_another_process_counts_as_come():
    with pytest.raises(StoppedBySignal) as caught:
        stopped_as_others()
    assert caught.value.status == 143


def test_the_end_of_one_of_several_processes_is_not_disturbed():
    before = {number: signal.getsignal(number) for number in leave_signals()}
    try:
        with leaving_on_signals(once=True):
            hold_signals()
            os.kill(os.getpid(), signal.SIGTERM)
        # Nor while its command prints what was wrong.
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number in before:
            signal.signal(number, before[number])
    with pytest.raises(StoppedBySignal), leaving_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)


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
