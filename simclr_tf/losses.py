"""NT-Xent, the contrastive loss of SimCLR, over the views of the whole global batch.

Functions carry the maths; `NTXent` is the Keras loss that calls them. What a step logs beside the
loss lives in `metrics.py`.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras


def check_temperature(temperature):
    """Raises ValueError unless the temperature is above 0."""
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0; got {temperature}. Try 0.1 to 0.5.")


def rows_before(x):
    """(rows of the replicas before this one, this replica's share of all rows); x: [n, ...].

    Outside a replica, or with one: (0, 1). Where n is static all replicas have n; else it is asked
    for, since the last batch of a data set may be shared unevenly.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, 1.0
    replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
    if x.shape[0] is not None:
        return replica * x.shape[0], 1.0 / replicas
    sizes = context.all_gather(tf.shape(x)[:1], axis=0)  # [R]
    return tf.reduce_sum(sizes[:replica]), tf.cast(
        tf.shape(x)[0] / tf.reduce_sum(sizes), tf.float32
    )


def gather_rows(x):
    """The rows of all replicas, [R n, ...], and the place of this replica's first row.

    Differentiable: the gradient of a row is the sum of what all replicas send back. Outside a
    replica, or with one, x itself.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x, 0
    return context.all_gather(x, axis=0), rows_before(x)[0]


def similarities(z_a, z_b):
    """Cosine similarity of this replica's rows to the global batch, and where the pairs are.

    Args:
      z_a, z_b: [N, d], any float dtype: the projections of two views of the same N images.

    Returns:
      logits: [2N, 2M] float32 with M = N x replicas; rows are z_a then z_b, columns likewise.
      positive: [2N] int32, the column of each row's other view.
      own: [2N] int32, the column of the row itself.

    Raises:
      ValueError: the two differ in shape or are not of rank 2.
    """
    z_a, z_b = tf.convert_to_tensor(z_a), tf.convert_to_tensor(z_b)
    if z_a.shape.rank != 2 or not z_a.shape.is_compatible_with(z_b.shape):
        raise ValueError(f"z_a and z_b must both be [batch, dim]; got {z_a.shape} and {z_b.shape}.")
    # Half precision loses what tells near neighbours apart: everything below is float32.
    z_a = tf.math.l2_normalize(tf.cast(z_a, tf.float32), axis=1)
    z_b = tf.math.l2_normalize(tf.cast(z_b, tf.float32), axis=1)
    all_a, first = gather_rows(z_a)
    all_b, _ = gather_rows(z_b)
    rows = tf.concat([z_a, z_b], axis=0)  # [2N, d]
    columns = tf.concat([all_a, all_b], axis=0)  # [2M, d]
    logits = tf.matmul(rows, columns, transpose_b=True)  # [2N, 2M]
    in_a = first + tf.range(tf.shape(z_a)[0])
    in_b = in_a + tf.shape(all_a)[0]
    return logits, tf.concat([in_b, in_a], axis=0), tf.concat([in_a, in_b], axis=0)


def exclude(logits, columns):
    """Puts one entry of each row out of the race: logits [n, m], columns [n] int32."""
    indices = tf.range(tf.shape(logits)[1])[None, :]
    return tf.where(indices == columns[:, None], logits.dtype.min, logits)


def nt_xent(z_a, z_b, temperature=0.1):
    """The normalised temperature-scaled cross entropy of SimCLR (arXiv:2002.05709, eq. 1).

        l(i, j) = -log( exp(sim(z_i, z_j) / T) / sum_{k != i} exp(sim(z_i, z_k) / T) )
        loss = 1/(2N) sum over the N pairs of l(a, b) + l(b, a)

    sim is the cosine. Within a replica of a `tf.distribute` strategy the rows are this replica's
    and the candidates are those of all replicas; the mean of the replicas' losses is then the loss
    of the global batch, so a gradient that is summed over replicas wants loss / replicas (more
    exactly loss x the replica's share of the rows, see `rows_before`).

    Args:
      z_a, z_b: [N, d], float32, bfloat16 or float16: projections of two views of N images. They
        need not be normalised. Row i of one and row i of the other are a positive pair.
      temperature: T, above 0.

    Returns:
      Scalar float32: the mean over the 2N views. log(2N - 1) where all z are alike.

    Raises:
      ValueError: shapes that do not fit, or a temperature not above 0.
    """
    check_temperature(temperature)
    cosines, positive, own = similarities(z_a, z_b)
    logits = exclude(cosines / temperature, own)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positive, logits=logits)
    return tf.reduce_mean(losses)


@keras.saving.register_keras_serializable(package="simclr_tf")
class NTXent(keras.losses.Loss):
    """`nt_xent` as a Keras loss: `loss(z_a, z_b)`; both [N, d], scalar float32."""

    def __init__(self, temperature=0.1, name="nt_xent", reduction="none"):
        check_temperature(temperature)
        # The mean over views is part of the loss, so there is nothing left to reduce.
        super().__init__(reduction=reduction, name=name)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        """`nt_xent` of z_a and z_b."""
        return nt_xent(y_true, y_pred, self.temperature)

    def get_config(self):
        """Constructor arguments."""
        return {"temperature": self.temperature, "name": self.name}
