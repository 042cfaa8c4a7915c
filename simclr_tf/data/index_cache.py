"""`IndexCache`: the headers of a data set's images, kept on disk for the next start."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simclr_tf._atomic import atomic_path
from simclr_tf.data.file_ranges import Names
from simclr_tf.data.headers import Header, Headers, read_headers
from simclr_tf.errors import ArgumentError

MIN_KEPT = 10_000  # images; the headers of fewer are read in a moment
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class IndexCache:
    """Headers kept in a directory, one file for each data set.

    The headers of a file are used again while its name, size and modification time are the same;
    those of other files are read again.

    Args:
      directory: where the files are; it is made when there is something to keep.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = Path(directory).expanduser()

    def headers(
        self,
        key: str,
        names: Names,
        stamps: np.ndarray,
        indices: np.ndarray,
        read: Callable[[int], Header],
    ) -> Headers:
        """Returns headers, of which only unknown ones are read.

        Args:
          key: what distinguishes the data set from others.
          names: of all n images.
          stamps: int64 [n, 2], size and modification time of the file of each image.
          indices: of the images wanted, int64 [m].
          read: as for `read_headers`.

        Returns:
          `Headers`, [m].

        Raises:
          ArgumentError: the directory cannot be written.
        """
        path = self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        headers, known = self._load(path, names, stamps)
        unknown = indices[~known[indices]]
        found = read_headers(read, unknown)
        for column, values in zip(headers, found):
            column[unknown] = values
        known[unknown] = True
        if len(unknown) and known.sum() >= MIN_KEPT:
            self._save(path, names, stamps, headers, known)
        return Headers(*(column[indices] for column in headers))

    def _load(self, path: Path, names: Names, stamps: np.ndarray) -> tuple[Headers, np.ndarray]:
        """Headers [n] and which of them are known, bool [n]."""
        headers, known = Headers.unread(len(names)), np.zeros(len(names), bool)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kept = {name: arrays[name] for name in (*Headers._fields, "known", "stamps")}
                kept_names = Names.of_arrays(arrays["text"], arrays["stop"])
                if len(kept["known"]) != len(kept_names):
                    return headers, known
        except _DAMAGED:  # it is written again
            return headers, known
        rows, of_kept = _common_rows(names, kept_names)
        same = (kept["stamps"][of_kept] == stamps[rows]).all(1) & kept["known"][of_kept]
        rows, of_kept = rows[same], of_kept[same]
        for name, column in zip(Headers._fields, headers):
            column[rows] = kept[name][of_kept]
        known[rows] = True
        return headers, known

    def _save(self, path, names, stamps, headers, known) -> None:
        text, stop = names.arrays()
        columns = {**headers._asdict(), "known": known, "stamps": stamps}
        try:
            with atomic_path(path) as scratch_path, scratch_path.open("wb") as file:
                np.savez(file, text=text, stop=stop, **columns)
        except OSError as error:
            raise ArgumentError(
                "index_cache must be a directory that can be written; "
                f"got {str(self._directory)!r} ({error.strerror or error}). Pass another one."
            ) from error


def stamps_of(paths: list[str]) -> np.ndarray:
    """Returns size and modification time (ns) of files, int64 [n, 2]; -1 where there is none."""
    stamps = np.full([len(paths), 2], -1, np.int64)
    for row, path in enumerate(paths):
        try:
            status = os.stat(path)
        except OSError:
            continue
        stamps[row] = status.st_size, status.st_mtime_ns
    return stamps


def _common_rows(names: Names, others: Names) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same names in both, int64 [m] each."""
    if all(np.array_equal(a, b) for a, b in zip(names.arrays(), others.arrays())):
        return np.arange(len(names)), np.arange(len(names))
    row_of = {others[row]: row for row in range(len(others))}
    pairs = [(row, row_of[names[row]]) for row in range(len(names)) if names[row] in row_of]
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
