"""`tfrecord:GLOB`: examples in TFRecord files, read by position.

The offset of each record is found once, from the lengths stored before the records; from then on
any record is one read. Records can therefore be shuffled over the whole data set, like files, and a
run resumes without reading earlier records.
"""

from __future__ import annotations

import contextlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from simclr_tf.data.examples import UNLABELLED, Example, as_text, describe_labels
from simclr_tf.data.file_ranges import Names, fetch_ranges, matching_files, read_range
from simclr_tf.data.headers import PILLOW, Header, Headers, read_header, read_headers
from simclr_tf.data.index_cache import IndexCache, stamps_of
from simclr_tf.errors import ArgumentError, CorruptImageError

_HEADER_BYTES = 12  # length (uint64) and its checksum
_FOOTER_BYTES = 4  # checksum of the payload; not verified, image formats notice damage themselves

_IMAGE_KEYS = ("image", "image/encoded")
_LABEL_KEYS = ("label", "image/class/label")
_LABEL_SAMPLE = 100
_THREADS = 16
_CHUNK = 256  # records that a thread reads per task


class Fields(NamedTuple):
    """Feature keys of a `tf.train.Example`; of several keys, the first one present is used.

    `classes` is the key of a list of class indices, where an image may have several classes;
    `certain_classes` that of those which are not marked as difficult.
    """

    image: tuple[str, ...] = _IMAGE_KEYS
    label: tuple[str, ...] = _LABEL_KEYS
    id: tuple[str, ...] = ()
    classes: str | None = None
    certain_classes: str | None = None


class Shard(NamedTuple):
    """Examples `start` to `stop` of one file, whose ids are `name__INDEX`.

    `stop` is None where the number of records is not known in advance. Where it is known, records
    missing from a damaged file count as unreadable.
    """

    path: str
    name: str
    start: int = 0
    stop: int | None = None


