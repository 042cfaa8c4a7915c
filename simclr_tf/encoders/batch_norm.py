"""Batch normalisation whose moving variance depends neither on the kernel nor on the replicas.

The fused kernel of Keras 2 updates it with the batch's variance times n / (n - 1), where n is the
number of values of a channel. Its kernel for several replicas and google-research/simclr use the
variance itself, and so does `normalise`, with every kernel.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras


def normalise(layer, x, training):
    """Calls a batch normalisation layer and corrects its moving variance.

    Args:
        layer: a `keras.layers.BatchNormalization`, built.
        x: float [..., channels].
        training: bool or None, as in the layer's call.

    Returns:
        `layer(x, training=training)`, of x's shape.
    """
    if training is not True or not (layer.trainable and _keras.overestimates_variance(layer)):
        return layer(x, training=training)
    decayed = layer.moving_variance * layer.momentum
    y = layer(x, training=True)
    count = tf.cast(tf.size(x) / x.shape[-1], tf.float32)  # n
    update = layer.moving_variance - decayed
    layer.moving_variance.assign(decayed + update * (count - 1.0) / count)
    return y
