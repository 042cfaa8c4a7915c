"""What this process computes on, for code that has one form for a processor and one for others."""

import tensorflow as tf


def on_processor():
    """Whether TensorFlow sees no GPU and no TPU. Initialises the devices."""
    return not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
