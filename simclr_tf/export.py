"""The encoder-only SavedModel: what goes behind TF Serving. No head, no optimizer, no views."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import tensorflow as tf
from tensorflow import keras

from simclr_tf.augment import as_float

MAX_PIXELS = 50_000_000  # of a file; decoded, it takes three bytes each


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


_FILES = tf.TensorSpec([None], tf.string, name="image_bytes")


def _images(dtype):
    return tf.TensorSpec([None, None, None, 3], dtype, name="images")


class Serving(tf.Module):
    """What a server runs: the signatures of `export_encoder` as functions.

    Args:
      encoder: see there, in float32.
      size: (H, W) that it takes.
      normalize: see there.
    """

    def __init__(self, encoder, size, normalize=False):
        super().__init__()
        self.size = tuple(size)
        # Its variables and not itself: TensorFlow would trace every Keras layer once more to save
        # it, which takes ten times as long and serves nobody.
        self.encoder_variables = encoder.variables

        # Traced once for all signatures.
        @tf.function(input_signature=[tf.TensorSpec([None, *self.size, 3], tf.float32)])
        def embed(images):
            some = tf.debugging.assert_positive(tf.shape(images)[0], "a request needs an image")
            with tf.control_dependencies([some]):
                images = tf.identity(images)
            h = tf.cast(encoder(images, training=False), tf.float32)
            return {"embedding": tf.math.l2_normalize(h, axis=1) if normalize else h}

        self._embed = embed

    @tf.function(input_signature=[_images(tf.uint8)])
    def of_uint8(self, images):
        """[batch, height, width, 3] to {"embedding": [batch, D]}."""
        return self._embed(_centre_square(as_float(images), self.size))

    @tf.function(input_signature=[_images(tf.float32)])
    def of_float(self, images):
        """[batch, height, width, 3] in [0, 1] to {"embedding": [batch, D]}."""
        return self._embed(_centre_square(images, self.size))

    @tf.function(input_signature=[_FILES])
    def of_bytes(self, image_bytes):
        """[batch] files to {"embedding": [batch, D]}."""

        def read(file):
            with tf.control_dependencies([_check_pixels(file)]):
                image = tf.io.decode_image(file, channels=3, expand_animations=False)
            image.set_shape([None, None, 3])
            return _centre_square(as_float(image[None]), self.size)[0]

        return self._embed(tf.map_fn(read, image_bytes, fn_output_signature=tf.float32))


def _centre_square(images, size):
    """Cut and resized as `data.decode` does; [B, H, W, 3] float in [0, 1] to [B, *size, 3]."""
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    if size[0] == size[1]:
        side = tf.minimum(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, top : top + side, left : left + side]
    images = tf.image.resize(images, size, tf.image.ResizeMethod.BICUBIC, antialias=True)
    return tf.clip_by_value(images, 0.0, 1.0)


def _check_pixels(file):
    """An assertion on what the header of an image file says, before anything is decoded."""

    def number(start, dtype, count, little_endian):
        part = tf.strings.substr(file, start, count * dtype.size)
        values = tf.io.decode_raw(part, dtype, little_endian=little_endian)
        return tf.reduce_prod(tf.cast(values, tf.int64))

    def is_kind(start):
        return tf.strings.substr(file, 0, len(start)) == start

    pixels = tf.case(
        [
            (
                is_kind(b"\xff\xd8\xff"),
                lambda: tf.reduce_prod(tf.io.extract_jpeg_shape(file, tf.int64)[:2]),
            ),
            (is_kind(b"\x89PNG"), lambda: number(16, tf.int32, 2, False)),
            (is_kind(b"GIF8"), lambda: number(6, tf.uint16, 2, True)),
            (is_kind(b"BM"), lambda: tf.abs(number(18, tf.int32, 2, True))),
        ],
        default=lambda: tf.constant(0, tf.int64),  # no image: decoding says so
    )
    return tf.debugging.assert_less_equal(
        pixels, tf.constant(MAX_PIXELS, tf.int64), f"at most {MAX_PIXELS} pixels a file"
    )
