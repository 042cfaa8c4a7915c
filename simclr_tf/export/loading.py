"""Loads an exported SavedModel as a function from images to embeddings.

It uses the signatures only, as a server does, so it needs neither the code of the model nor Keras.
"""

from __future__ import annotations

import json
import pathlib

import tensorflow as tf
from tensorflow import keras

from simclr_tf.errors import ArgumentError, storage_errors
from simclr_tf.export.saved_model import METADATA_FILE
from simclr_tf.images import as_float, check_range

_SIGNATURES = ("serving_default", "serving_float")


def load_exported(path):
    """Loads an exported encoder as a callable.

    Any SavedModel works that has a signature `serving_default` or `serving_float` from one batch of
    images, uint8 or float32 in [0, 1], to vectors.

    Args:
      path: a directory that holds saved_model.pb, such as "encoder/1"; or its parent, with one
        directory per version, of which the highest number is loaded, as in TF Serving.

    Returns:
      An `Exported`.

    Raises:
      ArgumentError: there is no SavedModel, it cannot be read, or it has no such signature.
      StorageError: the directory is not accessible.

    Example:

    >>> path = simclr_tf.export.export_encoder(encoder, "encoder/2")
    >>> exported = simclr_tf.export.load_exported("encoder")
    >>> exported.image_size, exported(images).shape
    (32, TensorShape([8, 8]))
    """
    with storage_errors(path, "read"):
        path = _version(pathlib.Path(path))
    try:
        loaded = tf.saved_model.load(str(path))
        file = path / METADATA_FILE
        metadata = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArgumentError(
            f"path must be a SavedModel that can be read; {path} is not: {reason}. Export it again."
        ) from error
    return Exported(path, loaded, metadata)


def load_trainable(path):
    """Loads the encoder of an export for further training: its `encoder.keras`.

    Args:
      path: as for `load_exported`.

    Returns:
      (encoder, image_size): a functional `keras.Model` from float32 images [B, H, W, 3] in [0, 1]
      to [B, D], all of it trainable; and the side in pixels of its images.

    Raises:
      ArgumentError: there is no export, or it has no `encoder.keras` that this Keras reads.
      StorageError: the directory is not accessible.

    Example:

    >>> path = simclr_tf.export.export_encoder(encoder, "encoder/3")
    >>> encoder, image_size = simclr_tf.export.load_trainable(path)
    >>> image_size, encoder.trainable
    (32, True)
    """
    with storage_errors(path, "read"):
        path = _version(pathlib.Path(path))
        there = (path / "encoder.keras").is_file()
    if not there:
        raise ArgumentError(
            f"path must be an export with encoder.keras to train it further; {path} has none. Pass "
            "the run that it is from, or an encoder that Keras can save."
        )
    try:
        encoder = keras.models.load_model(path / "encoder.keras", compile=False)
        metadata = json.loads((path / METADATA_FILE).read_text())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArgumentError(
            f"path must be an export that this Keras can read; {path}/encoder.keras is not: "
            f"{str(error).strip().splitlines()[0]}. Pass the run that it is from."
        ) from error
    encoder.trainable = True
    return encoder, metadata["image_size"][0]


