"""The run directory: what a run leaves behind, and whether the same command may resume it.

Files and their names only; what is trained or evaluated lives in `jobs`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket

from simclr_tf import _atomic
from simclr_tf.errors import UsageError


class RunDirectory:
    """Paths inside a run directory, its flags and its metrics.

    Args:
      path: the directory; it need not exist yet.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.flags = self.path / "flags.cfg"
        self.metrics = self.path / "metrics.jsonl"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export" / "1"
        self.corrupt = self.path / "corrupt.txt"
        self.views = self.path / "views.png"
        self.curve = self.path / "curve.png"
        self.report = self.path / "report.html"
        self.lock = self.path / "lock"

    def check_resumable(self, flags, free=()):
        """Raises UsageError where a flag that matters differs from the run that is there.

        Args:
          flags: dict of flag name to its text, as it is now.
          free: names that may change between two starts of one run.

        Returns:
          True where there is a run to resume.
        """
        if not self.flags.exists() or not list(self.checkpoints.glob("ckpt-*.index")):
            return False  # nothing was learnt with the flags that are there
        before = read_flags(self.flags)
        changed = [
            f"--{name} was {before.get(name)}, now {flags.get(name)}"
            for name in sorted(set(before) | set(flags))
            if name not in free and before.get(name) != flags.get(name)
        ]
        if changed:
            raise UsageError(
                f"{self.path} holds a run with other flags: {'; '.join(changed)}. "
                "Give the same flags to resume it, or another --run_dir."
            )
        return True

    @contextlib.contextmanager
    def locked(self):
        """Holds the directory, made where it is missing, against other processes.

        The system lets go of it when this process ends, however it ends.

        Raises:
          UsageError: another process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._locked()
        except OSError as error:
            raise UsageError(
                f"--run_dir must be a directory that can be written; {self.path} cannot "
                f"({error.strerror}). Take another."
            ) from error
        with file:
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)

    def _locked(self):
        while True:
            file = self.lock.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with file:
                    file.seek(0)
                    holder = file.read() or "another process"
                raise UsageError(
                    f"{holder} is writing to {self.path}. Wait for it, "
                    "stop it, or take another --run_dir."
                ) from None
            if self.lock.exists() and os.path.samestat(os.fstat(file.fileno()), self.lock.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
            file.close()  # its last holder removed it in the meantime

    def write_flags(self, flags):
        """Writes flags.cfg; flags is a dict of flag name to its text."""
        lines = [f"--{name}={value}" for name, value in sorted(flags.items())]
        write_atomically(self.flags, "\n".join(lines) + "\n")

    def truncate_metrics(self, epochs):
        """Drops the metrics of epochs after `epochs`: they are trained again."""
        rows = [row for row in read_metrics(self.metrics) if row["epoch"] <= epochs]
        write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def write_corrupt(self, corrupt):
        """Writes the files that could not be read: (id, reason) pairs, a line each."""
        if corrupt:
            lines = sorted(f"{name}\t{reason}\n" for name, reason in corrupt)
            write_atomically(self.corrupt, "".join(lines))


def read_flags(path):
    """A flag file as a dict of flag name to its text."""
    lines = pathlib.Path(path).read_text().splitlines()
    pairs = (line[2:].split("=", 1) for line in lines if line.startswith("--"))
    return {pair[0]: pair[1] if len(pair) == 2 else "" for pair in pairs}


def read_metrics(path):
    """The rows of a metrics.jsonl; a line cut off by a crash is left out."""
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
    """Writes a file beside its place and renames it, so that nobody reads half of it."""
    with _atomic.atomic_path(path, parents=False) as place:
        place.write_text(text)
