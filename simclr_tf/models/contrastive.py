"""What the contrastive methods share with Keras: how they are fed, built, compiled and saved.

A method is a class of its own, with its own `train_step`; the views of a batch are in `views.py`,
the checks of what `fit` takes in `inputs.py`.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf import augment as augmentations
from simclr_tf.augment.random import fold_in
from simclr_tf.distribute import is_many_processes, replica_offset_and_fraction
from simclr_tf.encoders import validate as validate_encoder
from simclr_tf.encoders.by_name import warn_of_scaling
from simclr_tf.errors import ArgumentError
from simclr_tf.heads import ProjectionHead
from simclr_tf.images import as_float, check_range, range_assertion, unpack
from simclr_tf.losses import check_temperature
from simclr_tf.metrics import GradientNorm, RunningMeans, SkippedSteps
from simclr_tf.models import inputs
from simclr_tf.models.loss_scale import descend, with_loss_scale
from simclr_tf.models.micro_batches import must_unroll
from simclr_tf.models.views import (
    SizesOfViews,
    check_augment,
    draw,
    given,
    given_images,
    labels_of_given,
    number_of_views,
    seeds_of_views,
    warn_of_range,
    with_static_size,
)

_EVALUATION_STEP = -1  # of which `evaluate` has the seed; training counts from 0


class ContrastiveModel(_keras.Model):
    """An encoder, a projection head and the views of a batch, without a training step.

    Its subclasses, one per method, have `train_step` and `test_step`, and documentation of the
    arguments.

    Args:
      encoder, projection_head, augment, temperature, seed: as for `SimCLR`.
      logs: names of the running means, "loss" first.
    """

    objective = None
    _must_be_built_ahead = False  # of the first step, where it may be traced

    def __init__(self, encoder, projection_head, augment, temperature, seed, logs, name, **kwargs):
        # The views are float32 and each layer casts for itself.
        super().__init__(name=name, autocast=False, **kwargs)
        check_temperature(temperature)
        check_augment(augment)
        self.encoder = encoder
        self.projection_head = ProjectionHead() if projection_head is None else projection_head
        self.augment = augment
        self.temperature = temperature
        self.seed = seed
        self._image_shape = None
        self._input_size = None  # (H, W) of the images that `fit` was given, where Keras forgets it
        self._sizes_of_views = SizesOfViews()
        self._default_family = None
        self._running_means = RunningMeans(logs)

    @property
    def image_shape(self):
        """(H, W, 3) of the images that the model was built for; None before."""
        return self._image_shape

    # -- encoder and head --------------------------------------------------------------------

    def build(self, input_shape):
        """Creates the variables for images of `input_shape`, (None, H, W, 3)."""
        if self.built:
            return
        image_shape = tuple(tf.TensorShape(input_shape).as_list()[1:])
        dimension = validate_encoder(self.encoder, image_shape[:2])
        warn_of_scaling(self.encoder)
        if not self.projection_head.built:
            self.projection_head(tf.zeros([1, dimension]))
        self._image_shape = image_shape
        self.built = True
        _keras.set_save_spec(self, (None, *image_shape))

    @property
    def inference_encoder(self):
        """The encoder of `model(images)`, `predict` and `export`."""
        return self.encoder

    @property
    def inference_head(self):
        """The projection head of the layers of an export."""
        return self.projection_head

    def call(self, images, training=False):
        """Returns h, [B, D] float32, of images [B, H, W, 3], uint8 or float in [0, 1]."""
        encoder = self.encoder if training else self.inference_encoder
        return self._encode(encoder, images, training)

    def _encode(self, encoder, images, training):
        images = tf.convert_to_tensor(images)
        if tf.executing_eagerly():
            check_range(images)
        check = range_assertion(images) if tf.is_tensor(images) else None
        with tf.control_dependencies([check] if check is not None else []):
            images = as_float(images)
        return tf.cast(encoder(images, training=training), tf.float32)

    def project(self, images, training=False):
        """Returns z, float32 [B, length of z], not normalised, of images as in `call`."""
        if not self.built:
            self.build(images.shape)
        trained = self.encoder, self.projection_head
        encoder, head = trained if training else (self.inference_encoder, self.inference_head)
        return head(self._encode(encoder, images, training), training=training)

    # -- views -------------------------------------------------------------------------------

    def views(self, data, seed=None):
        """Draws the views of a batch.

        Args:
          data: a batch as in the class's description.
          seed: of the step, [2] integers; None draws one. Where replicas share a batch, each takes
            its rows of one draw.

        Returns:
          A tuple of V tensors, float32 [B, S, S, 3] each, in [0, 1].
        """
        if self.augment is False:
            return tuple(given(data))
        images, extents = self._images(data), unpack(data).extents
        families = self._families(images)
        first_row, _ = replica_offset_and_fraction(images)
        seeds = seeds_of_views(seed, len(families))
        return tuple(self._draw(families, images, extents, seeds, first_row))

    def _images(self, data):
        """The images of a batch, with a static height and width."""
        images = unpack(data).images
        images = images if hasattr(images, "shape") else tf.convert_to_tensor(images)
        images = with_static_size(tf.convert_to_tensor(images), self._input_size)
        as_float(images)  # an error of rank or dtype is raised before anything is drawn
        return images

    def _draw(self, families, images, *arguments):
        built_for = self._image_shape and self._image_shape[:2]
        sizes = self._sizes_of_views.of(tuple(images.shape[1:3]), len(families), built_for)
        views = draw(families, images, *arguments)
        return [with_static_size(view, size) for view, size in zip(views, sizes)]

    def _families(self, images):
        """V augmentations, one per view."""
        if isinstance(self.augment, (tuple, list)):
            return self.augment
        family = self.augment
        if family is None:  # `self.augment` stays None, so that the config keeps it
            size = min(augmentations.static_size(images))
            family = self._default_family
            if family is None or family.size != size:
                family = augmentations.RandomView.for_size(size)
                self._default_family = family
        return family, family

    def _step_seed(self, step):
        """The seed of a step, [2]; drawn from TensorFlow's global generator without a seed."""
        seed = augmentations.as_seed(self.seed)
        return seed if self.seed is None else fold_in(seed, step)

    # -- parts of a step ---------------------------------------------------------------------

    def _checked_views(self, data, seed):
        """The views of a step, for which the model is then built."""
        with self._input_checks(data):
            views = self.views(data, seed)
        self._build_for(views)
        return views

    def _evaluation_seed(self):
        """The seed of the views of `evaluate`, which are the same at each call."""
        return fold_in(augmentations.as_seed(self.seed or 0), _EVALUATION_STEP)

    def predict_step(self, data):
        """Returns h of a batch; labels, if present, are ignored."""
        return self(unpack(data).images, training=False)

    def _batch(self, data, seed):
        """What the objective sees of a batch."""
        if self.augment is False:
            return unpack(given(data)[0])._replace(labels=labels_of_given(data))
        views = number_of_views(self.augment)
        return unpack(data)._replace(seeds=seeds_of_views(seed, views))

    def _embed(self, views, training, penalties=None, networks=None):
        """Z [V, B, d] float32 of V views; one pass for all of one size (batch norm sees them).

        `networks` is (encoder, projection head); None for those of the model.

        Each pass replaces `losses` of the layers: those of all passes but the last that do not
        depend on weights alone are appended to the list `penalties`.
        """
        encoder, head = networks or (self.encoder, self.projection_head)
        sizes = list(dict.fromkeys(tuple(view.shape[1:3]) for view in views))
        order = [[v for v, view in enumerate(views) if view.shape[1:3] == s] for s in sizes]
        h = []
        for group in order:
            if h and penalties is not None:
                penalties += _keras.activity_losses(encoder)
            images = tf.concat([views[v] for v in group], axis=0)
            h.append(encoder(images, training=training))
        h = h[0] if len(h) == 1 else tf.concat(h, axis=0)  # [V B, D]
        z = tf.cast(head(h, training=training), tf.float32)
        z = tf.reshape(z, [len(views), -1, z.shape[-1]])
        positions = [v for group in order for v in group]
        if positions == sorted(positions):
            return z
        return tf.gather(z, [positions.index(v) for v in range(len(views))])

    def embed_views(self, views):
        """Returns h and z of views in inference mode, in which positives are views of one image.

        Args:
          views: as `views` returns them, V tensors [B, S, S, 3].

        Returns:
          h, [V, B, D] float32; z, [V, B, d] float32, not normalised: of LooC, that of the space
          that is invariant to all augmentations.
        """
        h = tf.stack([tf.cast(self.encoder(view, training=False), tf.float32) for view in views])
        z = self.projection_head(tf.reshape(h, [-1, h.shape[-1]]), training=False)
        z = tf.reshape(tf.cast(z, tf.float32), [len(views), -1, z.shape[-1]])
        return h, z

    def _fraction_of(self, loss, images):
        """What is differentiated of a loss that is a mean over this replica's rows, and the loss.

        Gradients are summed over replicas.

        Args:
          loss: scalar.
          images: a tensor with a row per image of this replica.
        """
        _, fraction = replica_offset_and_fraction(images)
        if images.shape[0] in (None, 0) and must_unroll():  # no rows: the mean of them is nan
            loss = tf.where(tf.shape(images)[0] > 0, loss, 0.0)
        return loss * fraction, loss

    def _penalty(self, penalties):
        """Regularisation losses of the layers and `penalties`, a replica's part of them."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return sum([*self.losses, *penalties]) / replicas

    def _descend(self, gradients):
        """Updates the variables, unless the loss scale skips the step."""
        means = self._running_means
        descend(
            self.optimizer,
            gradients,
            self.trainable_variables,
            means.skipped_steps,
            means.gradient_norm,
        )

    def _input_checks(self, data):
        """A context in which everything waits for two checks of the images.

        Floats are in [0, 1], and this replica has images, where its layers need some.
        """
        images = given_images(data) if self.augment is False else unpack(data).images
        batches = [x for x in tf.nest.flatten(images) if x.shape.rank in (4, None)]
        checks = [check(x) for x in batches for check in (range_assertion, inputs.rows_assertion)]
        return tf.control_dependencies([check for check in checks if check is not None])

    def _build_for(self, views):
        if not self.built:
            self.build(max((view.shape for view in views), key=lambda shape: shape[1] or 0))

    def _log(self, loss, logs, data, training=False):
        """Updates the running means, that of the loss weighted by the number of images.

        Returns what a step returns: all means and, in training, what only training has.
        """
        images = tf.nest.flatten(unpack(data).images)[0]
        weight = tf.cast(tf.shape(images)[0], tf.float32)
        self._running_means.update("loss", loss, weight)
        for name, values in logs.items():
            self._running_means.update(name, values)
        results = self._running_means.results()
        if training:
            results.update((m.name, m.result()) for m in self._running_means.of_training)
        return results

    @property
    def metrics(self):
        """Running means of the loss and of what the objective logs; in float16, skipped steps."""
        return self._running_means.metrics

    def track_gradient_norm(self):
        """Adds `gradient_norm`, the mean norm of the gradient, to what training logs.

        Call it before `fit`; `training.RunMonitor` does. With several worker processes it does
        nothing, since the norm would cost them another exchange of the gradient at every step.
        """
        strategy = self.distribute_strategy
        if self._running_means.gradient_norm is not None or is_many_processes(strategy):
            return
        with strategy.scope():
            self._running_means.gradient_norm = GradientNorm()
        _keras.forget_traced_steps(self)

    # -- Keras's methods ---------------------------------------------------------------------

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """`keras.Model.compile` without a loss: the model has its own, or an `objective`."""
        method = type(self).__name__
        if loss is not None:
            raise ArgumentError(
                f"{method} brings its own loss; call compile(optimizer=...) without one. SimCLR "
                "takes another loss as `objective`."
            )
        for name in ("metrics", "weighted_metrics", "loss_weights"):
            if kwargs.get(name):
                raise ArgumentError(
                    f"{method} logs its own values; got {name}={kwargs[name]!r}. An `objective` of "
                    "SimCLR returns others to log."
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

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        **kwargs,
    ):
        """`keras.Model.fit`; labels, if present, reach the objective alone.

        In float16 the logs have `loss_scale` and `skipped_steps`, see `models.LossScale`.
        """
        inputs.check_batch_size(batch_size)
        for name in ("sample_weight", "class_weight"):
            if kwargs.get(name) is not None:
                raise ArgumentError(
                    f"NT-Xent has no {name}; got one. Leave it out, or weight in an `objective`."
                )
        if kwargs.get("validation_data") is not None:
            validation = inputs.validation_input(kwargs["validation_data"])
            images, *labels = validation if isinstance(validation, tuple) else (validation,)
            images = self._prepare(images)
            is_tuple = isinstance(validation, tuple)
            kwargs["validation_data"] = (images, *labels) if is_tuple else images
        x = self._prepare(x)
        _keras.build_optimizer(self, self)
        if y is not None and self.objective is None:
            y = None  # Keras would check its length and pass it on for nothing
        callbacks = with_loss_scale(callbacks)
        if args:  # positional arguments after `callbacks`
            return self._run(
                super().fit, x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
            )
        kwargs.update(y=y, batch_size=batch_size, epochs=epochs, verbose=verbose)
        return self._run(super().fit, x, callbacks=callbacks, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """`keras.Model.evaluate`: the loss and what the objective logs."""
        y = None if self.objective is None else y
        if _keras.is_validation_of_fit(kwargs):  # `fit` has prepared it
            return self._run(super().evaluate, x, y, *args, **kwargs)
        return self._run(super().evaluate, self._prepare(x), y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """`keras.Model.predict`: h, float32 [n, D]."""
        return self._run(super().predict, x, *args, **kwargs)

    def _run(self, loop, x, *args, **kwargs):
        """Calls a loop of Keras; raises what TensorFlow says of the input as an `ArgumentError`."""
        with inputs.named_errors(x, self):
            return loop(x, *args, **kwargs)

    def _prepare(self, x):
        """Checks an input, and reads from its first batch what Keras does not know of it."""
        inputs.check(x)
        custom = self.augment is not False and not all(
            isinstance(family, augmentations.Operator) for family in (self._families_given() or ())
        )
        if not custom:
            self._build_ahead(x)
        ahead = self._must_be_built_ahead and not self.built
        if not custom and not ahead and not inputs.needs_peek(x):
            return x
        if custom and self.built and self._sizes_of_views.knows(inputs.static_size(x)):
            return x
        x, batch = inputs.peek(x)
        if batch is None:
            return x
        images = tf.nest.flatten(unpack(batch).images)[0]
        inputs.check(images)
        size = tuple(images.shape[1:3])
        if self._input_size not in (None, size):
            _keras.forget_traced_steps(self)  # the size is part of what was traced
        self._input_size = size
        if custom or ahead:  # the size of what a function of the user returns, only a call can tell
            with self.distribute_strategy.scope():
                views = self.views(tf.nest.map_structure(tf.convert_to_tensor, batch))
                warn_of_range(views)
                self._build_for(views)
            self._sizes_of_views.record(size, views)
        return x

    def _build_ahead(self, x):
        """Builds the model before the first step where the input tells the size.

        See `_keras.build_optimizer` for why. The views are traced for their sizes, not computed.
        """
        spec = None if self.built or self.run_eagerly else inputs.image_spec(x)
        if spec is None or self.augment is False:
            return
        with self.distribute_strategy.scope():
            views = tf.function(self.views, autograph=False).get_concrete_function(spec)
            shapes = [view.shape for view in views.structured_outputs]
            if any(None in shape[1:] for shape in shapes):
                return
            self._build_for(views.structured_outputs)

    def _families_given(self):
        """The augmentations that were passed as `augment`, a list; None for the default."""
        if self.augment is None:
            return None
        return self.augment if isinstance(self.augment, (tuple, list)) else [self.augment]

    def export(self, path, **kwargs):
        """Writes the encoder alone as a SavedModel for TF Serving; see `export.export_encoder`.

        `layer="head1"` and the like export a layer of the projection head.
        """
        from simclr_tf.export import export_encoder  # a layer above: imported on demand

        if not self.built:
            raise ArgumentError(
                "export needs a built model: call fit or build((None, H, W, 3)) first."
            )
        kwargs = {"image_shape": self._image_shape, "head": self.inference_head, **kwargs}
        return export_encoder(self.inference_encoder, path, **kwargs)

    def get_config(self):
        """Returns the constructor's arguments, layers and functions serialised."""
        serialise = _keras.saving.serialize_keras_object
        augment = self.augment
        if isinstance(augment, (tuple, list)):
            augment = [serialise(family) for family in augment]
        elif augment is not None and augment is not False:
            augment = serialise(augment)
        return {
            "encoder": serialise(self.encoder),
            "projection_head": serialise(self.projection_head),
            "augment": augment,
            "temperature": self.temperature,
            "seed": self.seed,
            "name": self.name,
            **({} if _keras.IS_KERAS_2 else {"keras": 3}),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the model of a config, without its weights."""
        restore = _keras.saving.deserialize_keras_object
        config = dict(config)
        _check_keras(config.pop("keras", 2))
        for part in ("encoder", "projection_head"):
            config[part] = restore(config[part], custom_objects=custom_objects)
        augment = config["augment"]
        if isinstance(augment, (tuple, list)):
            config["augment"] = [restore(f, custom_objects=custom_objects) for f in augment]
        elif isinstance(augment, dict):
            config["augment"] = restore(augment, custom_objects=custom_objects)
        if config.get("objective") is not None:
            config["objective"] = restore(config["objective"], custom_objects=custom_objects)
        return cls(**config)


def _check_keras(version):
    """Raises `ArgumentError` for the config of a file that the other Keras wrote."""
    this = 2 if _keras.IS_KERAS_2 else 3
    if version != this:
        raise ArgumentError(
            f"a .keras file loads in the Keras that wrote it; got one of Keras {version} in Keras "
            f"{this}. A SavedModel (`export`) works with both."
        )
