"""What this process computes on, for code that has one form for a processor and one for others."""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # no public name tells what XLA compiles


def on_processor():
    """Whether TensorFlow sees no GPU and no TPU. Initialises the devices."""
    return not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def under_xla():
    """Whether what is being traced is part of a function that XLA compiles as a whole."""
    graph = tf.compat.v1.get_default_graph()
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))
