"""Writes the encoder as a TensorFlow Lite file, for phones and microcontrollers.

The file computes the folded encoder of `functional`.
"""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
import tensorflow as tf

from simclr_tf import _atomic, _keras
from simclr_tf.errors import ArgumentError, ExportError, storage_errors
from simclr_tf.export.functional import folded_where_exact, functional_copy, in_half
from simclr_tf.export.saved_model import resolve_image_shape
from simclr_tf.images import as_float, check_range

# Minimum cosine similarity to the encoder's embeddings. That of int8 depends on the data.
SIMILARITY = {"float32": 0.9999, "float16": 0.999, "int8": 0.9}


def export_tflite(
    encoder,
    path,
    image_shape=None,
    precision="float32",
    examples=None,
    normalize=False,
    layer="h",
    head=None,
):
    """Writes the encoder as a TensorFlow Lite file.

    Its signature `serving_default` takes `images` [batch, H, W, 3] of the encoder's size and
    returns `embedding`, float32 [batch, D]. It neither cuts nor resizes images.

    Args:
      encoder, image_shape, normalize, layer, head: as for `export_encoder`; the encoder is a
        `ResNet`, an `Airbench` or a functional model.
      path: a file that does not exist yet, such as "encoder.tflite".
      precision: "float32"; "float16", which stores weights in half the space; or "int8", which
        stores weights in a quarter of the space and computes in int8. The images are float32 in
        [0, 1]; for "int8" they are uint8.
      examples: required for "int8": images [n, H, W, 3], uint8 or float in [0, 1], typical of those
        to be embedded; a few hundred. They determine the range of every activation.

    Returns:
      The path, a `pathlib.Path`.

    Raises:
      ArgumentError: the path exists, the precision is unknown, or int8 lacks examples.
      ExportError: the embeddings differ in direction from the encoder's; nothing is written.
      StorageError: the disk is full, the directory is not writable, and the like.

    Example:

    >>> path = simclr_tf.export.export_tflite(encoder, "encoder.tflite")
    >>> interpreter = tf.lite.Interpreter(str(path))
    >>> interpreter.get_signature_runner("serving_default")(images=images / np.float32(255)).keys()
    dict_keys(['embedding'])
    """
    path, image_shape = pathlib.Path(path), resolve_image_shape(encoder, image_shape)
    _check_arguments(path, precision, examples, image_shape)
    copy = functional_copy(encoder, image_shape, layer, head)
    if copy is None:
        raise ArgumentError(
            "TensorFlow Lite needs a ResNet, an Airbench or a functional encoder; got a "
            f"{type(encoder).__name__}. Export a SavedModel."
        )
    module = _Lite(folded_where_exact(copy, image_shape), image_shape, normalize)
    # An encoder in half precision is less exact than its float32 copy.
    expect = copy if layer != "h" or in_half(encoder) else encoder
    content = _convert(module, precision, examples)
    _check(content, expect, precision, examples, image_shape)
    with storage_errors(path), _atomic.atomic_path(path) as scratch_path:
        scratch_path.write_bytes(content)
    return path


def _check_arguments(path, precision, examples, image_shape):
    if path.exists():
        raise ArgumentError(f"{path} exists. Remove it, or choose another name.")
    if precision not in SIMILARITY:
        raise ArgumentError(f"precision must be one of {', '.join(SIMILARITY)}; got {precision!r}.")
    if (precision == "int8") != (examples is not None):
        given = "none" if examples is None else f"some for {precision}"
        raise ArgumentError(
            f"examples are needed for int8 and for no other precision; got {given}."
        )
    if examples is None:
        return
    examples = np.asarray(examples)
    shape_fits = examples.shape[1:] == image_shape and len(examples)
    if not shape_fits or (examples.dtype != np.uint8 and examples.dtype.kind != "f"):
        raise ArgumentError(
            f"examples must be images [n, {', '.join(map(str, image_shape))}], uint8 or float in "
            f"[0, 1]; got {examples.dtype} of shape {examples.shape}."
        )
    check_range(examples)


class _Lite(tf.Module):
    """The function that is converted, with the variables that it uses."""

    def __init__(self, encoder, image_shape, normalize):
        super().__init__()
        self.encoder_variables = _keras.tf_variables(encoder.variables)

        @tf.function(autograph=False)
        def embed(images):
            h = encoder(images, training=False)
            return {"embedding": tf.math.l2_normalize(h, axis=1) if normalize else h}

        spec = tf.TensorSpec([None, *image_shape], tf.float32, name="images")
        self.embed = embed.get_concrete_function(spec)


def _convert(module, precision, examples):
    """The file's bytes; examples: [n, H, W, 3], uint8 or float in [0, 1], or None."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.embed], module)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        # One black and one white pixel make the range of the input [0, 1], so that its uint8
        # values are the pixels of an image.
        examples = np.array(as_float(examples))  # a copy, since it is changed
        examples[0, 0, 0], examples[0, -1, -1] = 0.0, 1.0
        converter.representative_dataset = lambda: ([image[None]] for image in examples)
        converter.inference_input_type = tf.uint8
    return converter.convert()


def run(content, images):
    """Runs a TensorFlow Lite file.

    Args:
      content: the file's bytes.
      images: [n, H, W, 3], float32 in [0, 1], or uint8 if the file is in int8.

    Returns:
      Embeddings, float32 [n, D].
    """
    with warnings.catch_warnings():
        # TensorFlow 2.20 and later advise to install another package for what works here.
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(model_content=content)
    return interpreter.get_signature_runner("serving_default")(images=images)["embedding"]


def _check(content, encoder, precision, examples, image_shape):
    if examples is None:
        examples = np.random.default_rng(0).random((16, *image_shape), dtype=np.float32)
    images = np.asarray(as_float(examples[:16]))
    expected = np.asarray(encoder(tf.constant(images), training=False), np.float32)
    got = run(content, np.uint8(np.round(255 * images)) if precision == "int8" else images)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    nonzero = np.any(expected, axis=1)  # an h of zeros has no direction
    least = np.min(np.sum(got * expected, 1)[nonzero] / lengths[nonzero], initial=1.0)
    if not least >= SIMILARITY[precision]:  # NaN is wrong too
        raise ExportError(
            f"embeddings in {precision} must have a cosine similarity to the encoder's of at least "
            f"{SIMILARITY[precision]}; got {least:.4f}. Nothing was written; use float16, or more "
            "examples."
        )
