"""The short form of the fuzzing of inputs, and that it would see what it looks for."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)


def test_bad_input_is_refused_in_one_line():
    counts = ["--configs", "3", "--data", "6", "--checkpoints", "30"]
    ran = run(str(SCRIPTS / "fuzz_inputs.py"), "--seed", "7", *counts)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# Commands that do what no command may, each under the word for it.
WRONG = """
import os, pickle, subprocess, sys, tempfile, time
from pathlib import Path
import fuzz_inputs, tfx.cli
from tfx.errors import UserError

class Bomb:
    def __reduce__(self):
        return (print, ())

def say(*lines):
    print(*lines, sep="\\n", file=sys.stderr)
    return 2

DEEDS = {
    "crash 1": lambda place: 1 / 0,
    "crash 2": lambda place: 1,
    "crash 3": lambda place: pickle.loads(pickle.dumps(Bomb())),
    "crash 4": lambda place: subprocess.run(["true"]).returncode,
    "crash 5": lambda place: Path(place).write_text("x") and 0,
    "crash 6": lambda place: len(bytes(3 << 30)) * 0,
    "not one line 1": lambda place: say("tfx: a", "b"),
    "not one line 2": lambda place: say("a"),
    "not one line 3": lambda place: say("tfx: " + "a" * 9999),
    "hang 1": lambda place: time.sleep(5),
    "hang 2": lambda place: all(i >= 0 for i in range(10**12)),
    "left files": lambda place: Path("left").write_text("x") and 0,
    "killed": lambda place: os.kill(os.getpid(), 9),
    "refused": lambda place: say("tfx: a"),
    "accepted": lambda place: 0,
}

class Generator:
    prepare = staticmethod(lambda base: None)
    make = staticmethod(lambda rng, place: ("x", list(DEEDS)))

tfx.cli.main = lambda arguments: DEEDS[deed](OUTSIDE)
fuzz_inputs.GENERATORS = {"configs": Generator}
fuzz_inputs.SECONDS, fuzz_inputs.PATIENCE = 0.3, 1
OUTSIDE = tempfile.mktemp()
with tempfile.TemporaryDirectory() as folder:
    fuzzer = fuzz_inputs.Fuzzer(1, Path(folder))
    for deed in DEEDS:
        _, outcome = fuzzer.run("configs", 1, shell=False)
        assert deed.startswith(outcome.word.split(" by ")[0]), (deed, outcome)
        assert outcome.is_good == (deed in ("refused", "accepted"))
assert not os.path.exists(OUTSIDE)
"""


def test_a_command_that_crashes_hangs_or_writes_elsewhere_is_seen():
    ran = run("-c", WRONG)
    assert ran.returncode == 0, ran.stdout + ran.stderr
