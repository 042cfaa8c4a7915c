"""k nearest neighbours on embeddings: cosine similarity, in blocks of bounded memory.

Nothing is trained. The embeddings come from features.py.
"""

import numpy as np
import tensorflow as tf

from simclr_tf.errors import ArgumentError
from simclr_tf.evaluate.features import check_features, check_pair, check_same_width

# Similarities held at a time where `block_size` is not given: 128 MB of float32.
_SIMILARITIES_PER_BLOCK = 2**25


def knn_accuracy(
    train_h,
    train_labels,
    test_h,
    test_labels,
    k=200,
    temperature=0.1,
    weighted=True,
    block_size=None,
):
    """Top-1 accuracy of a k-nearest-neighbour vote: the share of test rows labelled rightly.

    Args:
      train_h: floating [n, D], the embeddings that vote.
      train_labels: integers [n].
      test_h: floating [m, D].
      test_labels: integers [m].
      k: int, the number of neighbours that vote.
      temperature: float above 0, of the weights.
      weighted: bool; False for the plain vote.
      block_size: int, test rows at a time; `knn_predict` says more on all four.

    Returns:
      float in [0, 1].

    Raises:
      ValueError: as in `knn_predict`, or test labels that are missing or do not fit.
    """
    train_h, train_labels, test_h, test_labels = check_pair(
        train_h, train_labels, test_h, test_labels
    )
    predicted = knn_predict(train_h, train_labels, test_h, k, temperature, weighted, block_size)
    return float(np.mean(predicted == test_labels))


def knn_predict(
    train_h, train_labels, test_h, k=200, temperature=0.1, weighted=True, block_size=None
):
    """The label that the k nearest training rows vote for.

    Weighted, as in Wu et al. 2018 (arXiv:1805.01978, section 3.4): each of the k training rows of
    the largest cosine similarity s votes for its label with weight exp(s / temperature). Plain:
    each with weight 1; the usual k is then 10.

    Deterministic. Of equally similar rows the lower index is nearer; of labels with equal votes the
    one with the nearest neighbour wins. A row of zeros has similarity 0 to everything.

    Args:
      train_h: floating [n, D], the embeddings that vote.
      train_labels: integers [n], not necessarily from 0 on.
      test_h: floating [m, D].
      k: int, 1 or more; with fewer training rows than k, all of them vote.
      temperature: float above 0; not used in a plain vote.
      weighted: bool; False for the plain vote.
      block_size: int, test rows at a time, which bounds the memory to about
        4 * block_size * n bytes; None keeps that to 128 MB.

    Returns:
      int64 [m], values of `train_labels`.

    Raises:
      ValueError: k, temperature or block_size out of range, labels missing or not fitting,
        features that are NaN, infinite or of different widths.
    """
    train_h, train_labels = check_features(train_h, train_labels, "train")
    test_h, _ = check_features(test_h, np.zeros(len(test_h), np.int64), "test")
    check_same_width(train_h, test_h)
    if block_size is None:
        block_size = max(1, _SIMILARITIES_PER_BLOCK // len(train_h))
    _check_settings(k, temperature, block_size)
    k = min(k, len(train_h))
    classes, train_classes = np.unique(train_labels, return_inverse=True)
    train_unit, test_unit = _normalise(train_h), _normalise(test_h)
    predicted = []
    for start in range(0, len(test_unit), block_size):
        nearest = _nearest(test_unit[start : start + block_size], train_unit, k)
        similarities, indices = (tensor.numpy() for tensor in nearest)  # [b, k]
        weights = _weights(similarities, temperature) if weighted else np.ones(similarities.shape)
        predicted.append(_vote(train_classes[indices], weights, len(classes)))
    return classes[np.concatenate(predicted)]


def _check_settings(k, temperature, block_size):
    if k < 1:
        raise ArgumentError(f"k must be 1 or more; got {k}.")
    if not temperature > 0:
        raise ArgumentError(
            f"temperature must be above 0; got {temperature}. The usual one is 0.1."
        )
    if block_size < 1:
        raise ArgumentError(f"block_size must be 1 or more; got {block_size}. None picks one.")


def _normalise(h):
    """Rows of h [n, D] at length 1; a row of zeros stays one."""
    norms = np.linalg.norm(h, axis=1, keepdims=True)
    return h / np.where(norms > 0, norms, 1)


@tf.function(reduce_retracing=True)
def _nearest(test_unit, train_unit, k):
    """Similarities and indices, [b, k] each, of the nearest training rows, nearest first."""
    similarities = tf.matmul(test_unit, train_unit, transpose_b=True)  # [b, n]
    return tf.math.top_k(similarities, k)  # of equals, the lower index comes first


def _weights(similarities, temperature):
    """exp(s / temperature), over the nearest one's: small temperatures would overflow."""
    similarities = similarities.astype(np.float64)
    return np.exp((similarities - similarities[:, :1]) / temperature)


def _vote(neighbour_classes, weights, num_classes):
    """Class index [b] with the most weight among its neighbours, [b, k] nearest first."""
    rows = np.arange(len(neighbour_classes))[:, None]
    cells = (rows * num_classes + neighbour_classes).ravel()
    size = len(neighbour_classes) * num_classes
    votes = np.bincount(cells, weights.ravel(), size).reshape(-1, num_classes)  # [b, C]
    wins = votes[rows, neighbour_classes] == votes.max(axis=1, keepdims=True)  # [b, k]
    return neighbour_classes[rows[:, 0], wins.argmax(axis=1)]  # the nearest of the winners
