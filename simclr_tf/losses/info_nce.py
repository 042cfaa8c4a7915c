"""InfoNCE: queries against their keys and a queue of negatives."""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.errors import ArgumentError
from simclr_tf.losses.nt_xent import check_temperature, over_queue


def info_nce(queries, keys, queue, temperature=0.2, tile_size=None):
    """The contrastive loss of MoCo (He et al., arXiv:1911.05722, equation 1).

        l(q, k) = -log( exp(q k / T) / (exp(q k / T) + sum over the queue of exp(q n / T)) )

    where q, k and n have length 1, and the loss is the mean over the queries. Memory is linear in
    the number of queries and of vectors in the queue.

    Args:
      queries: [N, d], any float dtype; they need not be normalised.
      keys: [N, d], likewise: row i is the positive of query i. They have no gradient.
      queue: [K, d], unit vectors, the negatives of every query. They have no gradient.
      temperature: T, above 0.
      tile_size: rows and columns of a tile of the logits, 1 or more; None chooses.

    Returns:
      loss: scalar float32; log(K + 1) where all vectors are equal.
      correct: bool [N], whether the key is nearer to the query than every vector of the queue, by
        more than 1e-6 in the cosine.

    Raises:
      ArgumentError: shapes that do not fit, or a temperature not above 0.

    Example:

    >>> loss, correct = simclr_tf.losses.info_nce(z_a, z_a, tf.math.l2_normalize(z_b, axis=1))
    >>> loss.shape, correct.shape
    (TensorShape([]), TensorShape([8]))
    """
    check_temperature(temperature)
    queries, keys = (tf.cast(x, tf.float32) for x in (queries, keys))
    queue = tf.convert_to_tensor(queue)
    if queries.shape.rank != 2 or keys.shape.rank != 2 or queue.shape.rank != 2:
        raise ArgumentError(
            "queries, keys and queue must be [N, d], [N, d] and [K, d]; got "
            f"{queries.shape}, {keys.shape} and {queue.shape}."
        )
    queries = tf.math.l2_normalize(queries, axis=1)
    keys = tf.stop_gradient(tf.math.l2_normalize(keys, axis=1))
    positive = tf.reduce_sum(queries * keys, axis=1) / temperature  # [N]
    negatives, hardest = over_queue(queries, queue, temperature, tile_size)
    # -log( exp(p) / (exp(p) + exp(n)) ) = softplus(n - p)
    loss = tf.reduce_mean(tf.nn.softplus(negatives - positive))
    return loss, positive > hardest + 1e-6 / temperature
