"""Whoever reads what a command says, or does not: a result is never lost for it, and what was not said is a line."""

import errno
import io
import json
import logging
import os
import subprocess
import sys

import pytest

from tfx.cli import main

TINY = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
TINY += [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")]
TINY += ["evaluation=greedy", "evaluation.latency_inputs=1", "trainer.budget.steps=2"]


FULL = "tfx: the output could not be written to stdout: No space left on device"
CLOSED = "tfx: the output could not be written to stdout: it is closed"


class Broken(io.StringIO):
    """A stdout that fails with this error after so many writes."""

    def __init__(self, number: int, good: int = 0) -> None:
        super().__init__()
        self.number, self.left = number, good

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


def run_with(words: list[str], **streams) -> int:
    """Runs a command with other standard streams; they are back before anything else captures them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        return main(words)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def trained(folder) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert "exact_match" in summary["test"]
    return summary


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 0), (errno.ENOSPC, 1)])
def test_a_run_is_whole_where_its_table_cannot_be_printed(number, status, tmp_path, monkeypatch, capsys):
    assert run_with(["train", *TINY, f"hydra.run.dir={tmp_path / 'run'}"], stdout=Broken(number)) == status
    trained(tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfx: ")]
    assert said == ([] if status == 0 else ["tfx: the output could not be written to stdout: No space left on device"])


def test_a_run_goes_on_when_nobody_listens(tmp_path, monkeypatch):
    words = ["train", *TINY, f"hydra.run.dir={tmp_path / 'run'}"]
    assert run_with(words, stderr=Broken(errno.EPIPE, good=2), stdout=None) == 1  # nobody got the table
    trained(tmp_path / "run")


def test_a_terminal_of_another_encoding_replaces_what_it_lacks(tmp_path, monkeypatch, capsys):
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert run_with(["train", *TINY, "name=名前", f"hydra.run.dir={tmp_path / 'run'}"], stdout=out) == 0
    trained(tmp_path / "run")
    out.flush()
    assert "exact_match" in out.buffer.getvalue().decode("latin-1")
    assert "are not in the encoding of stdout (latin-1) and were written as '?'" in capsys.readouterr().err


def test_a_page_or_table_that_fails_leaves_the_result(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no table today")

    monkeypatch.setattr("tfx.run.life.closing_table", fail)
    assert main(["train", *TINY, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    trained(tmp_path / "run")


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--version"], ["train", "--help"], ["--help"]])
def test_a_command_that_only_prints_says_that_it_could_not(words, monkeypatch, capsys):
    assert run_with(words, stdout=Broken(errno.ENOSPC)) == 1
    assert capsys.readouterr().err == FULL + "\n"
    assert run_with(words, stdout=None) == 1
    assert capsys.readouterr().err == CLOSED + "\n"


@pytest.mark.parametrize(
    ("redirect", "status", "said"),
    [
        ("> /dev/full", 1, FULL + "\n"),
        (">&-", 1, CLOSED + "\n"),
        ("| true", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_a_shell_hears_of_it_without_a_traceback(redirect, status, said):
    command = f"{sys.executable} -m tfx list --json {redirect}; exit ${{PIPESTATUS[0]:-$?}}"
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, said) or (redirect == "| true" and done.stderr == "")


@pytest.mark.parametrize("width", [1, 20, 45, 80])
def test_a_narrow_terminal_loses_no_number(width):
    from rich.console import Console

    from tfx.terminal.tables import Column, Sheet

    sheet = Sheet(
        Column("tensor"),
        Column("bits", number=True, spare=1),
        Column("bytes", number=True),
        title="a title of some length",
    )
    sheet.add_row("decoder.blocks.0.attention.k.weight", "32.00", "1,234,567")
    out = io.StringIO()
    Console(file=out, width=width).print(sheet)
    text = out.getvalue()
    if width > 1:
        assert "1,234,567" in text
        assert "32.00" in text or "no room for: bits" in " ".join(text.split())
    assert "…" not in text


def test_into_a_file_nothing_is_cut(tmp_path, monkeypatch, capsys):
    from tfx.terminal.console import plain_console
    from tfx.terminal.tables import Column, Sheet

    monkeypatch.setenv("COLUMNS", "20")
    sheet = Sheet(Column("name"), Column("signature"), title="t")
    sheet.add_row("x" * 300, "nrefs:1|" * 40)
    plain_console().print(sheet)
    assert f"│ {'x' * 300} │ {'nrefs:1|' * 40} │" in capsys.readouterr().out


def test_a_command_closes_no_handler_of_logging_that_a_library_has_made(tmp_path):
    class Closing(logging.StreamHandler):
        def close(self) -> None:
            self.stream.close()
            super().close()

    stream = io.StringIO()
    handler = Closing(stream)
    assert run_with(["train", "dry_run=true", *TINY, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert not stream.closed
    handler.close()


def test_a_word_is_not_broken_for_a_column_that_can_be_spared():
    from rich.console import Console

    from tfx.terminal.tables import Column, Sheet

    sheet = Sheet(Column("config"), Column("latency", number=True, spare=1), lines=False)
    sheet.add_row("distill+quantize weight_decay=0.3", "32.7 ms")
    out = io.StringIO()
    Console(file=out, width=24).print(sheet)
    assert [line.strip() for line in out.getvalue().splitlines()][1:] == [
        "distill+quantize",
        "weight_decay=0.3",
        "no room for: latency",
    ]


def test_rows_that_are_lines_leave_no_column_out():
    from rich.console import Console

    from tfx.terminal.tables import Column, Sheet

    sheet = Sheet(Column("config"), Column("difference", number=True), Column("runs", number=True, spare=1))
    sheet.add_row("distill", "+0.112", "3")
    out = io.StringIO()
    Console(file=out, width=20).print(sheet)
    assert [line.strip() for line in out.getvalue().splitlines()] == ["distill", "difference: +0.112", "runs: 3"]


def test_into_a_pipe_no_line_ends_in_spaces(capsys):
    from tfx.terminal.console import plain_console
    from tfx.terminal.tables import Column, Sheet

    sheet = Sheet(Column("name"), Column("what it is"), lines=False)
    sheet.add_row("a", "short")
    sheet.add_row("b", "of more words")
    plain_console().print(sheet)
    assert capsys.readouterr().out.splitlines() == ["name  what it is", "a     short", "b     of more words"]
