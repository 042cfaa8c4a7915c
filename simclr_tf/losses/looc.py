"""The loss of LooC: one embedding space invariant to all augmentations, one for each kept."""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.distribute import gather_rows
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.losses.nt_xent import check_temperature, sums_over_columns


def looc_loss(z, temperature=0.1, tile_size=None):
    """The loss of leave-one-out contrastive learning (LooC, arXiv:2008.05659, section 3).

    With n kept augmentations, an image has a query q and keys k_0 .. k_n, and there are n + 1
    spaces. Key k_i, i >= 1, shares augmentation i with the query. With E(s, j) = exp(sim(q, k_j) /
    T) in space s, and N(s) = the sum of exp(sim(q, x) / T) there over all views x of other images,

        loss = 1/(n+1) (sum_{j=0..n} -log( E(0, j) / (E(0, j) + N(0)) )
                        + sum_{i=1..n} -log( E(i, i) / (sum_{j=0..n} E(i, j) + N(i)) ))

    and its mean over the images. In space 0 every key is a positive. In space i only the key that
    shares augmentation i is one; the other keys of the same image are negatives, so that the space
    has to tell their parameters of that augmentation apart. The paper has a queue of negatives;
    here they are those of the batch. With n = 0 it is NT-Xent of two views, but the mean over the
    pairs (q, k_0) alone, without (k_0, q).

    Within a replica of a `tf.distribute` strategy the rows are the replica's own, and the negatives
    are those of all replicas, as in `nt_xent`. Memory is linear in N: see `log_sum_exp.py`.

    Args:
      z: [n + 1, n + 2, N, d], float32, bfloat16 or float16: in each space, the projections of the
        query and of k_0 .. k_n of N images. They need not be normalised.
      temperature: T, above 0.
      tile_size: rows and columns of a tile, 1 or more; None chooses.

    Returns:
      Scalar float32. Where all z are equal, with M = (n + 2) (N - 1) negatives, it is
      log(1 + M) + n/(n+1) log(n + 1 + M).

    Raises:
      ArgumentError: another shape, or a temperature not above 0.

    Example:

    >>> z = tf.random.stateless_normal([2, 3, 8, 16], seed=[0, 0])  # one kept augmentation
    >>> simclr_tf.losses.looc_loss(z, temperature=0.2).shape
    TensorShape([])
    """
    return looc_loss_with_top1(z, temperature, tile_size)[0]


def looc_loss_with_top1(z, temperature=0.1, tile_size=None):
    """Returns `looc_loss`, and for each space whether its positives beat all its negatives.

    Arguments and errors are those of `looc_loss`.

    Returns:
      loss: scalar float32.
      correct: a list of n + 1 bool tensors, [n + 1, N] for space 0, with a row for each key, and
        [N] for the others: whether the similarity of the query and the positive is above that of
        the query and any negative, by 1e-6 in the cosine at least.

    Example:

    >>> z = np.tile(z_a, [2, 3, 1, 1])
    >>> _, correct = simclr_tf.losses.looc_loss_with_top1(z)
    >>> bool(np.all(correct[0])), bool(np.any(correct[1]))  # all keys of an image are equal
    (True, False)
    """
    check_temperature(temperature)
    if tile_size is not None:
        check_number("tile_size", tile_size, at_least=1, whole=True, hint="None chooses it.")
    z = _normalised(z)  # [S, V, N, d]
    columns, offset = gather_rows(tf.transpose(z, [2, 1, 0, 3]))  # [M, V, S, d]
    losses, correct = [], []
    for space, own in enumerate(tf.unstack(z)):
        # Similarities of the query with the keys, and of the query with its negatives.
        keys = tf.reduce_sum(own[:1] * own[1:], axis=2) / temperature  # [S, N]
        negatives = _negatives(own, columns[:, :, space], offset, temperature, tile_size)
        loss, is_correct = _of_space(space, keys, *negatives, 1e-6 / temperature)
        losses.append(loss)
        correct.append(is_correct)
    return tf.reduce_mean(tf.add_n(losses)) / len(losses), correct


def _normalised(z):
    """Unit vectors in float32."""
    z = tf.convert_to_tensor(z)
    if z.shape.rank != 4 or z.shape[0] is None or z.shape[1] != z.shape[0] + 1:
        raise ArgumentError(
            f"z must be [spaces, views, batch, dim] with a view more than spaces; got {z.shape}."
        )
    return tf.math.l2_normalize(tf.cast(z, tf.float32), axis=-1)


def _negatives(own, columns, offset, temperature, tile_size):
    """Log-sum-exp and maximum of the query's logits with all views of other images, [N] each.

    Args:
      own: [V, N, d] of this replica, in one space.
      columns: [M, V, d] of all replicas.
    """
    views, images = own.shape[0], tf.shape(own)[1]
    arguments = (
        own[0] / temperature,  # [N, d]
        tf.reshape(columns, [-1, own.shape[2]]),  # [M V, d]
        offset + tf.range(images),
        tf.repeat(tf.range(tf.shape(columns)[0]), views),
    )
    return sums_over_columns(views, own, columns, arguments, tile_size)


def _of_space(space, keys, negatives, hardest, margin):
    """Losses of the images, [N], summed over the space's positives, and which are correct.

    Args:
      space: its number.
      keys: [n + 1, N], logits of the query with each key.
      negatives, hardest: as `_negatives` returns them.
      margin: by which a logit is above others that it beats.
    """
    if space == 0:
        # -log( exp(p) / (exp(p) + exp(n)) ) = softplus(n - p)
        losses = tf.nn.softplus(negatives - keys)  # [n + 1, N]
        return tf.reduce_sum(losses, axis=0), keys > hardest + margin
    positive = keys[space]
    others = tf.concat([keys[:space], keys[space + 1 :]], axis=0)  # [n, N]
    log_sum = tf.reduce_logsumexp(tf.concat([keys, negatives[None]], axis=0), axis=0)
    is_correct = positive > tf.maximum(hardest, tf.reduce_max(others, axis=0)) + margin
    return log_sum - positive, is_correct
