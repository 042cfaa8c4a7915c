"""`tar:GLOB`: images in tar archives, laid out as WebDataset does.

The members of an example have one name up to the first dot of the last part: `0001.jpg` and
`0001.cls`. The position of each member is found once; from then on any image is one read. Training
reads shard by shard all the same (`pipeline.epoch_order`), which suits large files and file systems
over a network.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf.data.examples import UNLABELLED, Example, as_text, describe_labels
from simclr_tf.data.file_ranges import Names, fetch_ranges, matching_files, read_range
from simclr_tf.data.folder import SUFFIXES
from simclr_tf.data.headers import Header, Headers, read_header, read_headers
from simclr_tf.data.index_cache import IndexCache, stamps_of
from simclr_tf.errors import ArgumentError, CorruptImageError

_CLASS_SUFFIXES = (".cls", ".json", ".txt")  # of several, the first that holds a class
_CLASS_KEYS = ("label", "cls", "class")  # in a .json file
_MAX_CLASS_BYTES = 2**20
_THREADS = 16


class Member(NamedTuple):
    """An image in an archive.

    Attributes:
      key: name of the example.
      offset, length: of the image, bytes.
      label: class index or class name as stored, None where there is none.
    """

    key: str
    offset: int
    length: int
    label: int | str | None


class Tar:
    """The images of tar archives, in order.

    Labels are class indices, or names, whose sorted order then gives the indices.

    Args:
      paths: of the archives.

    Attributes:
      shards: index of the first example of each archive, and the number of examples.

    Raises:
      ArgumentError: an archive is compressed or damaged, none has an image, or there are both class
        indices and class names.
    """

    def __init__(self, paths: list[str]):
        self._paths = paths
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        self._names = [os.path.relpath(path, folder) for path in paths]
        with ThreadPoolExecutor(_THREADS) as pool:
            shards = list(pool.map(_members, paths))
        self.shards = np.cumsum([0, *(len(members) for members in shards)])
        members = [member for shard in shards for member in shard]
        if not members:
            raise ArgumentError(
                f"tar:GLOB needs at least one image ({', '.join(SUFFIXES)}); the {len(paths)} "
                f"archives, such as {paths[0]!r}, have none. Pass other archives."
            )
        self._keys = Names(member.key for member in members)
        self._offset = np.array([member.offset for member in members], np.int64)
        self._length = np.array([member.length for member in members], np.int64)
        self._labels, self.class_names = _labels([member.label for member in members])
        self.labelled = bool((self._labels != UNLABELLED).any())
        self.description = describe_labels(self.class_names, self.labelled)
        self.skipped_suffixes = {}

    def __len__(self) -> int:
        return len(self._offset)

    def id(self, index: int) -> str:
        """Returns the archive's name and that of the example: `train-000.tar/0001`."""
        return as_text(f"{self._names[self._shard(index)]}/{self._keys[index]}")

    def __getitem__(self, index: int) -> Example:
        return Example(self.id(index), self._image(index), int(self._labels[index]))

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels, int64 [n]; no file is read."""
        return self._labels if indices is None else self._labels[indices]

    def headers(self, indices: np.ndarray, cache: IndexCache | None = None) -> Headers:
        """Reads the headers of the images at `indices`, int64 [n], or takes them from a cache."""

        def read(index: int) -> Header:
            return read_header(self._image(index))

        if cache:
            stamps = np.repeat(stamps_of(self._paths), np.diff(self.shards), axis=0)
            key = "\n".join(["tar", *map(os.path.abspath, self._paths)])
            headers = cache.headers(as_text(key), self._keys, stamps, indices, read)
        else:
            headers = read_headers(read, indices)
        return headers._replace(label=self._labels[indices])

    def ids(self, indices: np.ndarray) -> list[bytes]:
        """Returns the ids, UTF-8."""
        return [self.id(int(index)).encode() for index in indices]

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the encoded images at int64 [m], strings [m], in a graph."""
        return fetch_ranges(self._image, indices)

    def contents(self, fetched: tf.Tensor) -> tf.Tensor:
        """Returns an image of `fetch`."""
        return fetched

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.shards, index, side="right")) - 1

    def _image(self, index: int) -> bytes:
        path = self._paths[self._shard(index)]
        return read_range(path, int(self._offset[index]), int(self._length[index]))


def read_tar(pattern: str, split: str) -> Tar:
    """Reads the images of all archives that match, in the order of the sorted paths.

    Each example is an image file and, if it has a class, `KEY.cls`, `KEY.json` or `KEY.txt`. `.cls`
    holds a class index or a class name; `.json` the same, or an object with one under "label",
    "cls" or "class"; `.txt` an index (other text is taken for a caption).

    Args:
      pattern: of file names, with `*`, `?` and `**`.
      split: `train` or `all`, which both stand for all archives.

    Returns:
      The examples.

    Raises:
      ArgumentError: no file matches, another split, or as for `Tar`.
    """
    return Tar(matching_files("tar:GLOB", pattern, split))


def _members(path: str) -> list[Member]:
    """The images of an archive, in order, with their labels."""
    members = []
    for key, files in _examples(path):
        image = next((files[suffix] for suffix in files if suffix.endswith(SUFFIXES)), None)
        if image:
            members.append(Member(key, image.offset_data, image.size, _label(path, files)))
    return members


def _examples(path: str) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, members by suffix) of each run of files with one key."""
    key, files = None, {}
    for member in _files(path):
        folder, name = os.path.split(member.name)
        stem, dot, suffix = name.partition(".")
        if name.startswith(".") or not dot:
            continue
        if os.path.normpath(os.path.join(folder, stem)) != key:
            if files:
                yield key, files
            key, files = os.path.normpath(os.path.join(folder, stem)), {}
        files[f".{suffix.lower()}"] = member
    if files:
        yield key, files


def _files(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # it would keep them all
                if member.isfile():
                    yield member
    except tarfile.TarError as error:
        raise ArgumentError(
            f"tar:GLOB needs undamaged, uncompressed tar archives; {path!r} is not one ({error}). "
            "Decompress or replace it, or leave it out."
        ) from error


def _label(path: str, files: dict[str, tarfile.TarInfo]) -> int | str | None:
    for suffix in _CLASS_SUFFIXES:
        member = files.get(suffix)
        if member is None or not 0 < member.size <= _MAX_CLASS_BYTES:
            continue
        try:
            text = read_range(path, member.offset_data, member.size).decode().strip()
            label = _class_of(suffix, text)
        except (ValueError, CorruptImageError):  # not UTF-8, not JSON, cut off
            continue
        if label is not None and label != "":
            return label
    return None


def _class_of(suffix: str, text: str) -> int | str | None:
    value = json.loads(text) if suffix == ".json" else text
    if isinstance(value, dict):
        value = next((value[key] for key in _CLASS_KEYS if key in value), None)
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return max(value, UNLABELLED)
    return value if isinstance(value, str) and suffix != ".txt" else None


def _labels(stored: list[int | str | None]) -> tuple[np.ndarray, list[str] | None]:
    """Labels, int64 [n], and the class names if they were stored as names."""
    names = sorted({label for label in stored if isinstance(label, str)})
    if not names:
        labels = [UNLABELLED if label is None else label for label in stored]
        return np.array(labels, np.int64), None
    number = next((label for label in stored if isinstance(label, int)), None)
    if number is not None:
        raise ArgumentError(
            "the classes in tar:GLOB must be all indices or all names; "
            f"got {number} and {names[0]!r}. Write them in one way."
        )
    index = {name: label for label, name in enumerate(names)}
    return np.array([index.get(label, UNLABELLED) for label in stored], np.int64), names
