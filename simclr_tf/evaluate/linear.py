"""Linear evaluation: logistic regression on the features of a frozen encoder.

scikit-learn standardises, splits and fits; this module chooses C on the training set alone. The
features are computed in features.py.
"""

import warnings
from typing import NamedTuple

import numpy as np

from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.evaluate.features import check_pair, without_unlabelled
from simclr_tf.evaluate.scores import mean_per_class_accuracy, top_k_accuracy
from simclr_tf.images import UNLABELLED

# From strong regularisation to nearly none, on standardised features.
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

# At most this many training rows are used to choose C; a fifth of them is held out.
_MAX_ROWS_TO_CHOOSE_C = 10_000

# A product of features and weights of fewer multiplications takes one core about a millisecond, and
# to divide it among threads takes longer.
_MULTIPLICATIONS_OF_ONE_THREAD = 10**7


class LinearProbe(NamedTuple):
    """The result of `linear_probe`.

    Attributes:
      accuracy: float in [0, 1], top-1 on the test set.
      train_accuracy: float in [0, 1], top-1 on the training set.
      C: float, inverse regularisation strength, given or chosen.
      held_out_accuracy: dict from each C of `C_GRID` to its top-1 on the held-out rows of the
        training set; empty where C was given.
      classes: int64 [classes], the labels of the training set, ascending.
      n_iter: int, iterations of the final fit.
      converged: bool; False where the final fit stopped at `max_iter`.
      predicted: int64 [m], the labels predicted for the test rows, those without a label included.
      top_5_accuracy: float in [0, 1], on the test set; 1 where there are five classes or fewer and
        all of them are in the training set.
      mean_per_class_accuracy: float in [0, 1], on the test set.

    Example:

    >>> probe = simclr_tf.evaluate.linear_probe(h, labels, h, labels, C=1.0)
    >>> probe.C, probe.classes.tolist(), probe.converged
    (1.0, [0, 1, 2, 3], True)
    """

    accuracy: float
    train_accuracy: float
    C: float
    held_out_accuracy: dict
    classes: np.ndarray
    n_iter: int
    converged: bool
    predicted: np.ndarray
    top_5_accuracy: float
    mean_per_class_accuracy: float


def linear_probe(
    train_h,
    train_labels,
    test_h,
    test_labels,
    C=None,  # noqa: N803 - scikit-learn's name for it, and the literature's
    max_iter=300,
    tolerance=1e-3,
    seed=0,
):
    """Fits a linear classifier to training features and scores it once on test features.

    The classifier is scikit-learn's multinomial logistic regression (L-BFGS, L2 penalty, all rows
    in each iteration) on features standardised with the mean and standard deviation of the training
    set. This is the linear evaluation protocol of SimCLR (Chen et al. 2020, arXiv:2002.05709,
    appendix B.8) on stored features of images without augmentation. The same input and seed return
    the same result.

    Where C is None, it is chosen from `C_GRID` on the training set alone: at most 10,000 of its
    rows are drawn with `seed`, stratified by label, a fifth of them is held out, and the C with the
    best top-1 on the held-out rows is used (the smallest such C in a tie). Each class keeps at
    least one row to fit, so a class of a single row is never held out. The final fit uses all
    training rows.

    Args:
      train_h: float [n, D], features of the training set.
      train_labels: integers [n], or one-hot [n, C], of at least two classes; rows labelled -1,
        those without a label, are left out.
      test_h: float [m, D], features of the test set.
      test_labels: integers [m], or one-hot [m, C]; rows labelled -1 are not scored.
      C: float above 0, scikit-learn's inverse regularisation strength; None chooses it.
      max_iter: int, at least 1: the maximum number of iterations of each fit.
      tolerance: float above 0: a fit has converged when no entry of its gradient is larger.
      seed: int in [0, 2**32), for the draw of held-out rows; not used where C is given.

    Returns:
      A `LinearProbe`. A fit that stopped at `max_iter` is reported as `converged=False`, without a
      warning.

    Raises:
      ArgumentError: labels that are missing, of a single class, or of another length than the
        features; features that are NaN or infinite; `C`, `max_iter` or `tolerance` out of range; no
        class with two rows, of which one could be held out.

    Example:

    >>> probe = simclr_tf.evaluate.linear_probe(h, labels, h, labels)
    >>> probe.C in probe.held_out_accuracy and 0.0 <= probe.accuracy <= 1.0
    True
    """
    train_h, train_labels, test_h, test_labels = check_pair(
        train_h, train_labels, test_h, test_labels
    )
    train_h, train_labels = without_unlabelled(train_h, train_labels, "train")
    without_unlabelled(test_h, test_labels, "test")  # raises where nothing could be scored
    _check_settings(train_labels, C, max_iter, tolerance)
    with threads_for(train_h, len(np.unique(train_labels))):
        return _probe(train_h, train_labels, test_h, test_labels, C, (max_iter, tolerance), seed)


