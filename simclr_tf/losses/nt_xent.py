"""NT-Xent, the contrastive loss of SimCLR, over the views of the whole global batch.

Functions carry the maths; `NTXent` is the Keras loss that calls them. What a step logs beside the
loss lives in `metrics.py`.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from simclr_tf.distribute import gather_rows
from simclr_tf.errors import ArgumentError
from simclr_tf.losses import log_sum_exp


def check_temperature(temperature):
    """Raises ValueError unless the temperature is above 0."""
    if not temperature > 0.0:
        raise ArgumentError(f"temperature must be above 0; got {temperature}. Try 0.1 to 0.5.")


def normalised(z_a, z_b):
    """Both as float32 rows of length 1.

    Args:
      z_a, z_b: [N, d], any float dtype: the projections of two views of the same N images.

    Raises:
      ValueError: the two differ in shape or are not of rank 2.
    """
    z_a, z_b = tf.convert_to_tensor(z_a), tf.convert_to_tensor(z_b)
    if z_a.shape.rank != 2 or not z_a.shape.is_compatible_with(z_b.shape):
        raise ArgumentError(
            f"z_a and z_b must both be [batch, dim]; got {z_a.shape} and {z_b.shape}."
        )
    # Half precision loses what tells near neighbours apart: everything below is float32.
    return tuple(tf.math.l2_normalize(tf.cast(z, tf.float32), axis=1) for z in (z_a, z_b))


def nt_xent_with_top1(z_a, z_b, temperature=0.1, block_size=None):
    """`nt_xent`, and which views have the other view of their image for nearest neighbour.

    Arguments and errors are those of `nt_xent`.

    Returns:
      loss: scalar float32.
      correct: [2N] bool, z_a's rows then z_b's. A lead of less than 1e-6 in the cosine is a tie,
        and a tie is not correct.
    """
    check_temperature(temperature)
    if block_size is not None and block_size < 1:
        raise ArgumentError(f"block_size must be 1 or more; got {block_size}. None chooses it.")
    z_a, z_b = normalised(z_a, z_b)
    all_a, first = gather_rows(z_a)
    all_b, _ = gather_rows(z_b)
    positive_logits = tf.tile(tf.reduce_sum(z_a * z_b, axis=1), [2]) / temperature  # [2N]

    def of_pairs():
        x = tf.stack([z_a, z_b]) / temperature**0.5
        log_sum, best = (
            tf.reshape(part, [-1]) for part in log_sum_exp.symmetric_log_sum_exp(x, block_size)
        )
        return log_sum - positive_logits, best

    def of_rows():
        rows = tf.concat([z_a, z_b], axis=0) / temperature
        columns = tf.concat([all_a, all_b], axis=0)
        log_sum, best = log_sum_exp.log_sum_exp(
            rows, columns, *_self_and_positive_index(z_a, all_a, first), block_size
        )
        return log_sum - positive_logits, best

    def at_once():
        return _rows_at_once(z_a, z_b, all_a, all_b, first, temperature)

    if all_a is z_a and 1.0 / temperature <= log_sum_exp.MAX_PRODUCT:
        losses, hardest_negative = of_pairs()
    else:
        losses, hardest_negative = _choose(z_a, all_a, block_size, at_once, of_rows)
    return tf.reduce_mean(losses), positive_logits > hardest_negative + 1e-6 / temperature


def _choose(z, all_z, block_size, at_once, in_blocks):
    """Of rows against columns: at once where the whole matrix is no larger than a few blocks."""
    if block_size is not None:
        return in_blocks()
    if z.shape[0] is not None and all_z.shape[0] is not None:
        small = 4 * z.shape[0] * all_z.shape[0] <= log_sum_exp.MAX_DENSE_LOGITS
        return at_once() if small else in_blocks()
    entries = 4.0 * tf.cast(tf.shape(z)[0], tf.float32) * tf.cast(tf.shape(all_z)[0], tf.float32)
    return tf.cond(entries <= log_sum_exp.MAX_DENSE_LOGITS, at_once, in_blocks)


def _self_and_positive_index(z, all_z, first):
    """The columns of each row itself and of its other view, [2N] int32 each."""
    in_a = first + tf.range(tf.shape(z)[0])
    in_b = in_a + tf.shape(all_z)[0]
    return tf.concat([in_a, in_b], axis=0), tf.concat([in_b, in_a], axis=0)


def _rows_at_once(z_a, z_b, all_a, all_b, first, temperature):
    """Each row's loss and largest logit of another image, from the whole matrix: [2N] each."""
    rows = tf.concat([z_a, z_b], axis=0) / temperature  # [2N, d]
    columns = tf.concat([all_a, all_b], axis=0)  # [2M, d]
    own, positive = _self_and_positive_index(z_a, all_a, first)
    logits = _exclude(tf.matmul(rows, columns, transpose_b=True), own)  # [2N, 2M]
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positive, logits=logits)
    hardest_negative = tf.reduce_max(_exclude(tf.stop_gradient(logits), positive), axis=1)
    return losses, hardest_negative


def _exclude(logits, columns):
    """Puts one entry of each row out of the race: logits [n, m], columns [n] int32."""
    indices = tf.range(tf.shape(logits)[1])[None, :]
    return tf.where(indices == columns[:, None], logits.dtype.min, logits)


def nt_xent(z_a, z_b, temperature=0.1, block_size=None):
    """The normalised temperature-scaled cross entropy of SimCLR (arXiv:2002.05709, eq. 1).

        l(i, j) = -log( exp(sim(z_i, z_j) / T) / sum_{k != i} exp(sim(z_i, z_k) / T) )
        loss = 1/(2N) sum over the N pairs of l(a, b) + l(b, a)

    sim is the cosine. Within a replica of a `tf.distribute` strategy the rows are this replica's
    and the candidates are those of all replicas; the mean of the replicas' losses is then the loss
    of the global batch, so a gradient that is summed over replicas wants loss / replicas (more
    exactly loss x the replica's share of the rows, see `replica_offset_and_fraction`).

    Memory is in proportion to N: the 2N x 2N matrix is made in blocks, once for the value and again
    for the gradient, and of a symmetric one only half (`blocks`).

    Args:
      z_a, z_b: [N, d], float32, bfloat16 or float16: projections of two views of N images. They
        need not be normalised. Row i of one and row i of the other are a positive pair.
      temperature: T, above 0.
      block_size: rows and columns of a block, 1 or more; None chooses.

    Returns:
      Scalar float32: the mean over the 2N views. log(2N - 1) where all z are alike.

    Raises:
      ValueError: shapes that do not fit, or a temperature not above 0.
    """
    return nt_xent_with_top1(z_a, z_b, temperature, block_size)[0]


@keras.saving.register_keras_serializable(package="simclr_tf")
class NTXent(keras.losses.Loss):
    """`nt_xent` as a Keras loss: `loss(z_a, z_b)`; both [N, d], scalar float32."""

    def __init__(self, temperature=0.1, block_size=None, name="nt_xent", reduction="none"):
        check_temperature(temperature)
        # The mean over views is part of the loss, so there is nothing left to reduce.
        super().__init__(reduction=reduction, name=name)
        self.temperature = temperature
        self.block_size = block_size

    def call(self, y_true, y_pred):
        """`nt_xent` of z_a and z_b."""
        return nt_xent(y_true, y_pred, self.temperature, self.block_size)

    def get_config(self):
        """Constructor arguments."""
        return {
            "temperature": self.temperature,
            "block_size": self.block_size,
            "name": self.name,
        }
