"""Operators that move pixels: crop-resize, flip, rotation by quarter turns, cutout.

Plain functions with one parameter per image; who draws the parameters lives in `views.py`.
Inside, images are planar, [B, 3, H, W]: a resampling is then two batched matrix products and a
colour channel is contiguous. The public wrappers take [B, H, W, 3].
"""

from __future__ import annotations

import math

import tensorflow as tf


def to_planar(images):
    """[B, H, W, 3] to [B, 3, H, W]."""
    return tf.transpose(images, [0, 3, 1, 2])


def from_planar(planar):
    """[B, 3, H, W] to [B, H, W, 3]."""
    return tf.transpose(planar, [0, 2, 3, 1])


def per_image(values, rank=4):
    """[B] to [B, 1, ...] of the given rank, so that it broadcasts over an image's pixels."""
    return tf.reshape(values, [-1] + [1] * (rank - 1))


def _keys_cubic(distance):
    # Keys' cubic convolution kernel with a = -1/2, the one of tf.image's bicubic.
    t = tf.abs(distance)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return tf.where(t <= 1.0, near, tf.where(t < 2.0, far, 0.0))


def _triangle(distance):
    return tf.maximum(0.0, 1.0 - tf.abs(distance))


_KERNELS = {"bicubic": _keys_cubic, "bilinear": _triangle}


def resampling_weights(start, length, in_size, out_size, method="bicubic", reverse=None):
    """Interpolation weights that take `length` pixels from `start` to `out_size` pixels.

    Half-pixel centres, no antialiasing; taps outside the crop count for nothing and the rest is
    normalised, as in `tf.image.resize` of the cropped image.

    Args:
      start, length: [B] float32, in pixels of the input axis.
      in_size, out_size: number of pixels along the axis before and after.
      method: "bicubic" or "bilinear".
      reverse: [B] bool or None; where true the output runs backwards (a flip that costs nothing).

    Returns:
      [B, out_size, in_size] float32; each row sums to 1.
    """
    out = tf.range(out_size, dtype=tf.float32)[None, :, None]  # [1, out, 1]
    taps = tf.range(in_size, dtype=tf.float32)[None, None, :]  # [1, 1, in]
    start, length = per_image(start, 3), per_image(length, 3)
    centre = _centres(out, start, length, out_size, method, reverse)
    return _tap_weights(taps, centre, start, length, method)


def _centres(out, start, length, out_size, method, reverse):
    # Where in the input the output pixels `out` lie; all arguments broadcast.
    if reverse is not None:
        out = tf.where(per_image(reverse, 3), out_size - 1.0 - out, out)
    centre = start + (out + 0.5) * (length / out_size) - 0.5
    if method == "bilinear":  # at the border bilinear repeats the edge pixel
        centre = tf.clip_by_value(centre, start, start + length - 1.0)
    return centre


