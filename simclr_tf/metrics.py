"""Metrics of contrastive training: contrastive accuracy, and measures of embeddings.

Functions carry the maths; `ContrastiveAccuracy` is the Keras metric that keeps a running mean.
`SkippedSteps` counts what float16 leaves out.
"""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import check_number
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

    It estimates the number of directions that the embeddings use. Of embeddings z of views it is
    RankMe (Garrido et al., arXiv:2210.02885, eq. 1).

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
    return _exp_entropy(singular)


def lidar(z, delta=1e-4):
    """Returns LiDAR: the effective rank of what tells images apart, whatever view is taken of them.

    Thilak et al., arXiv:2312.04000, section 4: exp of the entropy of the normalised eigenvalues of
    W^-1/2 B W^-1/2, where B is the covariance of the means of the images over their views, and W
    that of the views about these means, plus delta times the identity. Unlike `effective_rank` it
    does not count directions in which views of one image differ as much as images do.

    Args:
      z: [V, N, d], any float dtype: embeddings of V views, 2 or more, of the same N images.
      delta: float above 0, relative to the variances of z.

    Returns:
      Scalar float32 from 1 to min(N - 1, d).

    Example:

    >>> 1.0 <= float(simclr_tf.metrics.lidar(np.stack([z_a, z_a + 0.1]))) <= 7.0
    True
    """
    check_number("delta", delta, above=0, hint="The paper has 1e-4.")
    z = tf.cast(z, tf.float64)
    means = tf.reduce_mean(z, axis=0)  # [N, d]
    within = tf.reshape(z - means, [-1, z.shape[-1]])  # [V N, d]
    covariance = tf.matmul(within, within, transpose_a=True) / tf.cast(tf.shape(within)[0], z.dtype)
    variances, directions = tf.linalg.eigh(covariance)
    scale = tf.math.rsqrt(tf.maximum(variances, 0.0) + tf.cast(delta, z.dtype))
    means -= tf.reduce_mean(means, axis=0)
    eigenvalues = tf.square(tf.linalg.svd(tf.matmul(means, directions) * scale, compute_uv=False))
    return tf.cast(_exp_entropy(eigenvalues), tf.float32)


def _exp_entropy(values):
    """The exponential of the entropy of values of at least 0, [n], scaled to a sum of 1."""
    fraction = values / tf.maximum(tf.reduce_sum(values), 1e-12)
    return tf.exp(-tf.reduce_sum(tf.math.xlogy(fraction, fraction)))


def dimension_spread(z):
    """Returns the standard deviation of each dimension of unit vectors (SimSiam, section 4.1).

    Chen and He, arXiv:2011.10566. Times sqrt(d) it is near 1 where all directions are used alike,
    and 0 where all vectors are the same.

    Args:
      z: [N, d], any float dtype; rows are scaled to length 1.

    Returns:
      float32 [d].

    Example:

    >>> simclr_tf.metrics.dimension_spread([[1.0, 0.0], [-2.0, 0.0]]).numpy()
    array([1., 0.], dtype=float32)
    """
    z = tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1)
    return tf.math.reduce_std(z, axis=0)


def similarities(z):
    """Returns the cosine similarities of all positive and of all negative pairs.

    Args:
      z: [V, N, d], any float dtype: embeddings of V views of the same N images.

    Returns:
      positive, float32 [V (V - 1) / 2 x N], pairs of views of one image; negative, float32 [pairs],
      all pairs of views of two images, each once.

    Example:

    >>> positive, negative = simclr_tf.metrics.similarities(np.stack([z_a, z_b]))
    >>> positive.shape, negative.shape
    (TensorShape([8]), TensorShape([112]))
    """
    z = normalised(z)
    views, images = z.shape[0], z.shape[1]
    rows = tf.reshape(z, [-1, z.shape[-1]])
    cosines = tf.matmul(rows, rows, transpose_b=True)  # [V N, V N]
    row, column = np.triu_indices(views * images, 1)
    same = row % images == column % images
    cosines = tf.gather_nd(cosines, np.stack([row, column], axis=1))
    return tf.boolean_mask(cosines, same), tf.boolean_mask(cosines, ~same)


def similarity_gap(z):
    """Returns by how much positive pairs are more similar than negative ones, on average.

    Args:
      z: [V, N, d], as for `similarities`, N of 2 or more.

    Returns:
      Scalar float32 in [-2, 2], a difference of mean cosines; 0 where nothing is told apart.

    Example:

    >>> float(simclr_tf.metrics.similarity_gap(np.stack([z_a, z_a]))) > 0.5
    True
    """
    positive, negative = similarities(z)
    return tf.reduce_mean(positive) - tf.reduce_mean(negative)


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


@_keras.saving.register_keras_serializable(package="simclr_tf")
class GradientNorm(_UnsavedMean):
    """Running mean of the Euclidean norm of the gradient of all weights, float32 scalar.

    Steps whose gradient is not finite, such as those that float16 skips, are left out.

    Example:

    >>> metric = simclr_tf.metrics.GradientNorm()
    >>> for gradients in ([[3.0], [4.0]], [[float("inf")], [0.0]]):
    ...     metric.update_state([tf.constant(g) for g in gradients])
    >>> float(metric.result())
    5.0
    """

    def __init__(self, name="gradient_norm", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, gradients, scale=1.0):
        """Adds a step; gradients: list of tensors or None, each `scale` times the gradient."""
        given = [tf.cast(gradient, tf.float32) for gradient in gradients if gradient is not None]
        norm = tf.linalg.global_norm(given) / scale
        finite = tf.math.is_finite(norm)
        super().update_state(tf.where(finite, norm, 0.0), tf.cast(finite, tf.float32))


class RunningMeans:
    """Running means by name, which are not weights of the model that logs them.

    Args:
      names: of the means that are there from the start; others are added when they are updated.

    Attributes:
      skipped_steps: a `SkippedSteps` that belongs to them, not among the results; None without one.
      gradient_norm: a `GradientNorm`, likewise.

    Example:

    >>> means = simclr_tf.metrics.RunningMeans(["loss"])
    >>> means.update("loss", [1.0, 3.0])
    >>> float(means.results()["loss"])
    2.0
    """

    def __init__(self, names):
        self._means = {name: _UnsavedMean(name=name) for name in names}
        self.skipped_steps = None
        self.gradient_norm = None

    @property
    def of_training(self):
        """The metrics that only training has, a list."""
        return [each for each in (self.skipped_steps, self.gradient_norm) if each is not None]

    @property
    def metrics(self):
        """The `keras.metrics.Mean` objects, a list."""
        return [*self._means.values(), *self.of_training]

    def update(self, name, values, weight=None):
        """Adds values, a tensor of any shape and dtype; weight: a scalar for all of them."""
        if name not in self._means:
            self._means[name] = _UnsavedMean(name=name)
        self._means[name].update_state(tf.cast(values, tf.float32), sample_weight=weight)

    def results(self):
        """Returns a dict of name to mean."""
        return {name: mean.result() for name, mean in self._means.items()}