class Exported:
    """The signatures of a SavedModel as one function of images; see `load_exported`.

    Attributes:
      path: directory of the SavedModel, a `pathlib.Path`.
      image_size: side in pixels of the square images that the encoder takes; None if it is unknown
        or the images are not square.
      embedding_dim: D, or None if it is unknown.
      class_names: list of str, those of a fine-tuned classifier (`export_classifier`); None of an
        encoder.
    """

    def __init__(self, path, loaded, metadata):
        self.path = path
        self._loaded = loaded  # holds the variables; the signatures do not
        self._signatures = _image_signatures(loaded.signatures, path)
        first = next(iter(self._signatures.values()))
        sizes = metadata.get("image_size") or _input(first).shape[1:3]
        self.image_size = sizes[0] if sizes[0] == sizes[1] else None
        self.embedding_dim = _output(first).shape[-1]
        self.class_names = metadata.get("class_names")

    def __call__(self, images):
        """Embeds a batch.

        Args:
          images: [B, H, W, 3], uint8, or float in [0, 1].

        Returns:
          float32 [B, D].

        Raises:
          ArgumentError: images of another shape, dtype or range, or of a size that the SavedModel
            does not take.
        """
        outputs, name = self._run(images)
        return tf.cast(outputs[name], tf.float32)

    def classify(self, images):
        """Classifies a batch.

        Args:
          images: as for a call.

        Returns:
          Dict of "logits" and "probabilities", float32 [B, C]; "class_index", int64 [B];
          "class_name", string [B]; and "embedding", float32 [B, D].

        Raises:
          ArgumentError: it is an encoder without classes; and as a call.
        """
        if self.class_names is None:
            raise ArgumentError(
                f"classify needs a fine-tuned classifier; {self.path} is an encoder. Fine-tune it "
                "with `simclr-tf finetune`."
            )
        return self._run(images)[0]

    def _run(self, images):
        """All outputs of a batch, a dict, and the name of the embedding among them."""
        images = tf.convert_to_tensor(images)
        if tf.executing_eagerly():  # in a graph, `serving_float` checks the range itself
            check_range(images)
        if images.dtype != tf.uint8 or tf.uint8 not in self._signatures:
            images = as_float(images)
        if images.dtype not in self._signatures:
            images = tf.cast(tf.round(images * 255.0), tf.uint8)
        signature = self._signatures[images.dtype]
        wanted, output = _input(signature), _output(signature)
        if not wanted.shape.is_compatible_with(images.shape):
            raise ArgumentError(
                f"{self.path} takes images of shape {wanted.shape}; got {images.shape}. "
                "Resize them."
            )
        return signature(**{wanted.name: images}), output.name


def _version(path):
    """Returns the directory of the SavedModel itself, that of the highest version."""
    if (path / "saved_model.pb").is_file():
        return path
    numbers = [each.name for each in path.glob("*/") if each.name.isdecimal()]
    newest = path / max(numbers, key=int, default="")
    if not (newest / "saved_model.pb").is_file():
        raise ArgumentError(
            f"path must be an exported SavedModel, such as RUN_DIR/export/1; got {newest}, which "
            "has no saved_model.pb. Make one with `simclr-tf export`."
        )
    return newest


def _image_signatures(signatures, path):
    """Returns {dtype: signature} for the dtypes of images, uint8 and float32."""
    found = {}
    for name in _SIGNATURES:
        if name in signatures and _takes_images(signatures[name]):
            found.setdefault(_input(signatures[name]).dtype, signatures[name])
    if not found:
        raise ArgumentError(
            f"{path} must have a signature {' or '.join(_SIGNATURES)} from images "
            "[B, H, W, 3], uint8 or float32, to vectors [B, D]; it has "
            f"{', '.join(sorted(signatures)) or 'none'}. Make one with `simclr-tf export`."
        )
    return found


def _takes_images(signature):
    if len(signature.structured_input_signature[1]) != 1 or _output(signature) is None:
        return False
    spec = _input(signature)
    of_images = spec.shape.is_compatible_with([None, None, None, 3])
    return of_images and spec.dtype in (tf.uint8, tf.float32)


def _input(signature):
    """Returns the `tf.TensorSpec` of the only input, with the name of the keyword argument."""
    ((name, spec),) = signature.structured_input_signature[1].items()
    return tf.TensorSpec(spec.shape, spec.dtype, name)


def _output(signature):
    """Returns the `tf.TensorSpec` of the output `embedding`, or of the only output; else None."""
    outputs = signature.structured_outputs
    names = ["embedding"] if "embedding" in outputs else list(outputs)
    if len(names) != 1 or not outputs[names[0]].shape.is_compatible_with([None, None]):
        return None
    spec = outputs[names[0]]
    return tf.TensorSpec(spec.shape, spec.dtype, names[0])
