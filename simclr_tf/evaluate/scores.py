"""Scores of predictions: top-k, mean per class, mean average precision, confidence intervals.

Functions of arrays alone; what is scored is computed in knn.py, linear.py and linear_on_views.py.
"""

import numpy as np

from simclr_tf.errors import ArgumentError, check_number

_RECALLS = np.linspace(0.0, 1.0, 11)  # of VOC2007


def top_k_accuracy(scores, labels, k=5):
    """Computes the fraction of rows whose label is among the k classes of the highest scores.

    Of classes with equal scores the one with the lower index comes first, so that a classifier
    that returns the same score for all classes is at the level of chance.

    Args:
      scores: float [n, C], any scores that increase with confidence, such as logits.
      labels: integers [n]: the column of the right class. A label outside [0, C), such as that of
        a class that was not in the training set, is counted as an error.
      k: int, at least 1; from k = C on, the result is 1 for labels within [0, C).

    Returns:
      float in [0, 1].

    Raises:
      ArgumentError: scores that are not [n, C] or not finite, labels that are not integers [n], or
        `k` out of range.

    Example:

    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> [simclr_tf.evaluate.top_k_accuracy(scores, [2, 0], k) for k in (1, 2)]
    [0.5, 1.0]
    """
    scores = _checked_scores(scores)
    labels = _checked_labels(labels, "labels", len(scores))
    check_number("k", k, at_least=1, whole=True, hint="The usual values are 1 and 5.")
    known = (labels >= 0) & (labels < scores.shape[1])
    scores, labels = scores[known], labels[known][:, None]
    own = np.take_along_axis(scores, labels, axis=1)  # [n, 1]
    columns = np.arange(scores.shape[1])
    before = (scores > own) | ((scores == own) & (columns < labels))
    return float(np.sum(before.sum(axis=1) < k) / len(known))


def mean_per_class_accuracy(predicted, labels):
    """Computes the accuracy of each class and returns the mean over the classes.

    Every class counts the same, however many examples it has. The classes are those in `labels`.
    Known as balanced accuracy, too.

    Args:
      predicted: integers [n].
      labels: integers [n].

    Returns:
      float in [0, 1].

    Raises:
      ArgumentError: no examples, other dtypes, or different lengths.

    Example:

    >>> simclr_tf.evaluate.mean_per_class_accuracy([0, 0, 0, 1], [0, 0, 1, 1])
    0.75
    """
    labels = _checked_labels(labels, "labels")
    predicted = _checked_labels(predicted, "predicted", len(labels))
    classes, rows = np.unique(labels, return_inverse=True)
    correct = np.bincount(rows, predicted == labels, len(classes))
    return float(np.mean(correct / np.bincount(rows)))


def mean_average_precision(scores, targets, eleven_points=False):
    """Computes the mean over the classes of the average precision, for images of several classes.

    With the examples sorted by their score for a class, the average precision is the sum of
    (R_i - R_(i-1)) P_i over the distinct scores, with P and R precision and recall. With
    `eleven_points` it is that of the VOC2007 challenge: the mean, over the recalls 0, 0.1, ..., 1,
    of the maximum precision at that recall or a higher one.

    Args:
      scores: float [n, C].
      targets: [n, C]: 1 where the example has the class, 0 where it has not, and -1 where that is
        unknown (VOC's "difficult"); unknown ones are left out for that class.
      eleven_points: bool; VOC2007's definition.

    Returns:
      float in [0, 1]. Classes without an example are left out of the mean.

    Raises:
      ArgumentError: shapes that differ, other values, or no class with an example.

    Example:

    >>> scores, targets = [[0.9, 0.2], [0.8, 0.3], [0.1, 0.4]], [[1, 0], [0, 1], [1, 0]]
    >>> round(simclr_tf.evaluate.mean_average_precision(scores, targets), 4)
    0.6667
    """
    scores, targets = _checked_scores(scores), np.asarray(targets)
    if targets.shape != scores.shape or not np.isin(targets, (-1, 0, 1)).all():
        raise ArgumentError(
            f"targets must be [n, C] like scores, of 0, 1 and -1 (unknown); got {targets.dtype} of "
            f"shape {targets.shape} for scores of shape {scores.shape}."
        )
    classes = np.flatnonzero((targets == 1).any(axis=0))
    if not len(classes):
        raise ArgumentError("targets must hold a 1 for at least one class; got none.")
    precision_of = _eleven_point_precision if eleven_points else _average_precision
    return float(np.mean([precision_of(scores[:, c], targets[:, c]) for c in classes]))


def _precision_and_recall(scores, targets):
    """Returns precision and recall at each distinct score, from the highest on."""
    scores, targets = scores[targets >= 0], targets[targets >= 0]
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(targets[order])[last_of_equals]
    return true_positives / (np.flatnonzero(last_of_equals) + 1), true_positives / targets.sum()


def _average_precision(scores, targets):
    precision, recall = _precision_and_recall(scores, targets)
    return np.sum(np.diff(recall, prepend=0.0) * precision)


def _eleven_point_precision(scores, targets):
    precision, recall = _precision_and_recall(scores, targets)
    # 1e-9: a recall of 3/10 is to reach the point 0.1 * 3, which is rounded upwards.
    return np.mean([precision[recall >= point - 1e-9].max() for point in _RECALLS])


def confidence_interval(values, level=0.95):
    """Computes the mean of repeated measurements and the half width of its confidence interval.

    Student's t distribution: half width = t(level, n - 1) s / sqrt(n), with s the sample standard
    deviation. It states how far the mean over other seeds may be, not over other images.

    Args:
      values: float [n], one per seed, n of 2 or more.
      level: float in (0, 1).

    Returns:
      (mean, half width), floats: the interval is mean - half width to mean + half width.

    Raises:
      ArgumentError: fewer than two values, values that are not finite, or `level` out of range.

    Example:

    >>> mean, half_width = simclr_tf.evaluate.confidence_interval([0.70, 0.72, 0.71])
    >>> round(mean, 4), round(half_width, 4)
    (0.71, 0.0248)
    """
    from scipy import stats  # imported on use: it takes a while

    values = np.asarray(values, np.float64)
    check_number("level", level, above=0, below=1, hint="The usual value is 0.95.")
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ArgumentError(
            f"values must be two finite numbers or more; got {values.tolist()}. "
            "Repeat the measurement with other seeds."
        )
    t = stats.t.ppf((1 + level) / 2, len(values) - 1)
    return float(values.mean()), float(t * values.std(ddof=1) / np.sqrt(len(values)))


def _checked_scores(scores):
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ArgumentError(
            f"scores must be finite numbers [n, C] with n and C of 1 or more; got shape "
            f"{scores.shape}. Pass a row of scores for each example."
        )
    return scores


def _checked_labels(labels, name, length=None):
    labels = np.asarray(labels)
    wanted = labels.shape[:1] if length is None else (length,)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iub":
        raise ArgumentError(
            f"{name} must be integers [n], n of 1 or more; got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    if labels.shape != wanted:
        raise ArgumentError(f"{name} must be {length}, one per example; got {len(labels)}.")
    return labels
