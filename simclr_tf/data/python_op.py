"""Python code inside tf.data, in a way that lets the interpreter exit.

An iterator that is still alive when the interpreter shuts down (a global of a script, a frame held
by a traceback) waits for the calls it has in flight, and these wait for an interpreter that runs no
thread any more: the process hangs. So at exit, before that, calls are answered at once and waited
for.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable

import tensorflow as tf

_QUIET_SECONDS = 0.05  # without a call for so long, the pipelines' buffers are full
_PATIENCE_SECONDS = 5.0

_lock = threading.Lock()
_in_flight = 0
_last_call = 0.0
_exiting = False


def python_op(function: Callable, at_exit: tuple, inputs: list[tf.Tensor], types: list[tf.DType]):
    """`tf.numpy_function`, answered with `at_exit` once the interpreter is about to end."""

    def call(*arguments):
        global _in_flight, _last_call
        with _lock:
            _in_flight += 1
        try:
            return at_exit if _exiting else function(*arguments)
        finally:
            with _lock:
                _in_flight -= 1
                _last_call = time.monotonic()

    return tf.numpy_function(call, inputs, types)


@atexit.register
def _settle() -> None:
    """Waits until the pipelines, which nothing reads from any more, have filled their buffers."""
    global _exiting
    _exiting = True
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with _lock:
            quiet = not _in_flight and time.monotonic() - _last_call > _QUIET_SECONDS
        if quiet:
            return
        time.sleep(0.005)
