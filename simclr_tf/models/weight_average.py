"""An exponential moving average of weights, in the graph of a training step."""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.distribute import update_variables
from simclr_tf.encoders.fine_tuning import paired_weights


class WeightAverage:
    """Moves the weights of copies towards those of the networks that are trained.

    After step t, counted from 0, an average becomes m x average + (1 - m) x weight, with m the
    smaller of `momentum` and (1 + t) / (10 + t), as in `tf.train.ExponentialMovingAverage`: the
    first averages are of few steps. Moving statistics of batch normalisation are averaged too.

    This is not a layer, and Keras does not track it.

    Args:
      momentum: float in (0, 1).
      networks: list of built models.
      copies: list of models of the same architectures.
    """

    def __init__(self, momentum, networks, copies):
        self._momentum = momentum
        pairs = [paired_weights(*both) for both in zip(networks, copies)]
        self._weights = [weight for weights, _ in pairs for weight in weights]
        self._averages = [average for _, averages in pairs for average in averages]

    def update(self, step):
        """Moves the averages after a step, int scalar, counted from 0."""
        step = tf.cast(step, tf.float32)
        momentum = tf.minimum(self._momentum, (1.0 + step) / (10.0 + step))

        def moved(average, weight):
            if not average.dtype.is_floating:  # a counter, or the state of a random generator
                return weight
            return average - tf.cast(1.0 - momentum, average.dtype) * (average - weight)

        update_variables(moved, self._averages, self._weights)
