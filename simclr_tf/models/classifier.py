"""A classifier as a `keras.Model`: encoder, a linear layer that starts at 0, softmax cross-entropy.

`train_step` reads top to bottom: view -> encoder -> logits -> cross-entropy -> gradient.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf import augment as augmentations
from simclr_tf.augment.random import fold_in
from simclr_tf.distribute import replica_offset_and_fraction
from simclr_tf.encoders import validate as validate_encoder
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.images import UNLABELLED, as_float, range_assertion, unpack
from simclr_tf.metrics import RunningMeans


@_keras.saving.register_keras_serializable(package="simclr_tf")
class Classifier(_keras.Model):
    """Fine-tunes an encoder on labels (SimCLR, arXiv:2002.05709, appendix B.5).

    A batch is images and labels in a form that `images.unpack` accepts: [B, H, W, 3] in uint8 or
    float in [0, 1], and integers [B] in [0, num_classes), or -1 for an image without a label, which
    does not count. One view of each image is drawn on the device. `model(images)` and `predict`
    return the logits, [B, num_classes] float32, of images without augmentation. Layers of the
    encoder with `trainable = False` stay as they are, batch normalisation in inference mode.

    Args:
      encoder: a `keras.Model` that maps images to vectors. It is trained, not copied.
      num_classes: int, at least 2.
      augment: a callable batch -> batch; None is the paper's for fine-tuning, random crops (resized
        to the size of the images) and flips; False leaves the images as they are.
      seed: of the views; None draws one for each step.

    Raises:
      ArgumentError: an argument out of range, an encoder that does not return vectors, a batch
        without labels.

    Example:

    >>> model = simclr_tf.models.Classifier(encoder, num_classes=4)
    >>> model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True))
    >>> history = model.fit(images, labels, batch_size=4, verbose=0).history
    >>> sorted(history), model(images).shape
    (['accuracy', 'loss'], TensorShape([8, 4]))
    """

    def __init__(self, encoder, num_classes, augment=None, seed=None, **kwargs):
        check_number("num_classes", num_classes, at_least=2, whole=True)
        if augment is not None and augment is not False and not callable(augment):
            raise ArgumentError(
                f"augment must be a callable batch -> batch, None or False; got {augment!r}."
            )
        super().__init__(**kwargs)
        self.encoder, self.num_classes = encoder, num_classes
        self.augment, self.seed = augment, seed
        # Zeros: the first steps do not depend on random weights. float32: as the loss needs it.
        self.logits = keras.layers.Dense(
            num_classes, kernel_initializer="zeros", dtype="float32", name="logits"
        )
        self._family = None
        self._running_means = RunningMeans(["loss", "accuracy"])

    def build(self, input_shape):
        """Creates the variables for images of `input_shape`, (None, H, W, 3)."""
        if self.built:
            return
        image_shape = tuple(tf.TensorShape(input_shape).as_list()[1:])
        self.logits.build((None, validate_encoder(self.encoder, image_shape[:2])))
        self._image_shape = image_shape
        self.built = True
        _keras.set_save_spec(self, (None, *image_shape))

    def call(self, images, training=False):
        """Returns logits, [B, num_classes] float32, of images [B, H, W, 3]."""
        h = self.encoder(as_float(images), training=training)
        return self.logits(tf.cast(h, tf.float32))

    def train_step(self, data):
        """One update; Keras calls it with a batch."""
        batch = unpack(data)
        labels, images = _labels(batch), tf.convert_to_tensor(batch.images)
        with tf.control_dependencies(_checks(images, labels, self.num_classes)):
            views = self._views(images, batch.extents)
        self.build(views.shape)
        with tf.GradientTape() as tape:
            logits = self(views, training=True)  # [B, C]
            losses, weights = _cross_entropies(logits, labels)
            total = tf.math.divide_no_nan(
                tf.reduce_sum(losses * weights), _sum_over_replicas(tf.reduce_sum(weights))
            )
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            total = _keras.scale_loss(self.optimizer, total + sum(self.losses) / replicas)
        gradients = tape.gradient(total, self.trainable_variables)
        gradients = _keras.unscale_gradients(self.optimizer, gradients)
        gradients = _keras.with_overflow_of_any_replica(self.optimizer, gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        return self._log(losses, weights, logits, labels)

    def test_step(self, data):
        """Loss and accuracy of images without augmentation; inference mode."""
        batch = unpack(data)
        labels, images = _labels(batch), tf.convert_to_tensor(batch.images)
        with tf.control_dependencies(_checks(images, labels, self.num_classes)):
            logits = self(tf.identity(images), training=False)
        return self._log(*_cross_entropies(logits, labels), logits, labels)

    def predict_step(self, data):
        """Returns the logits of a batch; labels, if present, are ignored."""
        return self(unpack(data).images, training=False)

    def _views(self, images, extents):
        """One view of every image, [B, S, S, 3] float32 in [0, 1]."""
        if self.augment is False:
            return as_float(images)
        seed = augmentations.as_seed(self.seed)
        seed = seed if self.seed is None else fold_in(seed, self.optimizer.iterations)
        first_row, _ = replica_offset_and_fraction(images)
        family = self.augment or self._crop_and_flip(min(augmentations.static_size(images)))
        return augmentations.call_view(family, images, seed, first_row, extents)

    def _crop_and_flip(self, size):
        """The default family; `self.augment` stays None, so that the config keeps it."""
        if self._family is None or self._family.output_size(0) != size:
            crop, flip = augmentations.RandomCropResize(size), augmentations.RandomFlip()
            self._family = augmentations.Compose([crop, flip])
        return self._family

    def _log(self, losses, weights, logits, labels):
        """Updates the running means over all labelled images."""
        count = tf.reduce_sum(weights)
        correct = tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.float32)
        for name, values in (("loss", losses), ("accuracy", correct)):
            mean = tf.math.divide_no_nan(tf.reduce_sum(values * weights), count)
            self._running_means.update(name, mean, count)
        return self._running_means.results()

    @property
    def metrics(self):
        """Running means of the loss and of top-1 on the views."""
        return self._running_means.metrics

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """`keras.Model.compile` without a loss, which is the cross-entropy."""
        if loss is not None:
            raise ArgumentError(
                "Classifier brings its own loss; got another. Call compile(optimizer=...)."
            )
        super().compile(optimizer=optimizer, **kwargs)

    def get_config(self):
        """Returns the constructor's arguments, layers and functions serialised."""
        serialise = _keras.saving.serialize_keras_object
        return {
            "encoder": serialise(self.encoder),
            "num_classes": self.num_classes,
            "augment": serialise(self.augment) if self.augment else self.augment,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the model of a config, without its weights."""
        restore = _keras.saving.deserialize_keras_object
        config = {**config, "encoder": restore(config["encoder"], custom_objects=custom_objects)}
        if config["augment"]:
            config["augment"] = restore(config["augment"], custom_objects=custom_objects)
        return cls(**config)


def _labels(batch):
    """Labels of a batch, integers [B]."""
    if batch.labels is None:
        raise ArgumentError("Classifier needs labels; the batch has none. Pass (images, labels).")
    labels = tf.convert_to_tensor(batch.labels)
    if labels.shape.rank == 2 and labels.shape[1] == 1:  # as Keras 2 makes of arrays [B]
        labels = labels[:, 0]
    if labels.shape.rank not in (1, None) or not labels.dtype.is_integer:
        raise ArgumentError(
            f"labels must be integers [B]; got {labels.dtype.name} of shape {labels.shape}. "
            "Pass the index of each class."
        )
    return tf.cast(labels, tf.int32)


def _checks(images, labels, num_classes):
    """Operations that fail for images or labels out of range."""
    known = (labels >= UNLABELLED) & (labels < num_classes)
    rule = f"labels must be in [0, {num_classes}), or {UNLABELLED} without a label"
    checks = [range_assertion(images), tf.debugging.Assert(tf.reduce_all(known), [rule, labels])]
    return [check for check in checks if check is not None]


def _cross_entropies(logits, labels):
    """(losses, weights), float32 [B] each; the weight is 0 for an image without a label."""
    weights = tf.cast(labels != UNLABELLED, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
    return losses, weights


def _sum_over_replicas(value):
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce("SUM", value)
