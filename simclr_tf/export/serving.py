"""What a server runs: images or files of any size to embeddings.

The signatures of an exported SavedModel as functions. Writing it is in `saved_model`.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.images import centre_square, range_assertion

MAX_PIXELS = 50_000_000  # of a file; decoded, it takes three bytes each

_FILES = tf.TensorSpec([None], tf.string, name="image_bytes")


def _images(dtype):
    return tf.TensorSpec([None, None, None, 3], dtype, name="images")


class Serving(tf.Module):
    """What is saved: the signatures of `export_encoder`, and the encoder to train on elsewhere.

    As a reusable SavedModel (the interface of tensorflow-hub) it is called with images and
    `training`, and has `variables` and `trainable_variables`.

    Args:
      encoder: a `keras.Model` in float32 from [B, H, W, 3] in [0, 1] to [B, D].
      size: (H, W) of the images in the signatures.
      normalize: scale each embedding to length 1.
      served: the same function for the signatures, made for inference; None takes the encoder.
    """

    # In place of tf.Module's properties, which would hold those of `served` too.
    variables = trainable_variables = None

    def __init__(self, encoder, size, normalize=False, served=None):
        super().__init__()
        self.size = tuple(size)
        # Variables and not the models: TensorFlow would trace every Keras layer once more to save
        # them, which takes ten times as long and serves nobody.
        self.variables = list(encoder.variables)
        self.trainable_variables = list(encoder.trainable_variables)
        served = served or encoder
        self.served_variables = list(served.variables)

        self._normalize = normalize
        # A function, which is not saved, in place of the model, which would be.
        self._encode = _quickly_traced(encoder)
        serve = _quickly_traced(served)

        @tf.function
        def embed(images):
            some = tf.debugging.assert_positive(tf.shape(images)[0], "a request needs an image")
            with tf.control_dependencies([some]):
                images = tf.identity(images)
            return {"embedding": self._finish(serve(images, False))}

        # Traced once for all signatures.
        images = tf.TensorSpec([None, *self.size, 3], tf.float32)
        self._embed = embed.get_concrete_function(images)
        sides = (encoder.input_shape if hasattr(encoder, "input_shape") else (None, *size))[1:3]
        for training in (True, False):
            images = tf.TensorSpec([None, *sides, 3], tf.float32, name="images")
            self.__call__.get_concrete_function(images, training=training)

    def _finish(self, h):
        h = tf.cast(h, tf.float32)
        return tf.math.l2_normalize(h, axis=1) if self._normalize else h

    def finished(self, encoder):
        """Another encoder's function of images, with the same end as this one's."""
        return lambda images: self._finish(encoder(images, training=False))

    @tf.function
    def __call__(self, images, training=False):
        """[batch, H, W, 3] in [0, 1] to [batch, D], as the encoder itself."""
        return self._finish(self._encode(images, training))

    @tf.function(input_signature=[_images(tf.uint8)])
    def of_uint8(self, images):
        """[batch, height, width, 3] to {"embedding": [batch, D]}."""
        return self._embed(centre_square(images, self.size))

    @tf.function(input_signature=[_images(tf.float32)])
    def of_float(self, images):
        """[batch, height, width, 3] in [0, 1] to {"embedding": [batch, D]}; others are an error."""
        with tf.control_dependencies([range_assertion(images)]):
            images = tf.identity(images)
        return self._embed(centre_square(images, self.size))

    @tf.function(input_signature=[_FILES])
    def of_bytes(self, image_bytes):
        """[batch] files to {"embedding": [batch, D]}."""

        def read(file):
            with tf.control_dependencies([_check_pixels(file)]):
                image = tf.io.decode_image(file, channels=3, expand_animations=False)
            image.set_shape([None, None, 3])
            return centre_square(image[None], self.size)[0]

        return self._embed(tf.map_fn(read, image_bytes, fn_output_signature=tf.float32))


def _quickly_traced(encoder):
    """The encoder as a function of images and training.

    AutoGraph has nothing to convert in a functional model, and takes twice as long to find out.
    """

    def encode(images, training):
        return encoder(images, training=training)

    functional = hasattr(encoder, "input_shape") and encoder.inputs
    return tf.autograph.experimental.do_not_convert(encode) if functional else encode


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
