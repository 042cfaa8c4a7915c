"""Decodes image files of any format, mode, size and orientation to uint8 RGB of one size.

Made for threads: Pillow and TensorFlow release the interpreter lock while they decode and resize.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

from simclr_tf import images
from simclr_tf.errors import CorruptImageError

# `decode_whole` decodes to at most this multiple of the size wanted before the bicubic resize.
REDUCING_GAP = 2.0


def decode(image: bytes | np.ndarray, size: int) -> np.ndarray:
    """Decodes one image as evaluation and serving see it.

    The whole image is decoded to upright RGB: EXIF orientation is applied, transparency is
    composited on white, 16-bit greys keep their upper eight bits, and the first frame of an
    animation is used. Then `images.centre_square` cuts the centre square and resizes it.

    Args:
      image: an encoded file, or uint8 [height, width, 3].
      size: side of the result, pixels.

    Returns:
      uint8 [size, size, 3].

    Raises:
      CorruptImageError: the file is truncated, unknown to Pillow, or larger than Pillow's limit
        against decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`).

    Example:

    >>> from simclr_tf.data.decode import decode
    >>> decode(images[0, :20], 16).shape
    (16, 16, 3)
    """
    if not isinstance(image, np.ndarray):
        image = np.asarray(_picture(image))
    height, width = image.shape[:2]
    # Cut first: an image of extreme proportions never becomes a huge array of floats.
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    with tf.device("CPU:0"):
        return _resize(size)(square[None]).numpy()[0]


def decode_whole(image: bytes | np.ndarray, side: int) -> tuple[np.ndarray, int, int]:
    """Decodes a whole image into the upper left corner of a black square, proportions kept.

    An image whose longer side exceeds `side` is reduced (bicubic, antialiased); a smaller one keeps
    its pixels. A large JPEG is decoded at a fraction of its size, which is much faster. Otherwise
    as `decode`, errors included.

    Args:
      image: an encoded file, or uint8 [height, width, 3].
      side: of the square, pixels.

    Returns:
      The square, uint8 [side, side, 3], and the height and the width of the image in it, pixels.

    Example:

    >>> from simclr_tf.data.decode import decode_whole
    >>> square, height, width = decode_whole(images[0, :20], 16)
    >>> square.shape, height, width
    ((16, 16, 3), 10, 16)
    """

    def shorter_side(width, height):
        return max(1, round(min(width, height) * min(1.0, side / max(width, height))))

    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
    else:
        picture = _picture(image, shorter_side)
    scale = min(1.0, side / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize(
            (width, height), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP
        )
    square = np.zeros([side, side, 3], np.uint8)
    square[:height, :width] = np.asarray(picture)
    return square, height, width


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns width and height in pixels, read from the header alone.

    Raises:
      CorruptImageError: as for `decode`.

    Example:

    >>> from simclr_tf.data.decode import image_size
    >>> image_size(images[0, :20])
    (32, 20)
    """
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return open_image(io.BytesIO(image)).size


def _picture(data: bytes, shorter_side: Callable[[int, int], int] | None = None) -> Image.Image:
    """Decodes a file to upright RGB.

    Args:
      data: the file.
      shorter_side: maps (width, height) to the pixels needed of the shorter side; a JPEG is then
        decoded at 1/2, 1/4 or 1/8 of its size where that is enough. None decodes all pixels.
    """
    picture = open_image(io.BytesIO(data))
    try:
        if shorter_side is not None:
            gap = int(shorter_side(*picture.size) * REDUCING_GAP)
            picture.draft(None, (gap, gap))
        picture.load()
        return _rgb(_upright(picture))
    except Exception as error:
        # Damaged files make Pillow's readers raise nearly anything (OSError, SyntaxError,
        # struct.error, IndexError, ...). None of it is lost: the reason is recorded and counted.
        raise CorruptImageError(_reason(error)) from error


def open_image(file: BinaryIO) -> Image.Image:
    """Returns the image of a file, of which Pillow has read the header alone.

    Raises:
      CorruptImageError: as for `decode`.
    """
    try:
        picture = Image.open(file)
    except Exception as error:  # see `_picture`
        raise CorruptImageError(_reason(error)) from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit and picture.width * picture.height > limit:
        raise CorruptImageError(
            f"{picture.width} x {picture.height} is over the limit of {limit} pixels"
        )
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can identify"
    return f"{type(error).__name__}: {error}"


def _upright(picture: Image.Image) -> Image.Image:
    if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit greys scaled to eight bits, transparency composited on white."""
    if picture.mode.startswith("I"):  # I, I;16, I;16B: grey PNGs of 16 bits
        grey = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


@functools.cache
def _resize(size: int) -> Callable:
    """`images.centre_square` as uint8; as a graph it takes less time than eagerly."""

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)])
    def resize(square):
        return tf.cast(tf.round(images.centre_square(square, size) * 255.0), tf.uint8)

    return resize
