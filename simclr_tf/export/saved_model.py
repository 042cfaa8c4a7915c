"""Writes the encoder-only SavedModel: what goes behind TF Serving.

No head, no optimizer, no views. What its signatures compute is in `serving`.
"""

from __future__ import annotations

import json
import pathlib

import tensorflow as tf

from simclr_tf import _atomic
from simclr_tf.errors import ArgumentError, output_errors
from simclr_tf.export.check import check_export
from simclr_tf.export.functional import (
    CLONE_ERRORS,
    folded,
    folded_where_exact,
    functional_copy,
    in_float32,
    in_half,
    outputs_match,
)
from simclr_tf.export.serving import Serving
from simclr_tf.export.warmup import write_warmup

METADATA_FILE = (
    "encoder.json"  # beside saved_model.pb: what it takes and gives, for `load_exported`
)
# How far answers may lie from the encoder's, as a share of the largest number among them.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2}


def export_encoder(
    encoder, path, image_shape=None, normalize=False, layer="h", head=None, precision="float32"
):
    """Writes the encoder as a SavedModel that answers requests for embeddings of images.

    Every signature gives `embedding`, float32 [batch, D], and prepares images as evaluation does:
    the centre square, resized to the encoder's size (bicubic, antialiased).

    - `serving_default` takes `images`, uint8 [batch, height, width, 3] of any height and width;
    - `serving_float` takes `images`, float32 in [0, 1], alike;
    - `serving_bytes` takes `image_bytes`, [batch] strings of JPEG, PNG, BMP or GIF files (its first
      frame), each of at most `MAX_PIXELS` pixels. EXIF orientation is not looked at.

    What cannot be answered, an empty batch too, is an error of that request alone. In the
    signatures, batch normalisation is folded into the convolutions before it, where there are any.

    The same directory is a reusable SavedModel, called with float32 images and `training`: for
    `hub.KerasLayer(path, trainable=True)`. Beside it lies `encoder.keras` for plain Keras, where
    the encoder has a functional form. Before the directory takes its name, TensorFlow's C API runs
    its signatures in a process without Keras, and their answers are compared with the encoder's.

    Args:
      encoder: a built `keras.Model` from [B, H, W, 3] in [0, 1] to [B, D].
      path: a directory that does not exist yet, such as "encoder/1"; it is written beside and
        renamed, so that nobody sees half of it.
      image_shape: (H, W, 3) that the encoder was trained on; None takes the encoder's input shape.
      normalize: scale each embedding to length 1 (not in encoder.keras).
      layer: what is given, "h" or another layer; see `functional_copy`.
      head: a built `ProjectionHead`, where `layer` is one of its.
      precision: "float32", or "float16" for weights and arithmetic of the signatures on devices
        that are faster in it; what is trained elsewhere stays in float32.

    Returns:
      The path, as `pathlib.Path`.

    Raises:
      ValueError: the path exists, or the image size is not known, or there is no such layer.
      ExportError: the signatures do not answer as the encoder does; nothing is left.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ArgumentError(f"{path} exists. Remove it, or export to the next version beside it.")
    if precision not in TOLERANCES:
        raise ArgumentError(f"precision must be float32 or float16; got {precision!r}.")
    image_shape = resolve_image_shape(encoder, image_shape)
    copy, served = _trainable_and_serving(encoder, image_shape, layer, head, precision)
    model = in_float32(encoder, image_shape) if copy is None else copy
    module = Serving(model, image_shape[:2], normalize, served or model)
    metadata = {"image_size": list(image_shape[:2]), "layer": layer, "normalize": normalize}
    with output_errors(path), _atomic.atomic_path(path) as scratch_path:
        _write(scratch_path, module, copy, metadata)
        expect = module if layer != "h" or in_half(encoder) else module.finished(encoder)
        check_export(scratch_path, module, expect, TOLERANCES[precision])
    return path


def _write(path, module, copy, metadata):
    """Writes everything that an exported directory holds."""
    signatures = {
        "serving_default": module.of_uint8.get_concrete_function(),
        "serving_float": module.of_float.get_concrete_function(),
        "serving_bytes": module.of_bytes.get_concrete_function(),
    }
    try:
        tf.saved_model.save(module, str(path), signatures)
        write_warmup(path, module.size)
    except tf.errors.OpError as error:  # of TensorFlow's own files
        raise OSError(error.message) from error
    if copy is not None:
        _save_keras(copy, path / "encoder.keras")
    (path / METADATA_FILE).write_text(json.dumps(metadata) + "\n")


def _trainable_and_serving(encoder, image_shape, layer, head, precision):
    """The encoder to train on elsewhere and the one for signatures; None where there is none."""
    copy = functional_copy(encoder, image_shape, layer, head)
    if copy is not None and layer == "h" and not in_half(encoder):
        copy = copy if outputs_match(copy, encoder, image_shape) else None
    if copy is None:
        if precision != "float32":
            raise ArgumentError(
                f"precision={precision!r} needs a ResNet or a functional encoder; got a "
                f"{type(encoder).__name__}. Take float32."
            )
        return None, None
    copy.trainable = True
    if precision == "float32":
        return copy, folded_where_exact(copy, image_shape)
    return copy, folded(copy, precision)


def _save_keras(model, path):
    """Leaves it out where a layer in it cannot be written, as in some backbones of KerasCV."""
    try:
        model.save(path)
    except CLONE_ERRORS:
        path.unlink(missing_ok=True)


def resolve_image_shape(encoder, image_shape):
    """(H, W, 3): that given, or the encoder's own; raises ValueError where neither says it."""
    if image_shape is None:
        # One that was built and never called has no input shape yet; a ResNet remembers.
        built = getattr(encoder, "built_shape", None) or (None,) * 4
        image_shape = tuple((getattr(encoder, "input_shape", None) or built)[1:])
    if len(image_shape) != 3 or not all(isinstance(side, int) for side in image_shape):
        raise ArgumentError(
            f"export needs the image size of one batch [B, H, W, 3]; got {image_shape}. Pass "
            "image_shape."
        )
    return tuple(image_shape)
