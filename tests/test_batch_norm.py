"""The moving variance averages the variances of batches, with every kernel."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf.encoders import batch_norm

X = np.random.default_rng(0).normal(3.0, 2.0, [4, 2, 3, 5]).astype(np.float32)


def layer_of(**kwargs):
    """A built layer for five channels."""
    layer = keras.layers.BatchNormalization(momentum=0.9, **kwargs)
    layer.build((None, None, None, 5))
    return layer


@pytest.mark.parametrize("kwargs", [{}, {"fused": False}, {"synchronized": True}])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_updates_with_the_variance_of_the_batch(kwargs, compiled):
    """And with its mean. Keras's fused kernel would multiply the variance by n / (n - 1)."""
    layer = layer_of(**kwargs)
    call = tf.function(lambda x: batch_norm.normalise(layer, x, True))
    y = call(X) if compiled else batch_norm.normalise(layer, tf.constant(X), True)
    mean, variance = X.mean((0, 1, 2)), X.var((0, 1, 2))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(variance + 1e-3), atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_and_a_frozen_layer_update_nothing(frozen):
    """They use the moving statistics, as in Keras."""
    layer = layer_of()
    layer.trainable = not frozen
    y = batch_norm.normalise(layer, tf.constant(X), True if frozen else None)
    np.testing.assert_allclose(y, X / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_variance, np.ones(5))