class Records:
    """`tf.train.Example` records of TFRecord files, in order.

    Args:
      shards: the files.
      fields: keys of the image, the label and the id.
      class_names: names by label.

    Raises:
      ArgumentError: a file is not an uncompressed TFRecord file.
    """

    def __init__(self, shards: list[Shard], fields: Fields, class_names: list[str] | None = None):
        self._shards = shards
        self._fields = fields
        with ThreadPoolExecutor(_THREADS) as pool:
            offsets = list(pool.map(_offsets, shards))
        self._offsets = np.concatenate(offsets)
        counts = [len(each) for each in offsets]
        self._first = np.cumsum([0, *counts])  # position of each shard's first record
        self._image_offset = np.zeros(len(self._offsets), np.int64)  # set by `headers`
        self._image_length = np.zeros(len(self._offsets), np.int64)
        self.labelled = self._has_labels()
        self.multi_label = fields.classes is not None
        self.class_names = class_names if self.labelled or self.multi_label else None
        self.description = describe_labels(self.class_names, self.labelled)
        if self.multi_label:
            self.description = f"{len(class_names)} classes, several per image"
        self.skipped_suffixes = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def id(self, index: int) -> str:
        """Returns the file name and the position in it, as TFDS names its examples."""
        shard, record = self._locate(index)
        return as_text(f"{shard.name}__{record}")

    def __getitem__(self, index: int) -> Example:
        return self._parsed(index, self._payload(index))

    def _parsed(self, index: int, payload: bytes) -> Example:
        features = _features(payload)
        ids = _value(features, self._fields.id, "bytes_list")
        images = _value(features, self._fields.image, "bytes_list")
        if images is None:
            raise CorruptImageError(f"no encoded image under {' or '.join(self._fields.image)}")
        label = self._label(features)
        if label is None and self.labelled:
            raise CorruptImageError("no label, where others have one")
        label = UNLABELLED if label is None else label
        return Example(as_text(ids) if ids else self.id(index), images, label)

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels, int64 [n]; records are read, but images are not decoded."""
        if indices is None:
            indices = np.arange(len(self))
        if not self.labelled:
            return np.full(len(indices), UNLABELLED, np.int64)

        def read(chunk: np.ndarray) -> list[int]:
            return [self._readable_label(int(index)) for index in chunk]

        chunks = np.array_split(indices, -(-len(indices) // _CHUNK) or 1)
        with ThreadPoolExecutor(_THREADS) as pool:
            return np.array(
                [label for labels in pool.map(read, chunks) for label in labels], np.int64
            )

    def headers(self, indices: np.ndarray, cache: IndexCache | None = None) -> Headers:
        """Reads the records at `indices`, int64 [n], for where their images are and for labels."""
        if cache:
            paths = [shard.path for shard in self._shards]
            names = Names(self.id(index) for index in range(len(self)))
            stamps = np.repeat(stamps_of(paths), np.diff(self._first), axis=0)
            key = "\n".join(["records", str(self._fields), *map(os.path.abspath, paths)])
            headers = cache.headers(as_text(key), names, stamps, indices, self._header)
        else:
            headers = read_headers(self._header, indices)
        self._image_offset[indices] = headers.offset
        self._image_length[indices] = headers.length
        return headers

    def ids(self, indices: np.ndarray) -> list[bytes]:
        """Returns the ids, UTF-8; those that the records hold are read from them."""
        if not self._fields.id:
            return [self.id(int(index)).encode() for index in indices]
        return [self[int(index)].id.encode() for index in indices]

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the encoded images at int64 [m], strings [m], in a graph."""
        return fetch_ranges(self._image, indices)

    def contents(self, fetched: tf.Tensor) -> tf.Tensor:
        """Returns an image of `fetch`."""
        return fetched

    def _header(self, index: int) -> Header:
        payload = self._payload(index)
        example = self._parsed(index, payload)
        start = payload.index(example.image)
        header = Header(PILLOW, 0, 0)
        with contextlib.suppress(CorruptImageError):  # reported when it is decoded
            header = read_header(example.image)
        start += int(self._offsets[index]) + _HEADER_BYTES
        return header._replace(label=example.label, offset=start, length=len(example.image))

    def _image(self, index: int) -> bytes:
        shard, _ = self._locate(index)
        length = int(self._image_length[index])
        return read_range(shard.path, int(self._image_offset[index]), length)

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """Returns the classes of images that may have several, without decoding images.

        Returns:
          int8 [n, C]: 1 where an image has the class, -1 where it has it but is marked as
          difficult, 0 where it has not.
        """
        targets = np.zeros((len(indices), len(self.class_names)), np.int8)
        for row, index in enumerate(indices):
            features = self._features(int(index))
            for key, value in ((self._fields.classes, -1), (self._fields.certain_classes, 1)):
                if key in features:
                    targets[row, list(features[key].int64_list.value)] = value
        return targets

    def _readable_label(self, index: int) -> int:
        try:
            label = self._label(self._features(index))
        except CorruptImageError:  # counted when it is read for its image
            return UNLABELLED
        return UNLABELLED if label is None else label

    def _label(self, features) -> int | None:
        """The label of an example, None if it is missing; TFDS writes -1 where there is none."""
        label = _value(features, self._fields.label, "int64_list")
        return label if label is None else max(label, UNLABELLED)

    def _has_labels(self) -> bool:
        """Whether one of the first records has a label."""
        sample = range(min(len(self), _LABEL_SAMPLE))
        return any(self._readable_label(index) != UNLABELLED for index in sample)

    def _locate(self, index: int) -> tuple[Shard, int]:
        """The shard of an example, and its position in that file."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        shard = self._shards[number]
        return shard, shard.start + index - int(self._first[number])

    def _features(self, index: int):
        return _features(self._payload(index))

    def _payload(self, index: int) -> bytes:
        shard, _ = self._locate(index)
        try:
            with open(shard.path, "rb") as file:
                file.seek(int(self._offsets[index]))
                length = _length(file.read(_HEADER_BYTES))
                left = os.fstat(file.fileno()).st_size - file.tell()
                payload = file.read(min(length, left))
        except OSError as error:
            raise CorruptImageError(f"cannot be read: {error.strerror}") from error
        if len(payload) < length:
            raise CorruptImageError("the file ends within the record")
        return payload


def read_tfrecord(pattern: str, split: str) -> Records:
    """Reads the examples of all files that match, in the order of the sorted paths.

    Each is a `tf.train.Example` with `image` or `image/encoded` (an encoded image file) and, if
    there are labels, `label` or `image/class/label` (one integer).

    Args:
      pattern: of file names, with `*`, `?` and `**`.
      split: `train` or `all`, which both stand for all records.

    Returns:
      The examples.

    Raises:
      ArgumentError: no file matches, a file is not an uncompressed TFRecord file, or another split.
    """
    paths = matching_files("tfrecord:GLOB", pattern, split)
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Records([Shard(path, os.path.relpath(path, folder)) for path in paths], Fields())


def _features(payload: bytes):
    try:
        return tf.train.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise CorruptImageError("not a tf.train.Example") from error


def _value(features, keys: tuple[str, ...], kind: str):
    """The single value under the first key that has one, or None."""
    for key in keys:
        if key in features and getattr(features[key], kind).value:
            return getattr(features[key], kind).value[0]
    return None


def _offsets(shard: Shard) -> np.ndarray:
    """Offsets of the shard's records, in bytes; a truncated last record counts as one."""
    offsets, position = [], 0
    size = os.path.getsize(shard.path)
    with open(shard.path, "rb") as file:
        while position < size and (shard.stop is None or len(offsets) < shard.stop):
            file.seek(position)
            header = file.read(_HEADER_BYTES)
            if not position and not _is_header(header):
                raise ArgumentError(
                    "a TFRecord file must be uncompressed; "
                    f"{shard.path!r} does not start as one. Decompress it, or leave it out."
                )
            offsets.append(position)
            position += _HEADER_BYTES + _length(header) + _FOOTER_BYTES
    if shard.stop is not None:
        offsets += [size] * (shard.stop - len(offsets))
    return np.array(offsets[shard.start :], np.int64)


def _length(header: bytes) -> int:
    return struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER_BYTES else 1


def _is_header(header: bytes) -> bool:
    """Whether the masked CRC-32C of the record's length is right (TFRecord format)."""
    if len(header) < _HEADER_BYTES:
        return False
    crc = 0xFFFFFFFF
    for byte in header[:8]:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == struct.unpack("<I", header[8:])[0]
