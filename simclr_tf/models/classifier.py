"""Fine-tuning as a `keras.Model`: an encoder, a linear layer on top, cross-entropy.

`train_step` reads top to bottom: view -> encoder -> head -> logits -> cross-entropy -> gradient.
The schedules of the papers are in `evaluate.finetune`.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf import augment as augmentations
from simclr_tf.augment.random import fold_in
from simclr_tf.distribute import replica_offset_and_fraction
from simclr_tf.encoders import validate as validate_encoder
from simclr_tf.encoders.by_name import warn_of_scaling
from simclr_tf.encoders.fine_tuning import freeze_before
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.images import (
    UNLABELLED,
    as_float,
    centre_square,
    check_range,
    range_assertion,
    unpack,
)
from simclr_tf.metrics import RunningMeans, SkippedSteps
from simclr_tf.models import inputs
from simclr_tf.models.loss_scale import descend, with_loss_scale
from simclr_tf.models.views import draw, seeds_of_views, with_static_size


@_keras.saving.register_keras_serializable(package="simclr_tf")
class Classifier(_keras.Model):
    """A classifier on top of an encoder, trained together: `model.fit(dataset)` of labelled images.

    The logits are a linear layer, whose weights start at 0, on h or on the output of a hidden layer
    of the projection head (SimCLR, arXiv:2002.05709, appendix B.5; SimCLRv2, arXiv:2006.10029,
    section 3). Training images are cropped and flipped at random on the device. The loss is the
    mean cross-entropy over the labelled examples of the global batch. `evaluate` and `predict` use
    inference mode; `predict` and `model(images)` return logits, float32 [B, num_classes].

    A batch is a tuple (images, labels), or a dict with "image", "label" and optionally "extent".
    Images are [B, H, W, 3], uint8 or float in [0, 1]; labels are integers [B], -1 for examples that
    do not count, or one-hot [B, num_classes].

    Args:
      encoder: a `keras.Model` that maps images to vectors. It is trained: pass a copy to keep it.
      num_classes: C, int of 2 or more.
      projection_head: a built `ProjectionHead`; required if `head_layer` is above 0.
      head_layer: 0 puts the logits on h, 1 on the head's first hidden layer, and so on. The layers
        after it are not used.
      train_from: name of the first block of the encoder that is trained, such as "group3" or
        "group3_block2" of a ResNet. The layers before it are frozen, and their batch normalisation
        stays in inference mode. None trains the whole encoder.
      augment: a callable batch -> batch for training; None is a random crop of 8 % to 100 % of the
        area, resized, and a random flip; False uses the images as they are.
      label_smoothing: float in [0, 1), the probability mass that is shared by all classes.
      seed: int; the view of step s is then a function of (seed, s) alone. None draws from
        TensorFlow's global generator.

    Raises:
      ArgumentError: an argument out of range; from `fit`, images of a wrong rank, dtype or range,
        no labels, or labels that are no class.

    Example:

    >>> model = simclr_tf.Classifier(encoder, num_classes=4, seed=0)
    >>> model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True))
    >>> sorted(model.fit(images, labels, epochs=1, verbose=0).history)
    ['accuracy', 'loss']
    >>> model.predict(images, verbose=0).shape
    (8, 4)
    """

    def __init__(
        self,
        encoder,
        num_classes,
        projection_head=None,
        head_layer=0,
        train_from=None,
        augment=None,
        label_smoothing=0.0,
        seed=None,
        name="classifier",
        **kwargs,
    ):
        # The views are float32 and each layer casts for itself.
        super().__init__(name=name, autocast=False, **kwargs)
        check_number("num_classes", num_classes, at_least=2, whole=True)
        check_number("label_smoothing", label_smoothing, at_least=0, below=1, hint="Try 0.1.")
        _check_head_layer(head_layer, projection_head)
        if augment is not None and augment is not False and not callable(augment):
            raise ArgumentError(
                f"augment must be a callable batch -> batch, None or False; got {augment!r}."
            )
        # Before `compile`: Keras 2 trains what was trainable then.
        if train_from is not None:
            freeze_before(encoder, train_from)
        if head_layer:
            projection_head.freeze_after(head_layer)
        self.encoder = encoder
        self.num_classes = num_classes
        self.projection_head = projection_head if head_layer else None
        self.head_layer = head_layer
        self.train_from = train_from
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.logits_layer = keras.layers.Dense(
            num_classes, kernel_initializer="zeros", dtype="float32", name="logits"
        )
        self._image_shape = None
        self._input_size = None  # (H, W) of the images that `fit` was given, where Keras forgets it
        self._default_view = None
        self._running_means = RunningMeans(["loss", "accuracy"])

    @property
    def image_shape(self):
        """(H, W, 3) of the images that the model was built for; None before."""
        return self._image_shape

    # -- encoder, head and logits ------------------------------------------------------------

    def build(self, input_shape):
        """Creates the variables for images of `input_shape`, (None, H, W, 3)."""
        if self.built:
            return
        image_shape = tuple(tf.TensorShape(input_shape).as_list()[1:])
        width = validate_encoder(self.encoder, image_shape[:2])
        warn_of_scaling(self.encoder)
        if self.projection_head is not None:
            width = self.projection_head.dense_layers[self.head_layer - 1].units
        _keras.build_named(self.logits_layer, (None, width))
        self._image_shape = image_shape
        self.built = True
        _keras.set_save_spec(self, (None, *image_shape))

    def call(self, images, training=False):
        """Returns logits, [B, C] float32, of images [B, H, W, 3], uint8 or float in [0, 1]."""
        images = tf.convert_to_tensor(images)
        if tf.executing_eagerly():
            check_range(images)
        check = range_assertion(images) if tf.is_tensor(images) else None
        with tf.control_dependencies([check] if check is not None else []):
            images = as_float(images)
        return self.logits(images, training)

    def logits(self, images, training):
        """Logits, float32 [B, C], of images [B, H, W, 3], float32 in [0, 1]."""
        if not self.built:
            self.build(images.shape)
        x = self.encoder(images, training=training)  # h [B, D]
        if self.projection_head is not None:
            x = self.projection_head.hidden_outputs(x, training, self.head_layer)[-1]
        return self.logits_layer(tf.cast(x, tf.float32))

    # -- what a step is given ----------------------------------------------------------------

    def seed_of_step(self, step):
        """The seed of the view of a step, [2] integers."""
        seed = augmentations.as_seed(self.seed)
        return seed if self.seed is None else fold_in(seed, step)

    def view(self, data, seed=None):
        """Draws the view of a batch that a training step sees.

        Args:
          data: a batch as in the class's description.
          seed: of the step, [2] integers; None draws one. Where replicas share a batch, each takes
            its rows of one draw.

        Returns:
          [B, S, S, 3] float32 in [0, 1].
        """
        batch, images = unpack(data), self._images(data)
        if self.augment is False:
            return as_float(images)
        first_row, _ = replica_offset_and_fraction(images)
        seeds = seeds_of_views(seed, 1)
        (view,) = draw([self._family(images)], images, batch.extents, seeds, first_row)
        return with_static_size(view, self._image_shape and self._image_shape[:2])

    def _images(self, data):
        """The images of a batch, with a static height and width."""
        images = tf.convert_to_tensor(unpack(data).images)
        images = with_static_size(images, self._input_size)
        as_float(images)  # an error of rank or dtype is raised before anything is drawn
        return images

    def _family(self, images):
        """The augmentation; `self.augment` stays None, so that the config keeps it."""
        if self.augment is not None:
            return self.augment
        size = min((self._image_shape or augmentations.static_size(images))[:2])
        if self._default_view is None or self._default_view.output_size(0) != size:
            self._default_view = crop_and_flip(size)
        return self._default_view

    def labels_and_weights(self, data):
        """Classes, int64 [B], and weights, float32 [B]: 0 without a label, else 1."""
        labels = unpack(data).labels
        if labels is None:
            raise ArgumentError(
                "a batch must have labels; got images alone. Pass (images, labels), or a dict with "
                '"image" and "label".'
            )
        labels = tf.convert_to_tensor(labels)
        if labels.shape.rank == 2 and labels.shape[1] == self.num_classes:
            labels = tf.argmax(labels, axis=1)  # one-hot
        elif labels.shape.rank == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.shape.rank not in (1, None) or labels.dtype.is_floating:
            raise ArgumentError(
                f"labels must be integers [B] or one-hot [B, {self.num_classes}]; got "
                f"{labels.dtype.name} of shape {labels.shape}. Pass the index of each class."
            )
        labels = tf.cast(labels, tf.int64)
        with tf.control_dependencies([inputs.labels_assertion(labels, self.num_classes)]):
            known = labels != UNLABELLED
        return tf.where(known, labels, 0), tf.cast(known, tf.float32)

    def input_checks(self, images):
        """A context in which everything waits for checks of the images; see `SimCLR`."""
        checks = [range_assertion(images), inputs.rows_assertion(images)]
        return tf.control_dependencies([check for check in checks if check is not None])

    # -- the steps ---------------------------------------------------------------------------

    def train_step(self, data):
        """One update; Keras calls it with a batch."""
        seed = self.seed_of_step(self.optimizer.iterations)
        labels, weights = self.labels_and_weights(data)
        with self.input_checks(self._images(data)):
            view = self.view(data, seed)
        if not self.built:
            self.build(view.shape)
        with tf.GradientTape() as tape:
            logits = self.logits(view, training=True)  # [B, C]
            losses = self.cross_entropy(logits, labels) * weights  # [B]
            # The gradients of the replicas are summed.
            loss = tf.reduce_sum(losses) / tf.maximum(sum_over_replicas(weights), 1.0)
            total = _keras.scale_loss(self.optimizer, loss + self.penalty())
        variables, skipped = self.trainable_variables, self._running_means.skipped_steps
        descend(self.optimizer, tape.gradient(total, variables), variables, skipped)
        results = self._log(losses, logits, labels, weights)
        return results if skipped is None else {**results, skipped.name: skipped.result()}

    def test_step(self, data):
        """Loss and accuracy on the centre square of every image; inference mode."""
        if unpack(data).extents is not None:
            raise ArgumentError(
                'evaluation takes images without "extent"; got a batch with it. Pass '
                "`Source.batches`."
            )
        labels, weights = self.labels_and_weights(data)
        images = self._images(data)
        with self.input_checks(images):
            images = centre_square(images, (self._image_shape or images.shape[1:])[:2])
        logits = self.logits(images, training=False)
        return self._log(self.cross_entropy(logits, labels) * weights, logits, labels, weights)

    def predict_step(self, data):
        """Returns the logits of a batch; labels, if present, are ignored."""
        return self(unpack(data).images, training=False)

    def cross_entropy(self, logits, labels):
        """Of each example, [B]; the targets are smoothed."""
        targets = tf.one_hot(labels, self.num_classes)
        targets = (1.0 - self.label_smoothing) * targets + self.label_smoothing / self.num_classes
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def penalty(self):
        """Regularisation losses of the layers, a replica's part of them."""
        return sum(self.losses) / tf.distribute.get_strategy().num_replicas_in_sync

    def _log(self, losses, logits, labels, weights):
        """Updates the running means over the labelled examples."""
        count = tf.reduce_sum(weights)
        correct = tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32) * weights
        for name, values in (("loss", losses), ("accuracy", correct)):
            mean = tf.math.divide_no_nan(tf.reduce_sum(values), count)
            self._running_means.update(name, mean, count)
        return self._running_means.results()

    @property
    def metrics(self):
        """Running means of the loss and the accuracy; in float16, skipped steps."""
        return self._running_means.metrics

    # -- Keras's methods ---------------------------------------------------------------------

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """`keras.Model.compile` without a loss and metrics: the model has its own."""
        for name, value in {"loss": loss, **kwargs}.items():
            if name in ("loss", "metrics", "weighted_metrics", "loss_weights") and value:
                raise ArgumentError(
                    f"Classifier has its own loss and metrics; got {name}={value!r}. Call "
                    "compile(optimizer=...) without it."
                )
        super().compile(optimizer=optimizer, **kwargs)
        with self.distribute_strategy.scope():
            scales = _keras.scales_dynamically(self.optimizer)
            self._running_means.skipped_steps = SkippedSteps() if scales else None

    def compile_from_config(self, config):
        """Compiles as the saved model was; needed, as Keras does so for its own `compile` alone."""
        self.compile(**_keras.saving.deserialize_keras_object(config))
        if self.built:  # so that there are variables to load the optimizer's state into
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, *args, callbacks=None, **kwargs):
        """`keras.Model.fit`; the logs are "loss" and "accuracy", of the labelled examples."""
        for name in ("sample_weight", "class_weight"):
            if kwargs.get(name) is not None:
                raise ArgumentError(
                    f"Classifier has no {name}; got one. Label examples -1 to leave them out."
                )
        if kwargs.get("validation_data") is not None:
            inputs.check(unpack(kwargs["validation_data"]).images, single=True)
        x = self._prepare(x)
        _keras.build_optimizer(self, self)
        return self._run(super().fit, x, y, *args, callbacks=with_loss_scale(callbacks), **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """`keras.Model.evaluate`: loss and accuracy, of the labelled examples."""
        if not _keras.is_validation_of_fit(kwargs):  # which `fit` has checked
            x = self._prepare(x)
        return self._run(super().evaluate, x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """`keras.Model.predict`: logits, float32 [n, C]."""
        return self._run(super().predict, x, *args, **kwargs)

    def _run(self, loop, x, *args, **kwargs):
        with inputs.named_errors(x, self):
            return loop(x, *args, **kwargs)

    def _prepare(self, x):
        """Checks an input, and reads the size of the images where Keras does not know it."""
        inputs.check(x, single=True)
        if inputs.needs_peek(x):
            x, batch = inputs.peek(x)
            size = batch is not None and tuple(unpack(batch).images.shape[1:3])
            if size and self._input_size not in (None, size):
                _keras.forget_traced_steps(self)  # the size is part of what was traced
            self._input_size = size or self._input_size
        return x

    def get_config(self):
        """Returns the constructor's arguments, layers and functions serialised."""
        serialise = _keras.saving.serialize_keras_object
        head = self.projection_head
        return {
            "encoder": serialise(self.encoder),
            "num_classes": self.num_classes,
            "projection_head": None if head is None else serialise(head),
            "head_layer": self.head_layer,
            "train_from": self.train_from,
            "augment": serialise(self.augment) if self.augment else self.augment,
            "label_smoothing": self.label_smoothing,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the model of a config, without its weights."""
        restore = _keras.saving.deserialize_keras_object
        config = dict(config)
        for part in ("encoder", "projection_head", "augment"):
            if isinstance(config[part], dict):
                config[part] = restore(config[part], custom_objects=custom_objects)
        return cls(**config)


def crop_and_flip(size, min_area=0.08):
    """The augmentation that the papers fine-tune with: a random crop, resized, and a random flip.

    Args:
      size: side of the views in pixels.
      min_area: minimum area of a crop as a fraction of the image.
    """
    crop = augmentations.RandomCropResize(size, area=(min_area, 1.0))
    return augmentations.Compose([crop, augmentations.RandomFlip()])


def _check_head_layer(head_layer, head):
    check_number("head_layer", head_layer, at_least=0, whole=True)
    if head_layer and not getattr(head, "built", False):
        found = "None" if head is None else "one that is not built"
        raise ArgumentError(
            f"head_layer={head_layer} needs the projection head, built; got projection_head="
            f"{found}. Pass that of the pretrained model, or head_layer=0."
        )
    if head_layer and head_layer >= head.layers:
        hidden = head.layers - 1
        rule = f"a hidden layer of the head, 1 to {hidden}, or 0 for h"
        if hidden < 1:
            rule = "0 for h, since this head has no hidden layer"
        raise ArgumentError(f"head_layer must be {rule}; got {head_layer}.")
    if head_layer and not hasattr(head, "dense_layers"):
        raise ArgumentError(
            f"head_layer={head_layer} needs a ProjectionHead; got a {type(head).__name__}, which "
            "has several. Use head_layer=0."
        )


def sum_over_replicas(weights):
    """The sum of [B] over the global batch; outside a replica that of this batch."""
    total = tf.reduce_sum(weights)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return total
    return context.all_reduce("sum", total)
