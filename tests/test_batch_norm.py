"""The moving variance averages the variances of batches, with every kernel."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders import batch_norm

X = np.random.default_rng(0).normal(3.0, 2.0, [4, 2, 3, 5]).astype(np.float32)


def layer_of(**kwargs):
    """A built layer for five channels."""
    layer = keras.layers.BatchNormalization(momentum=0.9, **kwargs)
    layer.build((None, None, None, 5))
    return layer


# Keras 3 has no argument `fused`.
KWARGS = [{}, {"synchronized": True}, *([{"fused": False}] if _keras.IS_KERAS_2 else [])]


@pytest.mark.parametrize("kwargs", KWARGS)
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


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_outputs_and_gradients_are_those_of_the_layer(precision):
    """In every precision, whichever kernel computes them."""
    keras.mixed_precision.set_global_policy(precision)
    x = tf.constant(X, tf.float32 if precision == "float32" else precision[len("mixed_") :])
    results = []
    for call in (lambda layer, x: layer(x, training=True), batch_norm.normalise):
        layer = layer_of()
        arguments = (True,) if call is batch_norm.normalise else ()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(layer, x, *arguments)
            total = tf.reduce_sum(tf.cast(y, tf.float32) ** 2 * X)
        gradients = tape.gradient(total, [x, *layer.trainable_variables])
        results.append([tf.cast(t, tf.float32).numpy() for t in (y, *gradients)])
        assert y.dtype == x.dtype
    tolerance = 1e-4 if precision == "float32" else 0.05
    for ours, keras_own in zip(*results):
        np.testing.assert_allclose(ours, keras_own, rtol=tolerance, atol=tolerance * 5)


@pytest.mark.skipif(_keras.IS_KERAS_2, reason="Keras 2 uses the fused kernel")
def test_keras_leaves_the_fused_kernel():
    """If this fails, Keras's own batch normalisation is fused: `_call_kernel` can go."""

    def operations(call):
        graph = tf.function(call).get_concrete_function(tf.TensorSpec(X.shape)).graph
        return {operation.type for operation in graph.get_operations()}

    layer = layer_of()
    assert "FusedBatchNormV3" not in operations(lambda x: layer(x, training=True))
    assert "FusedBatchNormV3" in operations(lambda x: batch_norm.normalise(layer, x, True))


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_and_a_frozen_layer_update_nothing(frozen):
    """They use the moving statistics, as in Keras."""
    layer = layer_of()
    layer.trainable = not frozen
    y = batch_norm.normalise(layer, tf.constant(X), True if frozen else None)
    np.testing.assert_allclose(y, X / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_variance, np.ones(5))
