"""Gradients of a large batch in the memory of a small one (Gao et al., arXiv:2101.06983).

NT-Xent couples all views of a batch, but only through z. So: embed all views piece by piece without
keeping activations, take dL/dz of the whole, then embed each piece once more and carry its dL/dz
back. What a step is, and which views it has, is `model.py`'s.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.errors import ArgumentError


def cached_gradients(embed, count, loss_of, variables, statistics):
    """The gradient of the loss of all views, and what the loss gives besides.

    Equal to one pass over all views where the encoder has no batch statistics. With batch norm
    each piece is normalised by its own; the moving averages move in the second pass alone. Within
    a replica all of this is of the replica's own views; `loss_of` may gather z.

    Args:
      embed: k -> z of the views of piece k, [m, d] float32; called twice for each piece, with the
        same views. That it makes them anew costs less than keeping all of them.
      count: pieces.
      loss_of: z of all pieces, [count, m, d] -> (scalar to differentiate, whatever else is wanted).
      variables: trainable, list.
      statistics: variables that `embed` updates (moving averages), list.

    Returns:
      gradients (list, as variables), what `loss_of` gave besides.
    """
    before = [tf.identity(v) for v in statistics]
    z = _embed_pieces(embed, count)  # [count, m, d]
    for variable, value in zip(statistics, before):
        variable.assign(value)
    with tf.GradientTape() as tape:
        tape.watch(z)
        objective, rest = loss_of(z)
    dz = tape.gradient(objective, z)

    def carry_back(index, *sums):
        with tf.GradientTape() as tape:
            again = tf.reduce_sum(embed(index) * dz[index])
        gradients = tape.gradient(again, variables, unconnected_gradients="zero")
        return [total + g for total, g in zip(sums, gradients)]

    gradients = _loop(count, carry_back, [tf.zeros_like(v) for v in variables])
    return gradients, rest


def split_micro_batches(batch, micro_batch_size):
    """A tensor of a batch, [B, ...], as [K, n, ...]: the images of K pieces, n = size / 2 in each.

    A piece of `micro_batch_size` views holds both views of its images.

    Raises:
      ValueError: B is not static, or K is no whole number.
    """
    images = batch.shape[0]
    if micro_batch_size % 2 or images is None or 2 * images % micro_batch_size:
        held = "a number not known in advance" if images is None else 2 * images
        raise ArgumentError(
            "micro_batch_size must be an even number that divides the views of a batch (on each "
            f"replica), two an image; got {micro_batch_size} for {held}. Batch the dataset with "
            "drop_remainder=True, to a multiple of micro_batch_size."
        )
    return tf.reshape(batch, [-1, micro_batch_size // 2, *batch.shape[1:]])


def _embed_pieces(embed, count):
    if not must_unroll():
        return tf.map_fn(
            embed, tf.range(count), parallel_iterations=1, fn_output_signature=tf.float32
        )
    z = []
    for index in range(count):
        with tf.control_dependencies(z[-1:]):
            z.append(embed(index))
    return tf.stack(z)


def _loop(count, body, state):
    """body(k, *state) -> state for k below count, one after another."""
    if not must_unroll():
        return tf.while_loop(
            lambda k, *_: k < count,
            lambda k, *state: (k + 1, *body(k, *state)),
            (0, *state),
            parallel_iterations=1,
        )[1:]
    for index in range(count):
        with tf.control_dependencies(state):
            state = body(index, *state)
    return state


def must_unroll():
    """Whether layers may talk to other replicas, which no TensorFlow loop allows: then unroll."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1
