"""Variants of features for kNN: averaged over views of an image, and ZCA-whitened.

Both raise accuracies a little, so a number that was computed with them says so.
"""

import re

import numpy as np
import tensorflow as tf

from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.evaluate.features import check_features, check_same_width, inference

# Boxes (top, left, side) as fractions of the image: all of it, then crops of three quarters of its
# side at the centre, the corners and the middles of the edges.
_BOXES = (
    (0.0, 0.0, 1.0),
    *((top / 8, left / 8, 0.75) for top, left in ((1, 1), (0, 0), (0, 2), (2, 0), (2, 2))),
    *((top / 8, left / 8, 0.75) for top, left in ((0, 1), (1, 0), (1, 2), (2, 1))),
)


def average_over_views(encoder, views):
    """Returns an encoder that averages the features of several views of each image.

    Args:
      encoder: as for `extract_features`.
      views: "flip" for the image and its mirror image; "crops:N", N in [1, 10], for the first N of:
        the whole image, and crops of three quarters of its side, at the centre, in the four corners
        and at the middle of the four edges, resized to its size (bicubic, antialiased); "1" for the
        image alone.

    Returns:
      A callable from images [B, H, W, 3], float32 in [0, 1], to the mean of the views' features,
      float32 [B, D].

    Raises:
      ArgumentError: other `views`.

    Example:

    >>> both = simclr_tf.evaluate.average_over_views(encoder, "flip")
    >>> simclr_tf.evaluate.extract_features(both, [images]).h.shape
    (8, 8)
    """
    if not re.fullmatch(r"1|flip|crops:([1-9]|10)", str(views)):
        raise ArgumentError(f"views must be 1, flip or crops:N with N in [1, 10]; got {views!r}.")
    if views in ("1", "crops:1"):
        return encoder
    encode = inference(encoder)

    def averaged(images):
        return tf.add_n([encode(view) for view in _views(images, views)]) / _count(views)

    return averaged


def _count(views):
    return 2.0 if views == "flip" else float(views[len("crops:") :])


def _views(images, views):
    """Returns the views of images [B, H, W, 3], a list of tensors of the same shape."""
    if views == "flip":
        return [images, tf.reverse(images, [2])]
    return [_crop(images, box) for box in _BOXES[: int(_count(views))]]


def _crop(images, box):
    height, width = images.shape[1:3]
    if box[2] == 1.0:
        return images
    top, left = round(box[0] * height), round(box[1] * width)
    rows, columns = round(box[2] * height), round(box[2] * width)
    crop = images[:, top : top + rows, left : left + columns]
    crop = tf.image.resize(crop, (height, width), tf.image.ResizeMethod.BICUBIC, antialias=True)
    return tf.clip_by_value(crop, 0.0, 1.0)


def whiten(train_h, test_h, epsilon=1e-3):
    """Whitens features with the mean and covariance of the training set (ZCA).

    With the covariance U S U^T, a centred row x becomes U (S + e)^(-1/2) U^T x, where e is
    `epsilon` times the mean variance: directions of small variance count as much as the others.

    Args:
      train_h: float [n, D].
      test_h: float [m, D].
      epsilon: float above 0.

    Returns:
      (float32 [n, D], float32 [m, D]).

    Raises:
      ArgumentError: features that are not finite or of different widths; `epsilon` out of range.

    Example:

    >>> white, _ = simclr_tf.evaluate.whiten(h[:, :3], h[:, :3], epsilon=1e-6)
    >>> np.allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-3)
    True
    """
    train_h, _ = check_features(train_h, np.zeros(len(train_h), np.int64), "train")
    test_h, _ = check_features(test_h, np.zeros(len(test_h), np.int64), "test")
    check_same_width(train_h, test_h)
    check_number("epsilon", epsilon, above=0, hint="The usual value is 1e-3.")
    mean = train_h.mean(axis=0, dtype=np.float64)
    centred = train_h - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    floor = epsilon * max(variances.mean(), np.finfo(np.float32).tiny)
    matrix = directions / np.sqrt(np.maximum(variances, 0) + floor) @ directions.T
    return (centred @ matrix).astype(np.float32), ((test_h - mean) @ matrix).astype(np.float32)
