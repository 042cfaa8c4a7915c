"""Batch normalisation by TensorFlow's fused kernel, with the variance itself as moving variance.

Keras 2 uses the kernel, and then updates the moving variance with the batch's variance times
n / (n - 1), where n is the number of values of a channel. Its code for several replicas and
google-research/simclr use the variance itself, and so does `normalise`, with either Keras. Keras 3
does not use the kernel in training, and takes several passes over the activations in its place
(benchmarks/batch_norm.py): `normalise` calls the kernel.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras


def normalise(layer, x, training):
    """Calls a batch normalisation layer, by the fused kernel where that is possible.

    Args:
        layer: a `keras.layers.BatchNormalization`, built.
        x: float [..., channels].
        training: bool or None, as in the layer's call.

    Returns:
        `layer(x, training=training)`, of x's shape.
    """
    if training is True and layer.trainable:
        if _keras.overestimates_variance(layer):
            return _correct_variance(layer, x)
        if _keras.leaves_fused_kernel(layer) and _kernel_takes(layer, x):
            return _call_kernel(layer, x)
    return layer(x, training=training)


def _correct_variance(layer, x):
    """Calls a layer of Keras 2, and corrects its moving variance."""
    decayed = layer.moving_variance * layer.momentum
    y = layer(x, training=True)
    update = layer.moving_variance - decayed
    layer.moving_variance.assign(decayed + update * _bias_of_variance(x))
    return y


def _kernel_takes(layer, x):
    one_replica = tf.distribute.get_strategy().num_replicas_in_sync == 1
    plain = layer.scale and layer.center and not getattr(layer, "renorm", False)
    plain = plain and x.shape.rank == 4 and layer.compute_dtype != "float64"
    return plain and (one_replica or not layer.synchronized)


def _call_kernel(layer, x):
    """What a layer of Keras 3 computes in training, by the fused kernel."""
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        tf.cast(x, layer.compute_dtype),
        tf.convert_to_tensor(layer.gamma),
        tf.convert_to_tensor(layer.beta),
        epsilon=layer.epsilon,
    )
    for moving, value in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance * _bias_of_variance(x)),
    ):
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
    return y


def _bias_of_variance(x):
    """(n - 1) / n, by which the kernel's variance is too large."""
    count = tf.cast(tf.size(x) / x.shape[-1], tf.float32)  # n
    return (count - 1.0) / count
