"""Reads what a run has written, for tests that compare runs."""

import tensorflow as tf

from simclr_tf.training import checkpoints


def weights_of(directory):
    """Every variable of the latest checkpoint, by name."""
    number = checkpoints.numbers(directory / "checkpoints")[-1]
    reader = tf.train.load_checkpoint(str(directory / "checkpoints" / f"ckpt-{number}"))
    names = reader.get_variable_to_shape_map()
    return {
        n: reader.get_tensor(n)
        for n in names
        if "OBJECT_GRAPH" not in n and "save_counter" not in n
    }
