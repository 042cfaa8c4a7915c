"""What a contrastive run is watched by: accuracy of the task, alignment, uniformity, rank.

Functions carry the maths; the Keras metric keeps a running mean of one of them.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from simclr_tf.losses import nt_xent_with_top1


def contrastive_accuracy(z_a, z_b):
    """Fraction of views whose nearest neighbour is the other view of the same image.

    Args:
      z_a, z_b: [N, d], any float dtype: projections of two views of the same N images; within a
        replica the candidates are those of all replicas.

    Returns:
      Scalar float32 in [0, 1]. A tie counts as wrong, so a collapsed encoder has 0.
    """
    _, correct = nt_xent_with_top1(z_a, z_b, temperature=1.0)
    return tf.reduce_mean(tf.cast(correct, tf.float32))


def alignment(z_a, z_b):
    """Mean squared distance of positive pairs on the unit sphere, in [0, 4]; 0 is perfect.

    Wang and Isola, arXiv:2005.10242, eq. 2 with alpha = 2. z_a, z_b: [N, d].
    """
    z_a, z_b = (tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1) for z in (z_a, z_b))
    return tf.reduce_mean(tf.reduce_sum(tf.square(z_a - z_b), axis=1))


def uniformity(z):
    """Log of the mean Gaussian potential exp(-2 |x - y|^2) of pairs on the unit sphere.

    Wang and Isola, arXiv:2005.10242, eq. 3 with t = 2. z: [N, d], N at least 2. The scalar is at
    most 0, which is collapse; the uniform distribution in many dimensions comes near -4.
    """
    z = tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1)
    squared = 2.0 - 2.0 * tf.matmul(z, z, transpose_b=True)  # [N, N]
    potential = tf.linalg.set_diag(tf.exp(-2.0 * squared), tf.zeros(tf.shape(z)[0]))
    pairs = tf.cast(tf.shape(z)[0] * (tf.shape(z)[0] - 1), tf.float32)
    return tf.math.log(tf.reduce_sum(potential) / pairs)


def effective_rank(h):
    """Exp of the entropy of the normalised singular values of h [N, D] (Roy and Vetterli, 2007).

    The number of directions that the embeddings use: from 1 (collapse) to min(N, D).
    """
    h = tf.cast(h, tf.float32)
    singular = tf.linalg.svd(h, compute_uv=False)
    share = singular / tf.maximum(tf.reduce_sum(singular), 1e-12)
    return tf.exp(-tf.reduce_sum(tf.math.xlogy(share, share)))


@keras.saving.register_keras_serializable(package="simclr_tf")
class ContrastiveAccuracy(keras.metrics.Mean):
    """Running mean of `contrastive_accuracy`, weighted by the number of images."""

    def __init__(self, name="contrastive_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, z_a, z_b):
        """Adds a batch of projections; z_a, z_b: [N, d]."""
        _, correct = nt_xent_with_top1(z_a, z_b, temperature=1.0)
        return super().update_state(tf.cast(correct, tf.float32))


class _UnsavedMean(keras.metrics.Mean):
    """A running mean whose state is not written to, nor read from, a `.keras` file."""

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


class RunningMeans:
    """Running means by name, which are not weights of the model that logs them.

    Args:
      names: of the means that are there from the start; others are added when they are updated.

    Example:
    >>> means = simclr_tf.metrics.RunningMeans(["loss"])
    >>> means.update("loss", [1.0, 3.0])
    >>> float(means.results()["loss"])
    2.0
    """

    def __init__(self, names):
        self._means = {name: _UnsavedMean(name=name) for name in names}

    @property
    def metrics(self):
        """The `keras.metrics.Mean` objects, a list."""
        return list(self._means.values())

    def update(self, name, values, weight=None):
        """Adds values, a tensor of any shape and dtype; weight: a scalar for all of them."""
        if name not in self._means:
            self._means[name] = _UnsavedMean(name=name)
        self._means[name].update_state(tf.cast(values, tf.float32), sample_weight=weight)

    def results(self):
        """Returns a dict of name to mean."""
        return {name: mean.result() for name, mean in self._means.items()}
