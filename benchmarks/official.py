"""The official code (google-research/simclr, tf2/), for comparison where it is available.

The environment variable SIMCLR_OFFICIAL names its directory; without it the tables have no such
row. Its modules read absl flags, which are defined here in place of its run.py.
"""

import importlib
import os
import sys

from absl import flags

VARIABLE = "SIMCLR_OFFICIAL"


def is_available():
    """Returns whether SIMCLR_OFFICIAL names a directory with the official code."""
    return os.path.exists(os.path.join(os.environ.get(VARIABLE, ""), "data_util.py"))


def _module(name):
    folder = os.environ[VARIABLE]
    if folder not in sys.path:
        sys.path.append(folder)  # last, as its modules have common names (data, model, run)
    return importlib.import_module(name)


def loss(temperature):
    """Returns (z_a, z_b) -> `add_contrastive_loss`, twice NT-Xent: it sums both directions."""
    import tensorflow as tf

    objective = _module("objective")
    return lambda z_a, z_b: objective.add_contrastive_loss(
        tf.concat([z_a, z_b], axis=0), hidden_norm=True, temperature=temperature
    )[0]


def view(size, strength):
    """Returns a function from a uint8 image to a view without blur (see `blur`)."""
    import tensorflow as tf

    if "color_jitter_strength" not in flags.FLAGS:
        flags.DEFINE_float("color_jitter_strength", strength, "Strength of color jitter.")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    data_util = _module("data_util")

    def one(image):
        flags.FLAGS.color_jitter_strength = strength  # read while this is traced
        image = tf.image.convert_image_dtype(image, tf.float32)
        return data_util.preprocess_for_train(image, size, size)

    return one


def blur(images, size):
    """Blurs half of a batch of views, all with one sigma."""
    return _module("data_util").batch_random_blur([images], size, size)[0]
