"""Functions that move or replace pixels: crop and resize, flip, rotation by 90 degrees, cutout.

Each takes one parameter per image; `transforms.py` and `random_view.py` draw the parameters.
Internally, images are planar, [B, 3, H, W]: resampling is then two batched matrix products and
each colour channel is contiguous. The public functions take [B, H, W, 3].
"""

from __future__ import annotations

import math

import tensorflow as tf

from simclr_tf.errors import check_number


def to_planar(images):
    """[B, H, W, 3] to [B, 3, H, W]."""
    return tf.transpose(images, [0, 3, 1, 2])


def from_planar(planar):
    """[B, 3, H, W] to [B, H, W, 3]."""
    return tf.transpose(planar, [0, 2, 3, 1])


def expand_to_rank(values, rank=4):
    """Reshapes [B] to [B, 1, ...] of a rank, so that it broadcasts over the pixels of an image."""
    return tf.reshape(values, [-1] + [1] * (rank - 1))


def _keys_cubic(distance):
    # The cubic convolution kernel of Keys (1981) with a = -1/2, as tf.image's bicubic uses it.
    t = tf.abs(distance)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return tf.where(t <= 1.0, near, tf.where(t < 2.0, far, 0.0))


def _triangle(distance):
    return tf.maximum(0.0, 1.0 - tf.abs(distance))


_KERNELS = {"bicubic": _keys_cubic, "bilinear": _triangle}


def resampling_weights(start, length, in_size, out_size, method="bicubic", reverse=None):
    """Computes the weights that resample `length` pixels from `start` on to `out_size` pixels.

    Pixel centres are at half pixels and there is no antialiasing. Taps outside the crop weigh 0 and
    the others are normalised, as in `tf.image.resize` of the cropped image.

    Args:
      start, length: [B] float32, in pixels of the input axis.
      in_size, out_size: number of pixels along the axis before and after.
      method: "bicubic" or "bilinear".
      reverse: [B] bool or None; where true the output is reversed, which flips it at no cost.

    Returns:
      [B, out_size, in_size] float32; each row sums to 1.
    """
    out = tf.range(out_size, dtype=tf.float32)[None, :, None]  # [1, out, 1]
    taps = tf.range(in_size, dtype=tf.float32)[None, None, :]  # [1, 1, in]
    start, length = expand_to_rank(start, 3), expand_to_rank(length, 3)
    centre = _centres(out, start, length, out_size, method, reverse)
    return _tap_weights(taps, centre, start, length, method)


def _centres(out, start, length, out_size, method, reverse):
    # The positions in the input of the output pixels `out`; all arguments broadcast.
    if reverse is not None:
        out = tf.where(expand_to_rank(reverse, 3), out_size - 1.0 - out, out)
    centre = start + (out + 0.5) * (length / out_size) - 0.5
    if method == "bilinear":  # which repeats the edge pixel at the border
        centre = tf.clip_by_value(centre, start, start + length - 1.0)
    return centre


