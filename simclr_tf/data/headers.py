"""The headers of image files: which decoder reads a file rightly, and how large the image is.

A header is read once, when a set is indexed. TensorFlow's kernels decode inside tf.data, without
Python; Pillow decodes what they would show differently.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags

from simclr_tf.data.decode import open_image
from simclr_tf.data.examples import UNLABELLED
from simclr_tf.errors import CorruptImageError

PILLOW, TF_JPEG, TF_PNG = 0, 1, 2  # decoders

_THREADS = 16
_CHUNK = 256  # headers that a thread reads per task
_PNG_BIT_DEPTH = 24  # its position in a PNG file
_PNG_SIGNATURE_BYTES = 8
_PNG_TEXT = {b"eXIf", b"iTXt", b"zTXt", b"tEXt"}  # chunks that may hold an orientation


class Headers(NamedTuple):
    """What is known of n images before they are decoded.

    Attributes:
      decoder: uint8 [n], `PILLOW`, `TF_JPEG` or `TF_PNG`; `PILLOW` also for unreadable files.
      height, width: int32 [n], pixels as stored, before an EXIF rotation; 0 for unreadable files.
      label: int64 [n], of examples that store it with the image; else `UNLABELLED`.
      offset, length: int64 [n], where the image is in its file, for sets of many images in a file;
        else 0.
    """

    decoder: np.ndarray
    height: np.ndarray
    width: np.ndarray
    label: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    @classmethod
    def unread(cls, count: int) -> Headers:
        """Returns arrays for `count` images of which nothing is known."""
        sizes = [np.zeros(count, np.int32) for _ in range(2)]
        ranges = [np.zeros(count, np.int64) for _ in range(2)]
        return cls(
            np.full(count, PILLOW, np.uint8), *sizes, np.full(count, UNLABELLED, np.int64), *ranges
        )


class Header(NamedTuple):
    """A row of `Headers`."""

    decoder: int
    height: int
    width: int
    label: int = UNLABELLED
    offset: int = 0
    length: int = 0


def read_header(file: BinaryIO | bytes) -> Header:
    """Reads the header of an encoded image.

    Args:
      file: an open file, which is left at another position, or its content.

    Returns:
      Its `Header`. The decoder is TensorFlow's for 8-bit grey or RGB JPEG without EXIF rotation,
      and for PNG of 8 bits per channel without transparency, animation or metadata that could
      rotate it, both with nothing after their end; otherwise `PILLOW`.

    Raises:
      CorruptImageError: as for `decode.decode`.

    Example:

    >>> import tensorflow as tf
    >>> from simclr_tf.data.headers import read_header
    >>> header = read_header(tf.io.encode_png(images[0, :20]).numpy())
    >>> header.decoder, header.height, header.width
    (2, 20, 32)
    """
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    picture = open_image(file)
    try:
        return Header(_decoder(picture, file), picture.height, picture.width)
    except Exception as error:  # see `decode._picture`
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def read_headers(read: Callable[[int], Header], indices: np.ndarray) -> Headers:
    """Reads headers in parallel.

    Args:
      read: reads the header of one example; called from several threads. What raises
        `CorruptImageError` is left to Pillow, which reports it when it is decoded.
      indices: of the examples, int64 [n].

    Returns:
      Their `Headers`, [n].
    """
    headers = Headers.unread(len(indices))

    def read_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(indices))):
            try:
                header = read(int(indices[row]))
            except CorruptImageError:
                continue
            for column, value in zip(headers, header):
                column[row] = value

    with ThreadPoolExecutor(min(_THREADS, 4 * (os.cpu_count() or 1))) as pool:
        try:
            list(pool.map(read_chunk, range(0, len(indices), _CHUNK)))
        except BaseException:  # an interrupt must not wait for the whole set
            pool.shutdown(cancel_futures=True)
            raise
    return headers


def _decoder(picture, file: BinaryIO) -> int:
    if not _is_complete(file, picture.format):
        return PILLOW
    if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
        upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return TF_JPEG if upright else PILLOW
    if picture.format == "PNG" and picture.mode in ("L", "P", "RGB") and _is_plain_png(picture):
        return PILLOW if _has_late_text(file) else TF_PNG
    return PILLOW


def _is_complete(file: BinaryIO, file_format: str) -> bool:
    """Whether a file ends as its format does; Pillow decides about others, TensorFlow may not."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    last = file.read(8)
    return last.endswith(b"\xff\xd9") if file_format == "JPEG" else last[:4] == b"IEND"


def _is_plain_png(picture) -> bool:
    """Whether the chunks before the pixels say nothing that TensorFlow's decoder ignores."""
    info = picture.info
    if getattr(picture, "is_animated", False) or "transparency" in info:
        return False
    if "exif" in info or "XML:com.adobe.xmp" in info or "Raw profile type exif" in info:
        return False
    picture.fp.seek(_PNG_BIT_DEPTH)
    return picture.fp.read(1) == b"\x08"


def _has_late_text(file: BinaryIO) -> bool:
    """Whether chunks after a PNG's pixels may hold an orientation; pixels are not read."""
    position, pixels_seen = _PNG_SIGNATURE_BYTES, False
    while True:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8 or header[4:] == b"IEND":
            return False
        pixels_seen |= header[4:] == b"IDAT"
        if pixels_seen and header[4:] in _PNG_TEXT:
            return True
        position += int.from_bytes(header[:4], "big") + 12
