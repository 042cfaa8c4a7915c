"""NT-Xent, the contrastive loss of SimCLR, over all views of the global batch.

Functions carry the maths; `NTXent` is the Keras loss that calls them. Metrics are in `metrics.py`.
"""

from __future__ import annotations

import itertools

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.distribute import gather_rows
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.losses import log_sum_exp


def check_temperature(temperature):
    """Raises `ArgumentError` unless the temperature is above 0 and finite.

    Example:

    >>> simclr_tf.losses.check_temperature(0.0)
    Traceback (most recent call last):
    ...
    simclr_tf.errors.ArgumentError: temperature must be a finite number above 0; got 0.0. Try ...
    """
    check_number("temperature", temperature, above=0, hint="Try 0.1 to 0.5.")


def normalised(z_a, z_b=None):
    """Returns the projections of all views as unit vectors in float32.

    Half precision would lose the small differences between near neighbours.

    Args:
      z_a, z_b: [N, d], any float dtype: the projections of two views of the same N images; or
        z_a: [V, N, d], the projections of V views, V of 2 or more, without z_b.

    Returns:
      [V, N, d] float32.

    Raises:
      ArgumentError: other shapes.

    Example:

    >>> simclr_tf.losses.normalised(z_a, z_b).shape
    TensorShape([2, 8, 16])
    """
    return tf.stack(_unit_vectors(_views(z_a, z_b)))


def _unit_vectors(views):
    return [tf.math.l2_normalize(z, axis=1) for z in views]


def _views(z_a, z_b):
    """The projections of `normalised`, not normalised: a list of V tensors [N, d] float32."""
    if z_b is None:
        z = tf.convert_to_tensor(z_a)
        if z.shape.rank != 3 or z.shape[0] is None or z.shape[0] < 2:
            raise ArgumentError(f"z must be [views, batch, dim], views 2 or more; got {z.shape}.")
        views = tf.unstack(z)
    else:
        z_a, z_b = tf.convert_to_tensor(z_a), tf.convert_to_tensor(z_b)
        if z_a.shape.rank != 2 or not z_a.shape.is_compatible_with(z_b.shape):
            raise ArgumentError(
                f"z_a and z_b must both be [batch, dim]; got {z_a.shape} and {z_b.shape}."
            )
        views = [z_a, z_b]
    return [tf.cast(z, tf.float32) for z in views]


def nt_xent(
    z_a,
    z_b=None,
    temperature=0.1,
    tile_size=None,
    decoupled=False,
    queue=None,
    normalize=True,
):
    """The normalised temperature-scaled cross entropy of SimCLR (arXiv:2002.05709, eq. 1).

        l(i, j) = -log( exp(sim(z_i, z_j) / T) / sum_{k != i} exp(sim(z_i, z_k) / T) )
        loss = 1/(2N) sum over the N pairs of l(a, b) + l(b, a)

    where sim is the cosine similarity. With V views of each image, the loss is the mean over every
    ordered pair (i, j) of views of one image, and the sum runs over j and all views of other
    images: the remaining views of the same image are neither positives nor negatives of that pair.
    V = 2 is the paper's loss.

    Within a replica of a `tf.distribute` strategy the rows are the replica's own, and the negatives
    are those of all replicas. The loss of the global batch is the mean of the replicas' losses,
    weighted by their fractions of the rows. Gradients are summed over replicas: differentiate loss
    x fraction, see `distribute.replica_offset_and_fraction`.

    Memory is linear in V N: the logits are computed in tiles, once for the value and once for the
    gradient; on one replica, only half of the symmetric matrix (`log_sum_exp.py`).

    Args:
      z_a, z_b: [N, d], float32, bfloat16 or float16: the projections of two views of N images; row
        i of z_a and row i of z_b are a positive pair. They need not be normalised. For V views,
        pass z_a: [V, N, d] without z_b.
      temperature: T, above 0.
      tile_size: rows and columns of a tile, 1 or more; None chooses.
      decoupled: True leaves the positive out of the denominator (Yeh et al., arXiv:2110.06848, eq.
        6), for small batches; the loss can then be below 0. A single image, which has no negatives,
        has a loss of 0.
      queue: [K, d], unit vectors: further negatives of every view (SimCLRv2, arXiv:2006.10029,
        section 2). They have no gradient. None: there are none.
      normalize: False takes the dot product of z_i and z_j for sim, whose size is then learnt too
        (SimCLR, table 5, which has temperatures of 10 and 100 for it).

    Returns:
      Scalar float32. For two views it is log(2N - 1) where all z are equal; decoupled, log(2N - 2);
      with a queue, log(2N - 1 + K).

    Raises:
      ArgumentError: shapes that do not fit, or a temperature not above 0.

    Example:

    >>> loss = simclr_tf.nt_xent(z_a, z_b, temperature=0.5)
    >>> float(loss) == float(simclr_tf.nt_xent(np.stack([z_a, z_b]), temperature=0.5))
    True
    """
    return nt_xent_with_top1(z_a, z_b, temperature, tile_size, decoupled, queue, normalize)[0]


