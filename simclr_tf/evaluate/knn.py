"""k-nearest-neighbour classification of features, by cosine similarity, in bounded memory.

Nothing is trained. The features are computed in features.py.
"""

import numpy as np
import tensorflow as tf

from simclr_tf.errors import check_number
from simclr_tf.evaluate.features import (
    check_features,
    check_pair,
    check_same_width,
    without_unlabelled,
)

# Similarities held at a time where `batch_size` is not given: 128 MB of float32.
_MAX_SIMILARITIES = 2**25


def knn_accuracy(
    train_h,
    train_labels,
    test_h,
    test_labels,
    k=200,
    temperature=0.1,
    weighted=True,
    batch_size=None,
):
    """Computes the top-1 accuracy of a k-nearest-neighbour classifier.

    Args:
      train_h: float [n, D], features of the training set.
      train_labels: integers [n], or one-hot [n, C]; rows labelled -1, those without a label, are
        left out.
      test_h: float [m, D], features of the test set.
      test_labels: integers [m], or one-hot [m, C]; rows labelled -1 are left out.
      k: int, at least 1, the number of neighbours that vote.
      temperature: float above 0, of the weights of the votes.
      weighted: bool; False for votes of equal weight.
      batch_size: int, at least 1, test rows at a time; None chooses it. See `knn_predict`.

    Returns:
      float in [0, 1], the fraction of test rows whose label is predicted correctly.

    Raises:
      ArgumentError: as `knn_predict`; or `test_labels` that are missing or of another length than
        `test_h`.

    Example:

    >>> simclr_tf.evaluate.knn_accuracy(h, labels, h, labels, k=1)
    1.0
    """
    train_h, train_labels, test_h, test_labels = check_pair(
        train_h, train_labels, test_h, test_labels
    )
    test_h, test_labels = without_unlabelled(test_h, test_labels, "test")
    predicted = knn_predict(train_h, train_labels, test_h, k, temperature, weighted, batch_size)
    return float(np.mean(predicted == test_labels))


def knn_predict(
    train_h, train_labels, test_h, k=200, temperature=0.1, weighted=True, batch_size=None
):
    """Predicts the label of each test row by a vote of its k nearest training rows.

    The neighbours are the k training rows of the largest cosine similarity. In the weighted vote
    (Wu et al. 2018, arXiv:1805.01978, section 3.4), a neighbour of similarity s votes for its label
    with weight exp(s / temperature). In the unweighted vote all weights are 1; the usual k is then
    10.

    The result is deterministic: among equally similar rows the one with the lower index is nearer,
    and among labels with equal votes the one with the nearest neighbour wins. A row of zeros has
    similarity 0 to every row.

    Args:
      train_h: float [n, D], features of the training set.
      train_labels: integers [n], or one-hot [n, C]; rows labelled -1, those without a label, are
        left out.
      test_h: float [m, D], features of the test set.
      k: int, at least 1; where the training set has fewer rows, all of them vote.
      temperature: float above 0; not used in an unweighted vote.
      weighted: bool; False for votes of equal weight.
      batch_size: int, at least 1, test rows at a time. Memory is about 4 * batch_size * n bytes;
        None chooses the batch size that keeps it below 128 MB.

    Returns:
      int64 [m], values of `train_labels`.

    Raises:
      ArgumentError: `k`, `temperature` or `batch_size` out of range; `train_labels` missing, all
        -1, or of another length than `train_h`; features that are NaN, infinite or of different
        widths.

    Example:

    >>> simclr_tf.evaluate.knn_predict([[1.0, 0.0], [0.0, 1.0]], [3, 7], [[2.0, 1.0]], k=1)
    array([3])
    """
    train_h, train_labels = check_features(train_h, train_labels, "train")
    train_h, train_labels = without_unlabelled(train_h, train_labels, "train")
    test_h, _ = check_features(test_h, np.zeros(len(test_h), np.int64), "test")
    check_same_width(train_h, test_h)
    _check_settings(k, temperature, batch_size)
    classes, train_classes = np.unique(train_labels, return_inverse=True)
    predicted = []
    for similarities, indices in nearest_rows(train_h, test_h, k, batch_size):
        weights = weights_of(similarities, temperature) if weighted else np.ones(similarities.shape)
        predicted.append(_vote(train_classes[indices], weights, len(classes)))
    return classes[np.concatenate(predicted)]


def _check_settings(k, temperature, batch_size):
    check_number("k", k, at_least=1, whole=True, hint="The usual value is 200.")
    check_number("temperature", temperature, above=0, hint="The usual value is 0.1.")
    if batch_size is not None:
        check_number("batch_size", batch_size, at_least=1, whole=True, hint="None chooses it.")


def nearest_rows(train_h, test_h, k, batch_size=None):
    """Yields similarities and indices [b, k] of the nearest training rows, for b test rows.

    Args:
      train_h: float32 [n, D].
      test_h: float32 [m, D].
      k: int, at least 1; n where it is larger.
      batch_size: test rows at a time; None chooses it.
    """
    batch_size = batch_size or max(1, _MAX_SIMILARITIES // len(train_h))
    train_unit, test_unit = _normalise(train_h), _normalise(test_h)
    for start in range(0, len(test_unit), batch_size):
        nearest = _nearest(test_unit[start : start + batch_size], train_unit, min(k, len(train_h)))
        yield [tensor.numpy() for tensor in nearest]


def _normalise(h):
    """Scales the rows of h [n, D] to length 1; a row of zeros stays as it is."""
    norms = np.linalg.norm(h, axis=1, keepdims=True)
    return h / np.where(norms > 0, norms, 1)


def _nearest(test_unit, train_unit, k):
    """Returns similarities and indices [b, k] of the nearest training rows, nearest first."""
    similarities = tf.matmul(test_unit, train_unit, transpose_b=True)  # [b, n]
    return tf.math.top_k(similarities, k)  # in a tie the lower index comes first


def weights_of(similarities, temperature):
    """Returns exp(s / temperature) relative to the nearest row's, which cannot overflow."""
    similarities = similarities.astype(np.float64)
    return np.exp((similarities - similarities[:, :1]) / temperature)


def _vote(neighbour_classes, weights, num_classes):
    """Returns the class index [b] of the most votes; neighbours are [b, k], nearest first."""
    rows = np.arange(len(neighbour_classes))[:, None]
    cells = (rows * num_classes + neighbour_classes).ravel()
    size = len(neighbour_classes) * num_classes
    votes = np.bincount(cells, weights.ravel(), size).reshape(-1, num_classes)  # [b, C]
    wins = votes[rows, neighbour_classes] == votes.max(axis=1, keepdims=True)  # [b, k]
    return neighbour_classes[rows[:, 0], wins.argmax(axis=1)]  # the nearest in a tie
