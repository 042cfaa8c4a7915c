"""Operators that change colours: jitter and its four parts, colour drop, solarize.

Plain functions with one parameter per image, on float32 images in [0, 1]. Hue and saturation go
through HSV as in tf.image, written without a hue where none is needed and without branches, so
that a whole jitter is a few fused passes over planar pixels.
"""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from simclr_tf.augment.geometry import from_planar, per_image, to_planar

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))  # the 24 orders that ColorJitter draws from


def _unit(images):
    return tf.clip_by_value(images, 0.0, 1.0)


def brightness(images, factor):
    """Images * factor, clipped to [0, 1]. images: [B, H, W, 3] in [0, 1]; factor: [B], >= 0."""
    return _unit(images * per_image(factor))


def contrast(images, factor):
    """Scales the distance to each channel's mean by `factor` ([B]), as `tf.image`; clipped."""
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    return _unit((images - mean) * per_image(factor) + mean)


def saturation(images, factor):
    """Scales the saturation of HSV by `factor` ([B], >= 0), as `tf.image.adjust_saturation`."""
    return from_planar(_saturation_hue(to_planar(images), factor, tf.zeros_like(factor)))


def hue(images, delta):
    """Turns the hue of HSV by `delta` ([B], in turns), as `tf.image.adjust_hue`."""
    return from_planar(_saturation_hue(to_planar(images), tf.ones_like(delta), delta))


def _saturation_hue(planar, factor, delta):
    """Saturation times factor, hue plus delta turns; they act on separate axes, so they commute."""
    return from_hue(to_hue(planar), factor, delta)


def to_hue(planar):
    """[B, 3, H, W] of V = max, C = max - min, and the hue H in sixths of a turn."""
    red, green, blue = tf.unstack(planar, axis=1)  # [B, H, W]
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    inverse = 1.0 / tf.where(chroma > 0.0, chroma, 1.0)  # a grey pixel has no hue: any will do
    sixths = tf.where(
        value == red,
        (green - blue) * inverse,
        tf.where(value == green, 2.0 + (blue - red) * inverse, 4.0 + (red - green) * inverse),
    )
    return tf.stack([value, chroma, sixths], axis=1)


def from_hue(planar, factor, delta):
    """The colours [B, 3, H, W] of `to_hue`, with saturation times factor, hue plus delta turns.

    The new chroma is min(C * factor, V), which is HSV's S = min(S * factor, 1), and channel n is
    V - C * clamp(min(k, 4 - k), 0, 1) with k = (n + H) mod 6 and n = 5, 3, 1.
    """
    value, chroma, sixths = tf.unstack(planar, axis=1)  # [B, H, W]
    sixths += 6.0 * per_image(delta, 3)
    chroma = tf.minimum(chroma * per_image(factor, 3), value)
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = n + sixths
        k -= 6.0 * tf.floor(k * (1.0 / 6.0))
        channels.append(value - chroma * _unit(tf.minimum(k, 4.0 - k)))
    return tf.stack(channels, axis=1)


# Four operations in any of 24 orders would be 16 applications if each position tried all four.
# But saturation and hue commute, so every order fits, from left to right, into this row of slots,
# where an "A" is one affine operation (brightness or contrast) and an "X" a pass through HSV.
SLOTS = "AXAAXA"
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # factors that leave an image as it is


def _slot_table():
    """[24, 6, 4] float32: whether an order does operation o in slot s."""
    table = np.zeros([len(ORDERS), len(SLOTS), 4], np.float32)
    for row, order in enumerate(ORDERS):
        slot = 0
        for operation in order:
            kind = "A" if operation < 2 else "X"
            # The X of a directly preceding X is shared; an A is not (clipping does not commute).
            while SLOTS[slot] != kind or (kind == "A" and table[row, slot].any()):
                slot += 1
            table[row, slot, operation] = 1.0
    return table


_SLOT_TABLE = _slot_table()


def jitter_steps(factors, order):
    """[B, 6, 4]: the factors of the operations in each of `SLOTS`; see `color_jitter`."""
    identity = tf.constant(IDENTITY)
    used = tf.gather(tf.constant(_SLOT_TABLE), order)  # [B, slots, 4]
    return identity + used * (factors[:, None, :] - identity)


def affine(planar, mean, bright, contrasted):
    """Brightness or contrast, whichever factor is not 1; mean: [B, 3, 1, 1]."""
    scale = per_image(bright * contrasted)
    return _unit(planar * scale + mean * per_image(1.0 - contrasted))


def jitter_planar(planar, factors, order):
    """See `color_jitter`; planar images."""
    steps = jitter_steps(factors, order)
    for slot, kind in enumerate(SLOTS):
        bright, contrasted, saturated, turned = tf.unstack(steps[:, slot], axis=1)
        if kind == "X":
            planar = _saturation_hue(planar, saturated, turned)
        else:
            mean = tf.reduce_mean(planar, axis=[2, 3], keepdims=True)
            planar = affine(planar, mean, bright, contrasted)
    return planar


def color_jitter(images, factors, order):
    """Brightness, contrast, saturation and hue in an order of its own for every image.

    The paper's colour distortion (SimCLR, appendix A), each step clipped to [0, 1].

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      factors: [B, 4] float32: brightness, contrast and saturation factors (1 leaves the image as
        it is) and the turn of the hue (0 leaves it).
      order: [B] int32, an index into `ORDERS`.
    """
    return from_planar(jitter_planar(to_planar(images), factors, order))


def grey_planar(planar, dropped):
    """See `color_drop`; planar images."""
    weights = tf.constant([0.2989, 0.5870, 0.1140])[None, :, None, None]  # as tf.image (ITU-R 601)
    grey = tf.reduce_sum(planar * weights, axis=1, keepdims=True)
    return tf.where(per_image(dropped), grey, planar)


def color_drop(images, dropped):
    """Makes grey the images for which `dropped` ([B] bool) is true, as `rgb_to_grayscale`."""
    return from_planar(grey_planar(to_planar(images), dropped))


def solarize(images, threshold):
    """Inverts the values at or above `threshold` ([B], in [0, 1]): x becomes 1 - x."""
    return tf.where(images >= per_image(threshold), 1.0 - images, images)