def nt_xent_with_top1(
    z_a,
    z_b=None,
    temperature=0.1,
    tile_size=None,
    decoupled=False,
    queue=None,
    normalize=True,
):
    """Returns `nt_xent`, and for each positive pair whether it beats every negative.

    Arguments and errors are those of `nt_xent`.

    Returns:
      loss: scalar float32.
      correct: bool [V (V - 1) N], for every ordered pair of views (z_a's rows, then z_b's, for
        two): whether the similarity of the pair is above that of the first view and any view of
        another image, and any vector of the queue. A lead of less than 1e-6 in the cosine is a
        tie, and a tie is not correct; of dot products, a lead of less than 1e-6 of the product of
        the pair's lengths.

    Example:

    >>> loss, correct = simclr_tf.losses.nt_xent_with_top1(z_a, z_a)
    >>> bool(np.all(correct))
    True
    """
    check_temperature(temperature)
    if tile_size is not None:
        check_number("tile_size", tile_size, at_least=1, whole=True, hint="None chooses it.")
    each = _views(z_a, z_b)  # V of [N, d]: two cores work on a view each
    each = _unit_vectors(each) if normalize else each
    z = tf.stack(each)
    pairs = list(itertools.permutations(range(len(each)), 2))
    similarity = {(a, b): tf.reduce_sum(each[a] * each[b], axis=1) for a, b in pairs if a < b}
    positive = tf.stack([similarity[min(p), max(p)] for p in pairs]) / temperature
    settings = temperature, tile_size, decoupled, queue, normalize
    losses, hardest_negative = _losses(z, positive, *settings)
    lengths = 1.0
    if not normalize:
        norms = tf.norm(tf.stop_gradient(z), axis=2)
        lengths = tf.stack([norms[a] * norms[b] for a, b in pairs])
    correct = positive > hardest_negative + 1e-6 * lengths / temperature
    return tf.reduce_mean(losses), tf.reshape(correct, [-1])


def _losses(z, positive, temperature, tile_size, decoupled, queue, unit_vectors):
    """The loss of every ordered pair, and the largest logit of its first view's negatives.

    Args:
      z: [V, N, d].
      positive: [V (V - 1), N], the logits of the pairs.
      unit_vectors: whether the rows of z are of length 1.

    Returns:
      [V (V - 1), N] each.
    """
    rows_of_all, offset = gather_rows(tf.transpose(z, [1, 0, 2]))  # [M, V, d]
    one_replica = isinstance(offset, int) and offset == 0 and rows_of_all.shape[0] == z.shape[1]
    # Dot products of vectors of any length have no bound.
    if one_replica and unit_vectors and 1.0 / temperature <= log_sum_exp.MAX_PRODUCT:
        # For a single image only the sum over negatives has a gradient of exactly 0.
        with_positive = z.shape[0] == 2 and (z.shape[1] or 1) > 1
        with_positive = with_positive and not decoupled and queue is None
        x = z / temperature**0.5
        log_sum, hardest = log_sum_exp.symmetric_log_sum_exp(x, tile_size, with_positive)
        if with_positive:
            return log_sum - positive, hardest
    else:
        log_sum, hardest = _over_columns(z, rows_of_all, offset, temperature, tile_size)
    if queue is not None:
        log_sum_of_queue, hardest_of_queue = over_queue(z, queue, temperature, tile_size)
        log_sum = tf.reduce_logsumexp([log_sum, log_sum_of_queue], axis=0)
        hardest = tf.maximum(hardest, hardest_of_queue)
    negatives, hardest = (tf.repeat(x, z.shape[0] - 1, axis=0) for x in (log_sum, hardest))
    if decoupled:
        some = negatives > 0.5 * negatives.dtype.min  # whether there are negatives
        return tf.where(some, negatives, positive) - positive, hardest
    # -log( exp(p) / (exp(p) + exp(n)) ) = softplus(n - p)
    return tf.nn.softplus(negatives - positive), hardest


