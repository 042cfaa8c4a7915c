"""Near duplicates between a training and a test split, by hashes of small grey images.

A test image that is in the training set too, resized or compressed again, measures memory rather
than what was learnt.
"""

import numpy as np
import tensorflow as tf

from simclr_tf.errors import ArgumentError
from simclr_tf.images import as_float

_ROWS, _COLUMNS = 8, 9  # 8 x 8 differences
_MAX_BITS = 2  # of 64, in which the hashes of near duplicates differ
_MAX_LEVELS = 6.0  # of 255, by which their small grey images differ on average
_TEST_ROWS, _TRAIN_ROWS = 1024, 4096  # compared at a time


def small_grey(images):
    """Reduces images to 8 x 9 grey pixels, of which `count_near_duplicates` takes hashes.

    Args:
      images: [B, H, W, 3], uint8, or float in [0, 1].

    Returns:
      uint8 [B, 8, 9].

    Example:

    >>> simclr_tf.evaluate.small_grey(images).shape
    (8, 8, 9)
    """
    grey = tf.image.rgb_to_grayscale(as_float(images))
    small = tf.image.resize(grey, (_ROWS, _COLUMNS), tf.image.ResizeMethod.AREA)
    return np.rint(small.numpy()[..., 0] * 255).astype(np.uint8)


def count_near_duplicates(train_small, test_small):
    """Counts the test images that are nearly the same as a training image.

    The hash of an image has 64 bits: whether each of 8 x 8 grey pixels is darker than the next one
    to the right (difference hash). Two images are near duplicates if at most 2 bits differ and
    their small grey images differ by at most 6 of 255 levels on average. This finds images that
    were resized or compressed again, and not those that were cropped or mirrored.

    Args:
      train_small: uint8 [n, 8, 9], from `small_grey`.
      test_small: uint8 [m, 8, 9].

    Returns:
      int, from 0 to m.

    Raises:
      ArgumentError: arrays of another shape.

    Example:

    >>> small = simclr_tf.evaluate.small_grey(images)
    >>> simclr_tf.evaluate.count_near_duplicates(small[:6], small[4:])
    2
    """
    for name, small in (("train_small", train_small), ("test_small", test_small)):
        _check_small(name, small)
    train_small, _ = _distinct(train_small)
    test_small, counts = _distinct(test_small)
    left = np.arange(len(test_small))  # those for which nothing was found yet
    for first in range(0, len(train_small), _TRAIN_ROWS):
        part = train_small[first : first + _TRAIN_ROWS]
        starts = range(0, len(left), _TEST_ROWS)
        near = [_near(test_small[left[start : start + _TEST_ROWS]], part) for start in starts]
        left = left[~np.concatenate([np.zeros(0, bool), *near])]
    return int(counts.sum() - counts[left].sum())


def near_duplicate_pairs(small, limit=None):
    """Finds the pairs of images that are nearly the same, as `count_near_duplicates` defines it.

    Args:
      small: uint8 [n, 8, 9], from `small_grey`.
      limit: maximum number of pairs; None: all, of which n equal images have n(n - 1) / 2.

    Returns:
      list of (i, j), i < j, in their order.

    Raises:
      ArgumentError: an array of another shape.

    Example:

    >>> small = simclr_tf.evaluate.small_grey(images[[0, 1, 0]])
    >>> simclr_tf.evaluate.near_duplicate_pairs(small)
    [(0, 2)]
    """
    _check_small("small", small)
    pairs = []
    for first in range(0, len(small), _TEST_ROWS):
        part = small[first : first + _TEST_ROWS]
        agreement = _bits(part) @ _bits(small).T
        rows, columns = np.nonzero(agreement >= _BITS - 2 * _MAX_BITS)
        later = columns > rows + first
        rows, columns = rows[later], columns[later]
        near = _levels(part[rows], small[columns]) <= _MAX_LEVELS
        pairs += [(int(i) + first, int(j)) for i, j in zip(rows[near], columns[near])]
        if limit is not None and len(pairs) >= limit:
            return pairs[:limit]
    return pairs


def _check_small(name, small):
    if np.ndim(small) != 3 or np.shape(small)[1:] != (_ROWS, _COLUMNS):
        raise ArgumentError(f"{name} must be [n, 8, 9]; got {np.shape(small)}. See small_grey.")


def _distinct(small):
    """Returns the distinct small images and how often each is there."""
    return np.unique(small, axis=0, return_counts=True)


def _near(test_small, train_small):
    """Returns whether each test image is nearly one of the training images, bool [m]."""
    agreement = _bits(test_small) @ _bits(train_small).T  # 64 - 2 x the bits that differ
    rows, columns = np.nonzero(agreement >= _BITS - 2 * _MAX_BITS)
    near = _levels(test_small[rows], train_small[columns]) <= _MAX_LEVELS
    return np.bincount(rows[near], minlength=len(test_small)) > 0


_BITS = _ROWS * (_COLUMNS - 1)


def _bits(small):
    """Returns the hashes as +1 and -1, float32 [n, 64]: a product counts the equal bits."""
    darker = small[:, :, :-1] < small[:, :, 1:]
    return np.where(darker, np.float32(1), np.float32(-1)).reshape(len(small), _BITS)


def _levels(a, b):
    """Returns the mean absolute difference of pairs of small images, [pairs]."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return difference.reshape(len(a), _ROWS * _COLUMNS).mean(axis=1)
