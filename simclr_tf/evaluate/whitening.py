"""The whitening of an encoder's features, measured on images without labels."""

from __future__ import annotations

import numpy as np

from simclr_tf.encoders.whitening import FLOOR, zca
from simclr_tf.errors import check_number
from simclr_tf.evaluate.features import stream_features


def fit_whitening(encoder, dataset, floor=FLOOR):
    """Measures mean and covariance of h on images, and returns the ZCA whitening of h.

    The images pass one batch at a time: memory does not depend on their number. Labels, if present,
    are ignored.

    Args:
      encoder: as for `extract_features`.
      dataset: as for `extract_features`; several times D images or more.
      floor: smallest variance that is divided by, as a fraction of the mean variance, above 0; see
        `encoders.zca`.

    Returns:
      An `encoders.Whitening`.

    Raises:
      ArgumentError: as `stream_features`; h that is not finite; a floor not above 0.

    Example:

    >>> whitening = simclr_tf.evaluate.fit_whitening(encoder, [images[:5], images[5:]], floor=0.05)
    >>> whitening.mean.shape, whitening.matrix.shape
    ((8,), (8, 8))
    """
    check_number("floor", floor, above=0, hint=f"The default is {FLOOR}.")
    moments = _Moments()
    for features in stream_features(encoder, dataset):
        moments.update(features.h)
    return zca(*moments.result(), floor)


class _Moments:
    """Mean and covariance of rows that are seen once.

    The sums are in float64: in float32 a mean much larger than the deviations would cancel them.
    """

    def __init__(self):
        self._count, self._sum, self._products = 0, 0.0, 0.0

    def update(self, h):
        h = np.asarray(h, np.float64)
        self._count += len(h)
        self._sum += h.sum(axis=0)
        self._products += h.T @ h

    def result(self):
        """(mean [D], covariance [D, D]), with n in the denominator."""
        mean = self._sum / self._count
        return mean, self._products / self._count - np.outer(mean, mean)
