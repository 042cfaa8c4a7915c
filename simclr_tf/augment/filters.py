"""Operators that mix neighbouring pixels: Gaussian blur and Sobel; and Gaussian noise.

Plain functions with one parameter per image, on float32 images in [0, 1].

TensorFlow Addons' `gaussian_filter2d` takes one sigma per batch and KerasCV's blur runs image by
image; here a blur is two matrix products with a banded matrix of each image's own.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from simclr_tf.augment.geometry import blocks, from_planar, per_image, resample_planar, to_planar


def gaussian_taps(sigma, radius):
    """[B, 2 radius + 1] float32: normalised Gaussian weights; a unit impulse where sigma is 0."""
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)[None, :]
    safe = tf.where(sigma > 0.0, sigma, 1.0)[:, None]
    taps = tf.exp(-0.5 * tf.square(distance / safe))
    taps = tf.where(sigma[:, None] > 0.0, taps, tf.cast(distance == 0.0, tf.float32))
    return taps / tf.reduce_sum(taps, axis=1, keepdims=True)


def _reflected(read, size):
    # Pixels in 0 .. size - 1 for those beyond the border, without repeating the edge pixel.
    period = max(2 * (size - 1), 1)
    read = read % period
    return np.where(read >= size, period - read, read)


def _tap_positions(size, radius):
    """[2 radius + 1, size * size] of 0 and 1: which input pixel a tap of an output pixel reads."""
    read = np.arange(size)[None, :] + np.arange(-radius, radius + 1)[:, None]  # [taps, size]
    read = _reflected(read, size)
    return np.eye(size, dtype=np.float32)[read].reshape(2 * radius + 1, size * size)


def blur_weights(sigma, radius, size):
    """Banded matrices [B, H, H] and [B, W, W] of a blur; see `gaussian_blur`. size: (H, W)."""
    taps = gaussian_taps(sigma, radius)
    return tuple(
        tf.reshape(tf.matmul(taps, _tap_positions(side, radius)), [-1, side, side]) for side in size
    )


def blur_reads(radius, size):
    """[blocks, block + 2 radius] int32: the rows that blocks of blurred rows read."""
    count, block = blocks(size)
    reads = np.arange(-radius, block + radius)[None, :] + block * np.arange(count)[:, None]
    return _reflected(reads, size).astype(np.int32)


def blur_bands(sigma, radius, size):
    """[B, 1, block, block + 2 radius]: the weights of what `blur_reads` gives, one for all blocks.

    See `geometry.apply_banded`.
    """
    _, block = blocks(size)
    taps = gaussian_taps(sigma, radius)
    shifts = [np.eye(block, block + 2 * radius, tap, np.float32) for tap in range(2 * radius + 1)]
    return tf.tensordot(taps, np.stack(shifts), 1)[:, None]


def blur_planar(planar, sigma, radius):
    """See `gaussian_blur`; planar images."""
    return resample_planar(planar, *blur_weights(sigma, radius, planar.shape[2:]))


def gaussian_blur(images, sigma, radius):
    """Gaussian blur with a sigma of its own for every image (SimCLR, appendix A).

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      sigma: [B] float32 in pixels; an image with 0 stays as it is.
      radius: the kernel has 2 radius + 1 taps a side. Pixels beyond the border are reflected
        (google-research/simclr takes them for black, which darkens the frame).
    """
    return from_planar(blur_planar(to_planar(images), sigma, radius))


def sobel(images):
    """Magnitude of the Sobel gradient of each channel, as a fraction of its largest value.

    images: [B, H, W, 3] float32 in [0, 1]; the result is `sqrt(dx^2 + dy^2) / sqrt(20)` of
    `tf.image.sobel_edges`, in [0, 1] (20 is the largest squared magnitude that a 3 x 3
    neighbourhood of values in [0, 1] reaches).
    """
    edges = tf.image.sobel_edges(tf.convert_to_tensor(images))  # [B, H, W, 3, 2]
    return tf.minimum(tf.sqrt(tf.reduce_sum(tf.square(edges), axis=-1) / 20.0), 1.0)


def gaussian_noise(images, stddev, noise):
    """Images + stddev * noise, clipped to [0, 1]; stddev: [B], noise: standard normal draws."""
    return tf.clip_by_value(images + per_image(stddev) * noise, 0.0, 1.0)
