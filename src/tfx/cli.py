"""`tfx <command>`: finds the command, no more. Imports no torch, so that help answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from keyword import iskeyword
from pathlib import Path

from tfx.errors import UserError, suggest
from tfx.system.threads import wait_briefly
from tfx.terminal.output import LostOutputError, lost, streams

COMMANDS = {
    "train": "build data, model and stack; train; evaluate; write a run directory",
    "resume": "continue a run that was stopped, with the same final bits",
    "reproduce": "repeat a run, and compare every metric",
    "ablate": "measure what each technique adds, at one budget",
    "search": "find the best model within limits of bytes, latency or quality",
    "evaluate": "score a run's final file, or a model file on a named data set",
    "generate": "decode arguments or the lines of stdin: one line out per line in",
    "inspect": "list the tensors of a model file, with shapes and bytes",
    "import": "convert a model of another library to a model file",
    "export": "write a model for another library, and check it there",
    "report": "compare runs: a table, and one HTML page",
    "list": "the available models, data sets and techniques",
}


# One process of a run in several: tfx starts it itself.
_WORKER = "worker"


def usage() -> str:
    """The text of `tfx --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tfx <command> …",
            "",
            "Train Transformers efficiently, and measure what each technique brings.",
            "",
            *lines,
            "",
            "`tfx <command> --help` explains a command. Start with `tfx train`: it needs no data and no other setup.",
            'Completion in bash: eval "$(tfx -sc install=bash)"',
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0 done, 2 wrong input, 1 anything else.

    Without arguments it is that of the process, which it may end itself.
    If the reader of stdout leaves (``| head``), a command that only prints ends; a run continues and does not fail.
    """
    wait_briefly()
    if arguments is not None:
        return _main(list(arguments))
    from tfx.processes.ending import run_and_end

    return run_and_end(lambda: _main(sys.argv[1:]))


def _main(words: list[str]) -> int:
    with streams() as output:
        try:
            status = _run(words)
        except UserError as error:
            print(f"tfx: {error}", file=sys.stderr)
            status = 2
        except LostOutputError:
            status = 1
        finally:
            trouble = lost(output)
        if output.replaced:
            print(
                f"tfx: {output.replaced:,} characters are not in the encoding of stdout ({output.encoding}) and were "
                "written as '?': set PYTHONIOENCODING=utf-8",
                file=sys.stderr,
            )
        if trouble is not None:
            print(f"tfx: {trouble}", file=sys.stderr)
            status = status or 1
    return status


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"tfx {version('tfx')}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        words = _complete(words)
    try:
        Path.cwd()
    except OSError as error:  # Hydra and torch fail in it, each in its own words
        raise UserError(f"the working directory cannot be used ({error.strerror}): change to another one") from None
    name = words[0]
    if name not in (*COMMANDS, _WORKER):
        raise UserError(f"command '{name}' is unknown{suggest(name, COMMANDS)}")
    module = f"{name}_" if iskeyword(name) else name
    return importlib.import_module(f"tfx.commands.{module}").main(words[1:])


def _complete(words: list[str]) -> list[str]:
    """Completion asks `tfx -sc query=bash` with the line typed so far in the environment.

    Hydra completes the overrides of `train`, but does not know commands: the command is removed from the line first.
    While it is still being typed, the commands are the answer.
    """
    typed = os.environ.get("COMP_LINE", "").split(" ")
    if any(word.startswith("query=") for word in words):
        if len(typed) <= 2:
            print(" ".join(COMMANDS))
            raise SystemExit(0)
        os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])
    return ["train", *words]
