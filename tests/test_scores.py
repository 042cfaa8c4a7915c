"""Scores, compared with scikit-learn's and with closed forms."""

import math

import numpy as np
import pytest
from sklearn import metrics

from simclr_tf.evaluate import (
    confidence_interval,
    mean_average_precision,
    mean_per_class_accuracy,
    top_k_accuracy,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(200, 7))
LABELS = RNG.integers(0, 7, 200)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_equals_scikit_learn(k):
    expected = metrics.top_k_accuracy_score(LABELS, SCORES, k=k)
    assert top_k_accuracy(SCORES, LABELS, k) == pytest.approx(expected, abs=1e-12)


def test_top_k_of_equal_scores_is_chance():
    """A classifier that cannot tell the classes apart is not right for every image."""
    assert top_k_accuracy(np.zeros((7, 7)), np.arange(7), 2) == pytest.approx(2 / 7)
    assert top_k_accuracy(np.zeros((7, 7)), np.arange(7), 9) == 1.0


def test_a_label_of_no_column_is_an_error():
    """The label of a class that the classifier has never seen; scikit-learn would refuse it."""
    scores = np.eye(3)
    assert top_k_accuracy(scores, [0, -1, 3], 3) == pytest.approx(1 / 3)


def test_mean_per_class_equals_scikit_learn():
    """Classes of very different sizes, of which two are rarely predicted."""
    labels = np.repeat([3, 5, 9], [150, 40, 10])
    predicted = np.where(RNG.random(200) < 0.6, labels, 3)
    expected = metrics.balanced_accuracy_score(labels, predicted)
    assert mean_per_class_accuracy(predicted, labels) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - np.mean(predicted == labels)) > 0.05


def test_average_precision_equals_scikit_learn():
    """With and without equal scores; a class without an example is left out."""
    targets = (RNG.random((200, 7)) < 0.3).astype(int)
    for scores in (SCORES, SCORES.round(), SCORES - 3 * targets):
        expected = metrics.average_precision_score(targets, scores, average="macro")
        assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
    without = np.concatenate([targets, np.zeros((200, 1), int)], axis=1)
    wider = np.concatenate([SCORES - 3 * targets, SCORES[:, :1]], axis=1)
    assert mean_average_precision(wider, without) == pytest.approx(expected, abs=1e-12)


def test_unknown_targets_are_left_out():
    targets = (RNG.random((200, 1)) < 0.3).astype(int)
    targets[::5] = -1
    known = targets[:, 0] >= 0
    expected = metrics.average_precision_score(targets[known, 0], SCORES[known, 0])
    assert mean_average_precision(SCORES[:, :1], targets) == pytest.approx(expected, abs=1e-12)


def voc2007(scores, targets):
    """The eleven points of the VOC2007 development kit, written out."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    found, precisions, recalls = 0, [], []
    for rank, i in enumerate(order, 1):
        found += targets[i]
        precisions.append(found / rank)
        recalls.append(found / sum(targets))
    points = []
    for tenth in range(11):
        reached = [p for p, r in zip(precisions, recalls) if r >= tenth / 10 - 1e-12]
        points.append(max(reached) if reached else 0.0)
    return sum(points) / 11


@pytest.mark.parametrize("share", [0.05, 0.3])  # 0.05: about ten positives, recalls of tenths
def test_eleven_points_equal_the_loop(share):
    targets = (RNG.random((200, 7)) < share).astype(int)
    targets[0] = 1
    expected = np.mean([voc2007(SCORES[:, c].tolist(), targets[:, c].tolist()) for c in range(7)])
    found = mean_average_precision(SCORES, targets, eleven_points=True)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found != pytest.approx(mean_average_precision(SCORES, targets), abs=1e-3)
    exact = [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]  # its recalls are tenths
    scores = np.arange(11)[:, None] / 11
    found = mean_average_precision(scores, np.array(exact)[:, None], eleven_points=True)
    assert found == pytest.approx(voc2007(scores[:, 0].tolist(), exact), abs=1e-12) == 1.0


def test_the_interval_of_two_seeds_is_that_of_the_cauchy_distribution():
    """Student's t with one degree of freedom, whose quantiles are tangents."""
    mean, half_width = confidence_interval([0.6, 0.8])
    quantile = math.tan(math.pi * (0.975 - 0.5))
    assert mean == pytest.approx(0.7)
    assert half_width == pytest.approx(quantile * (0.2 / math.sqrt(2)) / math.sqrt(2))


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """Of 2,000 samples of five normal numbers, 95 % of the intervals hold the mean, here 0."""
    samples = np.random.default_rng(1).normal(size=(2000, 5))
    held = [abs(mean) <= half for mean, half in map(confidence_interval, samples)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (top_k_accuracy, (SCORES[0], LABELS, 1), r"scores must be finite numbers \[n, C\]"),
        (top_k_accuracy, (SCORES, LABELS[1:], 1), "labels must be 200, one per example; got 199"),
        (top_k_accuracy, (SCORES, LABELS, 0), "k must be a whole number of at least 1; got 0"),
        (top_k_accuracy, (SCORES * np.nan, LABELS), "scores must be finite"),
        (mean_per_class_accuracy, ([0.5], [1]), "predicted must be integers"),
        (mean_per_class_accuracy, ([], []), "labels must be integers"),
        (mean_average_precision, (SCORES, SCORES), "of 0, 1 and -1"),
        (mean_average_precision, (SCORES, 0 * SCORES), "a 1 for at least one class"),
        (confidence_interval, ([0.5],), "two finite numbers or more; got \\[0.5\\]"),
        (confidence_interval, ([0.5, 1], 95), "level must be a finite number in \\(0, 1\\)"),
    ],
)
def test_what_cannot_be_scored_is_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
