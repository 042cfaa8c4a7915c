"""Files and directories that nobody sees half of: written beside their place and renamed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile


@contextlib.contextmanager
def atomic_path(path, parents=True):
    """While it lasts, a place to write what becomes `path` at the end, in one rename.

    After an exception nothing of it is left, and no directory that was made for it.

    Args:
      path: of a file, which may exist, or of a directory, which may not.
      parents: make the directories above it.

    Yields:
      `pathlib.Path` of the same name in a hidden directory beside `path`, where nothing is yet.

    Raises:
      OSError: there is no room, no directory to write to, and the like.
    """
    path = pathlib.Path(path)
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(
            f"{path} cannot be written: {above} is a file. Take another place."
        )
    made = [folder for folder in path.parents if not folder.exists()] if parents else []
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            place = pathlib.Path(scratch) / path.name
            yield place
            os.replace(place, path)
        made = []
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
