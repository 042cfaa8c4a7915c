"""Metrics of contrastive training: contrastive accuracy, alignment, uniformity, effective rank.

Functions carry the maths; `ContrastiveAccuracy` is the Keras metric that keeps a running mean.
`SkippedSteps` counts what float16 leaves out.
"""

from __future__ import annotations

import itertools

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.losses import normalised, nt_xent_with_top1


def contrastive_accuracy(z_a, z_b=None):
    """Returns the fraction of positive pairs that are more similar than every negative.

    For two views: the fraction of the 2N views whose nearest neighbour, among the 2N - 1 others, is
    the other view of the same image.

    Args:
      z_a, z_b: [N, d], any float dtype: projections of two views of the same N images; or z_a:
        [V, N, d] alone, of V views. Within a replica the negatives are those of all replicas.

    Returns:
      Scalar float32 in [0, 1]. A tie counts as wrong, so a collapsed encoder has 0.

    Example:

    >>> float(simclr_tf.metrics.contrastive_accuracy(z_a, z_a))
    1.0
    """
    _, correct = nt_xent_with_top1(z_a, z_b, temperature=1.0)
    return tf.reduce_mean(tf.cast(correct, tf.float32))


def alignment(z_a, z_b=None):
    """Returns the mean squared distance of positive pairs on the unit sphere; 0 is perfect.

    Wang and Isola, arXiv:2005.10242, eq. 2 with alpha = 2.

    Args:
      z_a, z_b: [N, d], any float dtype; or z_a: [V, N, d] alone, of V views: the mean over all
        pairs of views.

    Returns:
      Scalar float32 in [0, 4].

    Example:

    >>> float(simclr_tf.metrics.alignment(z_a, 2.0 * z_a)) < 1e-6
    True
    """
    z = normalised(z_a, z_b)  # [V, N, d]
    pairs = itertools.combinations(range(z.shape[0]), 2)
    return tf.reduce_mean([tf.reduce_sum(tf.square(z[a] - z[b]), axis=1) for a, b in pairs])


def uniformity(z):
    """Returns the log of the mean Gaussian potential exp(-2 |x - y|^2) of pairs of unit vectors.

    Wang and Isola, arXiv:2005.10242, eq. 3 with t = 2. Memory grows with N squared.

    Args:
      z: [N, d], any float dtype, N of 2 or more.

    Returns:
      Scalar float32, at most 0, which is collapse; the uniform distribution in many dimensions is
      near -4.

    Example:

    >>> abs(float(simclr_tf.metrics.uniformity(np.ones([4, 3])))) < 1e-5
    True
    """
    z = tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1)
    squared = 2.0 - 2.0 * tf.matmul(z, z, transpose_b=True)  # [N, N]
    potential = tf.linalg.set_diag(tf.exp(-2.0 * squared), tf.zeros(tf.shape(z)[0]))
    pairs = tf.cast(tf.shape(z)[0] * (tf.shape(z)[0] - 1), tf.float32)
    return tf.math.log(tf.reduce_sum(potential) / pairs)


def effective_rank(h):
    """Returns exp of the entropy of the normalised singular values (Roy and Vetterli, 2007).

    It estimates the number of directions that the embeddings use.

    Args:
      h: [N, D], any float dtype.

    Returns:
      Scalar float32 from 1 (collapse) to min(N, D).

    Example:

    >>> round(float(simclr_tf.metrics.effective_rank(np.eye(4))), 4)
    4.0
    """
    h = tf.cast(h, tf.float32)
    singular = tf.linalg.svd(h, compute_uv=False)
    fraction = singular / tf.maximum(tf.reduce_sum(singular), 1e-12)
    return tf.exp(-tf.reduce_sum(tf.math.xlogy(fraction, fraction)))


@_keras.saving.register_keras_serializable(package="simclr_tf")
class ContrastiveAccuracy(keras.metrics.Mean):
    """Running mean of `contrastive_accuracy`, weighted by the number of images.

    Example:

    >>> metric = simclr_tf.ContrastiveAccuracy()
    >>> metric.update_state(z_a, z_a)
    >>> float(metric.result())
    1.0
    """

    def __init__(self, name="contrastive_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, z_a, z_b):
        """Adds a batch of projections; z_a, z_b: [N, d]."""
        _, correct = nt_xent_with_top1(z_a, z_b, temperature=1.0)
        super().update_state(tf.cast(correct, tf.float32))


@_keras.saving.register_keras_serializable(package="simclr_tf")
class _UnsavedMean(keras.metrics.Mean):
    """A running mean whose state is not written to, nor read from, a `.keras` file."""

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


@_keras.saving.register_keras_serializable(package="simclr_tf")
class SkippedSteps(_UnsavedMean):
    """Number of steps whose update the loss scale of float16 has skipped, float32 scalar.

    Its value is kept on the device, so that counting does not wait for a step to end.

    Example:

    >>> metric = simclr_tf.metrics.SkippedSteps()
    >>> for skipped in (True, True, False):
    ...     metric.update_state(skipped)
    >>> float(metric.result())
    2.0
    """

    def __init__(self, name="skipped_steps", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, skipped):
        """Counts a step; skipped: bool scalar, equal on all replicas."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        super().update_state(tf.cast(skipped, tf.float32), sample_weight=1.0 / replicas)

    def result(self):
        """Returns the number of skipped steps."""
        return tf.round(self.total)  # three thirds, one of each of three replicas, are not quite 1


class RunningMeans:
    """Running means by name, which are not weights of the model that logs them.

    Args:
      names: of the means that are there from the start; others are added when they are updated.

    Attributes:
      skipped_steps: a `SkippedSteps` that belongs to them, not among the results; None without one.

    Example:

    >>> means = simclr_tf.metrics.RunningMeans(["loss"])
    >>> means.update("loss", [1.0, 3.0])
    >>> float(means.results()["loss"])
    2.0
    """

    def __init__(self, names):
        self._means = {name: _UnsavedMean(name=name) for name in names}
        self.skipped_steps = None

    @property
    def metrics(self):
        """The `keras.metrics.Mean` objects, a list."""
        counts = [] if self.skipped_steps is None else [self.skipped_steps]
        return [*self._means.values(), *counts]

    def update(self, name, values, weight=None):
        """Adds values, a tensor of any shape and dtype; weight: a scalar for all of them."""
        if name not in self._means:
            self._means[name] = _UnsavedMean(name=name)
        self._means[name].update_state(tf.cast(values, tf.float32), sample_weight=weight)

    def results(self):
        """Returns a dict of name to mean."""
        return {name: mean.result() for name, mean in self._means.items()}
