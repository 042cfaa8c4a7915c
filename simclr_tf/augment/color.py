"""Functions that change colours: jitter and its four operations, colour drop, solarize.

Each takes float32 images in [0, 1] and one parameter per image. Hue and saturation are changed in
HSV, as in tf.image, but without branches, so that XLA fuses a whole jitter into a few passes over
planar images.
"""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from simclr_tf.augment.geometry import expand_to_rank, from_planar, to_planar

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))  # ColorJitter draws one of these 24 orders


def _unit(images):
    return tf.clip_by_value(images, 0.0, 1.0)


def brightness(images, factor):
    """Multiplies images by a factor and clips them to [0, 1].

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      factor: [B] float32, 0 or more.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.brightness(floats, tf.linspace(0.5, 1.5, 8)).shape
    TensorShape([8, 32, 32, 3])
    """
    return _unit(images * expand_to_rank(factor))


def contrast(images, factor):
    """Scales the distance of each value to its channel's mean, as `tf.image.adjust_contrast`.

    The result is clipped to [0, 1].

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      factor: [B] float32, 0 or more.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.contrast(floats, tf.linspace(0.5, 1.5, 8)).shape
    TensorShape([8, 32, 32, 3])
    """
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    return _unit((images - mean) * expand_to_rank(factor) + mean)


def saturation(images, factor):
    """Scales the saturation in HSV, as `tf.image.adjust_saturation`.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      factor: [B] float32, 0 or more; 0 makes an image grey.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.saturation(floats, tf.linspace(0.5, 1.5, 8)).shape
    TensorShape([8, 32, 32, 3])
    """
    return from_planar(_saturation_hue(to_planar(images), factor, tf.zeros_like(factor)))


def hue(images, delta):
    """Rotates the hue in HSV, as `tf.image.adjust_hue`.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      delta: [B] float32, in turns.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.hue(floats, tf.linspace(-0.1, 0.1, 8)).shape
    TensorShape([8, 32, 32, 3])
    """
    return from_planar(_saturation_hue(to_planar(images), tf.ones_like(delta), delta))


def _saturation_hue(planar, factor, delta):
    """Changes saturation and hue of planar images; separate in HSV, they commute."""
    return from_hue(to_hue(planar), factor, delta)


def to_hue(planar):
    """Converts planar RGB to V = max, C = max - min and the hue in sixths of a turn."""
    red, green, blue = tf.unstack(planar, axis=1)  # [B, H, W]
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    inverse = 1.0 / tf.where(chroma > 0.0, chroma, 1.0)  # a grey pixel has no hue
    # Not `value == red`: XLA may compute both again, with other roundings, and find them unequal.
    sixths = tf.where(
        (red >= green) & (red >= blue),
        (green - blue) * inverse,
        tf.where(green >= blue, 2.0 + (blue - red) * inverse, 4.0 + (red - green) * inverse),
    )
    return tf.stack([value, chroma, sixths], axis=1)


def from_hue(planar, factor, delta):
    """Converts the result of `to_hue` to planar RGB, saturation scaled and hue rotated.

    The new chroma is min(C * factor, V), which is HSV's S = min(S * factor, 1), and a channel is
    V - C * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6, where n is 5 for red, 3 for green
    and 1 for blue.
    """
    value, chroma, sixths = tf.unstack(planar, axis=1)  # [B, H, W]
    sixths += 6.0 * expand_to_rank(delta, 3)
    chroma = tf.minimum(chroma * expand_to_rank(factor, 3), value)
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = n + sixths
        k -= 6.0 * tf.floor(k * (1.0 / 6.0))
        channels.append(value - chroma * _unit(tf.minimum(k, 4.0 - k)))
    return tf.stack(channels, axis=1)


# Computing all four operations at each of the four positions of an order would take 16 operations.
# Saturation and hue commute, so each of the 24 orders fits, from left to right, into these 6 slots,
# where "A" is one affine operation (brightness or contrast) and "X" a conversion to HSV and back.
SLOTS = "AXAAXA"
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # the factors that do not change an image


def _slot_table():
    """Returns [24, 6, 4] float32: 1 where an order applies operation o in slot s, else 0."""
    table = np.zeros([len(ORDERS), len(SLOTS), 4], np.float32)
    for row, order in enumerate(ORDERS):
        slot = 0
        for operation in order:
            kind = "A" if operation < 2 else "X"
            # Saturation and hue share an X where one follows the other. Brightness and contrast
            # do not share an A, because of the clipping between them.
            while SLOTS[slot] != kind or (kind == "A" and table[row, slot].any()):
                slot += 1
            table[row, slot, operation] = 1.0
    return table


_SLOT_TABLE = _slot_table()


def jitter_steps(factors, order):
    """Returns [B, 6, 4] float32: the factors to apply in each of `SLOTS`; see `color_jitter`."""
    identity = tf.constant(IDENTITY)
    used = tf.gather(tf.constant(_SLOT_TABLE), order)  # [B, slots, 4]
    return identity + used * (factors[:, None, :] - identity)


def affine(planar, mean, bright, contrasted):
    """Applies brightness or contrast, whichever factor is not 1; mean: [B, 3, 1, 1]."""
    scale = expand_to_rank(bright * contrasted)
    return _unit(planar * scale + mean * expand_to_rank(1.0 - contrasted))


def jitter_planar(planar, factors, order):
    """Applies `color_jitter` to planar images."""
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
    """Changes brightness, contrast, saturation and hue, in an order per image.

    This is the paper's colour distortion (SimCLR, appendix A), clipped to [0, 1] after each of the
    four.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      factors: [B, 4] float32: the factors of brightness, contrast and saturation, where 1 is no
        change, and the rotation of the hue in turns, where 0 is no change.
      order: [B] int32 in 0 .. 23, which permutation of (brightness, contrast, saturation, hue), in
        lexicographic order.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> factors = tf.constant([[1.2, 0.9, 1.1, 0.05]] * 8)
    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.color_jitter(floats, factors, np.arange(8)).shape
    TensorShape([8, 32, 32, 3])
    """
    return from_planar(jitter_planar(to_planar(images), factors, order))


def grey_planar(planar, dropped):
    """Applies `color_drop` to planar images."""
    weights = tf.constant([0.2989, 0.5870, 0.1140])[None, :, None, None]  # as tf.image (ITU-R 601)
    grey = tf.reduce_sum(planar * weights, axis=1, keepdims=True)
    return tf.where(expand_to_rank(dropped), grey, planar)


def color_drop(images, dropped):
    """Converts images to grey, as `tf.image.rgb_to_grayscale`; they keep three channels.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      dropped: [B] bool, which images are converted.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.color_drop(floats, labels == 0).shape
    TensorShape([8, 32, 32, 3])
    """
    return from_planar(grey_planar(to_planar(images), dropped))


def solarize(images, threshold):
    """Inverts the values at or above a threshold: x becomes 1 - x.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      threshold: [B] float32; an image with a threshold above 1 does not change.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.solarize(floats, tf.fill([8], 0.5)).shape
    TensorShape([8, 32, 32, 3])
    """
    return tf.where(images >= expand_to_rank(threshold), 1.0 - images, images)
