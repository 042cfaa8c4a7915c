"""`folder:PATH`: image files in a folder, with or without class folders."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from simclr_tf.data.examples import UNLABELLED, Example, as_text, describe_labels, describe_path
from simclr_tf.data.file_ranges import Names
from simclr_tf.data.headers import Header, Headers, read_header, read_headers
from simclr_tf.data.index_cache import IndexCache, stamps_of
from simclr_tf.errors import ArgumentError, CorruptImageError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# Names of the folders that hold a split, in any case, by the split's own name.
_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
_WHOLE = ("train", "all")

# Files and folders that operating systems and storage devices create, in lower case.
_IGNORED = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "desktop.ini",
}


class Folder:
    """The image files below a folder, in sorted order of their paths.

    The first folder level below the split is the class if every image lies in such a folder and
    there are at least two; otherwise the examples are unlabelled. Folders without an image at any
    depth are not classes. Class names are those of all splits together, so that a class missing
    from one split does not shift the labels of the others. The split `unlabeled` has no labels.

    Hidden files and those that operating systems create, such as `__MACOSX`, are ignored.

    Args:
      root: the folder; ids are paths relative to it, in which bytes that are not valid UTF-8 are
        written as backslash escapes.
      split: `train`, `validation`, `test`, `unlabeled` or `all`, in any case.

    Attributes:
      description: one line: the folder of the split, the other splits, and the number of classes or
        the reason why there are no labels.
      skipped_suffixes: numbers of files left out because they are not images, by suffix in lower
        case; "" stands for names without a suffix.

    Raises:
      ArgumentError: no such folder, no such split, or no image in it.
    """

    def __init__(self, root: Path, split: str):
        if not root.is_dir():
            way_out = "Pass the folder that it is in" if root.exists() else "Correct the path"
            raise ArgumentError(
                f"folder:PATH needs an existing folder; got {describe_path(root)}. {way_out}."
            )
        folder, others, labelled_folders = _split_folder(root, split.lower())
        skipped = collections.Counter()
        self._root, self._folder = root, folder
        self._root_bytes = os.fsencode(os.path.join(root, ""))
        start = len(os.path.join(root, ""))
        paths = (path[start:] for path in _image_files(os.fspath(folder), skipped))
        paths = sorted(paths, key=lambda path: path.replace("/", "\0"))  # level by level
        self._paths, self._path_tensors = Names(paths), None
        self.skipped_suffixes = dict(sorted(skipped.items()))
        if not paths:
            raise ArgumentError(
                f"a folder needs at least one image ({', '.join(SUFFIXES)}); "
                f"there is none under {describe_path(folder)}. Convert other files, or pass "
                "another folder."
            )
        why_unlabelled = self._set_labels(paths, folder, labelled_folders)
        where = [f"folder {as_text(folder.name)!r}"] if folder != root else []
        if others:
            where.append(f"other splits: {', '.join(others)}")
        self.description = "; ".join(
            [*where, why_unlabelled or describe_labels(self.class_names, True)]
        )

    def _set_labels(self, paths: list[str], folder: Path, labelled_folders: list[Path]) -> str:
        """Sets labels and class names; returns the reason if there are none, otherwise ''."""
        depth = len(folder.relative_to(self._root).parts)
        first_levels = [next(iter(path.split("/")[depth:-1]), None) for path in paths]
        names = _class_folders(labelled_folders)
        why_unlabelled = ""
        if folder not in labelled_folders:
            why_unlabelled = "no labels: the split has none"
        elif not names:
            why_unlabelled = "no labels: no class folders"
        elif None in first_levels:
            outside = as_text(paths[first_levels.index(None)])
            count = first_levels.count(None)
            why_unlabelled = (
                f"no labels: {count} of {len(self)} images are outside class folders, "
                f"such as {outside!r}"
            )
        elif len(names) == 1:
            why_unlabelled = f"no labels: only one class folder, {as_text(names[0])!r}"
        self.labelled = not why_unlabelled
        self.class_names = [as_text(name) for name in names] if self.labelled else None
        self._labels = np.full(len(paths), UNLABELLED, np.int64)
        if self.labelled:
            index = {name: label for label, name in enumerate(names)}
            self._labels[:] = [index[name] for name in first_levels]
        return why_unlabelled

    def __len__(self) -> int:
        return len(self._paths)

    def id(self, index: int) -> str:
        """Returns the path relative to the root, as text that can be encoded."""
        return as_text(self._paths[index])

    def __getitem__(self, index: int) -> Example:
        try:
            data = (self._root / self._paths[index]).read_bytes()
        except OSError as error:
            raise CorruptImageError(f"cannot be read: {error.strerror}") from error
        return Example(self.id(index), data, int(self._labels[index]))

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels, int64 [n]; no file is read."""
        return self._labels if indices is None else self._labels[indices]

    def headers(self, indices: np.ndarray, cache: IndexCache | None = None) -> Headers:
        """Reads the headers of the files at `indices`, int64 [n], or takes them from a cache."""

        def read(index: int) -> Header:
            try:
                with open(self._root / self._paths[index], "rb") as file:
                    header = read_header(file)
            except OSError as error:
                raise CorruptImageError(f"cannot be read: {error.strerror}") from error
            return header

        if cache:
            paths = [os.path.join(self._root, self._paths[index]) for index in indices]
            stamps = np.full([len(self), 2], -1, np.int64)
            stamps[indices] = stamps_of(paths)
            key = f"folder:{as_text(os.path.abspath(self._folder))}"
            headers = cache.headers(key, self._paths, stamps, indices, read)
        else:
            headers = read_headers(read, indices)
        return headers._replace(label=self._labels[indices])  # which other folders may change

    def ids(self, indices: np.ndarray) -> list[bytes]:
        """Returns the ids, UTF-8."""
        return [self.id(index).encode() for index in indices]

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns paths, strings [m], of the files at `indices`, int64 [m], in a graph."""
        if self._path_tensors is None:
            self._path_tensors = self._paths.tensors()
        text, start, length = self._path_tensors
        paths = tf.strings.substr(text, tf.gather(start, indices), tf.gather(length, indices))
        return tf.strings.join([self._root_bytes, paths])

    def contents(self, fetched: tf.Tensor) -> tf.Tensor:
        """Returns the content of the file at a path, a string scalar, in a graph."""
        return tf.io.read_file(fetched)


def _split_folder(root: Path, split: str) -> tuple[Path, list[str], list[Path]]:
    """Returns the folder of a split, the names of the other splits, and the folders with labels."""
    present = _present_splits(root)
    for name, synonyms in _SPLIT_FOLDERS.items():
        if name in present and split in synonyms:
            others = [other for other in present if other != name]
            labelled = [folder for key, folder in present.items() if key != "unlabeled"]
            return present[name], others, labelled
    # A folder `unlabeled` alone does not make splits of the other folders.
    if present.keys() - {"unlabeled"}:
        raise ArgumentError(
            f"split must be one of {', '.join(present)}, for which {str(root)!r} has folders; got "
            f"{split!r}. Pass one of these or a slice of one, such as {next(iter(present))}[:90%]."
        )
    if split not in _WHOLE:
        raise ArgumentError(
            f"split must be train or all, since {str(root)!r} has no folders for splits; got "
            f"{split!r}. Make one, or take slices: all[:90%] to train on and all[90%:] to test on."
        )
    return root, [], [root]


def _present_splits(root: Path) -> dict[str, Path]:
    """The folders of splits that exist, by split; of several, the first in `_SPLIT_FOLDERS`."""
    folders = {}
    names = (entry.name for entry in os.scandir(root) if entry.is_dir())
    for name in sorted(names, reverse=True):  # of `train` and `Train`, `train`
        folders.setdefault(name.lower(), root / name)
    present = {}
    for split, synonyms in _SPLIT_FOLDERS.items():
        for synonym in synonyms:
            if synonym in folders:
                present.setdefault(split, folders[synonym])
    return present


def _class_folders(folders: list[Path]) -> list[str]:
    """Sorted names of the folders, one level below `folders`, that hold an image at any depth."""
    names = set()
    for folder in folders:
        for entry in os.scandir(folder):
            if entry.name in names or _is_ignored(entry.name) or not entry.is_dir():
                continue
            if next(_image_files(entry.path, collections.Counter()), None):
                names.add(entry.name)
    return sorted(names)


def _image_files(
    folder: str, skipped: collections.Counter, above: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yields image files at any depth, links followed; counts the suffixes of others."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that contains it would be followed without end
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            if entry.is_dir():
                yield from _image_files(entry.path, skipped, (*above, real))
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path
            else:
                skipped[as_text(os.path.splitext(entry.name)[1].lower())] += 1


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED
