"""The linear probe: logistic regression on cached embeddings.

The encoder is not touched: its embeddings come from features.py.
"""

import warnings
from typing import NamedTuple

import numpy as np

from simclr_tf.errors import ArgumentError
from simclr_tf.evaluate.features import check_pair

# From strong regularisation to nearly none, on standardised features.
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

# Choosing C looks at no more training rows than this: a fifth of them is held out.
_MAX_ROWS_TO_CHOOSE_C = 10_000


class LinearProbe(NamedTuple):
    """Outcome of `linear_probe`.

    Attributes:
      accuracy: float in [0, 1], top-1 on the test set.
      train_accuracy: float in [0, 1], top-1 on the training set.
      C: float, inverse regularisation strength, given or chosen.
      held_out_accuracy: dict from each C of the grid to its top-1 on the held-out part of the
        training set; empty where C was given.
      classes: int64 [classes], the labels of the training set, ascending.
      n_iter: int, iterations of the last fit.
      converged: bool; False where the last fit stopped at `max_iter`.
      predicted: int64 [m], the labels predicted for the test rows.
    """

    accuracy: float
    train_accuracy: float
    C: float
    held_out_accuracy: dict
    classes: np.ndarray
    n_iter: int
    converged: bool
    predicted: np.ndarray


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
    """Fits a linear classifier on training embeddings and scores it on test embeddings, once.

    Multinomial logistic regression of scikit-learn (L-BFGS, L2 penalty, all examples in each
    iteration) on features standardised with the training set's mean and deviation. This is the
    linear evaluation protocol of SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix B.8) on
    cached embeddings of uncropped images. The same input and seed give the same result.

    Without a C, one is chosen from `C_GRID` on the training set alone: of at most 10,000 of its
    rows, drawn with `seed` and stratified by label, a fifth is held out, and the C of the best
    top-1 there wins (of equals, the smallest). The last fit then takes every training row.

    Args:
      train_h: floating [n, D].
      train_labels: integers [n], of two classes or more.
      test_h: floating [m, D].
      test_labels: integers [m].
      C: float above 0, scikit-learn's inverse regularisation strength; None chooses it.
      max_iter: int, 1 or more: iterations of one fit at the most.
      tolerance: float above 0: a fit ends when no entry of its gradient is larger.
      seed: int, for the draw of held-out rows; not used where C is given.

    Returns:
      `LinearProbe`. A fit that ran into `max_iter` is reported as `converged=False`, not warned of.

    Raises:
      ValueError: labels missing, of a single class, or not fitting; NaN or infinite features;
        settings out of range; too few rows per class to hold any out.
    """
    train_h, train_labels, test_h, test_labels = check_pair(
        train_h, train_labels, test_h, test_labels
    )
    _check_settings(train_labels, C, max_iter, tolerance)
    mean, scale = _standardisation(train_h)
    train_h, test_h = (train_h - mean) / scale, (test_h - mean) / scale
    held_out_accuracy, best_c = {}, C
    if C is None:
        held_out_accuracy = _try_grid(train_h, train_labels, max_iter, tolerance, seed)
        best_c = max(held_out_accuracy, key=held_out_accuracy.get)  # the first of equals
    model = _classifier(best_c, max_iter, tolerance)
    converged = _fit(model, train_h, train_labels)
    predicted = model.predict(test_h)
    return LinearProbe(
        accuracy=float(np.mean(predicted == test_labels)),
        train_accuracy=float(model.score(train_h, train_labels)),
        C=float(best_c),
        held_out_accuracy=held_out_accuracy,
        classes=model.classes_,
        n_iter=int(model.n_iter_.max()),
        converged=converged,
        predicted=predicted,
    )


def _check_settings(train_labels, c, max_iter, tolerance):
    classes = np.unique(train_labels)
    if len(classes) < 2:
        raise ArgumentError(
            f"train_labels must have two classes or more; got only label {classes[0]}. "
            "A split taken from sorted data may hold a single class: shuffle it first."
        )
    if c is not None and not c > 0:
        raise ArgumentError(f"C must be above 0; got {c}. None chooses it on the training set.")
    if max_iter < 1 or not tolerance > 0:
        raise ArgumentError(
            "max_iter must be 1 or more and tolerance above 0; "
            f"got max_iter={max_iter}, tolerance={tolerance}."
        )


def _standardisation(h):
    """Mean and deviation [D] of every feature; a constant feature is divided by 1."""
    scale = h.std(axis=0, dtype=np.float64)
    scale[scale <= 1e-6 * np.abs(h).max(axis=0)] = 1.0
    return h.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)


def _classifier(c, max_iter, tolerance, warm_start=False):
    from sklearn.linear_model import LogisticRegression  # a second of import, not always needed

    return LogisticRegression(C=c, max_iter=max_iter, tol=tolerance, warm_start=warm_start)


def _fit(model, h, labels):
    """Fits `model` in place; whether it converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(h, labels)
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return len(others) == len(caught)


def _try_grid(h, labels, max_iter, tolerance, seed):
    """Top-1 on a held-out fifth of (a draw of) the training set, for every C of the grid."""
    fit_rows, held_out_rows = _hold_out(labels, seed)
    model = _classifier(C_GRID[0], max_iter, tolerance, warm_start=True)
    accuracy = {}
    for c in C_GRID:  # each fit starts from the solution of the one before
        model.set_params(C=c)
        _fit(model, h[fit_rows], labels[fit_rows])
        accuracy[c] = float(model.score(h[held_out_rows], labels[held_out_rows]))
    return accuracy


def _hold_out(labels, seed):
    """(rows to fit, rows held out): four fifths and a fifth of every class, ascending."""
    rng = np.random.default_rng(seed)
    share = min(1.0, _MAX_ROWS_TO_CHOOSE_C / len(labels))
    fit_rows, held_out_rows = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        rows = rows[: max(2, round(share * len(rows)))]
        num_held_out = len(rows) // 5 or len(rows) // 2  # a class of one is fitted, not held out
        held_out_rows.append(rows[:num_held_out])
        fit_rows.append(rows[num_held_out:])
    fit_rows, held_out_rows = (np.sort(np.concatenate(r)) for r in (fit_rows, held_out_rows))
    if not len(held_out_rows):
        raise ArgumentError(
            f"choosing C needs a class of two training rows or more; got {len(labels)} rows, "
            "each of a class of its own. Give C."
        )
    return fit_rows, held_out_rows
