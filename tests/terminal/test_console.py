"""What the user sees: plain lines where stderr is no terminal, a live line where it is; all of it in the log."""

import errno
import importlib.metadata
import io
import json
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from tfx.record.environment import describe_environment, environment_differences
from tfx.record.metrics_log import MetricsLog
from tfx.terminal.console import RunConsole, clock, number, size

PLACE = {"step": 1200, "tokens": 5000, "seconds": 60.0, "progress": 0.25}
LIVE = """
import time
from tfx.terminal.console import RunConsole
console = RunConsole()
console.training_started()
place = {"step": 1200, "tokens": 5000, "seconds": 60.0, "progress": 0.25}
console.validated({"loss": 2.5}, **place)
console.stepped({"loss": 2.345, "tokens_per_second": 12345.6}, **place)
time.sleep(0.5)
console.training_ended()
"""


def test_without_a_terminal_there_is_one_plain_line_a_validation(tmp_path, capsys):
    console = RunConsole()
    console.header([("data", "a set"), ("model", "a model")])
    console.open_log(tmp_path / "train.log")
    console.training_started()
    for _ in range(5):
        console.stepped({"loss": 2.0, "tokens_per_second": 10.0}, **PLACE)
    console.validated({"loss": 1.5, "perplexity": 4.48}, **PLACE)
    console.decoding("decoding test", 3, 10)
    console.training_ended()
    console.result("the result")
    console.close()
    out, err = capsys.readouterr()
    assert out == "the result\n"
    lines = [line.rstrip() for line in err.splitlines()]
    assert lines == ["data   a set", "model  a model", " 25%  step 1,200  1:00  validation: loss 1.5  perplexity 4.48"]
    assert "\x1b" not in err
    # The log has what was shown before it was opened, too.
    log = (tmp_path / "train.log").read_text()
    assert all(words in log for words in ("a set", "validation: loss 1.5", "the result"))


def test_a_terminal_has_a_live_line_with_all_that_one_waits_for():
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", LIVE], stderr=slave, stdout=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode()
    for words in ("step 1,200", "loss 2.345", "12,346 tok/s", "3:00 left", "valid 2.500"):
        assert words in text


def test_a_log_on_a_full_disk_stops_nothing(tmp_path, capsys):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    console = RunConsole()
    console.open_log(tmp_path / "train.log")
    console._file = Full()
    console._log = Console(file=console._file)
    console.note("still here")
    console.failure(RuntimeError("fault"))
    console.close()
    assert "still here" in capsys.readouterr().err


def test_names_in_brackets_are_shown_and_logged(tmp_path, capsys):
    console, name = RunConsole(), "technique=[distill,quantize] [/b] :smile:"
    console.note(name)
    console.open_log(tmp_path / "log")
    console.header([("stack", name)])
    console.result(name)
    console.close()
    shown = capsys.readouterr()
    assert shown.err.count(name) == 2
    assert shown.out.count(name) == 1
    assert (tmp_path / "log").read_text().count(name) == 3


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (clock(59.6), "1:00"),
        (clock(3723), "1:02:03"),
        (clock(-1), "0:00"),
        (number(12345), "12,345"),
        (number(0.00012345), "0.0001234"),
        (number(12345.6), "12,346"),
        (number(None), "-"),
        (number(True), "True"),
        (size(999), "999 B"),
        (size(1_500_000), "1.50 MB"),
        (size(2e12), "2000.00 GB"),
    ],
)
def test_numbers_for_people(found, expected):
    assert found == expected


def test_metrics_are_appended_and_taken_back_to_a_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write("train", step=1, tokens=10, seconds=0.12345, loss=2.0)
    place = log.place()
    log.write("train", step=2, tokens=20, seconds=0.2, loss=float("nan"))
    log.close()
    again = MetricsLog(path, place=place)
    again.write("valid", step=2, tokens=20, seconds=0.3, loss=1.0)
    again.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"split": "train", "step": 1, "tokens": 10, "seconds": 0.123, "loss": 2.0},
        {"split": "valid", "step": 2, "tokens": 20, "seconds": 0.3, "loss": 1.0},
    ]


def test_the_environment_names_what_a_result_may_depend_on(monkeypatch):
    import torch

    monkeypatch.setenv("GOMP_SPINCOUNT", "123")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = describe_environment(torch.device("cpu"), {"data": "abc"})
    assert torch.__version__.startswith(found["packages"]["torch"].split("+")[0])
    assert found["packages"]["tfx"] == importlib.metadata.version("tfx")
    assert found["threads"] == torch.get_num_threads()
    assert found["waiting"] == "GOMP_SPINCOUNT=123"
    assert found["hardware"]["device"] == "cpu"
    assert found["fingerprints"] == {"data": "abc"}
    other = json.loads(json.dumps(found)) | {"command": ["another"], "waiting": "", "threads": 77}
    other["packages"]["torch"] = "1.0"
    other["hardware"]["gpu"] = "one"
    differences = environment_differences(found, other)
    assert set(differences) == {"packages.torch", "threads", "hardware.gpu"}
    assert differences["hardware.gpu"] == (None, "one")
    assert environment_differences(found, found) == {}


def test_the_terminal_of_a_console_is_stderr(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    RunConsole().note("a note")
    assert stream.getvalue() == "a note\n"
