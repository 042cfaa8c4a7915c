"""The paper's family computed one image at a time, which is faster for large views on a CPU.

One large image fits into a core's cache, a batch does not; and operations that an image has not
drawn are skipped. `random_view.py` computes the same views for a whole batch at once.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from simclr_tf._keras import map_rows
from simclr_tf.augment import color, filters, geometry
from simclr_tf.augment.base import static_size
from simclr_tf.images import max_value

_compiled = functools.partial(tf.function, jit_compile=True)


def views(images, parameters, size, method, radius):
    """Computes one view of every image from drawn parameters.

    Args:
      images: [B, H, W, 3], uint8, or float in [0, 1].
      parameters: the result of `RandomView.draw`.
      size: side of the views in pixels.
      method: of the crop, "bicubic" or "bilinear".
      radius: of the blur, see `gaussian_blur`; None for a family without blur.

    Returns:
      [B, size, size, 3] float32 in [0, 1].
    """
    height, width = static_size(images)
    plan = _plan(parameters, (height, width), size, method, radius, max_value(images.dtype))
    rows = tf.reshape(images, [-1, height, width * 3])
    made = map_rows(functools.partial(_view, size=size, radius=radius), (rows, plan))
    return tf.reshape(made, [-1, size, size, 3])


@_compiled
def _plan(parameters, in_size, size, method, radius, full):
    """Computes bands of crop and blur and steps of the colour jitter, for all images at once.

    `full` is the value of full intensity in the images; dividing the weights by it is cheaper than
    dividing the images.
    """
    boxes, flipped = parameters["boxes"], parameters["flipped"]
    (reads, weights), columns = geometry.crop_bands(boxes, in_size, (size, size), method, flipped)
    plan = {"rows": (reads, weights / full), "dropped": parameters["dropped"]}
    plan["columns"], plan["window"] = _columns_of_the_box(columns, boxes)
    plan["steps"] = color.jitter_steps(parameters["factors"], parameters["order"])
    if radius is not None:
        plan["sigma"] = parameters["sigma"]
        plan["blur"] = filters.blur_bands(parameters["sigma"], radius, size)
    return plan


def _columns_of_the_box(columns, boxes):
    """Returns the bands of the columns counted from the left of the box, and [left, width].

    What a band reads outside the box weighs 0, so that any column of the box may be read instead.
    """
    reads, weights = columns
    window = tf.cast(tf.stack([boxes[:, 1], boxes[:, 3]], axis=1), tf.int32)
    left, width = window[:, :1, None], window[:, 1:, None]
    return (tf.clip_by_value(reads - left, 0, width - 1), weights), window


def _view(rows, plan, size, radius):
    """Computes the view of one image, [S, S * 3]; rows: [H, W * 3].

    A banded product is fast along the first axis only. So the image is transposed to columns first
    for the crop along the columns, the colours and the first half of the blur, and then back.
    """
    left, width = tf.unstack(plan["window"])
    rows = rows[:, 3 * left : 3 * (left + width)]
    rows = geometry.apply_banded(rows, *plan["rows"], size)  # [S, W * 3] of the box
    columns = tf.reshape(tf.transpose(rows), [width, 3 * size])
    columns = geometry.apply_banded(columns, *plan["columns"], size)  # [S, 3 * S]
    columns = _colours(tf.reshape(columns, [size, 3, size]), plan["steps"], plan["dropped"])
    if radius is None:
        return _transposed(columns)
    blurred = functools.partial(_blurred, columns, plan["blur"], radius)
    return tf.cond(plan["sigma"] > 0.0, blurred, lambda: _transposed(columns))


def _transposed(columns):
    """[W, 3, H] to [H, W * 3]."""
    width, _, height = columns.shape
    return tf.transpose(tf.reshape(columns, [width * 3, height]))


def _blurred(columns, weights, radius):
    """Returns `_transposed`, blurred along both axes and clipped to [0, 1]."""
    size = columns.shape[0]
    reads = filters.blur_reads(radius, size)
    columns = geometry.apply_banded(tf.reshape(columns, [size, 3 * size]), reads, weights, size)
    rows = _transposed(tf.reshape(columns, [size, 3, size]))
    return tf.clip_by_value(geometry.apply_banded(rows, reads, weights, size), 0.0, 1.0)


@_compiled
def _colours(columns, steps, dropped):
    """Applies colour jitter and colour drop to one image, [W, 3, H], skipping what is not drawn."""
    planar = tf.clip_by_value(columns, 0.0, 1.0)[:, :, None]  # bicubic overshoots; [W, 3, 1, H]
    for slot, kind in enumerate(color.SLOTS):
        used = tf.reduce_any(steps[slot] != color.IDENTITY)
        function = _hue_step if kind == "X" else _affine_step
        planar = _if(used, function, planar, steps[slot])
    planar = _if(dropped, color.grey_planar, planar, [True])
    return planar[:, :, 0]


def _if(used, function, planar, *arguments):
    return tf.cond(used, lambda: function(planar, *arguments), lambda: planar)


def _hue_step(planar, factors):
    _, _, saturated, turned = tf.unstack(factors)
    # Always true here. Without a branch, XLA would fuse the two conversions, and then convert from
    # RGB to hue once for every channel.
    hue = _if((saturated != 1.0) | (turned != 0.0), color.to_hue, planar)
    return color.from_hue(hue, saturated, turned)


def _affine_step(planar, factors):
    bright, contrasted, _, _ = tf.unstack(factors)
    mean = tf.cond(
        contrasted != 1.0,
        lambda: tf.reduce_mean(planar, axis=[0, 3], keepdims=True),
        lambda: tf.zeros([1, 3, 1, 1]),
    )
    return color.affine(planar, mean, bright, contrasted)
