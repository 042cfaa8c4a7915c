"""lightly (PyTorch) in a process of its own, for comparison where it is available.

The environment variable SIMCLR_LIGHTLY names a Python interpreter that can import lightly and
torch; without it the tables have no such row.
"""

import os
import pathlib
import subprocess

VARIABLE = "SIMCLR_LIGHTLY"


def is_available():
    """Returns whether SIMCLR_LIGHTLY is set."""
    return bool(os.environ.get(VARIABLE))


class Worker:
    """Starts `lightly_worker.py`; each call runs its task once.

    Args:
      *arguments: arguments of `lightly_worker.py`.

    Raises:
      RuntimeError: the process has ended.
    """

    def __init__(self, *arguments):
        program = pathlib.Path(__file__).with_name("lightly_worker.py")
        self._process = subprocess.Popen(
            [os.environ[VARIABLE], str(program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wait()

    def __call__(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._wait()
        return []

    def _wait(self):
        if not self._process.stdout.readline():
            raise RuntimeError(f"lightly ended with exit code {self._process.wait()}.")
