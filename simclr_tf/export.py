"""The encoder-only SavedModel: what goes behind TF Serving. No head, no optimizer, no views."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import tensorflow as tf
from tensorflow import keras

from simclr_tf.augment import as_float


def in_float32(encoder, image_shape):
    """The same encoder computing in float32, so that a server needs no half precision.

    encoder: a built `keras.Model`; image_shape: (H, W, 3). One that cannot be made anew from its
    config, or whose layers carry their own precision in it, comes back as it computes now.
    """
    layers = encoder.submodules
    if all(getattr(layer, "compute_dtype", "float32") == "float32" for layer in layers):
        return encoder
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        twin = type(encoder).from_config(encoder.get_config())
        twin.build((None, *image_shape))
    except (NotImplementedError, TypeError, ValueError):  # a class without a config of its own
        return encoder
    finally:
        keras.mixed_precision.set_global_policy(before)
    twin.set_weights(encoder.get_weights())
    return twin


def export_encoder(encoder, path, image_shape=None):
    """Writes the encoder as a SavedModel whose `serving_default` takes images.

    The signature takes `images`, uint8 [batch, height, width, 3] of any height and width, resizes
    them to the encoder's own size (bilinear, antialiased) and gives `embedding`, float32
    [batch, D].

    Args:
      encoder: a built `keras.Model` from [B, H, W, 3] in [0, 1] to [B, D].
      path: a directory that does not exist yet, such as "encoder/1"; it is written beside and
        renamed, so that nobody sees half of it.
      image_shape: (H, W, 3) that the encoder was trained on; None takes the encoder's input shape.

    Returns:
      The path, as `pathlib.Path`.

    Raises:
      ValueError: the path exists, or the image size is not known.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists. Remove it, or export to the next version beside it.")
    if image_shape is None:
        image_shape = tuple(encoder.input_shape[1:])
    if None in image_shape:
        raise ValueError(f"export needs the image size; got {image_shape}. Pass image_shape.")
    module = _serving_module(in_float32(encoder, image_shape), image_shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        signatures = {"serving_default": module.serve.get_concrete_function()}
        tf.saved_model.save(module, str(beside), signatures)
        beside.chmod(0o755)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def _serving_module(encoder, image_shape):
    module = tf.Module()
    module.encoder = encoder
    size = image_shape[:2]

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def serve(images):
        pixels = tf.image.resize(as_float(images), size, antialias=True)
        pixels = tf.clip_by_value(pixels, 0.0, 1.0)
        return {"embedding": tf.cast(encoder(pixels, training=False), tf.float32)}

    module.serve = serve
    return module
