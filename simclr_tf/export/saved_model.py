"""Writes the encoder as a SavedModel for TF Serving.

It holds neither the optimizer nor the views. The signatures are in `serving`.
"""

from __future__ import annotations

import json
import pathlib

import tensorflow as tf

from simclr_tf import _atomic, _keras
from simclr_tf.errors import ArgumentError, storage_errors
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

# Next to saved_model.pb: image size, layer and normalisation, for `load_exported`.
METADATA_FILE = "encoder.json"
# Largest difference from the encoder's embeddings, as a fraction of their largest number.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2}


def export_encoder(
    encoder, path, image_shape=None, normalize=False, layer="h", head=None, precision="float32"
):
    """Writes the encoder as a SavedModel with signatures from images to embeddings.

    All signatures return `embedding`, float32 [batch, D], and prepare images as evaluation does:
    they cut the centre square and resize it to the encoder's size (bicubic, antialiased).

    - `serving_default` takes `images`, uint8 [batch, height, width, 3], of any height and width.
    - `serving_float` takes `images`, float32 [batch, height, width, 3] in [0, 1].
    - `serving_bytes` takes `image_bytes`, strings [batch]: JPEG, PNG, BMP or GIF files (of a GIF,
      the first frame) of at most `MAX_PIXELS` pixels each. Transparency of a PNG is laid on white.
      Files that TensorFlow would decode to another picture than training does are refused: an EXIF
      orientation other than 1, a CMYK JPEG, a BMP other than 24-bit, a GIF with transparency.

    A request with an empty batch, with float images outside [0, 1] or with a file that cannot be
    decoded fails; later requests are not affected. In the signatures, batch normalisation is folded
    into the preceding convolutions.

    The SavedModel is also a reusable one, called with float32 images and `training`, for
    `hub.KerasLayer(path, trainable=True)`. If the encoder has a functional form, the directory also
    holds `encoder.keras`, which plain Keras loads. Before the directory is renamed to `path`, a
    separate process without Keras runs the signatures, and their outputs are compared with the
    encoder's.

    Args:
      encoder: a built `keras.Model` from images [B, H, W, 3] in [0, 1] to h [B, D].
      path: a directory that does not exist yet, such as "encoder/1"; the write is atomic.
      image_shape: (H, W, 3) that the encoder was trained on; None uses the encoder's input shape.
      normalize: whether to scale each embedding to length 1 (not in encoder.keras).
      layer: the layer whose output is the embedding: "h", or another; see `functional_copy`.
      head: a built `ProjectionHead` or `SpaceHeads`, required if `layer` is one of its layers.
      precision: "float32", or "float16" for the weights and the arithmetic of the signatures, on
        devices that compute faster in it. The reusable SavedModel and encoder.keras stay float32.

    Returns:
      The path, a `pathlib.Path`.

    Raises:
      ArgumentError: the path exists, the image size is unknown, or there is no such layer.
      ExportError: the signatures and the encoder differ; nothing is written.
      StorageError: the disk is full, the directory is not writable, and the like.

    Example:

    >>> path = simclr_tf.export.export_encoder(encoder, "encoder/1")
    >>> sorted(file.name for file in path.glob("*.*"))
    ['assets.extra', 'encoder.json', 'encoder.keras', 'fingerprint.pb', 'saved_model.pb']
    """
    return write_saved_model(encoder, path, image_shape, normalize, layer, head, precision)


def write_saved_model(
    encoder,
    path,
    image_shape=None,
    normalize=False,
    layer="h",
    head=None,
    precision="float32",
    top=None,
    expected_of=None,
    metadata=(),
):
    """Does what `export_encoder` does, with further outputs.

    Args:
      encoder, path, image_shape, normalize, layer, head, precision: as there.
      top: of `serving.Serving`.
      expected_of: function of float32 images [B, H, W, 3] in [0, 1] to a dict of the outputs that
        the signatures are compared with; None computes them by the encoder and `top`.
      metadata: dict of what METADATA_FILE holds besides.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ArgumentError(f"{path} exists. Remove it, or export to another path.")
    if precision not in TOLERANCES:
        raise ArgumentError(f"precision must be float32 or float16; got {precision!r}.")
    image_shape = resolve_image_shape(encoder, image_shape)
    copy, served = _trainable_and_serving(encoder, image_shape, layer, head, precision)
    model = in_float32(encoder, image_shape) if copy is None else copy
    module = Serving(model, image_shape[:2], normalize, served or model, top)
    about = {"image_size": list(image_shape[:2]), "layer": layer, "normalize": normalize}
    with storage_errors(path), _atomic.atomic_path(path) as scratch_path:
        _write(scratch_path, module, copy, {**about, **dict(metadata)})
        in_other_precision = layer != "h" or in_half(encoder)
        expect = module.with_encoder(module if in_other_precision else encoder)
        if expected_of is not None and not in_other_precision:
            expect = expected_of
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
    """Returns the functional copy for training and the model for signatures, or (None, None)."""
    copy = functional_copy(encoder, image_shape, layer, head)
    if copy is not None and layer == "h" and not in_half(encoder):
        copy = copy if outputs_match(copy, encoder, image_shape) else None
    if copy is None:
        if precision != "float32":
            raise ArgumentError(
                f"precision={precision!r} needs a ResNet, an Airbench or a functional encoder; got "
                f"a {type(encoder).__name__}. Use float32."
            )
        return None, None
    copy.trainable = True
    if precision == "float32":
        return copy, folded_where_exact(copy, image_shape)
    return copy, folded(copy, precision)


def _save_keras(model, path):
    """Writes a `.keras` file, or none if Keras cannot write a layer (some backbones of KerasCV)."""
    try:
        model.save(path)
    except CLONE_ERRORS:
        path.unlink(missing_ok=True)


def resolve_image_shape(encoder, image_shape):
    """Returns (H, W, 3): the argument, or the encoder's; ArgumentError if both are unknown."""
    if image_shape is None:
        # A model that was built and never called has no input shape; a ResNet has `built_shape`.
        built = getattr(encoder, "built_shape", None) or (None,) * 4
        image_shape = tuple((_keras.input_shape(encoder) or built)[1:])
    if len(image_shape) != 3 or not all(isinstance(side, int) for side in image_shape):
        raise ArgumentError(
            f"export needs the image size of one batch [B, H, W, 3]; got {image_shape}. Pass "
            "image_shape."
        )
    return tuple(image_shape)
