"""Supervised contrastive loss: all views of a class are positives."""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.distribute import gather_rows
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.images import UNLABELLED
from simclr_tf.losses import log_sum_exp
from simclr_tf.losses.nt_xent import check_temperature, normalised, sums_over_columns


def supervised_nt_xent(z, labels, temperature=0.1, tile_size=None):
    """The supervised contrastive loss (Khosla et al., arXiv:2004.11362, eq. 2, L_out).

        l(i) = -1 / |P(i)| sum_{p in P(i)} log( exp(sim(z_i, z_p) / T) / sum_{a != i} exp(...) )

    and the loss is the mean of l(i) over all views i. P(i) is all other views of images of the same
    class, those of the same image included; a runs over all other views. An image without a label
    is a class of its own, so that a batch may have labels for some of its images, for all or for
    none.

    Within a replica of a `tf.distribute` strategy the rows are the replica's own, and positives and
    negatives are those of all replicas, as in `nt_xent`. Memory is linear in V N: the mean over
    P(i) is a product with the sum of a class, and the denominator is computed in tiles.

    Args:
      z: [V, N, d], any float dtype: the projections of V views of N images, V of 2 or more. They
        need not be normalised.
      labels: [N] integers; -1 for an image without a label.
      temperature: T, above 0.
      tile_size: rows and columns of a tile, 1 or more; None chooses.

    Returns:
      Scalar float32. Where all z are equal it is log(V N - 1).

    Raises:
      ArgumentError: shapes or dtypes that do not fit, or a temperature not above 0.

    Example:

    >>> loss = simclr_tf.losses.supervised_nt_xent(np.stack([z_a, z_b]), labels, temperature=0.5)
    >>> loss.shape
    TensorShape([])
    """
    check_temperature(temperature)
    if tile_size is not None:
        check_number("tile_size", tile_size, at_least=1, whole=True, hint="None chooses it.")
    z, labels = normalised(z), _integers(labels)
    columns, offset = gather_rows(tf.transpose(z, [1, 0, 2]))  # [M, V, d]
    groups = _groups(gather_rows(labels)[0])  # [M]
    positive = _mean_positive(z, columns, groups, offset) / temperature
    return tf.reduce_mean(_log_sum_of_others(z, columns, offset, temperature, tile_size) - positive)


def _integers(labels):
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 2 and labels.shape[1] == 1:  # as Keras 2 makes of arrays [B]
        labels = labels[:, 0]
    if labels.shape.rank not in (1, None) or not labels.dtype.is_integer:
        raise ArgumentError(
            f"labels must be integers [N]; got {labels.dtype.name} of shape {labels.shape}. Pass "
            "the index of each class, -1 without a label."
        )
    return tf.cast(labels, tf.int64)


def _groups(labels):
    """Numbers from 0 to M - 1, int32 [M], equal where the labels are; each -1 has its own."""
    count = tf.shape(labels, tf.int64)[0]
    keys = tf.where(labels == UNLABELLED, tf.range(count), labels + count)
    order = tf.argsort(keys)
    keys = tf.gather(keys, order)
    begins = tf.concat([[0], tf.cast(keys[1:] != keys[:-1], tf.int32)], axis=0)
    return tf.scatter_nd(order[:, None], tf.cumsum(begins)[: tf.size(order)], [tf.size(order)])


def _mean_positive(z, columns, groups, offset):
    """The mean similarity of each view with the other views of its class, [V, N]."""
    views, images, count = z.shape[0], tf.shape(z)[1], tf.size(groups)
    sums = tf.math.unsorted_segment_sum(tf.reduce_sum(columns, axis=1), groups, count)  # [M, d]
    sizes = tf.math.unsorted_segment_sum(tf.fill([count], float(views)), groups, count)
    own = tf.slice(groups, [offset], [images])
    with_itself = tf.reduce_sum(z * tf.gather(sums, own)[None], axis=2)
    return (with_itself - tf.reduce_sum(z * z, axis=2)) / (tf.gather(sizes, own)[None] - 1.0)


def _log_sum_of_others(z, columns, offset, temperature, tile_size):
    """Log-sum-exp of each view's logits with all other views, [V, N]."""
    views, images = z.shape[0], tf.shape(z)[1]
    one_replica = isinstance(offset, int) and columns.shape[0] == z.shape[1]
    if one_replica and views == 2 and 1.0 / temperature <= log_sum_exp.MAX_PRODUCT:
        return log_sum_exp.symmetric_log_sum_exp(z / temperature**0.5, tile_size, True)[0]
    # The number of each view: only a view itself is left out.
    own = (offset + tf.range(images))[None, :] * views + tf.range(views)[:, None]
    arguments = (
        tf.reshape(z, [-1, z.shape[2]]) / temperature,  # [V N, d]
        tf.reshape(columns, [-1, z.shape[2]]),  # [M V, d]
        tf.reshape(own, [-1]),
        tf.range(tf.shape(columns)[0] * views),
    )
    log_sum = sums_over_columns(views, z, columns, arguments, tile_size)[0]
    return tf.reshape(log_sum, [views, images])