def _tap_weights(taps, centre, start, length, method):
    # The weights of input pixels `taps` (last axis) in output pixels centred at `centre`.
    inside = (taps >= start) & (taps <= start + length - 1.0)
    weights = tf.where(inside, _KERNELS[method](taps - centre), 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def crop_weights(boxes, in_size, size, method="bicubic", flipped=None):
    """Interpolation weights of rows [B, out_h, H] and columns [B, out_w, W]; see `crop_resize`."""
    y, x, h, w = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    rows = resampling_weights(y, h, in_size[0], size[0], method)
    return rows, resampling_weights(x, w, in_size[1], size[1], method, flipped)


def resample_planar(planar, rows, columns):
    """Rows x image x columns^T, of every image and channel.

    Args:
      planar: [B, 3, H, W] float32.
      rows: [B, out_h, H]; columns: [B, out_w, W].

    Returns:
      [B, 3, out_h, out_w].
    """
    planar = tf.matmul(planar, columns[:, None], transpose_b=True)
    return tf.matmul(rows[:, None], planar)


def blocks(size, most=16):
    """(count, length) of equal blocks of at most `most` that cover `size` pixels."""
    count = -(-size // most)
    return count, -(-size // count)


def resampling_bands(start, length, in_size, out_size, method="bicubic", reverse=None):
    """The matrix of `resampling_weights` as a band: for blocks of output rows, what each reads.

    A block of neighbouring rows reads few neighbouring rows of the input, as many as a crop of the
    whole axis would read. Arguments are those of `resampling_weights`.

    Returns:
      reads: [B, blocks, taps] int32, rows of the input.
      weights: [B, blocks, block, taps] float32; rows beyond out_size repeat the last.
    """
    count, block = blocks(out_size)
    reach = min(in_size, math.ceil((block - 1) * in_size / out_size) + 4)
    out = tf.reshape(tf.range(count * block, dtype=tf.float32), [1, count, block])
    out = tf.minimum(out, out_size - 1.0)
    start, length = per_image(start, 3), per_image(length, 3)
    centre = _centres(out, start, length, out_size, method, reverse)  # [B, blocks, block]
    first = tf.floor(tf.reduce_min(centre, axis=2, keepdims=True)) - 1.0
    first = tf.clip_by_value(first, 0.0, float(in_size - reach))
    reads = first + tf.range(reach, dtype=tf.float32)  # [B, blocks, taps]
    start, length = start[..., None], length[..., None]
    weights = _tap_weights(reads[:, :, None, :], centre[..., None], start, length, method)
    return tf.cast(reads, tf.int32), weights


def crop_bands(boxes, in_size, size, method="bicubic", flipped=None):
    """`crop_weights` as bands: (reads, weights) of rows, and of columns."""
    y, x, h, w = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    rows = resampling_bands(y, h, in_size[0], size[0], method)
    return rows, resampling_bands(x, w, in_size[1], size[1], method, flipped)


def apply_banded(rows, reads, weights, out_size):
    """A banded matrix times a matrix.

    Args:
      rows: [H, N] of any number type.
      reads, weights: [blocks, taps] and [blocks or 1, block, taps].

    Returns:
      [out_size, N] float32.
    """
    read = tf.cast(tf.gather(rows, reads), tf.float32)  # [blocks, taps, N]
    out = tf.reshape(tf.matmul(weights, read), [-1, rows.shape[1]])
    return out[:out_size] if out.shape[0] != out_size else out


def crop_planar(planar, boxes, size, method="bicubic", flipped=None):
    """Crops `boxes` out of planar images and resizes them; see `crop_resize`."""
    weights = crop_weights(boxes, planar.shape[2:], size, method, flipped)
    planar = resample_planar(tf.cast(planar, tf.float32), *weights)
    return tf.clip_by_value(planar, 0.0, 1.0)  # bicubic overshoots


def crop_resize(images, boxes, size, method="bicubic", flipped=None):
    """Crops one box out of every image and resizes it (SimCLR, appendix A, "random crop").

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      boxes: [B, 4] of y, x, height, width in pixels, inside the image.
      size: side of the square result in pixels, or (height, width).
      method: "bicubic" (the paper's) or "bilinear".
      flipped: [B] bool or None; where true the result is mirrored left to right.

    Returns:
      [B, size, size, 3] float32 in [0, 1].
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    return from_planar(crop_planar(to_planar(images), boxes, size, method, flipped))


def flip(images, flipped):
    """Mirrors left to right the images for which `flipped` ([B] bool) is true."""
    return tf.where(per_image(flipped), tf.reverse(images, axis=[2]), images)


def rotate90(images, quarter_turns):
    """Rotates each square image counter-clockwise by `quarter_turns` ([B] int) times 90 degrees.

    images: [B, S, S, 3], any dtype. As `tf.image.rot90`, with a `k` of its own for every image.
    """
    turns = per_image(tf.math.floormod(quarter_turns, 4))
    half = tf.reverse(images, axis=[1, 2])
    images = tf.where(turns >= 2, half, images)
    quarter = tf.reverse(tf.transpose(images, [0, 2, 1, 3]), axis=[1])
    return tf.where(turns % 2 == 1, quarter, images)


def cutout(images, boxes, fill=0.5):
    """Fills one box of every image with a constant (DeVries and Taylor, arXiv:1708.04552).

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      boxes: [B, 4] of y, x, height, width in pixels; parts outside the image are ignored.
      fill: the value written, in [0, 1].
    """
    y, x, h, w = (per_image(v) for v in tf.unstack(tf.cast(boxes, tf.float32), axis=1))
    rows = tf.range(images.shape[1], dtype=tf.float32)[None, :, None, None]
    columns = tf.range(images.shape[2], dtype=tf.float32)[None, None, :, None]
    hole = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    return tf.where(hole, tf.cast(fill, images.dtype), images)
