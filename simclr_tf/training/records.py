"""Runs as records: the state, the progress and the last metrics of every run under a directory."""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import pathlib

from simclr_tf.errors import ArgumentError
from simclr_tf.training.run_directory import RunDirectory, read_flags, read_metrics, written_by

STATES = ("running", "finished", "stopped", "failed")
# Of these metrics the lowest value is the best, of all others the highest.
LOWER_IS_BETTER = ("loss", "alignment", "uniformity", "data_wait")
_NOT_METRICS = ("epoch", "step")
_MAX_DEPTH = 8  # of directories under the one that is searched


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What the files of a run tell.

    Attributes:
      path: `pathlib.Path` of the run directory.
      command: name of the command that trains it, such as "pretrain".
      state: "running": a process has its lock; "finished": its encoder is exported; "failed": it
        ended with an error; "stopped": it ended before its last epoch, and the same command resumes
        it.
      epochs: epochs done, int.
      planned_epochs: int; None where the flags do not tell.
      metrics: dict of a metric's name to its last value, float.
      num_bytes: size of the directory.
      error: the line of the error that ended it, or None.

    Example:

    >>> simclr_tf.training.RunDirectory(".").write_flags({"epochs": "7"})
    >>> [(run.state, run.planned_epochs) for run in simclr_tf.training.find_runs(".")]
    [('stopped', 7)]
    """

    path: pathlib.Path
    command: str
    state: str
    epochs: int
    planned_epochs: int | None
    metrics: dict
    num_bytes: int
    error: str | None = None


def find_runs(under):
    """Finds every run directory at or under a directory, sorted by path.

    A run directory is one with a flags.cfg. Links to directories are not followed.

    Args:
      under: path of a directory.

    Returns:
      list of `RunRecord`.

    Raises:
      ArgumentError: there is no such directory.

    Example:

    >>> simclr_tf.training.find_runs(".")
    []
    """
    root = pathlib.Path(under)
    if not root.is_dir():
        raise ArgumentError(f"under must be a directory; {root} is none. Pass one with runs.")
    found = []
    for directory, folders, files in os.walk(root):
        folders.sort()
        if "flags.cfg" in files:
            found.append(record_of(directory))
            folders[:] = [name for name in folders if name == "from_scratch"]
        elif len(pathlib.Path(directory).relative_to(root).parts) >= _MAX_DEPTH:
            folders.clear()
    return sorted(found, key=lambda record: str(record.path))


def record_of(path):
    """The `RunRecord` of a run directory.

    Example:

    >>> simclr_tf.training.RunDirectory(".").write_flags({"epochs": "7"})
    >>> record = simclr_tf.training.records.record_of(".")
    >>> record.state, record.epochs, record.planned_epochs
    ('stopped', 0, 7)
    """
    directory = RunDirectory(path)
    rows = read_metrics(directory.metrics)
    error = directory.read_error()
    return RunRecord(
        path=directory.path,
        command=written_by(directory.flags),
        state=_state(directory, error),
        epochs=rows[-1]["epoch"] if rows else 0,
        planned_epochs=_planned_epochs(directory),
        metrics=_last_values(rows),
        num_bytes=_size(directory.path),
        error=error,
    )


def _state(directory, error):
    if is_locked(directory.lock):
        return "running"
    if error:
        return "failed"
    return "finished" if directory.export.exists() else "stopped"


def is_locked(path):
    """Whether a process has the lock of a run directory; it is not waited for.

    Example:

    >>> simclr_tf.training.records.is_locked("no lock")
    False
    """
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go when the file is closed
    except BlockingIOError:
        return True
    except OSError:  # no such file, or none that can be read
        return False
    return False


def _planned_epochs(directory):
    """Epochs that a run is to have, as far as its flags and data.json tell."""
    flags = read_flags(directory.flags)
    try:
        if "train_steps" not in flags:
            return int(flags["epochs"])
        steps_per_epoch = directory.training_examples() // int(flags["batch_size"])
        return math.ceil(int(flags["train_steps"]) / steps_per_epoch)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _last_values(rows):
    """The last value of each metric: some are measured in a few epochs only."""
    values = {}
    for row in rows:
        values.update(
            (key, value)
            for key, value in row.items()
            if key not in _NOT_METRICS and isinstance(value, (int, float))
        )
    return values


def _size(path):
    """Bytes of the files in a directory; a run that goes on may remove some meanwhile."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:
                continue
    return total


def best_first(records, metric):
    """The runs that have a metric, best first, by the last value, which is that of the checkpoint.

    Runs without the metric, or with one that is not finite, are left out.

    Args:
      records: list of `RunRecord`.
      metric: its name, a key of metrics.jsonl. The lowest value is the best for `LOWER_IS_BETTER`,
        the highest for all others.

    Raises:
      ArgumentError: no run has the metric.

    Example:

    >>> simclr_tf.training.records.best_first([], "knn_accuracy")
    Traceback (most recent call last):
    simclr_tf.errors.ArgumentError: best must be a metric of one of the runs; got ...
    """
    with_metric = [
        record for record in records if math.isfinite(record.metrics.get(metric, math.nan))
    ]
    if not with_metric:
        known = sorted({name for record in records for name in record.metrics})
        listed = ", ".join(known) or "none has any yet"
        raise ArgumentError(
            f"best must be a metric of one of the runs; got {metric!r}. Their metrics: {listed}."
        )
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return sorted(with_metric, key=lambda record: sign * record.metrics[metric])
