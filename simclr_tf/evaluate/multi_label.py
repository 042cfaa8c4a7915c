"""kNN and logistic regression for images that may have several classes, scored by their mAP."""

from typing import NamedTuple

import numpy as np

from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.evaluate.features import check_features, check_same_width
from simclr_tf.evaluate.knn import nearest_rows, weights_of
from simclr_tf.evaluate.linear import (
    C_GRID,
    fit,
    logistic_regression,
    standardize,
    threads_for,
)
from simclr_tf.evaluate.scores import mean_average_precision


def multi_label_knn(train_h, train_targets, test_h, k=200, temperature=0.1):
    """Computes for each class the weighted share of the nearest training images that have it.

    Args:
      train_h: float [n, D].
      train_targets: [n, C]: 1 where an image has the class, 0 or -1 (unknown) where not.
      test_h: float [m, D].
      k, temperature: as for `knn_predict`.

    Returns:
      float64 [m, C] in [0, 1], scores for `mean_average_precision`.

    Raises:
      ArgumentError: as `knn_predict`, or targets of another shape.

    Example:

    >>> targets = np.eye(4)[labels]
    >>> simclr_tf.evaluate.multi_label_knn(h, targets, h, k=1).argmax(axis=1).tolist()
    [0, 1, 2, 3, 0, 1, 2, 3]
    """
    train_h, train_targets = _checked(train_h, train_targets, "train")
    test_h, _ = check_features(test_h, np.zeros(len(test_h), np.int64), "test")
    check_same_width(train_h, test_h)
    check_number("k", k, at_least=1, whole=True, hint="The usual value is 200.")
    check_number("temperature", temperature, above=0, hint="The usual value is 0.1.")
    scores = []
    for similarities, indices in nearest_rows(train_h, test_h, k):
        weights = weights_of(similarities, temperature)  # [b, k]
        weights = weights / weights.sum(axis=1, keepdims=True)
        scores.append(np.einsum("bk,bkc->bc", weights, train_targets[indices] == 1))
    return np.concatenate(scores)


class MultiLabelProbe(NamedTuple):
    """The result of `multi_label_probe`.

    Attributes:
      mean_average_precision: float in [0, 1], on the test set.
      C: float, inverse regularisation strength, given or chosen.
      scores: float [m, C], of the test rows; 0 for a class that no training row has.

    Example:

    >>> targets = np.eye(4)[labels]
    >>> simclr_tf.evaluate.multi_label_probe(h, targets, h, targets, C=1.0).scores.shape
    (8, 4)
    """

    mean_average_precision: float
    C: float
    scores: np.ndarray


def multi_label_probe(
    train_h,
    train_targets,
    test_h,
    test_targets,
    C=None,  # noqa: N803 - scikit-learn's name for it, and the literature's
    max_iter=300,
    tolerance=1e-3,
    seed=0,
):
    """Fits a logistic regression for each class and scores them once by mean average precision.

    Features are standardised as in `linear_probe`. Where C is None, the one of `C_GRID` with the
    best mean average precision on a fifth of the training rows, drawn with `seed`, is used for all
    classes.

    Args:
      train_h: float [n, D].
      train_targets: [n, C]: 1 where an image has the class, 0 where it has not, -1 where that is
        unknown; unknown ones are left out for that class.
      test_h: float [m, D].
      test_targets: [m, C].
      C: float above 0, or None.
      max_iter, tolerance: as for `linear_probe`.
      seed: int, for the draw of held-out rows; not used where C is given.

    Returns:
      A `MultiLabelProbe`.

    Raises:
      ArgumentError: as `linear_probe` and `mean_average_precision`.

    Example:

    >>> targets = np.eye(4)[labels]
    >>> probe = simclr_tf.evaluate.multi_label_probe(h, targets, h, targets, C=100.0)
    >>> probe.mean_average_precision
    1.0
    """
    train_h, train_targets = _checked(train_h, train_targets, "train")
    test_h, test_targets = _checked(test_h, test_targets, "test")
    check_same_width(train_h, test_h)
    check_number("max_iter", max_iter, at_least=1, whole=True, hint="The default is 300.")
    check_number("tolerance", tolerance, above=0, hint="The default is 1e-3.")
    train_h, test_h = standardize(train_h, test_h)
    settings = max_iter, tolerance
    with threads_for(train_h, 1):  # each fit is of one class
        if C is None:
            C = _choose_c(train_h, train_targets, settings, seed)  # noqa: N806
        check_number("C", C, above=0, hint="None chooses it on the training set.")
        scores = _one_against_rest(train_h, train_targets, test_h, C, settings)
    return MultiLabelProbe(mean_average_precision(scores, test_targets), float(C), scores)


def _choose_c(h, targets, settings, seed):
    rows = np.random.default_rng(seed).permutation(len(h))
    held_out, fitted = np.split(rows, [max(1, len(rows) // 5)])
    if not (targets[held_out] == 1).any() or not len(fitted):
        raise ArgumentError(
            f"choosing C needs a class in the fifth of the rows that is held out; got {len(h)} "
            "rows. Pass C."
        )

    def precision(c):
        scores = _one_against_rest(h[fitted], targets[fitted], h[held_out], c, settings)
        return mean_average_precision(scores, targets[held_out])

    found = {c: precision(c) for c in C_GRID}
    return max(found, key=found.get)  # the smallest in a tie


def _one_against_rest(h, targets, test_h, c, settings):
    """Returns the scores [m, C] of a logistic regression for each class."""
    scores = np.zeros((len(test_h), targets.shape[1]))
    for column in range(targets.shape[1]):
        known = targets[:, column] >= 0
        has_class = targets[known, column] == 1
        if 0 < has_class.sum() < len(has_class):
            model = logistic_regression(c, *settings)
            fit(model, h[known], has_class)
            scores[:, column] = model.decision_function(test_h)
    return scores


def _checked(h, targets, name):
    h, _ = check_features(h, np.zeros(len(h), np.int64), name)
    targets = np.asarray(targets)
    wrong = targets.ndim != 2 or len(targets) != len(h) or not np.isin(targets, (-1, 0, 1)).all()
    if wrong:
        raise ArgumentError(
            f"{name}_targets must be [{len(h)}, C] of 0, 1 and -1 (unknown); got {targets.dtype} "
            f"of shape {targets.shape}. Pass a row for each row of {name}_h."
        )
    return h, targets
