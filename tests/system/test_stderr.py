"""What libraries write to stderr by themselves is kept from it for a while."""

import os
import subprocess
import sys

from tfx.system.stderr import silent_stderr


def test_nothing_reaches_stderr_inside(capfd):
    os.write(2, b"before ")
    with silent_stderr():
        os.write(2, b"inside ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_a_stderr_that_is_closed_stays_closed():
    code = "import os\nfrom tfx.system.stderr import silent_stderr\nos.close(2)\nwith silent_stderr(): print('inside')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "inside\n")
