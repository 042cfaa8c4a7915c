"""Batch normalisation whose moving variance does not depend on the kernel or the replicas.

Keras's fused kernel moves it by the variance times n / (n - 1), n values a channel; its kernel for
several replicas, and google-research/simclr, by the variance itself. Here both do the latter.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras


def normalise(layer, x, training):
    """`layer(x, training=training)`.

    Args:
      layer: a stock `keras.layers.BatchNormalization`, built.
      x: [..., channels].
      training: bool or None.
    """
    if training is not True or not (layer.trainable and _keras.overestimates_variance(layer)):
        return layer(x, training=training)
    kept = layer.moving_variance * layer.momentum
    y = layer(x, training=True)
    count = tf.cast(tf.size(x) / x.shape[-1], tf.float32)  # n
    moved = layer.moving_variance - kept
    layer.moving_variance.assign(kept + moved * (count - 1.0) / count)
    return y
