"""Gradients of a large batch in the memory of a small one (Gao et al., arXiv:2101.06983).

NT-Xent couples all views of a batch, but only through z. The views are embedded in micro-batches
without keeping activations, dL/dz is taken of the whole batch, and then each micro-batch is
embedded once more and its dL/dz is propagated back. The step itself is in `simclr.py`.
"""

from __future__ import annotations

import re

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError

# Operations of TensorFlow that draw other numbers at each call.
_RANDOM_OPERATION = re.compile(
    r"(Stateful|Parameterized)?(Random|Truncated|Uniform)|Multinomial|Rng"
)
_NOT_DETERMINISTIC = (
    "micro_batch_size needs layers that compute the same in both passes over a micro-batch; {} "
    "draws random numbers (dropout, stochastic depth, noise). Remove the layer, or leave "
    "micro_batch_size out."
)


def cached_gradients(embed, micro_batches, loss_of, variables, statistics, penalty=None):
    """Returns the gradient of the loss of all views, and what else the loss function returns.

    It equals the gradient of one pass over all views where the encoder has no batch statistics.
    With batch normalisation each micro-batch is normalised by its own statistics, and the moving
    averages are updated in the second pass alone. Within a replica, the views are the replica's
    own; `loss_of` may gather z.

    Args:
      embed: k -> z [V, n, d] float32 of micro-batch k; called twice for each, with equal views.
      micro_batches: a `MicroBatches`.
      loss_of: z [V, B, d] of all views -> (scalar to differentiate, whatever else is wanted).
      variables: trainable, list.
      statistics: variables that `embed` updates (moving averages, seeds), list.
      penalty: called after each `embed` of the second pass, returns a scalar that is added to the
        loss, divided by the number of micro-batches: regularisation losses. None adds nothing.

    Returns:
      gradients (list, as `variables`), what `loss_of` returned besides.

    Raises:
      ArgumentError: `embed` draws random numbers, so the two passes would differ.
    """
    variables, statistics = _keras.tf_variables(variables), _keras.tf_variables(statistics)
    before = [tf.identity(v) for v in statistics]

    def restore():
        for variable, value in zip(statistics, before):
            variable.assign(value)

    z = micro_batches.map(lambda k: _deterministic(embed, k, restore))  # [V, B, d]
    restore()
    with tf.GradientTape() as tape:
        tape.watch(z)
        objective, rest = loss_of(z)
    # The objective may have variables of its own.
    dz, direct = tape.gradient(objective, [z, variables], unconnected_gradients="zero")
    dz_of = micro_batches.slices(tf.transpose(dz, [1, 0, 2]))

    def propagate_back(k, *sums):
        with tf.GradientTape() as tape:
            again = embed(k)  # [V, n, d]
            total = tf.reduce_sum(again * tf.transpose(dz_of(k), [1, 0, 2]))
            if penalty is not None:
                total += penalty() / tf.cast(micro_batches.count, tf.float32)
        gradients = tape.gradient(total, variables, unconnected_gradients="zero")
        return [one + g for one, g in zip(sums, gradients)]

    gradients = micro_batches.loop(propagate_back, direct)
    return gradients, rest


class MicroBatches:
    """The images of a batch in slices of n, each with all V views of its images.

    Args:
      images: number of images on this replica: an int where it is static, else a tensor. Then the
        last micro-batch may be smaller.
      micro_batch_size: views of a micro-batch, V n.
      views: V.

    Attributes:
      count: number of micro-batches: an int where `images` is static, else a tensor.

    Raises:
      ArgumentError: a static number of views that micro-batches do not divide, or a number that is
        not static on several replicas.
    """

    def __init__(self, images, micro_batch_size, views=2):
        self.size, self.static = micro_batch_size // views, isinstance(images, int)
        if micro_batch_size % views or (self.static and images % self.size):
            held = views * images if self.static else "a number that is not static"
            multiple = "an even number" if views == 2 else f"a multiple of {views}"
            raise ArgumentError(
                f"micro_batch_size must be {multiple} that divides the views of a batch (on each "
                f"replica), {views} per image; got {micro_batch_size} for {held}. Use a batch_size "
                "that is a multiple, with drop_remainder=True."
            )
        if not self.static and must_unroll():
            raise ArgumentError(
                "micro_batch_size on several replicas needs batches of a static size; got batches "
                "of an unknown size. Batch the dataset with drop_remainder=True."
            )
        self.count = images // self.size if self.static else -(-images // self.size)

    def slices(self, tensor):
        """Returns a function of k: rows of micro-batch k of a tensor [B, ...]."""
        if self.static:  # keeps the shape static, as XLA needs it
            tensor = tf.reshape(tensor, [self.count, self.size, *tensor.shape[1:]])
            return lambda k: tensor[k]
        return lambda k: tensor[k * self.size : (k + 1) * self.size]

    def map(self, function):
        """Returns the results [V, n, d] of function(k), float32, as one tensor [V, B, d]."""
        if must_unroll():
            results = []
            for k in range(self.count):
                with tf.control_dependencies(results[-1:]):
                    results.append(function(k))
            return tf.concat(results, axis=1)

        shapes = []

        def write(k, array):
            rows = tf.transpose(function(k), [1, 0, 2])  # [n, V, d]
            shapes.append(rows.shape)
            return (array.write(k, rows),)

        array = tf.TensorArray(tf.float32, size=self.count, infer_shape=self.static)
        (array,) = self.loop(write, (array,))
        rows = array.stack() if self.static else array.concat()
        batch = self.count * self.size if self.static else None
        rows = tf.reshape(rows, [batch or -1, *shapes[0][1:]])
        return tf.transpose(rows, [1, 0, 2])

    def loop(self, body, state):
        """body(k, *state) -> state for each micro-batch, one after another."""
        if not must_unroll():
            return tf.while_loop(
                lambda k, *_: k < self.count,
                lambda k, *state: (k + 1, *body(k, *state)),
                (0, *state),
                parallel_iterations=1,
            )[1:]
        for k in range(self.count):
            with tf.control_dependencies(state):
                state = body(k, *state)
        return state


def must_unroll():
    """Whether layers may communicate with other replicas, which no TensorFlow loop allows."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def _deterministic(embed, k, restore):
    """Returns embed(k); raises `ArgumentError` where another pass would draw other numbers.

    Layers of Keras 3 draw theirs from a state, which is among the statistics that are restored.
    """
    if tf.executing_eagerly():
        if k == 0:
            first = embed(k)
            restore()
        z = embed(k)
        if k == 0 and tf.reduce_any(z != first):
            raise ArgumentError(_NOT_DETERMINISTIC.format("a layer"))
        return z
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    z = embed(k)
    found = _random_operations(graph, graph.get_operations()[before:])
    if found:
        raise ArgumentError(_NOT_DETERMINISTIC.format(found[0]))
    return z


def _random_operations(graph, operations):
    """Names of the operations that draw random numbers, in functions that they call too."""
    found = [op.name for op in operations if _is_random(op.type)]
    called = {
        value.func.name
        for op in operations
        for value in op.node_def.attr.values()
        if value.HasField("func")
    }
    if not called:
        return found
    library = {f.signature.name: f for f in graph.as_graph_def().library.function}
    seen = set()
    while called - seen:
        name = (called - seen).pop()
        seen.add(name)
        for node in library[name].node_def if name in library else ():
            if _is_random(node.op):
                found.append(f"{name}/{node.name}")
            called |= {a.func.name for a in node.attr.values() if a.HasField("func")}
    return found


def _is_random(kind):
    return _RANDOM_OPERATION.match(kind) is not None