def _over_columns(z, rows_of_all, offset, temperature, tile_size):
    """Log-sum-exp and maximum of each view's logits with its negatives, [V, N] each."""
    views, images, all_images = z.shape[0], tf.shape(z)[1], tf.shape(rows_of_all)[0]
    arguments = (
        tf.reshape(z, [-1, z.shape[2]]) / temperature,  # [V N, d]
        tf.reshape(rows_of_all, [-1, z.shape[2]]),  # [M V, d]
        tf.tile(offset + tf.range(images), [views]),
        tf.repeat(tf.range(all_images), views),
    )
    sums = sums_over_columns(views, z, rows_of_all, arguments, tile_size)
    return [tf.reshape(x, [views, images]) for x in sums]


def over_queue(z, queue, temperature, tile_size=None):
    """Returns log-sum-exp and maximum of the logits of vectors with those of a queue.

    Args:
      z: [..., d] float32, unit vectors.
      queue: [K, d], unit vectors; they have no gradient.
      temperature: T, above 0.
      tile_size: rows and columns of a tile; None chooses.

    Returns:
      [...] each, float32.
    """
    queue = tf.stop_gradient(tf.cast(queue, tf.float32))
    rows = tf.reshape(z, [-1, z.shape[-1]])
    images = tf.zeros(tf.shape(rows)[:1], tf.int32), tf.ones(tf.shape(queue)[:1], tf.int32)
    arguments = (rows / temperature, queue, *images)
    sums = sums_over_columns(1, rows[None], queue, arguments, tile_size)
    return [tf.reshape(x, tf.shape(z)[:-1]) for x in sums]


def sums_over_columns(views, z, rows_of_all, arguments, tile_size):
    """Returns log-sum-exp and maximum; a small matrix is computed whole, a large one in tiles.

    Args:
      views: V.
      z: [V, N, d] of this replica.
      rows_of_all: [M, V, d] of all replicas.
      arguments: of `log_sum_exp.log_sum_exp`, V N rows and M V columns.
      tile_size: rows and columns of a tile; None chooses.
    """

    def in_tiles():
        return log_sum_exp.log_sum_exp(*arguments, tile_size)

    def dense():
        return log_sum_exp.dense_log_sum_exp(*arguments)

    if tile_size is not None:
        return in_tiles()
    if z.shape[1] is not None and rows_of_all.shape[0] is not None:
        small = views**2 * z.shape[1] * rows_of_all.shape[0] <= log_sum_exp.MAX_DENSE_LOGITS
        return dense() if small else in_tiles()
    sides = [tf.cast(n, tf.float32) for n in (tf.shape(z)[1], tf.shape(rows_of_all)[0])]
    small = float(views) ** 2 * sides[0] * sides[1] <= log_sum_exp.MAX_DENSE_LOGITS
    return tf.cond(small, dense, in_tiles)


@_keras.saving.register_keras_serializable(package="simclr_tf")
class NTXent(keras.losses.Loss):
    """`nt_xent` as a Keras loss of two views.

    Args:
      temperature: T, above 0.
      tile_size: rows and columns of a tile of the logits; None chooses.
      decoupled, normalize: as for `nt_xent`.
      name: of the loss.
      reduction: "none": the mean over the views is part of the loss.

    Call arguments:
      z_a, z_b: [N, d], any float dtype. The result is a float32 scalar.

    Example:

    >>> loss = simclr_tf.NTXent(temperature=0.5)
    >>> loss(z_a, z_b).shape
    TensorShape([])
    """

    def __init__(
        self,
        temperature=0.1,
        tile_size=None,
        name="nt_xent",
        reduction="none",
        decoupled=False,
        normalize=True,
    ):
        check_temperature(temperature)
        super().__init__(reduction=reduction, name=name)
        self.temperature = temperature
        self.tile_size = tile_size
        self.decoupled = decoupled
        self.normalize = normalize

    def call(self, y_true, y_pred):
        """Returns `nt_xent` of z_a and z_b."""
        settings = self.temperature, self.tile_size, self.decoupled
        return nt_xent(y_true, y_pred, *settings, normalize=self.normalize)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            "temperature": self.temperature,
            "tile_size": self.tile_size,
            "decoupled": self.decoupled,
            "normalize": self.normalize,
            "name": self.name,
        }
