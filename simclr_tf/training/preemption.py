"""SIGTERM ends a run after the step under way, with its state saved."""

from __future__ import annotations

import contextlib
import signal
import threading

from tensorflow import keras

from simclr_tf.errors import PreemptedError


class StopOnSignal(keras.callbacks.Callback):
    """Saves and ends the run, by raising `PreemptedError`, after the step in which SIGTERM came.

    Signals are caught only inside the context manager `listening`.

    Args:
      save: called without arguments before the exception is raised.
      agree: bool of this worker -> whether any worker was told to stop; None for a single one.
      every_steps: steps between two calls of `agree`, each of which costs all workers a message.
    """

    def __init__(self, save, agree=None, every_steps=10):
        super().__init__()
        self.save, self.agree = save, agree
        self.every_steps = every_steps if agree else 1
        self._told, self._asked = False, 0

    @contextlib.contextmanager
    def listening(self):
        """Notes SIGTERM, in place of ending the process, until the block ends."""
        if threading.current_thread() is not threading.main_thread():  # Python allows it there only
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, number, frame):
        self._told = True

    def on_train_batch_end(self, batch, logs=None):
        """Saves and raises where a signal came."""
        turn = (batch + 1) // self.every_steps
        if turn == self._asked:
            return
        self._asked = turn
        if self.agree(self._told) if self.agree else self._told:
            self.save()
            raise PreemptedError("stopped by SIGTERM; the state is saved.")

    def on_epoch_begin(self, epoch, logs=None):
        """Batches count from 0 again."""
        self._asked = 0
