"""Gaussian blur, Sobel filter and Gaussian noise.

Functions of float32 images in [0, 1] and one parameter per image. TensorFlow Addons'
`gaussian_filter2d` takes one sigma per batch and KerasCV's blur runs one image at a time; here a
blur is two matrix products with a banded matrix per image.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from simclr_tf.augment.geometry import (
    expand_to_rank,
    from_planar,
    resample_planar,
    row_blocks,
    to_planar,
)


def gaussian_taps(sigma, radius):
    """Returns [B, 2 radius + 1] float32: normalised Gaussians, a unit impulse where sigma is 0."""
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)[None, :]
    safe = tf.where(sigma > 0.0, sigma, 1.0)[:, None]
    taps = tf.exp(-0.5 * tf.square(distance / safe))
    taps = tf.where(sigma[:, None] > 0.0, taps, tf.cast(distance == 0.0, tf.float32))
    return taps / tf.reduce_sum(taps, axis=1, keepdims=True)


def _reflected(read, size):
    # Reflects indices beyond the border into 0 .. size - 1, without repeating the edge pixel.
    period = max(2 * (size - 1), 1)
    read = read % period
    return np.where(read >= size, period - read, read)


def _tap_positions(size, radius):
    """Returns which input pixel each tap of an output pixel reads, 0 or 1.

    The shape is [2 radius + 1, size * size], float32.
    """
    read = np.arange(size)[None, :] + np.arange(-radius, radius + 1)[:, None]  # [taps, size]
    read = _reflected(read, size)
    return np.eye(size, dtype=np.float32)[read].reshape(2 * radius + 1, size * size)


def blur_weights(sigma, radius, size):
    """Returns the banded matrices [B, H, H] and [B, W, W] of `gaussian_blur`; size: (H, W)."""
    taps = gaussian_taps(sigma, radius)
    return tuple(
        tf.reshape(tf.matmul(taps, _tap_positions(side, radius)), [-1, side, side]) for side in size
    )


def blur_reads(radius, size):
    """Returns the input rows that each block of blurred rows reads, [blocks, block + 2 radius]."""
    count, block = row_blocks(size)
    reads = np.arange(-radius, block + radius)[None, :] + block * np.arange(count)[:, None]
    return _reflected(reads, size).astype(np.int32)


def blur_bands(sigma, radius, size):
    """Returns the weights of the rows of `blur_reads`, [B, 1, block, block + 2 radius] float32.

    They are the same for all blocks; see `geometry.apply_banded`.
    """
    _, block = row_blocks(size)
    taps = gaussian_taps(sigma, radius)
    shifts = [np.eye(block, block + 2 * radius, tap, np.float32) for tap in range(2 * radius + 1)]
    return tf.tensordot(taps, np.stack(shifts), 1)[:, None]


def blur_planar(planar, sigma, radius):
    """Applies `gaussian_blur` to planar images."""
    return resample_planar(planar, *blur_weights(sigma, radius, planar.shape[2:]))


def gaussian_blur(images, sigma, radius):
    """Blurs images with a Gaussian, with one sigma per image (SimCLR, appendix A).

    Pixels beyond the border are reflected; google-research/simclr treats them as black, which
    darkens the border.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      sigma: [B] float32, standard deviation in pixels; an image with 0 does not change.
      radius: the kernel has 2 radius + 1 taps per axis.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> simclr_tf.augment.gaussian_blur(floats, tf.linspace(0.0, 2.0, 8), radius=3).shape
    TensorShape([8, 32, 32, 3])
    """
    return from_planar(blur_planar(to_planar(images), sigma, radius))


def sobel(images):
    """Computes the magnitude of the Sobel gradient of each channel, scaled to [0, 1].

    The result is `sqrt(dx^2 + dy^2) / sqrt(20)` of `tf.image.sobel_edges`; 20 is the maximum of
    dx^2 + dy^2 for values in [0, 1].

    Args:
      images: [B, H, W, 3] float32 in [0, 1].

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> simclr_tf.augment.sobel(simclr_tf.augment.as_float(images)).shape
    TensorShape([8, 32, 32, 3])
    """
    edges = tf.image.sobel_edges(tf.convert_to_tensor(images))  # [B, H, W, 3, 2]
    return tf.minimum(tf.sqrt(tf.reduce_sum(tf.square(edges), axis=-1) / 20.0), 1.0)


def gaussian_noise(images, stddev, noise):
    """Adds noise to images and clips them to [0, 1].

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      stddev: [B] float32, standard deviation of the noise, 0 or more.
      noise: [B, H, W, 3] float32, standard normal.

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> floats = simclr_tf.augment.as_float(images)
    >>> noise = tf.random.stateless_normal(floats.shape, seed=[1, 2])
    >>> simclr_tf.augment.gaussian_noise(floats, tf.linspace(0.0, 0.1, 8), noise).shape
    TensorShape([8, 32, 32, 3])
    """
    return tf.clip_by_value(images + expand_to_rank(stddev) * noise, 0.0, 1.0)
