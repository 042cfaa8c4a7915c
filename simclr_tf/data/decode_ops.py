"""Decodes image files by TensorFlow's kernels, inside tf.data and without Python.

Does what `decode` does with Pillow, for the files for which `headers` says that the kernels read
them rightly: the same pixels, and where an image is reduced, the same within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf import images
from simclr_tf.data.cache import CacheOnDemand
from simclr_tf.data.decode import REDUCING_GAP
from simclr_tf.data.headers import PILLOW, TF_JPEG, Headers

_RATIOS = (8, 4, 2)  # at which a JPEG can be decoded
BY_PILLOW, AS_IT_IS, RESIZED = 0, 1, 2  # ways; above these, RESIZED after decoding at 1/2, 1/4, 1/8
_WAY_OF_RATIO = {1: RESIZED, 2: 3, 4: 4, 8: 5}
FROM_MEMORY = 6  # what an earlier epoch has decoded
_RATIO_OF_WAY = {way: ratio for ratio, way in _WAY_OF_RATIO.items()}


class Plan(NamedTuple):
    """How each of n images is decoded.

    Attributes:
      way: uint8 [n]: `BY_PILLOW`, `AS_IT_IS`, `RESIZED`, or that after decoding at a fraction.
      extent: int32 [n, 2], the height and width of the result, for all that Pillow does not decode.
    """

    way: np.ndarray
    extent: np.ndarray


def plan_centre(headers: Headers, size: int) -> Plan:
    """Returns the `Plan` for centre squares of `size` pixels, as `decode.decode` makes them."""
    fits = (headers.height == size) & (headers.width == size)
    way = np.where(fits, AS_IT_IS, RESIZED)
    way = np.where(headers.decoder == PILLOW, BY_PILLOW, way)
    return Plan(way.astype(np.uint8), np.full([len(way), 2], size, np.int32))


def plan_whole(headers: Headers, side: int) -> Plan:
    """Returns the `Plan` for whole images in squares of `side`, as `decode.decode_whole` does it.

    Images that are reduced by 4 or more after decoding are left to Pillow, which then averages
    blocks first.
    """
    stored = np.stack([headers.height, headers.width], 1).astype(np.int64)
    stored = np.maximum(stored, 1)
    shorter = np.maximum(1, np.rint(stored.min(1) * _scale(stored, side)))
    wanted = np.maximum(1, (shorter * REDUCING_GAP).astype(np.int64))
    ratio = np.ones(len(stored), np.int64)
    for candidate in sorted(_RATIOS):  # as `PIL.JpegImagePlugin.JpegImageFile.draft`
        ratio[(headers.decoder == TF_JPEG) & (stored.min(1) // wanted >= candidate)] = candidate
    decoded = -(-stored // ratio[:, None])
    scale = _scale(decoded, side)
    extent = np.maximum(1, np.rint(decoded * scale[:, None])).astype(np.int32)
    way = np.vectorize(_WAY_OF_RATIO.get, otypes=[np.uint8])(ratio)
    way[(extent == stored).all(1)] = AS_IT_IS
    too_large = (decoded >= 2 * REDUCING_GAP * extent).any(1)
    way[too_large | (headers.decoder == PILLOW)] = BY_PILLOW
    return Plan(way, extent)


def decode_file(
    content: tf.Tensor, way: int, extent: tf.Tensor, side: int, whole: bool
) -> tf.Tensor:
    """Decodes one file, in a graph or eagerly.

    Args:
      content: the file, a string scalar.
      way, extent: a row of a `Plan`, not `BY_PILLOW`.
      side: of the square, pixels.
      whole: whether the plan is of whole images.

    Returns:
      uint8 [side, side, 3].

    Raises:
      tf.errors.InvalidArgumentError: the file cannot be decoded.
    """
    image = pixels(content, _RATIO_OF_WAY.get(way, 1))
    if not whole:
        image = image if way == AS_IT_IS else _centre(image, side)
    else:
        image = image if way == AS_IT_IS else _resized(image, extent)
        image = tf.image.pad_to_bounding_box(image, 0, 0, side, side)
    return tf.ensure_shape(image, [side, side, 3])


def decoder(
    plan: Plan,
    side: int,
    whole: bool,
    contents: Callable,
    by_pillow: Callable,
    memory: CacheOnDemand | None = None,
) -> Callable:
    """Returns a function that decodes one image in a graph.

    Args:
      plan: of the data set; only the ways that occur in it become part of the graph.
      side: of the squares, pixels.
      whole: whether `plan` is of whole images.
      contents: maps what was fetched, a string scalar, to the content of the file.
      by_pillow: maps an index, int64 scalar, to the square and its extent.
      memory: what the way `FROM_MEMORY` stands for; None where there is no such way.

    Returns:
      A function of (index int64, fetched string, way uint8, extent int32 [2]), scalars, to the
      square, uint8 [side, side, 3], and its extent. It raises for files that cannot be decoded.
    """
    ways = np.unique(plan.way).tolist() + [FROM_MEMORY] * bool(memory)

    def branch(way, index, fetched, extent):
        if way == FROM_MEMORY:
            return tf.gather(memory.images_tensor, index), tf.gather(memory.extents_tensor, index)
        if way == BY_PILLOW:
            square, extent = by_pillow(index)
            return tf.ensure_shape(square, [side, side, 3]), tf.ensure_shape(extent, [2])
        return decode_file(contents(fetched), way, extent, side, whole), extent

    def decode(index, fetched, way, extent):
        branches = [lambda way=way: branch(way, index, fetched, extent) for way in ways]
        if len(branches) == 1:
            return branches[0]()
        position = tf.searchsorted(tf.constant(ways, tf.int32), tf.cast(way, tf.int32)[None])[0]
        return tf.switch_case(position, branches)

    return decode


def _scale(size: np.ndarray, side: int) -> np.ndarray:
    return np.minimum(1.0, side / size.max(1))


def pixels(content: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    """Decodes JPEG or PNG to uint8 RGB [height, width, 3], as Pillow does, to the last bit.

    The kernel finds out which of the two it is. TensorFlow's default, INTEGER_FAST, differs by up
    to 5 of 255 from the setting of libjpeg that Pillow uses.

    Args:
      content: the file, a string scalar.
      ratio: 1, 2, 4 or 8, by which a JPEG is reduced.
    """
    return tf.io.decode_jpeg(content, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def _centre(image: tf.Tensor, size: int) -> tf.Tensor:
    """`images.centre_square` as uint8; cut first, as in `decode.decode`."""
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    return tf.cast(tf.round(images.centre_square(square[None], size)[0] * 255.0), tf.uint8)


def _resized(image: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
    image = tf.image.resize(image, extent, "bicubic", antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
