"""What a batch is and what an image is, each defined once.

Training, evaluation, embedding and the exported signatures unpack batches, convert images to float,
check their range and cut the centre square with these functions, so all of them see the same
pixels. Decoding files is in `data.decode`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf.errors import ArgumentError, check_number

UNLABELLED = -1  # the label of an example that has none
RANGE_RULE = "float images must lie in [0, 1]"
VIEW_RULE = "augment must return views in [0, 1]"
_TOLERANCE = 1e-3  # a resize may overshoot by as much


class Batch(NamedTuple):
    """The contents of a batch.

    Attributes:
      images: [B, H, W, 3], uint8, or float in [0, 1].
      labels: what the dataset gives as labels, or None.
      ids: strings or integers [B], or None.
      extents: [B, 2] int, the height and width of each image where it fills only the upper left of
        [H, W]; None where all images fill it.
      seeds: the seed of each view, [2] integers each, from which an `augment.Operator` draws its
        parameters; None where there is no seed, and before the views are drawn.

    Example:

    >>> batch = simclr_tf.images.Batch(images, labels=labels)
    >>> batch.ids is None
    True
    """

    images: Any
    labels: Any = None
    ids: Any = None
    extents: Any = None
    seeds: Any = None


def unpack(data) -> Batch:
    """Returns the contents of a batch in any of the forms that the package accepts.

    Args:
      data: images alone; a tuple (images, labels) or (images, labels, ids); or a dict with "image"
        and optionally "label", "id" and "extent". The first item of a tuple may be such a dict.

    Returns:
      A `Batch`.

    Raises:
      ArgumentError: a dict without the key "image".

    Example:

    >>> simclr_tf.images.unpack({"image": images, "label": labels}).labels.shape
    (8,)
    """
    first, *rest = data if isinstance(data, (tuple, list)) else (data,)
    labels, ids, *_ = [*rest, None, None]
    if not isinstance(first, dict):
        return Batch(first, labels, ids)
    if "image" not in first:
        raise ArgumentError(f'a dict of a batch needs the key "image"; got {sorted(first)}.')
    return Batch(
        first["image"],
        first.get("label", labels),
        first.get("id", ids),
        first.get("extent"),
    )


def class_indices(labels, name="labels"):
    """Returns class labels as integers, from integers or from one-hot rows.

    Args:
      labels: integers [B] or [B, 1], -1 where there is no label; or one-hot [B, C], C of 2 or more,
        of any dtype.
      name: of the argument, for messages.

    Returns:
      int64 [B].

    Raises:
      ArgumentError: another dtype or shape, or rows without exactly one 1.

    Example:

    >>> simclr_tf.images.class_indices([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    array([1, 0])
    """
    labels = np.asarray(labels)
    is_integer = labels.dtype.kind in "iub"
    if labels.ndim == 2 and labels.shape[1] == 1 and is_integer:
        labels = labels[:, 0]
    if labels.ndim == 1 and is_integer:
        return labels.astype(np.int64)
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iubf":
        if np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1).astype(np.int64)
    raise ArgumentError(
        f"{name} must be integers [B], or one-hot [B, C] with one 1 in each row; got "
        f"{labels.dtype} of shape {labels.shape}. Pass the index of each class."
    )


def check_images(images) -> None:
    """Raises `ArgumentError` unless images are [B, H, W, 3], uint8 or float; unknown shapes pass.

    Args:
      images: a tensor, an array or a `tf.TensorSpec`.

    Example:

    >>> simclr_tf.images.check_images(images[0])
    Traceback (most recent call last):
    simclr_tf.errors.ArgumentError: images must be a batch [batch, height, width, 3]; got shape ...
    """
    shape, dtype = tf.TensorShape(images.shape), tf.as_dtype(images.dtype)
    if shape.rank is not None and (shape.rank != 4 or shape[-1] not in (3, None)):
        raise ArgumentError(
            f"images must be a batch [batch, height, width, 3]; got shape {shape}. "
            "Batch the dataset or add the batch axis; repeat a grey channel three times."
        )
    if dtype != tf.uint8 and not dtype.is_floating:
        raise ArgumentError(
            f"images must be uint8, or float in [0, 1]; got {dtype.name}. Cast them to uint8."
        )


def max_value(dtype) -> float:
    """Returns the value of full intensity in images of a dtype: 255.0 for uint8, 1.0 for floats.

    Example:

    >>> simclr_tf.images.max_value(images.dtype)
    255.0
    """
    return 255.0 if tf.as_dtype(dtype) == tf.uint8 else 1.0


def as_float(images):
    """Returns images as float32 in [0, 1].

    Args:
      images: [B, H, W, 3], uint8, or float in [0, 1] (the range is not checked here).

    Raises:
      ArgumentError: the rank, the number of channels or the dtype is another.

    Example:

    >>> simclr_tf.images.as_float(images).dtype
    tf.float32
    """
    images = tf.convert_to_tensor(images)
    check_images(images)
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / max_value(images.dtype)
    return tf.cast(images, tf.float32)


def check_range(images) -> None:
    """Raises `ArgumentError` where float images are not in [0, 1].

    Args:
      images: an eager tensor or an array; uint8 images pass.

    Example:

    >>> simclr_tf.images.check_range(images / 255)
    """
    if tf.as_dtype(images.dtype) == tf.uint8 or not len(images):
        return
    images = np.asarray(images)
    low, high = float(images.min()), float(images.max())
    if not (low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE):  # a NaN fails too
        raise ArgumentError(range_message(f"; got values from {low:g} to {high:g}"))


def range_message(found=", and these do not") -> str:
    """Returns the message for float images out of range.

    Example:

    >>> simclr_tf.images.range_message()
    'float images must lie in [0, 1], and these do not. Divide by 255, or pass uint8.'
    """
    return f"{RANGE_RULE}{found}. Divide by 255, or pass uint8."


def view_message(error):
    """Returns the message for views out of range, from the error of their `range_assertion`.

    Example:

    >>> simclr_tf.images.view_message("[augment must return views in [0, 1]] [-0.1] [33.5]")
    'augment must return views in [0, 1]; got values from -0.1 to 33.5. Keras layers of colours ...'
    """
    values = re.search(re.escape(VIEW_RULE) + r"\] \[(\S+)\] \[(\S+)\]", str(error))
    low, high = map(float, values.groups()) if values else (None, None)
    found = f"; got values from {low:g} to {high:g}" if values else ""
    return (
        f"{VIEW_RULE}{found}. Keras layers of colours need value_range=(0, 1); clip what a filter "
        "adds."
    )


def range_assertion(images, rule=RANGE_RULE, margin=_TOLERANCE):
    """Returns an operation that fails where float images are not in [0, 1]; None for uint8.

    For use in a graph; XLA drops it. Its message begins with `rule`, and has both extremes. Values
    may be out of range by `margin`, a number of at least 0.

    Example:

    >>> simclr_tf.images.range_assertion(tf.constant(images)) is None
    True
    """
    check_number("margin", margin, at_least=0)
    if not images.dtype.is_floating:
        return None
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    within = (low >= -margin) & (high <= 1.0 + margin)
    return tf.debugging.Assert(within, [rule, low, high])


def centre_square(images, size):
    """Cuts the centre square out of images and resizes it (bicubic, antialiased).

    Images of `size` are returned as they are. The result of a resize is rounded to multiples of
    1/255, as in an image file, so that what is cached as uint8 and what is computed in a server are
    the same image. Where `size` is not a square, images are resized without cutting.

    Args:
      images: [B, H, W, 3], uint8, or float in [0, 1]; H and W may be unknown until run time.
      size: side of the result in pixels, or (height, width).

    Returns:
      [B, height, width, 3] float32 in [0, 1].

    Example:

    >>> simclr_tf.images.centre_square(images[:, :, :24], 16).shape
    TensorShape([8, 16, 16, 3])
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    images = tf.convert_to_tensor(images)
    check_images(images)

    def resized():
        # Resized in [0, 255], which is exact for uint8: TensorFlow divides by 255 in eager mode and
        # multiplies by 1/255 in a graph, and a difference in the last bit could change a pixel.
        square = tf.cast(images, tf.float32)
        square = square if images.dtype == tf.uint8 else square * 255.0
        if size[0] == size[1]:
            height, width = tf.shape(images)[1], tf.shape(images)[2]
            side = tf.minimum(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            square = square[:, top : top + side, left : left + side]
        out = tf.image.resize(square, size, tf.image.ResizeMethod.BICUBIC, antialias=True)
        return tf.round(tf.clip_by_value(out, 0.0, 255.0)) / 255.0

    if None not in images.shape[1:3]:
        out = as_float(images) if tuple(images.shape[1:3]) == size else resized()
    else:
        same = tf.reduce_all(tf.shape(images)[1:3] == size)
        out = tf.cond(same, lambda: as_float(images), resized)  # resizing costs time at any size
    return tf.ensure_shape(out, [None, *size, 3])
