"""The official code (google-research/simclr, tf2/) as a contender, where a person has it.

SIMCLR_OFFICIAL names its folder; without it there is no such row. Its modules are imported as they
are: they read flags of absl, which are defined here as its run.py does.
"""

import importlib
import os
import sys

from absl import flags

VARIABLE = "SIMCLR_OFFICIAL"


def is_at_hand():
    """Whether the environment names a folder with the official code."""
    return os.path.exists(os.path.join(os.environ.get(VARIABLE, ""), "data_util.py"))


def _module(name):
    folder = os.environ[VARIABLE]
    if folder not in sys.path:
        sys.path.append(folder)  # last: its names (data, model, run) are common ones
    return importlib.import_module(name)


def loss(temperature):
    """(z_a, z_b) -> its `add_contrastive_loss`, twice NT-Xent as its two directions are summed."""
    import tensorflow as tf

    objective = _module("objective")
    return lambda z_a, z_b: objective.add_contrastive_loss(
        tf.concat([z_a, z_b], axis=0), hidden_norm=True, temperature=temperature
    )[0]


def view(size, strength):
    """Uint8 image -> one view, without blur, which it makes of a batch (see `blur`)."""
    import tensorflow as tf

    if "color_jitter_strength" not in flags.FLAGS:
        flags.DEFINE_float("color_jitter_strength", strength, "Of the official code.")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    data_util = _module("data_util")

    def one(image):
        flags.FLAGS.color_jitter_strength = strength  # read while this is traced
        image = tf.image.convert_image_dtype(image, tf.float32)
        return data_util.preprocess_for_train(image, size, size)

    return one


def blur(images, size):
    """A batch of views, half of them blurred, with one sigma for all."""
    return _module("data_util").batch_random_blur([images], size, size)[0]
