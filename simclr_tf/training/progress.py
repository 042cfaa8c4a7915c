"""The progress of a run: a bar on a terminal, else a line of fixed columns per epoch."""

from __future__ import annotations

import datetime
import shutil
import sys
import time

from simclr_tf._keras import StepCallback
from simclr_tf.errors import check_number

_SECONDS_BETWEEN_UPDATES = 0.5
_HEADER_EVERY_LINES = 25


def _number(digits):
    return lambda value: f"{value:,.{digits}f}"


def _percent(digits):
    return lambda value: f"{100 * value:.{digits}f}%"


# Key in the logs: heading, width, text of a value.
_COLUMNS = {
    "loss": ("loss", 8, _number(4)),
    "chance": ("chance", 8, _number(4)),
    "contrastive_accuracy": ("contrastive", 11, _percent(2)),
    "accuracy": ("accuracy", 8, _percent(2)),
    "learning_rate": ("rate", 9, lambda value: f"{value:.3g}"),
    "images_per_second": ("images/s", 9, _number(0)),
    "data_wait": ("waiting", 7, _percent(0)),
    "rankme": ("RankMe", 7, _number(1)),
    "knn_accuracy": ("kNN", 7, _percent(2)),
    "linear_accuracy": ("linear", 7, _percent(2)),
    "left": ("left", 9, str),
}
_ALWAYS = ("loss", "learning_rate", "images_per_second", "data_wait", "left")


class Progress(StepCallback):
    """Shows a run as it goes on: loss next to chance, accuracy, images/s, waiting, time left.

    On a terminal that is a bar (tqdm) of the epoch under way, which is read from the device twice a
    second at most; and in any case a line per epoch, whose columns are the same in all epochs. A
    value that an epoch does not have is "-".

    Args:
      epochs: of the run; None: those of the call of `fit`.
      steps_per_epoch: None: those of the call of `fit`.
      batch_size: images per step, for the bar; None: the bar has no images/s.
      chance_loss: the loss of a model that has learnt nothing, 0 or more, or None.
      columns: keys of the logs that have columns besides loss, rate, images/s, waiting and time
        left: any of "contrastive_accuracy", "accuracy", "rankme", "knn_accuracy" and
        "linear_accuracy".
      data_wait: a `DataWait` whose share the bar shows, or None.
      terminal: whether to show the bar; None: whether stdout is a terminal.
      log: called with each line.
      epoch_cost: called with an epoch, counted from 0; returns how long a step of it takes, above
        0, in any unit, for the time left. None: the steps of all epochs take the same time.

    Example:

    >>> progress = simclr_tf.training.Progress(columns=["contrastive_accuracy"], terminal=False)
    >>> model = simclr_tf.SimCLR(encoder)
    >>> model.compile("sgd")
    >>> _ = model.fit(dataset, epochs=2, verbose=0, callbacks=[progress])
       epoch      loss  contrastive      rate   images/s  waiting       left
         1/2 ...
         2/2 ...
    """

    def __init__(
        self,
        epochs=None,
        steps_per_epoch=None,
        batch_size=None,
        chance_loss=None,
        columns=("contrastive_accuracy",),
        data_wait=None,
        terminal=None,
        log=print,
        epoch_cost=None,
    ):
        super().__init__()
        if chance_loss is not None:
            check_number("chance_loss", chance_loss, at_least=0)
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.chance_loss, self.data_wait, self.log = chance_loss, data_wait, log
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        wanted = {*_ALWAYS, *columns, *(["chance"] if chance_loss is not None else [])}
        self._columns = [key for key in _COLUMNS if key in wanted]
        self._cost = epoch_cost or (lambda epoch: 1)
        self._lines, self._bar, self.steps_before = 0, None, 0
        self._begun = None  # time and work of the run at the end of its first step here

    def on_epoch_begin(self, epoch, logs=None):
        """Begins a bar."""
        super().on_epoch_begin(epoch, logs)
        self._epoch, self._first = epoch, self.steps_before
        self.steps_before = 0
        self._total = self.steps_per_epoch or self.params.get("steps")
        self._shown = self._epoch_begun = time.perf_counter()
        if self.terminal:
            from tqdm import tqdm

            # tqdm shows nothing on a terminal that reports a size of 0; the default is 80 x 24.
            columns, lines = shutil.get_terminal_size()
            self._bar = tqdm(
                total=self._total,
                initial=self._first,
                desc=f"epoch {epoch + 1}/{self._epochs}",
                leave=False,
                bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt}{postfix}",
                file=sys.stdout,
                ncols=columns,
                nrows=lines,
            )

    @property
    def _epochs(self):
        return self.epochs or self.params["epochs"]

    def on_steps_end(self, steps, logs):
        """Moves the bar; its numbers are read twice a second at most."""
        done = self._first + steps
        if self._begun is None:
            self._begun = time.perf_counter(), self._done(done)
        now = time.perf_counter()
        if self._bar is None or now - self._shown < _SECONDS_BETWEEN_UPDATES:
            return
        self._shown = now
        values = {key: float(logs[key]) for key in self._columns if key in logs}
        if self.batch_size:
            values["images_per_second"] = steps * self.batch_size / (now - self._epoch_begun)
        if self.data_wait is not None and self.data_wait.share is not None:
            values["data_wait"] = self.data_wait.share
        self._bar.n = done
        self._bar.set_postfix_str(self._words(values, self._left(done)))

    def _words(self, values, left):
        words = []
        for key, value in values.items():
            heading, _, text = _COLUMNS[key]
            if key == "loss" and self.chance_loss is not None:
                words.append(f"loss {text(value)} (chance {text(self.chance_loss)})")
            elif key == "images_per_second":
                words.append(f"{text(value)} {heading}")
            elif key != "learning_rate":
                words.append(f"{heading} {text(value)}")
        return ", ".join([*words, *([f"{left} left"] if left else [])])

    def _done(self, steps):
        """Work up to a step of this epoch: its steps, or epochs where their steps are unknown."""
        before = sum(map(self._cost, range(self._epoch))) * (self._total or 1)
        return before + self._cost(self._epoch) * steps if self._total else before

    def _left(self, steps):
        """The time left, as text; None before there is a step to judge by."""
        total = sum(map(self._cost, range(self._epochs))) * (self._total or 1)
        done = self._done(steps)
        if self._begun is None or done <= self._begun[1]:
            return None
        seconds = (time.perf_counter() - self._begun[0]) / (done - self._begun[1]) * (total - done)
        return str(datetime.timedelta(seconds=round(max(0.0, seconds))))

    def on_epoch_end(self, epoch, logs=None):
        """Ends the bar and logs the line of the epoch."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        last = epoch + 1 == self._epochs
        left = "0:00:00" if last else self._left(self._total or 1)
        values = {**logs, "chance": self.chance_loss, "left": left}
        if self._lines % _HEADER_EVERY_LINES == 0:
            self._line("epoch", {key: _COLUMNS[key][0] for key in self._columns})
        self._lines += 1
        texts = {}
        for key in self._columns:
            value = values.get(key)
            text = _COLUMNS[key][2]
            texts[key] = "-" if value is None else text(value if key == "left" else float(value))
        self._line(f"{epoch + 1}/{self._epochs}", texts)

    def _line(self, epoch, texts):
        cells = [texts[key].rjust(_COLUMNS[key][1]) for key in self._columns]
        self.log("  ".join([epoch.rjust(9), *cells]).rstrip())

    def on_train_end(self, logs=None):
        """Ends a bar that is left, as where `fit` was interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
