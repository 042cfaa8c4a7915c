"""Gradients of a large batch in the memory of a small one (Gao et al., arXiv:2101.06983).

NT-Xent couples all views of a batch, but only through z. So: embed all views piece by piece without
keeping activations, take dL/dz of the whole, then embed each piece once more and carry its dL/dz
back. What a step is, and which views it has, is `model.py`'s.
"""

from __future__ import annotations

import tensorflow as tf


def cached_gradients(embed, views, loss_of, variables, statistics, micro_batch_size):
    """The loss of all views, its gradient, and z.

    Equal to one pass over all views where the encoder has no batch statistics. With batch norm
    each piece is normalised by its own; the moving averages move in the second pass alone.

    Args:
      embed: [m, H, W, 3] -> z [m, d].
      views: [V, H, W, 3] float32, V static.
      loss_of: z [V, d] -> (scalar to differentiate, whatever else is wanted).
      variables: trainable, list.
      statistics: variables that `embed` updates (moving averages), list.
      micro_batch_size: images a piece; divides V.

    Returns:
      gradients (list, as variables), what `loss_of` gave besides, z [V, d].

    Raises:
      ValueError: V is not static, or micro_batch_size does not divide it.
    """
    pieces = _split(views, micro_batch_size)
    before = [tf.identity(v) for v in statistics]
    z = tf.map_fn(embed, pieces, parallel_iterations=1, fn_output_signature=tf.float32)
    for variable, value in zip(statistics, before):
        variable.assign(value)
    z = tf.reshape(z, [-1, z.shape[-1]])  # [V, d]
    with tf.GradientTape() as tape:
        tape.watch(z)
        objective, rest = loss_of(z)
    dz = tf.reshape(tape.gradient(objective, z), [-1, micro_batch_size, z.shape[-1]])

    def carry_back(index, sums):
        with tf.GradientTape() as tape:
            again = tf.reduce_sum(embed(pieces[index]) * dz[index])
        gradients = tape.gradient(again, variables, unconnected_gradients="zero")
        return index + 1, [total + g for total, g in zip(sums, gradients)]

    zeros = [tf.zeros_like(v) for v in variables]
    _, gradients = tf.while_loop(
        lambda index, _: index < pieces.shape[0], carry_back, (0, zeros), parallel_iterations=1
    )
    return gradients, rest, z


def _split(views, micro_batch_size):
    count = views.shape[0]
    if count is None or count % micro_batch_size:
        held = "a number not known in advance" if count is None else count
        raise ValueError(
            f"micro_batch_size must divide the views of a batch, two an image; got "
            f"{micro_batch_size} for {held}. Batch the dataset with drop_remainder=True, to a "
            "multiple of micro_batch_size."
        )
    return tf.reshape(views, [-1, micro_batch_size, *views.shape[1:]])
