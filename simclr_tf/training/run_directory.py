"""The run directory: the files of a run, and whether the same command may resume it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import time

import tensorflow as tf

from simclr_tf import _atomic
from simclr_tf.errors import PreemptedError, TryAgainError, UsageError
from simclr_tf.training.environment import describe_environment

# SIGTERM, or a worker that is gone, see `loop.report_interruptions`.
_INTERRUPTIONS = (
    *(PreemptedError, TryAgainError),
    *(tf.errors.UnavailableError, tf.errors.AbortedError),
)
_MAX_ERROR = 2000  # characters: an error of TensorFlow may have pages


class RunDirectory:
    """The paths in a run directory, its lock, its flags and its metrics.

    Args:
      path: the directory; it need not exist yet.

    Attributes:
      path: `pathlib.Path` of the directory; the other attributes are paths in it.
      flags: flags.cfg, every flag of the command, one a line.
      environment: environment.json, versions, devices, commit and command of its latest start.
      error: error.txt, the error that ended it; not there where none did.
      data: data.json, the number of training examples and a hash of their ids.
      metrics: metrics.jsonl, a JSON object per epoch.
      findings: findings.jsonl, a JSON object per finding: epoch, name, text.
      logs: directory of TensorBoard events.
      checkpoints: directory of checkpoints.
      export: directory of the encoder's SavedModel.
      whitening: whitening.npz, mean and matrix of the whitening of h, of a run with --whitening.
      nonfinite_step: directory of the step whose loss was not finite, see `simclr-tf replay`.
      corrupt: corrupt.txt, the files that could not be read.
      views, curve, report: pictures and the page for a person.
      lock: a file that exists while a process writes to the directory.

    Example:

    >>> run = simclr_tf.training.RunDirectory("runs/a")
    >>> with run.locked():
    ...     run.write_flags({"run_dir": "runs/a", "epochs": "10"})
    >>> print(run.flags.read_text())
    --epochs=10
    --run_dir=runs/a
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.flags = self.path / "flags.cfg"
        self.environment = self.path / "environment.json"
        self.error = self.path / "error.txt"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.findings = self.path / "findings.jsonl"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export" / "1"
        self.whitening = self.path / "whitening.npz"
        self.nonfinite_step = self.path / "nonfinite_step"
        self.corrupt = self.path / "corrupt.txt"
        self.views = self.path / "views.png"
        self.curve = self.path / "curve.png"
        self.report = self.path / "report.html"
        self.lock = self.path / "lock"

    def check_resumable(self, flags, free=(), command="pretrain", defaults=None):
        """Raises UsageError if a flag that affects the result differs from the run's.

        Args:
          flags: dict of flag name to its text, of the command that is to resume the run.
          free: names of flags that may differ.
          command: name of that command.
          defaults: dict of flag name to its text, of flags that the run may lack since they came
            with a later version; None: the run has all flags.

        Returns:
          Whether there is a run to resume.
        """
        if not self.flags.exists() or not list(self.checkpoints.glob("ckpt-*.index")):
            return False  # without a checkpoint, nothing has been learnt with those flags
        before = written_by(self.flags)
        if before != command:
            raise UsageError(
                f"{self.path} holds a run of `simclr-tf {before}`, not of {command}. Pass "
                "another run_dir."
            )
        before = {**(defaults or {}), **read_flags(self.flags)}
        changed = [
            f"{name}={before.get(name)}, now {name}={flags.get(name)}"
            for name in sorted(set(before) | set(flags))
            if name not in free and before.get(name) != flags.get(name)
        ]
        if changed:
            raise UsageError(
                f"{self.path} holds a run with other flags: {'; '.join(changed)}. "
                "Pass the same flags to resume it, or another run_dir."
            )
        return True

    def check_same_data(self, examples, digest):
        """Raises UsageError if the run has been trained on other data; records the data.

        Args:
          examples: number of examples of the training set.
          digest: hash of their ids, see `data.Source`.
        """
        now = {"examples": examples, "digest": digest}
        if self.data.exists() and list(self.checkpoints.glob("ckpt-*.index")):
            before = json.loads(self.data.read_text())
            if before != now:
                same = before["examples"] == examples
                found = (
                    f"others of the same number, {examples:,}"
                    if same
                    else f"{before['examples']:,} examples then, {examples:,} now"
                )
                raise UsageError(
                    f"{self.path} holds a run on other training data: {found}. Restore the data "
                    "set to resume the run, or pass another run_dir."
                )
        write_atomically(self.data, json.dumps(now) + "\n")

    def training_examples(self):
        """Number of examples of the training set, int; None where no run has recorded it."""
        return json.loads(self.data.read_text())["examples"] if self.data.exists() else None

    @contextlib.contextmanager
    def locked(self):
        """Creates the directory if needed, and locks it against other processes until the end.

        The operating system releases the lock when this process ends, however it ends.

        Raises:
          UsageError: another process has the lock, or the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._locked()
        except OSError as error:
            raise UsageError(
                f"run_dir must be a directory that can be written; {self.path} cannot "
                f"({error.strerror}). Pass another path."
            ) from error
        with file:
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)

    def _locked(self):
        patience = 1  # `records.is_locked` has the lock for a moment
        while True:
            file = self.lock.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if patience:
                    file.close()
                    patience -= 1
                    time.sleep(0.1)
                    continue
                with file:
                    file.seek(0)
                    holder = file.read() or "another process"
                raise UsageError(
                    f"{holder} is writing to {self.path}. Wait for it, "
                    "stop it, or use another run_dir."
                ) from None
            if self.lock.exists() and os.path.samestat(os.fstat(file.fileno()), self.lock.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
            file.close()  # the process that had the lock removed the file in the meantime

    @contextlib.contextmanager
    def started(self, flags, command=None):
        """Writes flags.cfg and environment.json; an error that ends the block goes to error.txt.

        A run that is interrupted has no error: the same command resumes it. The caller holds the
        lock.

        Args:
          flags, command: see `write_flags`.
        """
        self.write_flags(flags, command)
        environment = json.dumps(describe_environment(), indent=2) + "\n"
        write_atomically(self.environment, environment)
        self.error.unlink(missing_ok=True)
        try:
            yield
        except _INTERRUPTIONS:
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be full: then there is no such file
                line = " ".join(f"{type(error).__name__}: {error}".split())
                write_atomically(self.error, line[:_MAX_ERROR] + "\n")
            raise

    def read_error(self):
        """The line of the error that ended the run, str; None where none did."""
        try:
            return self.error.read_text(encoding="utf-8", errors="replace").strip() or None
        except OSError:
            return None

    def write_flags(self, flags, command=None):
        """Writes flags.cfg.

        Args:
          flags: dict of flag name to its text.
          command: name of the command, for the first line; None, for `pretrain`: no such line.
        """
        lines = [f"# simclr-tf {command}"] if command else []
        lines += [f"--{name}={value}" for name, value in sorted(flags.items())]
        write_atomically(self.flags, "\n".join(lines) + "\n")

    def truncate_metrics(self, epochs):
        """Removes the rows and findings of epochs after `epochs`, which are trained again."""
        for path in (self.metrics, self.findings):
            rows = [row for row in read_metrics(path) if row["epoch"] <= epochs]
            if path is self.metrics or path.exists():
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))

    def write_corrupt(self, corrupt):
        """Writes corrupt.txt, a line for each (id, reason) of a file that could not be read."""
        if corrupt:
            # Once, though each split of a folder finds it.
            lines = sorted({f"{name}\t{reason}\n" for name, reason in corrupt})
            write_atomically(self.corrupt, "".join(lines))


def written_by(path):
    """Name of the command whose flags a flags.cfg holds.

    Example:

    >>> simclr_tf.training.RunDirectory(".").write_flags({"epochs": "10"}, "finetune")
    >>> simclr_tf.training.run_directory.written_by("flags.cfg")
    'finetune'
    """
    first = re.match(r"# simclr-tf (\w+)\n", pathlib.Path(path).read_text(encoding="utf-8"))
    return first[1] if first else "pretrain"


def read_flags(path):
    """A flag file as a dict of flag name to its text.

    Example:

    >>> simclr_tf.training.RunDirectory(".").write_flags({"epochs": "10"})
    >>> simclr_tf.training.run_directory.read_flags("flags.cfg")
    {'epochs': '10'}
    """
    lines = pathlib.Path(path).read_text().splitlines()
    pairs = (line[2:].split("=", 1) for line in lines if line.startswith("--"))
    return {pair[0]: pair[1] if len(pair) == 2 else "" for pair in pairs}


def read_metrics(path):
    """The rows of a metrics.jsonl as dicts, without a last line that a crash cut off.

    Example:

    >>> simclr_tf.training.run_directory.read_metrics("no metrics.jsonl")
    []
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line can be half-written, and its epoch is run again
    return rows


def write_atomically(path, text):
    """Writes a text file under a temporary name and renames it, so that nobody reads half of it.

    Example:

    >>> simclr_tf.training.run_directory.write_atomically("notes.txt", "done")
    """
    with _atomic.atomic_path(path, parents=False) as temporary:
        temporary.write_text(text)
