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
      top: a function of h, float32 [B, D], to a dict of further outputs of the signatures, with an
        attribute `variables`, such as `ClassOutputs`; None: there are none.
    """

    # These replace the properties of tf.Module, which would include the variables of `served`.
    variables = trainable_variables = None

    def __init__(self, encoder, size, normalize=False, served=None, top=None):
        super().__init__()
        self.size = tuple(size)
        # The variables are attributes and the models are not: TensorFlow would trace every Keras
        # layer again to save it, which takes ten times as long.
        self.variables = _keras.tf_variables(encoder.variables)
        self.trainable_variables = _keras.tf_variables(encoder.trainable_variables)
        self.random_generators = _keras.random_generators(encoder)  # used in training
        served = served or encoder
        self.served_variables = _keras.tf_variables(served.variables)
        self.top_variables = _keras.tf_variables(top.variables) if top else []

        self._normalize = normalize

        def further_outputs(h):
            return top(h) if top else {}

        # A function is not saved; an attribute that is a model would be.
        self._further_outputs, self._encode = further_outputs, _quickly_traced(encoder)
        serve = _quickly_traced(served)

        @tf.function
        def embed(images):
            batch_size = tf.shape(images)[0]
            nonempty = tf.debugging.assert_positive(batch_size, "a request needs an image")
            with tf.control_dependencies([nonempty]):
                images = tf.identity(images)
            return self._answer(serve(images, False))

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

    def _answer(self, h):
        """All outputs of a signature, a dict."""
        h = self._finish(h)
        return {"embedding": h, **self._further_outputs(h)}

    def with_encoder(self, encoder):
        """Returns a function of images to all outputs with another encoder, a dict."""
        return lambda images: self._answer(encoder(images, training=False))

    @tf.function
    def __call__(self, images, training=False):
        """Embeds images [batch, H, W, 3] in [0, 1] of the encoder's size; returns [batch, D]."""
        return self._finish(self._encode(images, training))

    @tf.function(input_signature=[_images(tf.uint8)])
    def of_uint8(self, images):
        """Embeds images [batch, height, width, 3]; returns {"embedding": [batch, D], ...}."""
        return self._embed(centre_square(images, self.size))

    @tf.function(input_signature=[_images(tf.float32)])
    def of_float(self, images):
        """Embeds images [batch, height, width, 3] in [0, 1]; fails if they are outside."""
        with tf.control_dependencies([range_assertion(images)]):
            images = tf.identity(images)
        return self._embed(centre_square(images, self.size))

    @tf.function(input_signature=[_FILES])
    def of_bytes(self, image_bytes):
        """Embeds image files [batch]; returns {"embedding": [batch, D], ...}."""

        def read(file):
            return centre_square(decode_image(file)[None], self.size)[0]

        return self._embed(tf.map_fn(read, image_bytes, fn_output_signature=tf.float32))


class ClassOutputs:
    """The outputs of a classifier by h, for `Serving`.

    Args:
      logits: a `keras.Model` in float32 from h [B, D] to logits [B, C].
      class_names: list of C strings.

    Attributes:
      variables: those of the model.
    """

    def __init__(self, logits, class_names):
        self.variables = logits.variables
        self._logits, self._class_names = logits, class_names

    def __call__(self, h):
        """A dict of logits and probabilities [B, C], class_index int64 and class_name [B]."""
        logits = self._logits(h, training=False)
        index = tf.argmax(logits, axis=1)
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "class_index": index,
            "class_name": tf.gather(tf.constant(self._class_names), index),
        }


def _quickly_traced(encoder):
    """Returns the encoder as a function of images and training.

    AutoGraph converts nothing in a functional model; without it, tracing takes half the time.
    """

    def encode(images, training):
        return encoder(images, training=training)

    functional = _keras.input_shape(encoder) and encoder.inputs
    return tf.autograph.experimental.do_not_convert(encode) if functional else encode
