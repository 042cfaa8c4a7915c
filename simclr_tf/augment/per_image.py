"""The paper's family one image after the other: how a processor makes large views.

A single large image fits a core's cache where a batch does not, and what an image has not drawn,
four of ten blurs and colour steps among them, is left out. `RandomView` has the form for a batch.
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
    """One view of every image.

    Args:
      images: [B, H, W, 3], uint8, or float in [0, 1].
      parameters: what `RandomView.draw` returns.
      size: side of the views in pixels.
      method: of the crop.
      radius: of the blur; None for a family without.

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
    # All small numbers of a batch at once: bands of crop and blur, steps of the colour jitter.
    boxes, flipped = parameters["boxes"], parameters["flipped"]
    (reads, weights), columns = geometry.crop_bands(boxes, in_size, (size, size), method, flipped)
    plan = {"rows": (reads, weights / full), "columns": columns, "dropped": parameters["dropped"]}
    plan["steps"] = color.jitter_steps(parameters["factors"], parameters["order"])
    if radius is not None:
        plan["sigma"] = parameters["sigma"]
        plan["blur"] = filters.blur_bands(parameters["sigma"], radius, size)
    return plan


def _view(rows, plan, size, radius):
    """The view of one image as rows, [S, S * 3]; rows: [H, W * 3].

    A matrix product is fast along the first axis alone, so the image is turned twice: columns
    first for the crop along them, the colours and a first blur, then back.
    """
    width = rows.shape[1] // 3
    rows = geometry.apply_banded(rows, *plan["rows"], size)  # [S, W * 3]
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
    """`_transposed`, blurred along both axes."""
    size = columns.shape[0]
    reads = filters.blur_reads(radius, size)
    columns = geometry.apply_banded(tf.reshape(columns, [size, 3 * size]), reads, weights, size)
    rows = _transposed(tf.reshape(columns, [size, 3, size]))
    return tf.clip_by_value(geometry.apply_banded(rows, reads, weights, size), 0.0, 1.0)


@_compiled
def _colours(columns, steps, dropped):
    """Colour jitter and colour drop of one image, [W, 3, H]; what it has not drawn is left out."""
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
    # A branch of its own, always taken here: XLA would merge the two, and then go from RGB to hue
    # once for every channel.
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