def _tap_weights(taps, centre, start, length, method):
    # The weights of the input pixels `taps` (last axis) in output pixels centred at `centre`.
    inside = (taps >= start) & (taps <= start + length - 1.0)
    weights = tf.where(inside, _KERNELS[method](taps - centre), 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def crop_weights(boxes, in_size, size, method="bicubic", flipped=None):
    """Returns the weights of rows, [B, out_h, H], and columns, [B, out_w, W], of `crop_resize`."""
    y, x, h, w = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    rows = resampling_weights(y, h, in_size[0], size[0], method)
    return rows, resampling_weights(x, w, in_size[1], size[1], method, flipped)


def resample_planar(planar, rows, columns):
    """Computes rows x image x columns^T for every image and channel.

    Args:
      planar: [B, 3, H, W] float32.
      rows: [B, out_h, H]; columns: [B, out_w, W].

    Returns:
      [B, 3, out_h, out_w] float32.
    """
    planar = tf.matmul(planar, columns[:, None], transpose_b=True)  # [B, 3, H, out_w]
    return tf.matmul(rows[:, None], planar)


def row_blocks(size, max_rows=16):
    """Divides `size` rows into equal blocks of at most `max_rows`; returns (count, rows each)."""
    count = -(-size // max_rows)
    return count, -(-size // count)


def resampling_bands(start, length, in_size, out_size, method="bicubic", reverse=None):
    """Computes the matrix of `resampling_weights` as a band: what each block of rows reads.

    A block of neighbouring output rows reads a few neighbouring input rows, at most as many as it
    would in a crop of the whole axis. Arguments are those of `resampling_weights`.

    Returns:
      reads: [B, blocks, taps] int32, rows of the input.
      weights: [B, blocks, block, taps] float32; rows beyond `out_size` repeat the last one.
    """
    count, block = row_blocks(out_size)
    reach = min(in_size, math.ceil((block - 1) * in_size / out_size) + 4)
    out = tf.reshape(tf.range(count * block, dtype=tf.float32), [1, count, block])
    out = tf.minimum(out, out_size - 1.0)
    start, length = expand_to_rank(start, 3), expand_to_rank(length, 3)
    centre = _centres(out, start, length, out_size, method, reverse)  # [B, blocks, block]
    first = tf.floor(tf.reduce_min(centre, axis=2, keepdims=True)) - 1.0
    first = tf.clip_by_value(first, 0.0, float(in_size - reach))
    reads = first + tf.range(reach, dtype=tf.float32)  # [B, blocks, taps]
    start, length = start[..., None], length[..., None]
    weights = _tap_weights(reads[:, :, None, :], centre[..., None], start, length, method)
    return tf.cast(reads, tf.int32), weights


def crop_bands(boxes, in_size, size, method="bicubic", flipped=None):
    """Returns `crop_weights` as bands: (reads, weights) of rows, and those of columns."""
    y, x, h, w = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    rows = resampling_bands(y, h, in_size[0], size[0], method)
    return rows, resampling_bands(x, w, in_size[1], size[1], method, flipped)


def apply_banded(rows, reads, weights, out_size):
    """Multiplies a banded matrix by a matrix.

    Args:
      rows: [H, N], of any numeric dtype.
      reads, weights: [blocks, taps] int32 and [blocks or 1, block, taps] float32; see
        `resampling_bands`.
      out_size: number of rows of the banded matrix.

    Returns:
      [out_size, N] float32.
    """
    read = tf.cast(tf.gather(rows, reads), tf.float32)  # [blocks, taps, N]
    out = tf.reshape(tf.matmul(weights, read), [-1, tf.shape(rows)[1]])
    return out[:out_size] if out.shape[0] != out_size else out


def crop_planar(planar, boxes, size, method="bicubic", flipped=None):
    """Crops and resizes planar images; see `crop_resize`."""
    weights = crop_weights(boxes, planar.shape[2:], size, method, flipped)
    planar = resample_planar(tf.cast(planar, tf.float32), *weights)
    return tf.clip_by_value(planar, 0.0, 1.0)  # bicubic overshoots


def crop_resize(images, boxes, size, method="bicubic", flipped=None):
    """Crops one box out of every image and resizes it (SimCLR, appendix A).

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      boxes: [B, 4] of y, x, height, width in whole pixels, inside the image.
      size: side of the square result in pixels, or (height, width).
      method: "bicubic" (the paper's) or "bilinear".
      flipped: [B] bool or None; where true the result is mirrored left to right.

    Returns:
      [B, size, size, 3] float32 in [0, 1].

    Example:

    >>> boxes = np.tile([4.0, 4.0, 16.0, 20.0], [8, 1])
    >>> simclr_tf.augment.crop_resize(simclr_tf.augment.as_float(images), boxes, 24).shape
    TensorShape([8, 24, 24, 3])
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    return from_planar(crop_planar(to_planar(images), boxes, size, method, flipped))


def flip(images, flipped):
    """Mirrors images left to right.

    Args:
      images: [B, H, W, 3], of any dtype.
      flipped: [B] bool, which images are mirrored.

    Returns:
      [B, H, W, 3] of the same dtype.

    Example:

    >>> mirrored = simclr_tf.augment.flip(images, labels == 0).numpy()
    >>> bool((mirrored[labels == 0] == images[labels == 0, :, ::-1]).all())
    True
    """
    return tf.where(expand_to_rank(flipped), tf.reverse(images, axis=[2]), images)


def rotate90(images, quarter_turns):
    """Rotates square images counter-clockwise by multiples of 90 degrees, as `tf.image.rot90`.

    Args:
      images: [B, S, S, 3], of any dtype.
      quarter_turns: [B] int, the multiple of 90 degrees of each image.

    Returns:
      [B, S, S, 3] of the same dtype.

    Example:

    >>> simclr_tf.augment.rotate90(images, np.arange(8)).shape
    TensorShape([8, 32, 32, 3])
    """
    turns = expand_to_rank(tf.math.floormod(quarter_turns, 4))
    half = tf.reverse(images, axis=[1, 2])
    images = tf.where(turns >= 2, half, images)
    quarter = tf.reverse(tf.transpose(images, [0, 2, 1, 3]), axis=[1])
    return tf.where(turns % 2 == 1, quarter, images)


def cutout(images, boxes, fill=0.5):
    """Fills one box of every image with a constant (DeVries and Taylor, arXiv:1708.04552).

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      boxes: [B, 4] of y, x, height, width in pixels; a box may extend beyond the image.
      fill: the value written, in [0, 1].

    Returns:
      [B, H, W, 3] float32 in [0, 1].

    Example:

    >>> boxes = np.tile([0.0, 0.0, 8.0, 8.0], [8, 1])
    >>> filled = simclr_tf.augment.cutout(simclr_tf.augment.as_float(images), boxes, fill=0.0)
    >>> float(tf.reduce_max(filled[:, :8, :8]))
    0.0
    """
    if not tf.is_tensor(fill):
        check_number("fill", fill, at_least=0, at_most=1)
    y, x, h, w = (expand_to_rank(v) for v in tf.unstack(tf.cast(boxes, tf.float32), axis=1))
    rows = tf.range(images.shape[1], dtype=tf.float32)[None, :, None, None]
    columns = tf.range(images.shape[2], dtype=tf.float32)[None, None, :, None]
    hole = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    return tf.where(hole, tf.cast(fill, images.dtype), images)
