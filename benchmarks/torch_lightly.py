"""lightly (PyTorch) as a contender, where a person has it: it takes its turns in its own process.

SIMCLR_LIGHTLY names a Python that can import lightly and torch; without it there is no such row.
"""

import os
import pathlib
import subprocess

VARIABLE = "SIMCLR_LIGHTLY"


def is_at_hand():
    """Whether the environment names such a Python."""
    return bool(os.environ.get(VARIABLE))


class Worker:
    """A piece of work of `lightly_worker.py`, done once by each call.

    Args:
      *arguments: of that program.
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
