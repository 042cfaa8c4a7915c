"""Gradients of a large batch in the memory of a small one (Gao et al., arXiv:2101.06983).

NT-Xent couples all views of a batch, but only through z. So: embed all views piece by piece without
keeping activations, take dL/dz of the whole, then embed each piece once more and carry its dL/dz
back. What a step is, and which views it has, is `model.py`'s.
"""

from __future__ import annotations

import tensorflow as tf


def cached_gradients(embed, views, loss_of, variables, statistics, micro_batch_size):
    """The gradient of the loss of all views, and what the loss gives besides.

    Equal to one pass over all views where the encoder has no batch statistics. With batch norm
    each piece is normalised by its own; the moving averages move in the second pass alone. Within
    a replica all of this is of the replica's own views; `loss_of` may gather z.

    Args:
      embed: [m, H, W, 3] -> z [m, d].
      views: [V, H, W, 3] float32, V static.
      loss_of: z [V, d] -> (scalar to differentiate, whatever else is wanted).
      variables: trainable, list.
      statistics: variables that `embed` updates (moving averages), list.
      micro_batch_size: views a piece; divides V.

    Returns:
      gradients (list, as variables), what `loss_of` gave besides.

    Raises:
      ValueError: V is not static, or micro_batch_size does not divide it.
    """
    pieces = _split(views, micro_batch_size)
    before = [tf.identity(v) for v in statistics]
    z = _embed_pieces(embed, pieces)  # [V / m, m, d]
    for variable, value in zip(statistics, before):
        variable.assign(value)
    with tf.GradientTape() as tape:
        tape.watch(z)
        objective, rest = loss_of(tf.reshape(z, [-1, z.shape[-1]]))
    dz = tape.gradient(objective, z)

    def carry_back(index, *sums):
        with tf.GradientTape() as tape:
            again = tf.reduce_sum(embed(pieces[index]) * dz[index])
        gradients = tape.gradient(again, variables, unconnected_gradients="zero")
        return [total + g for total, g in zip(sums, gradients)]

    gradients = _loop(pieces.shape[0], carry_back, [tf.zeros_like(v) for v in variables])
    return gradients, rest


def _embed_pieces(embed, pieces):
    if not _in_lockstep():
        return tf.map_fn(embed, pieces, parallel_iterations=1, fn_output_signature=tf.float32)
    z = []
    for index in range(pieces.shape[0]):
        with tf.control_dependencies(z[-1:]):
            z.append(embed(pieces[index]))
    return tf.stack(z)


def _loop(count, body, state):
    """body(k, *state) -> state for k below count, one after another."""
    if not _in_lockstep():
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


def _in_lockstep():
    """Whether layers may talk to other replicas, which no TensorFlow loop allows: then unroll."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def _split(views, micro_batch_size):
    count = views.shape[0]
    if count is None or count % micro_batch_size:
        held = "a number not known in advance" if count is None else count
        raise ValueError(
            f"micro_batch_size must divide the views of a batch (on each replica), two an image; "
            f"got {micro_batch_size} for {held}. Batch the dataset with drop_remainder=True, to a "
            "multiple of micro_batch_size."
        )
    return tf.reshape(views, [-1, micro_batch_size, *views.shape[1:]])
