"""`folder:PATH`: image files in a folder, class folders optional."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simclr_tf.data.examples import UNLABELLED, Example
from simclr_tf.errors import ArgumentError, CorruptImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

# Folder names that hold a split, by the name it is asked for.
_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
_WHOLE = ("train", "all")


class Folder:
    """The image files below a folder, in sorted order of their paths.

    The first folder level below the split is the class when every image lies in such a folder and
    there are at least two; otherwise the examples are unlabelled. Class names are those of all
    splits together, so that a class missing from one split does not shift the labels of the others.

    Args:
      root: what the user named; ids are paths relative to it.
      split: `train`, `validation`, `test`, or `all`.

    Raises:
      ValueError: no such folder, no such split, or no image in it.
    """

    def __init__(self, root: Path, split: str):
        if not root.is_dir():
            raise ArgumentError(f"folder:PATH needs an existing folder; got {str(root)!r}.")
        folder, split_folders = _split_folder(root, split)
        self._root = root
        # As text: a million `Path`s would take 400 MB.
        paths = (path.relative_to(root).as_posix() for path in _image_files(folder))
        self._paths = sorted(paths, key=lambda path: path.replace("/", "\0"))  # level by level
        if not self._paths:
            raise ArgumentError(
                f"a folder needs at least one image ({', '.join(EXTENSIONS)}); "
                f"there is none under {str(folder)!r}."
            )
        depth = len(folder.relative_to(root).parts)

        def first_level(path):
            return next(iter(path.split("/")[depth:-1]), None)

        names = _class_names(split_folders)
        self.labelled = len(names) > 1 and all(map(first_level, self._paths))
        self.class_names = names if self.labelled else None
        self._labels = np.full(len(self._paths), UNLABELLED, np.int64)
        if self.labelled:
            index = {name: label for label, name in enumerate(names)}
            self._labels[:] = [index[first_level(path)] for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def id(self, index: int) -> str:
        """The path below the root."""
        return self._paths[index]

    def __getitem__(self, index: int) -> Example:
        try:
            data = (self._root / self._paths[index]).read_bytes()
        except OSError as error:
            raise CorruptImageError(f"cannot be read: {error.strerror}") from error
        return Example(self.id(index), data, int(self._labels[index]))

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels, int64 [n]; no file is read."""
        return self._labels if indices is None else self._labels[indices]


def _split_folder(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of a split, and the folders of all splits."""
    present = {
        name: root / folder
        for name, folders in _SPLIT_FOLDERS.items()
        for folder in reversed(folders)
        if (root / folder).is_dir()
    }
    for name, folders in _SPLIT_FOLDERS.items():
        if name in present and split in folders:
            return present[name], list(present.values())
    if present:
        raise ArgumentError(
            f"{str(root)!r} has folders for the splits {', '.join(present)}; got {split!r}. "
            f"Ask for one of these or a slice of one, such as {next(iter(present))}[:90%]."
        )
    if split not in _WHOLE:
        raise ArgumentError(
            f"{str(root)!r} has no folder for the split {split!r}. Make one, or take slices of the "
            "whole: all[:90%] to train on and all[90%:] to test on."
        )
    return root, [root]


def _class_names(folders: list[Path]) -> list[str]:
    names = {
        entry.name
        for folder in folders
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    }
    return sorted(names)


def _image_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Image files at any depth, links followed; hidden files and folders are left out."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that holds it would go round for ever
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _image_files(folder / entry.name, (*above, real))
        elif entry.name.lower().endswith(EXTENSIONS):
            yield folder / entry.name
