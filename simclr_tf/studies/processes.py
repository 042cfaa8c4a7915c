"""Commands of `simclr-tf` in processes of their own: a crash or SIGTERM of one is reported."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

_PROGRAM = (sys.executable, "-m", "simclr_tf")


class Ended(NamedTuple):
    """A command that has ended.

    Attributes:
      code: its exit code; -n where signal n killed it.
      output: what it wrote to stdout.
      reason: its last line on stderr, without the program's name.
      stopped: whether SIGTERM came to this process and was passed on.
    """

    code: int
    output: str
    reason: str
    stopped: bool = False


def run_command(words, log_path):
    """Runs `simclr-tf WORDS` in a new process, so that each has a fresh TensorFlow.

    SIGTERM is passed on to it; if this process is interrupted otherwise, it is asked to end too.

    Args:
      words: list of str.
      log_path: file that its stderr is appended to.

    Returns:
      An `Ended`.
    """
    log_path = pathlib.Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "ab") as log_file:
        begin = log_file.tell()
        with _passing_on_sigterm() as passing_on:
            process = subprocess.Popen(
                [*_PROGRAM, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
            )
            passing_on.to(process)
            output = _output_of(process)
    lines = log_path.read_bytes()[begin:].decode("utf-8", "replace").splitlines()
    reason = _reason(process.returncode, lines)
    return Ended(process.returncode, output.decode("utf-8"), reason, passing_on.received)


def _output_of(process):
    """All of its stdout, after its end."""
    try:
        return process.communicate()[0]
    except BaseException:  # Ctrl-C, which may have reached this process alone
        process.terminate()
        process.wait()
        raise


def _reason(code, lines):
    """Why a command failed: the last line that it wrote, or the signal that killed it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line for line in lines if line.strip()]
    return lines[-1].removeprefix("simclr-tf: ").strip() if lines else f"exit code {code}"


class _PassingOn:
    """A handler of SIGTERM that sends it to a process, also to one that is yet to start."""

    def __init__(self):
        self.received, self._process = False, None

    def to(self, process):
        self._process = process
        if self.received:
            process.terminate()

    def __call__(self, number, frame):
        self.received = True
        if self._process is not None:
            self._process.terminate()


@contextlib.contextmanager
def _passing_on_sigterm():
    passing_on = _PassingOn()
    if threading.current_thread() is not threading.main_thread():  # Python allows it there only
        yield passing_on
        return
    before = signal.signal(signal.SIGTERM, passing_on)
    try:
        yield passing_on
    finally:
        signal.signal(signal.SIGTERM, before)
