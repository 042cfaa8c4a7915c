"""The signatures of an exported SavedModel: images or files of any size to embeddings.

`saved_model` writes them.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.export.image_files import decode_image
from simclr_tf.images import centre_square, range_assertion

_FILES = tf.TensorSpec([None], tf.string, name="image_bytes")


def _images(dtype):
    return tf.TensorSpec([None, None, None, 3], dtype, name="images")


class Serving(tf.Module):
    """The object that is saved: the signatures, and the encoder for further training.

    As a reusable SavedModel (the interface of tensorflow-hub), it is called with images and
    `training`, and has `variables` and `trainable_variables`.

    Args:
      encoder: a `keras.Model` in float32 from images [B, H, W, 3] in [0, 1] to h [B, D].
      size: (H, W) of the images that the signatures resize to.
      normalize: whether to scale each embedding to length 1.
      served: a model for inference that computes the same, used by the signatures; None uses the
        encoder.
    """

    # These replace the properties of tf.Module, which would include the variables of `served`.
    variables = trainable_variables = None

    def __init__(self, encoder, size, normalize=False, served=None):
        super().__init__()
        self.size = tuple(size)
        # The variables are attributes and the models are not: TensorFlow would trace every Keras
        # layer again to save it, which takes ten times as long.
        self.variables = _keras.tf_variables(encoder.variables)
        self.trainable_variables = _keras.tf_variables(encoder.trainable_variables)
        served = served or encoder
        self.served_variables = _keras.tf_variables(served.variables)

        self._normalize = normalize
        # A function is not saved; an attribute that is a model would be.
        self._encode = _quickly_traced(encoder)
        serve = _quickly_traced(served)

        @tf.function
        def embed(images):
            batch_size = tf.shape(images)[0]
            nonempty = tf.debugging.assert_positive(batch_size, "a request needs an image")
            with tf.control_dependencies([nonempty]):
                images = tf.identity(images)
            return {"embedding": self._finish(serve(images, False))}

        # Traced once for all signatures.
        images = tf.TensorSpec([None, *self.size, 3], tf.float32)
        self._embed = embed.get_concrete_function(images)
        sides = (_keras.input_shape(encoder) or (None, *size))[1:3]
        for training in (True, False):
            images = tf.TensorSpec([None, *sides, 3], tf.float32, name="images")
            self.__call__.get_concrete_function(images, training=training)

    def _finish(self, h):
        h = tf.cast(h, tf.float32)
        return tf.math.l2_normalize(h, axis=1) if self._normalize else h

    def with_encoder(self, encoder):
        """Returns a function of images: another encoder, normalised as this one is."""
        return lambda images: self._finish(encoder(images, training=False))

    @tf.function
    def __call__(self, images, training=False):
        """Embeds images [batch, H, W, 3] in [0, 1] of the encoder's size; returns [batch, D]."""
        return self._finish(self._encode(images, training))

    @tf.function(input_signature=[_images(tf.uint8)])
    def of_uint8(self, images):
        """Embeds images [batch, height, width, 3]; returns {"embedding": [batch, D]}."""
        return self._embed(centre_square(images, self.size))

    @tf.function(input_signature=[_images(tf.float32)])
    def of_float(self, images):
        """Embeds images [batch, height, width, 3] in [0, 1]; fails if they are outside."""
        with tf.control_dependencies([range_assertion(images)]):
            images = tf.identity(images)
        return self._embed(centre_square(images, self.size))

    @tf.function(input_signature=[_FILES])
    def of_bytes(self, image_bytes):
        """Embeds image files [batch]; returns {"embedding": [batch, D]}."""

        def read(file):
            return centre_square(decode_image(file)[None], self.size)[0]

        return self._embed(tf.map_fn(read, image_bytes, fn_output_signature=tf.float32))


def _quickly_traced(encoder):
    """Returns the encoder as a function of images and training.

    AutoGraph converts nothing in a functional model; without it, tracing takes half the time.
    """

    def encode(images, training):
        return encoder(images, training=training)

    functional = _keras.input_shape(encoder) and encoder.inputs
    return tf.autograph.experimental.do_not_convert(encode) if functional else encode
