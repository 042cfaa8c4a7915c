"""Where Keras 2 and Keras 3 differ.

The only place that touches private or undocumented TensorFlow and Keras API.
"""

from __future__ import annotations

import tensorflow as tf
from absl import logging

# Raised where an operation is missing, takes other arguments or has no kernel.
_BUILD_ERRORS = (
    AttributeError,
    TypeError,
    ValueError,
    NotImplementedError,
    tf.errors.OpError,
)


def map_rows(function, batches):
    """Applies a function to every row of a batch; rows run in parallel, each on one core.

    `tf.map_fn` divides every operation among all cores, which takes longer than the operation where
    rows are as small as one image. The result has no gradient, and XLA cannot compile it. Where
    `tf.raw_ops.MapDefun`, which is undocumented, is missing or cannot be built, `tf.map_fn` is used
    and returns the same result.

    Args:
      function: called with one row of each item of `batches`; returns one tensor.
      batches: a tuple of tensors [B, ...], or of nested structures of them.

    Returns:
      [B, ...], the results of `function`, of its dtype.
    """
    flat = tf.nest.flatten(batches)
    specs = [tf.TensorSpec(batch.shape[1:], batch.dtype) for batch in flat]
    packed = tf.function(lambda *row: function(*tf.nest.pack_sequence_as(batches, row)))
    concrete = packed.get_concrete_function(*specs)
    (out,) = concrete.outputs
    try:
        (made,) = tf.raw_ops.MapDefun(
            arguments=flat,
            captured_inputs=concrete.captured_inputs,
            output_types=[out.dtype],
            output_shapes=[out.shape],
            f=concrete,
            max_intra_op_parallelism=1,
        )
    except _BUILD_ERRORS as error:
        logging.log_first_n(
            logging.WARNING, "Large views are slower, without MapDefun: %s", 1, error
        )
        spec = tf.TensorSpec(out.shape, out.dtype)
        made = tf.map_fn(lambda row: function(*row), batches, fn_output_signature=spec)
    return made