def _probe(train_h, train_labels, test_h, test_labels, c, settings, seed):
    train_h, test_h = standardize(train_h, test_h)
    held_out_accuracy = {}
    if c is None:
        held_out_accuracy = _try_grid(train_h, train_labels, *settings, seed)
        c = max(held_out_accuracy, key=held_out_accuracy.get)  # the smallest in a tie
    model = logistic_regression(c, *settings)
    converged = fit(model, train_h, train_labels)
    predicted = model.predict(test_h)
    scored = test_labels != UNLABELLED
    return LinearProbe(
        accuracy=float(np.mean(predicted[scored] == test_labels[scored])),
        train_accuracy=float(model.score(train_h, train_labels)),
        C=float(c),
        held_out_accuracy=held_out_accuracy,
        classes=model.classes_,
        n_iter=int(model.n_iter_.max()),
        converged=converged,
        predicted=predicted,
        top_5_accuracy=_top_5(model, test_h[scored], test_labels[scored]),
        mean_per_class_accuracy=mean_per_class_accuracy(predicted[scored], test_labels[scored]),
    )


def _top_5(model, h, labels):
    scores = model.decision_function(h)
    if scores.ndim == 1:  # two classes: the score of the second
        scores = np.stack([-scores, scores], axis=1)
    return top_k_accuracy(scores, column_of(labels, model.classes_), 5)


def column_of(labels, classes):
    """Returns the position of each label in `classes`, ascending; -1 where it is not there."""
    columns = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    return np.where(classes[columns] == labels, columns, -1)


def _check_settings(train_labels, c, max_iter, tolerance):
    check_classes(train_labels)
    if c is not None:
        check_number("C", c, above=0, hint="None chooses it on the training set.")
    check_number("max_iter", max_iter, at_least=1, whole=True, hint="The default is 300.")
    check_number("tolerance", tolerance, above=0, hint="The default is 1e-3.")


def check_classes(train_labels):
    """Returns the labels that there are, ascending, without -1; raises unless there are two."""
    classes = np.unique(train_labels[train_labels != UNLABELLED])
    if len(classes) < 2:
        label = classes[0] if len(classes) else UNLABELLED
        raise ArgumentError(
            f"train_labels must have two classes or more; got only label {label}. "
            "A split of sorted data may have a single class: shuffle the data before the split."
        )
    return classes


def standardize(train_h, test_h):
    """Scales both sets by the training set's mean and deviation; constant features by 1."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_h)
    return scaler.transform(train_h), scaler.transform(test_h)


def threads_for(h, classes):
    """Returns a context in which linear algebra of few features uses one thread."""
    from threadpoolctl import threadpool_limits

    few = h.size * classes < _MULTIPLICATIONS_OF_ONE_THREAD
    return threadpool_limits(1 if few else None)


def logistic_regression(c, max_iter, tolerance, warm_start=False):
    """Returns scikit-learn's classifier, not fitted yet."""
    from sklearn.linear_model import LogisticRegression  # imported on use: it takes a second

    return LogisticRegression(C=c, max_iter=max_iter, tol=tolerance, warm_start=warm_start)


def fit(model, h, labels):
    """Fits `model` in place and returns whether it converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Classes with few rows; integer labels are no regression problem, as it suspects.
        warnings.filterwarnings("ignore", "The number of unique classes")
        model.fit(h, labels)
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return len(others) == len(caught)


def _try_grid(h, labels, max_iter, tolerance, seed):
    """Returns a dict from each C of the grid to its top-1 on held-out rows."""
    fit_rows, held_out_rows = _hold_out(labels, seed)
    model = logistic_regression(C_GRID[0], max_iter, tolerance, warm_start=True)
    accuracy = {}
    for c in C_GRID:  # each fit starts from the solution of the previous one
        model.set_params(C=c)
        fit(model, h[fit_rows], labels[fit_rows])
        accuracy[c] = float(model.score(h[held_out_rows], labels[held_out_rows]))
    return accuracy


def _hold_out(labels, seed):
    """Draws the rows to choose C with, stratified by label.

    Returns:
      (rows to fit, rows held out), int64, ascending and disjoint. Every class is fitted.
    """
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels, return_counts=True)
    num_classes = int(np.sum(counts > 1))
    if not num_classes:
        raise ArgumentError(
            f"choosing C needs a class of at least two training rows; got {len(labels)} rows, "
            "each of a class of its own. Pass C."
        )
    splittable = np.flatnonzero(np.isin(labels, classes[counts > 1]))
    # A stratified split needs at least one row of every class on both sides.
    num_rows = min(len(splittable), max(_MAX_ROWS_TO_CHOOSE_C, 2 * num_classes))
    num_held_out = max(num_classes, num_rows // 5)
    fit_rows, held_out_rows = train_test_split(
        splittable,
        train_size=num_rows - num_held_out,
        test_size=num_held_out,
        stratify=labels[splittable],
        random_state=seed,
    )
    # Also fit one row of each class: of those with a single row, and of those rare enough to be
    # missing from the draw.
    others = np.setdiff1d(np.arange(len(labels)), held_out_rows)
    _, first = np.unique(labels[others], return_index=True)
    return np.union1d(fit_rows, others[first]), np.sort(held_out_rows)
