"""SIGTERM ends a run after the step under way, with its state saved."""

from __future__ import annotations

import contextlib
import signal
import threading

from simclr_tf._keras import StepCallback
from simclr_tf.errors import PreemptedError


class StopOnSignal(StepCallback):
    """Saves and ends the run, by raising `PreemptedError`, after the step in which SIGTERM came.

    Signals are caught only inside the context manager `listening`.

    Args:
      save: called without arguments before the exception is raised.
      agree: bool of this worker -> whether any worker received the signal; None with one worker.
      every_steps: steps between two calls of `agree`, each of which costs all workers a message.

    Raises:
      errors.PreemptedError: from `fit`, after a signal.

    Example:

    >>> stop = simclr_tf.training.StopOnSignal(save=lambda: print("saved"))
    >>> with stop.listening():
    ...     stop.on_epoch_begin(0)
    ...     stop.on_train_batch_end(0)  # no signal, nothing happens
    """

    def __init__(self, save, agree=None, every_steps=10):
        super().__init__(every_steps if agree else 1)
        self.save, self.agree = save, agree
        self._received = False

    @contextlib.contextmanager
    def listening(self):
        """Records SIGTERM, instead of ending the process, until the block ends."""
        if threading.current_thread() is not threading.main_thread():  # Python allows it there only
            yield
            return
        before = signal.signal(signal.SIGTERM, self._record)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _record(self, number, frame):
        self._received = True

    def on_steps_end(self, steps, logs):
        """Saves and raises if a signal came; after the last step, the end of the epoch does."""
        if steps != (getattr(self, "params", None) or {}).get("steps"):
            self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        """Saves and raises if a signal came; the epoch's metrics have been written."""
        self._stop_if_asked()

    def _stop_if_asked(self):
        if self.agree(self._received) if self.agree else self._received:
            self.save()
            raise PreemptedError("stopped by SIGTERM; the state is saved.")
