"""Writes the encoder-only SavedModel: what goes behind TF Serving.

No head, no optimizer, no views. What its signatures compute is in `serving`.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile

import tensorflow as tf
from tensorflow import keras

from simclr_tf.export.serving import Serving

ABOUT = "encoder.json"  # beside saved_model.pb: what it takes and gives, for `load_exported`


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


def export_encoder(encoder, path, image_shape=None, normalize=False):
    """Writes the encoder as a SavedModel that answers requests for embeddings of images.

    Every signature gives `embedding`, float32 [batch, D], and prepares images as evaluation does:
    the centre square, resized to the encoder's size (bicubic, antialiased).

    - `serving_default` takes `images`, uint8 [batch, height, width, 3] of any height and width;
    - `serving_float` takes `images`, float32 in [0, 1], alike;
    - `serving_bytes` takes `image_bytes`, [batch] strings of JPEG, PNG, BMP or GIF files (its first
      frame), each of at most `MAX_PIXELS` pixels. EXIF orientation is not looked at.

    What cannot be answered, an empty batch too, is an error of that request alone.

    Args:
      encoder: a built `keras.Model` from [B, H, W, 3] in [0, 1] to [B, D].
      path: a directory that does not exist yet, such as "encoder/1"; it is written beside and
        renamed, so that nobody sees half of it.
      image_shape: (H, W, 3) that the encoder was trained on; None takes the encoder's input shape.
      normalize: scale each embedding to length 1.

    Returns:
      The path, as `pathlib.Path`.

    Raises:
      ValueError: the path exists, or the image size is not known.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists. Remove it, or export to the next version beside it.")
    if image_shape is None:
        image_shape = _image_shape(encoder)
    if None in image_shape:
        raise ValueError(f"export needs the image size; got {image_shape}. Pass image_shape.")
    module = Serving(in_float32(encoder, image_shape), image_shape[:2], normalize)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    try:
        signatures = {
            "serving_default": module.of_uint8.get_concrete_function(),
            "serving_float": module.of_float.get_concrete_function(),
            "serving_bytes": module.of_bytes.get_concrete_function(),
        }
        tf.saved_model.save(module, str(beside), signatures)
        about = {"image_size": list(image_shape[:2]), "normalize": normalize}
        (beside / ABOUT).write_text(json.dumps(about) + "\n")
        beside.chmod(0o755)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def _image_shape(encoder):
    """(H, W, 3) as far as the encoder knows it."""
    # One that was built and never called has no input shape yet; a ResNet remembers.
    built = getattr(encoder, "built_shape", None) or (None,) * 4
    return tuple((getattr(encoder, "input_shape", None) or built)[1:])
