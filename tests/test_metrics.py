"""What a run is watched by, against loops and closed forms."""

import math

import numpy as np
import pytest
import tensorflow as tf

import reference
from simclr_tf import ContrastiveAccuracy, metrics

RNG = np.random.default_rng(5)


def test_contrastive_accuracy_is_the_loop_over_all_candidates():
    """Over 2N - 1 candidates, both directions; noisy pairs so that some are wrong."""
    z_a = RNG.normal(size=[40, 4])
    z_b = z_a + 0.7 * RNG.normal(size=[40, 4])
    expected = reference.contrastive_accuracy(z_a, z_b)
    assert 0.2 < expected < 0.8
    got = metrics.contrastive_accuracy(z_a.astype("f"), z_b.astype("f"))
    assert float(got) == pytest.approx(expected, abs=1e-6)


def test_perfect_pairs_have_1_and_collapse_has_0():
    """A tie is wrong: a collapsed encoder must not look perfect."""
    eye = np.eye(6, dtype=np.float32)
    assert float(metrics.contrastive_accuracy(eye, eye)) == 1.0
    assert float(metrics.contrastive_accuracy(np.ones([6, 3], "f"), np.ones([6, 3], "f"))) == 0.0


def test_the_keras_metric_weighs_batches_by_their_images():
    """The mean over images of two batches of different size, and a reset."""
    metric = ContrastiveAccuracy()
    eye, ones = np.eye(6, dtype=np.float32), np.ones([2, 6], np.float32)
    metric.update_state(eye, eye)
    metric.update_state(ones, ones)
    assert float(metric.result()) == pytest.approx(6 / 8)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_alignment_and_uniformity_have_their_closed_forms():
    """Two views at an angle; four points on a square."""
    angle = 0.3
    z_a = np.array([[1.0, 0.0]] * 3)
    z_b = np.array([[math.cos(angle), math.sin(angle)]] * 3)
    assert float(metrics.alignment(z_a, z_b)) == pytest.approx(2 - 2 * math.cos(angle), rel=1e-5)
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expected = math.log((8 * math.exp(-4.0) + 4 * math.exp(-8.0)) / 12)
    assert float(metrics.uniformity(square)) == pytest.approx(expected, rel=1e-5)
    assert float(metrics.uniformity(np.ones([5, 3]))) == pytest.approx(0.0, abs=1e-6)


def test_effective_rank_counts_equal_directions():
    """Three equal singular values have rank 3; a collapsed h has 1."""
    h = np.zeros([10, 6], np.float32)
    h[:3, :3] = 5.0 * np.eye(3)
    assert float(metrics.effective_rank(h)) == pytest.approx(3.0, rel=1e-5)
    assert float(metrics.effective_rank(tf.ones([10, 6]))) == pytest.approx(1.0, rel=1e-4)
