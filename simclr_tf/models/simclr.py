"""SimCLR as a `keras.Model`: two views, one encoder, one head, NT-Xent over the global batch.

The parts live in `augment`, `resnet`/`encoders`, `projection`, `losses` and `metrics`; here they
are put together in `train_step`. Run directories, logs and probes are in `run.py`, `callbacks.py`.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from simclr_tf import augment as augmentations
from simclr_tf.distribute import replica_offset_and_fraction
from simclr_tf.encoders import validate as validate_encoder
from simclr_tf.errors import ArgumentError
from simclr_tf.heads import ProjectionHead
from simclr_tf.images import (
    RANGE_RULE,
    as_float,
    check_images,
    range_assertion,
    range_message,
    unpack,
)
from simclr_tf.losses import check_temperature, nt_xent_with_top1
from simclr_tf.metrics import ContrastiveAccuracy
from simclr_tf.models.micro_batches import cached_gradients, must_unroll, split_micro_batches


@keras.saving.register_keras_serializable(package="simclr_tf")
class SimCLR(keras.Model):
    """SimCLR (Chen et al., arXiv:2002.05709), used as `model.fit(dataset)`.

    A batch is `images`, [B, H, W, 3] in uint8 or float in [0, 1]; or a tuple whose first item is
    that (labels are ignored); or a dict with "image", and with "extent" where images of several
    sizes each fill only the upper left of [H, W]: their heights and widths, [B, 2] int.
    `model(images)` and `predict` give h, the encoder's [B, D] float32; `project` gives z,
    [B, output_dim] float32.

    Args:
      encoder: a `keras.Model` that maps images to vectors, such as `ResNet(18)`.
      projection_head: maps h to z; None is `ProjectionHead()`.
      augment: a callable batch -> batch (a Keras layer too), called twice on the device; one that
        is not ours gets float32 images in [0, 1]. A pair of callables gives each view its own;
        None is the paper's family for the size of the images; False is for a dataset that yields
        pairs of views.
      temperature: T of NT-Xent.
      micro_batch_size: embed the 2B views (a replica's share of them) in pieces of this many,
        both views of half as many images (gradient caching, see `gradient_cache`), so that memory
        is that of a piece; None embeds them at once. It is even and divides their number. The
        gradient is that of the whole batch; batch norm sees a piece at a time.
      seed: int; the views of step s are then a function of (seed, s) alone, whatever ran before.
        None draws them from TensorFlow's global generator.

    Raises:
      ValueError: a temperature not above 0, a wrong `augment`; from `fit`, images of a wrong rank,
        dtype or range and an empty dataset.
    """

    def __init__(
        self,
        encoder,
        projection_head=None,
        augment=None,
        temperature=0.1,
        micro_batch_size=None,
        seed=None,
        name="simclr",
        **kwargs,
    ):
        # The views are float32 and each part casts for itself.
        super().__init__(name=name, autocast=False, **kwargs)
        check_temperature(temperature)
        _check_augment(augment)
        if micro_batch_size is not None and (micro_batch_size < 1 or micro_batch_size % 2):
            raise ArgumentError(
                f"micro_batch_size must be even, 2 or more; got {micro_batch_size}."
            )
        self.encoder = encoder
        self.projection_head = ProjectionHead() if projection_head is None else projection_head
        self.augment = augment
        self.temperature = temperature
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self._image_shape = None
        # Past Keras's attribute tracking: what a metric counts is not a weight of the model.
        vars(self)["_running"] = [keras.metrics.Mean(name="loss"), ContrastiveAccuracy()]

    @property
    def image_shape(self):
        """(H, W, 3) of the images that the model was built for; None before."""
        return self._image_shape

    # -- the parts ---------------------------------------------------------------------------

    def build(self, input_shape):
        """Creates the variables for images of `input_shape`, (None, H, W, 3)."""
        if self.built:
            return
        image_shape = tuple(tf.TensorShape(input_shape).as_list()[1:])
        dimension = validate_encoder(self.encoder, image_shape[:2])
        if not self.projection_head.built:
            self.projection_head(tf.zeros([1, dimension]))
        self._image_shape = image_shape
        self.built = True

    def call(self, images, training=False):
        """h, [B, D] float32, of images [B, H, W, 3], uint8 or float in [0, 1]."""
        images = as_float(images)
        return tf.cast(self.encoder(images, training=training), tf.float32)

    def project(self, images, training=False):
        """z, [B, output_dim] float32, not normalised, of images as in `call`."""
        if not self.built:
            self.build(images.shape)
        return self.projection_head(self(images, training=training), training=training)

    def views(self, data, seed=None):
        """Two views of a batch: float32 [B, S, S, 3] each, in [0, 1].

        Args:
          data: a batch as in the class's description.
          seed: [2] int32 or None; where replicas share a batch, each takes its rows of one draw.
        """
        if self.augment is False:
            pair = unpack(data).images
            if not isinstance(pair, (tuple, list)):
                pair = data
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ArgumentError("augment=False needs a dataset of pairs (view_a, view_b).")
            return tuple(as_float(view) for view in pair)
        images = unpack(data).images
        as_float(images)  # rank and dtype are told before anything else
        first_row, _ = replica_offset_and_fraction(images)
        return self._draw_views(images, unpack(data).extents, _seeds_of_views(seed), first_row)

    def _draw_views(self, images, extent, seeds, first_row):
        return tuple(
            augmentations.call_view(family, images, seed, first_row, extent)
            for family, seed in zip(self._families(images), seeds)
        )

    def _views_in_micro_batches(self, data, seed):
        """A function of k that gives the views of piece k, each time the same, and how many k.

        The views are [micro_batch_size, S, S, 3]: first views of some images, then second ones.
        """
        images = unpack(data).images
        if not self._makes_views_anew(images):
            kept = [
                split_micro_batches(view, self.micro_batch_size) for view in self.views(data, seed)
            ]
            return lambda k: tf.concat([view[k] for view in kept], axis=0), kept[0].shape[0]
        first_row, _ = replica_offset_and_fraction(images)
        seeds = [augmentations.as_seed(each) for each in _seeds_of_views(seed)]
        pieces, extents = split_micro_batches(images, self.micro_batch_size), unpack(data).extents
        if extents is not None:
            extents = split_micro_batches(extents, self.micro_batch_size)

        def views_of(k):
            row = first_row + k * pieces.shape[1]
            extent = None if extents is None else extents[k]
            return tf.concat(self._draw_views(pieces[k], extent, seeds, row), axis=0)

        return views_of, pieces.shape[0]

    def _families(self, images):
        if self.augment is None:
            height, width = augmentations.static_size(images)
            self.augment = augmentations.RandomView.for_size(min(height, width))
        if isinstance(self.augment, (tuple, list)):
            return self.augment
        return self.augment, self.augment

    def _makes_views_anew(self, images):
        """Whether gradient caching makes the views of a piece twice, or keeps those of all pieces.

        Where the pieces are unrolled each would have a graph of the views of its own.
        """
        if self.augment is False or must_unroll():
            return False
        return all(augmentations.is_repeatable(family) for family in self._families(images))

    def _step_seed(self, step):
        if self.seed is None:
            return None
        # Two views a step: seeds 2s and 2s + 1.
        return tf.stack([self.seed % (2**31 - 1), 2 * tf.cast(step, tf.int32)])

    def _embed(self, views, training):
        """Z [V, d] float32 of views [V, S, S, 3]; one pass, so that batch norm sees both views."""
        h = self.encoder(views, training=training)
        return tf.cast(self.projection_head(h, training=training), tf.float32)

    # -- the steps ---------------------------------------------------------------------------

    def train_step(self, data):
        """One update; Keras calls it with a batch."""
        seed = self._step_seed(self.optimizer.iterations)
        with _range_check(data, self.augment is False):
            if self.micro_batch_size is None:
                views = tf.concat(self.views(data, seed), axis=0)
            else:
                views_of, count = self._views_in_micro_batches(data, seed)
                views = views_of(0)
        if not self.built:
            self.build(views.shape)
        if self.micro_batch_size is None:
            loss, correct = self._step_at_once(views)
        else:
            loss, correct = self._step_in_micro_batches(views_of, count)
        return self._log(loss, correct)

    def _objective(self, z_a, z_b):
        """What is differentiated, the loss that is shown and `correct`; z_a, z_b: [B, d]."""
        loss, correct = nt_xent_with_top1(z_a, z_b, self.temperature)
        # Gradients are summed over replicas, and each replica's loss is a mean of its own rows.
        _, share = replica_offset_and_fraction(z_a)
        return loss * share, loss, correct

    def _step_at_once(self, views):
        with tf.GradientTape() as tape:
            z = self._embed(views, training=True)  # [2B, d]
            objective, loss, correct = self._objective(*tf.split(z, 2))
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            objective += sum(self.losses) / replicas
        self.optimizer.minimize(objective, self.trainable_variables, tape=tape)
        return loss, correct

    def _step_in_micro_batches(self, views_of, count):
        """Gradient caching; regularisation losses of layers are not part of it."""
        scaled = hasattr(self.optimizer, "get_scaled_loss")

        def loss_of(z):  # [pieces, views a piece, d], the two views of its images in each
            pair = (tf.reshape(view, [-1, z.shape[-1]]) for view in tf.split(z, 2, axis=1))
            objective, *shown = self._objective(*pair)
            return (self.optimizer.get_scaled_loss(objective) if scaled else objective), shown

        gradients, shown = cached_gradients(
            lambda k: self._embed(views_of(k), training=True),
            count,
            loss_of,
            self.trainable_variables,
            self.encoder.non_trainable_variables + self.projection_head.non_trainable_variables,
        )
        if scaled:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        return shown

    def test_step(self, data):
        """Loss and contrastive accuracy of two views, with batch norm in inference mode."""
        seed = tf.constant([0 if self.seed is None else self.seed % (2**31 - 1), -2], tf.int32)
        with _range_check(data, self.augment is False):
            view_a, view_b = self.views(data, seed)
        if not self.built:
            self.build(view_a.shape)
        z_a, z_b = tf.split(self._embed(tf.concat([view_a, view_b], axis=0), training=False), 2)
        return self._log(*nt_xent_with_top1(z_a, z_b, self.temperature))

    def predict_step(self, data):
        """H of a batch; labels beside the images are ignored."""
        return self(unpack(data).images, training=False)

    def _log(self, loss, correct):
        mean_loss, accuracy = self._running
        mean_loss.update_state(loss, sample_weight=tf.cast(tf.shape(correct)[0], tf.float32))
        accuracy.update_correct(correct)
        return {metric.name: metric.result() for metric in self.metrics}

    @property
    def metrics(self):
        """Running means of the loss and the contrastive accuracy."""
        return self._running

    def fit(self, x=None, y=None, *args, **kwargs):
        """`keras.Model.fit`; y, where given, is ignored."""
        if getattr(self, "compiled_loss", None) is not None and self.compiled_loss._losses:
            raise ArgumentError(
                "SimCLR brings its own loss; call compile(optimizer=...) without one."
            )
        del y
        _check_input(x)
        if kwargs.get("validation_data") is not None:
            _check_input(kwargs["validation_data"])
        return _range_error_in_one_line(super().fit, x, None, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """`keras.Model.evaluate`: loss and contrastive accuracy; y is ignored."""
        del y
        _check_input(x)
        return _range_error_in_one_line(super().evaluate, x, None, *args, **kwargs)

    # -- saving ------------------------------------------------------------------------------

    def export(self, path, **kwargs):
        """Writes the encoder alone as a SavedModel for TF Serving; see `export.export_encoder`.

        `layer="head1"` and the like give a layer of the projection head.
        """
        from simclr_tf.export import export_encoder  # export.py stands below: only on demand

        if not self.built:
            raise ArgumentError(
                "export needs a built model: call fit or build((None, H, W, 3)) first."
            )
        kwargs = {"image_shape": self._image_shape, "head": self.projection_head, **kwargs}
        return export_encoder(self.encoder, path, **kwargs)

    def get_config(self):
        """Constructor arguments, the parts serialised."""
        augment = self.augment
        if isinstance(augment, (tuple, list)):
            augment = [keras.saving.serialize_keras_object(family) for family in augment]
        elif augment is not None and augment is not False:
            augment = keras.saving.serialize_keras_object(augment)
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "projection_head": keras.saving.serialize_keras_object(self.projection_head),
            "augment": augment,
            "temperature": self.temperature,
            "micro_batch_size": self.micro_batch_size,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The model of a config, without its weights."""
        restore = keras.saving.deserialize_keras_object
        config = dict(config)
        for part in ("encoder", "projection_head"):
            config[part] = restore(config[part], custom_objects=custom_objects)
        augment = config["augment"]
        if isinstance(augment, (tuple, list)):
            config["augment"] = [restore(f, custom_objects=custom_objects) for f in augment]
        elif isinstance(augment, dict):
            config["augment"] = restore(augment, custom_objects=custom_objects)
        return cls(**config)

    def get_build_config(self):
        """What `build` was called with."""
        return {"input_shape": (None, *self._image_shape)} if self._image_shape else None

    def build_from_config(self, config):
        """Builds from `get_build_config`."""
        if config:
            self.build(config["input_shape"])


def _check_augment(augment):
    pair = isinstance(augment, (tuple, list))
    if pair and (len(augment) != 2 or not all(callable(family) for family in augment)):
        raise ArgumentError(f"a pair of augmentations must be two callables; got {augment!r}.")
    if not pair and augment is not None and augment is not False and not callable(augment):
        raise ArgumentError(
            "augment must be a callable batch -> batch, a pair of them, None or False; "
            f"got {augment!r}."
        )


def _seeds_of_views(seed):
    """The seeds of the two views; seed: that of the step, [2], or None."""
    return [None if seed is None else seed + tf.constant([0, i]) for i in (0, 1)]


def _range_check(data, views=False):
    """A context in which everything waits for float images to have been found in [0, 1]."""
    images = data if views else unpack(data).images
    checks = [range_assertion(x) for x in tf.nest.flatten(images) if x.shape.rank == 4]
    return tf.control_dependencies([check for check in checks if check is not None])


def _check_input(x):
    """Raises ValueError for what can be told before the first step."""
    if isinstance(x, tf.data.Dataset):
        if int(x.cardinality()) == 0:
            raise ArgumentError(
                "the dataset has no batch; with drop_remainder=True it holds fewer images than "
                "one batch. Take a smaller batch."
            )
        for part in tf.nest.flatten(unpack(x.element_spec).images):
            check_images(part)
    elif hasattr(x, "shape") and hasattr(x, "dtype"):
        check_images(x)


def _range_error_in_one_line(function, *args, **kwargs):
    """Calls a Keras loop and raises the error of `range_assertion` as `ArgumentError`."""
    try:
        return function(*args, **kwargs)
    except tf.errors.InvalidArgumentError as error:
        if RANGE_RULE not in str(error):
            raise
        raise ArgumentError(range_message()) from error
