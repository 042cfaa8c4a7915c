"""Atomic writes of files and directories: a reader sees the whole of one, or none of it."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import tempfile


@contextlib.contextmanager
def atomic_path(path, parents=True):
    """Makes a path to write to, which is renamed to `path` at the end of the block.

    If the block raises, what it wrote is removed, and so are the directories made for it.

    Args:
      path: a file, which may exist, or a directory, which must not exist.
      parents: whether to make missing parent directories.

    Yields:
      `pathlib.Path` with the name of `path` in a new hidden directory next to `path`; nothing is
      there yet.

    Raises:
      OSError: the disk is full, the directory is not writable, and the like.
    """
    path = pathlib.Path(path)
    with _scratch_path(path, parents) as scratch_path:
        yield scratch_path
        os.replace(scratch_path, path)


def check_path(path):
    """Raises the OSError that `atomic_path` would raise for a path; leaves nothing there."""
    with _scratch_path(pathlib.Path(path), parents=True):
        pass


@contextlib.contextmanager
def _scratch_path(path, parents):
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"{path} cannot be written: {above} is a file. Choose another path."
        )
    made = [folder for folder in path.parents if not folder.exists()] if parents else []
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            yield pathlib.Path(scratch) / path.name
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty, or was not made
                folder.rmdir()
