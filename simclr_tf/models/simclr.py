"""SimCLR as a `keras.Model`: views, encoder, projection head, NT-Xent over the global batch.

`train_step` reads top to bottom: views -> encoder -> head -> objective -> gradient. How it is fed,
compiled and saved is in `contrastive.py`, the drawing of views in `views.py`, gradient caching in
`micro_batches.py`.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf import augment as augmentations
from simclr_tf.distribute import replica_offset_and_fraction
from simclr_tf.encoders.fine_tuning import copy_encoder, copy_weights
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.images import unpack
from simclr_tf.losses import nt_xent_with_top1
from simclr_tf.models.contrastive import ContrastiveModel
from simclr_tf.models.micro_batches import MicroBatches, cached_gradients, must_unroll
from simclr_tf.models.views import number_of_views, seeds_of_views
from simclr_tf.models.weight_average import WeightAverage


@_keras.saving.register_keras_serializable(package="simclr_tf")
class SimCLR(ContrastiveModel):
    """SimCLR (Chen et al., arXiv:2002.05709), used as `model.fit(dataset)`.

    A batch is `images`, [B, H, W, 3] in uint8 or float in [0, 1]; or a tuple whose first item is
    that; or a dict with "image", and with "extent" where images of several sizes each fill only the
    upper left of [H, W]: their heights and widths, [B, 2] int. Labels, if present, are passed to
    the objective, which ignores them by default. `model(images)` and `predict` return h, the
    encoder's [B, D] float32; `project` returns z, [B, output_dim] float32.

    Args:
      encoder: a `keras.Model` that maps images to vectors, such as `ResNet(18)`.
      projection_head: maps h to z; None is `ProjectionHead()`.
      augment: a callable batch -> batch (a Keras layer too), called twice on the device; one that
        is not an `augment.Operator` gets float32 images in [0, 1]. A list of V callables draws V
        views, one by each, whose sizes may differ (multi-crop). None is the paper's family for the
        size of the images; False is for a dataset that yields tuples of views.
      temperature: T of NT-Xent, above 0.
      micro_batch_size: embed the V B views (a replica's own) in micro-batches of this many, all
        views of some images at a time (gradient caching, see `micro_batches.py`), so that memory
        is that of a micro-batch; None embeds them at once. A multiple of V that divides their
        number; where the batch size is not static, the last micro-batch may be smaller. The
        gradient is that of the whole batch; batch normalisation sees one micro-batch at a time.
      seed: int; the views of step s are then a function of (seed, s) alone: view v has the seed
        fold_in(fold_in(seed, s), v). None draws them from TensorFlow's global generator.
      weight_average: momentum in (0, 1) of an exponential moving average of the weights of encoder
        and head, such as 0.99; of it are then `model(images)`, `predict`, `project` and `export`.
        The loss is always of the trained weights. None: no average. The encoder must be functional,
        or a class whose config rebuilds it.
      objective: a function (z, batch) -> (loss, logs) in place of NT-Xent. z: [V, B, d] float32,
        not normalised; batch: an `images.Batch` with the labels, ids and extents of the dataset
        (None where it has none) and the seeds of the views; loss: scalar, the mean over this
        replica's rows (`distribute.gather_rows` returns those of all replicas); logs: dict of name
        to tensor, whose running means are logged.

    Raises:
      ArgumentError: an argument out of range; from `fit`, images of a wrong rank, dtype or range,
        an empty dataset, batches of a single image.

    Example:

    >>> model = simclr_tf.SimCLR(encoder, simclr_tf.ProjectionHead(output_dim=8), temperature=0.2)
    >>> model.compile(optimizer=simclr_tf.LARS(learning_rate=0.1))
    >>> sorted(model.fit(dataset, epochs=1, verbose=0).history)
    ['contrastive_accuracy', 'loss']
    >>> model.predict(images, verbose=0).shape
    (8, 8)
    """

    def __init__(
        self,
        encoder,
        projection_head=None,
        augment=None,
        temperature=0.1,
        micro_batch_size=None,
        seed=None,
        objective=None,
        weight_average=None,
        name="simclr",
        **kwargs,
    ):
        names = ["loss"] + (["contrastive_accuracy"] if objective is None else [])
        super().__init__(
            encoder, projection_head, augment, temperature, seed, names, name, **kwargs
        )
        _check_micro_batch_size(micro_batch_size, number_of_views(augment))
        self.micro_batch_size = micro_batch_size
        self.objective = objective
        if weight_average is not None:
            check_number("weight_average", weight_average, above=0, below=1, hint="Try 0.99.")
        self.weight_average = weight_average
        self._must_be_built_ahead = weight_average is not None
        self._average = None

    # -- the average of the weights ----------------------------------------------------------

    def build(self, input_shape):
        """Creates the variables for images of `input_shape`, (None, H, W, 3)."""
        if self.built:
            return
        if self.weight_average is not None and tf.inside_function():
            raise ArgumentError(
                "weight_average copies the encoder before the first step, and the model must be "
                "built by then; got one that is not. Call model.build((None, H, W, 3)) with the "
                "size of the views."
            )
        super().build(input_shape)
        if self.weight_average is None:
            return
        head = self.projection_head
        self.averaged_encoder = copy_encoder(self.encoder, self._image_shape)
        self.averaged_head = type(head).from_config(head.get_config())
        self.averaged_head(self.averaged_encoder(tf.zeros([1, *self._image_shape])))  # builds it
        self.reset_weight_average()
        networks = [self.encoder, self.projection_head]
        copies = [self.averaged_encoder, self.averaged_head]
        self._average = WeightAverage(self.weight_average, networks, copies)

    def reset_weight_average(self):
        """Copies the weights of the encoder and its head to their averages.

        `build` does so. Call it if you then load other weights into the encoder.
        """
        if self.weight_average is None:
            return
        copy_weights(self.encoder, self.averaged_encoder)
        copy_weights(self.projection_head, self.averaged_head)
        self.averaged_encoder.trainable = self.averaged_head.trainable = False

    @property
    def inference_encoder(self):
        """The averaged encoder where there is one, else the encoder."""
        return self.averaged_encoder if self._average else self.encoder

    @property
    def inference_head(self):
        """The averaged projection head where there is one, else the projection head."""
        return self.averaged_head if self._average else self.projection_head

    # -- the steps ---------------------------------------------------------------------------

    def train_step(self, data):
        """One update; Keras calls it with a batch."""
        step = tf.convert_to_tensor(self.optimizer.iterations)
        seed = self._step_seed(step)
        if self.micro_batch_size is None:
            views = self._checked_views(data, seed)
            loss, logs = self._step_at_once(views, self._batch(data, seed))
        else:
            with self._input_checks(data):
                views_of, micro_batches = self._views_in_micro_batches(data, seed)
                if not self.built:
                    self._build_for(views_of(0))
            batch = self._batch(data, seed)
            loss, logs = self._step_in_micro_batches(views_of, micro_batches, batch)
        if self._average:
            self._average.update(step)
        return self._log(loss, logs, data, training=True)

    def test_step(self, data):
        """Loss and logs of views that are the same at each call; inference mode."""
        seed = self._evaluation_seed()
        z = self._embed(self._checked_views(data, seed), training=False)
        return self._log(*self._loss(z, self._batch(data, seed)), data)

    def _loss(self, z, batch):
        """(loss, logs) of the objective."""
        if self.objective is not None:
            return self.objective(z, batch)
        loss, correct = nt_xent_with_top1(z, temperature=self.temperature)
        return loss, {"contrastive_accuracy": correct}

    def _fraction_of_loss(self, z, batch):
        """What is differentiated, the loss that is shown, and the logs."""
        loss, logs = self._loss(z, batch)
        return (*self._fraction_of(loss, z[0]), logs)

    def _step_at_once(self, views, batch):
        penalties = []
        with tf.GradientTape() as tape:
            z = self._embed(views, True, penalties)  # [V, B, d]
            total, loss, logs = self._fraction_of_loss(z, batch)
            total = _keras.scale_loss(self.optimizer, total + self._penalty(penalties))
        self._descend(tape.gradient(total, self.trainable_variables))
        return loss, logs

    def _step_in_micro_batches(self, views_of, micro_batches, batch):
        penalties = []

        def embed(k):
            penalties.clear()
            return self._embed(views_of(k), True, penalties)

        def penalty():
            return _keras.scale_loss(self.optimizer, tf.convert_to_tensor(self._penalty(penalties)))

        def loss_of(z):  # [V, B, d]
            total, *shown = self._fraction_of_loss(z, batch)
            return _keras.scale_loss(self.optimizer, total), shown

        gradients, shown = cached_gradients(
            embed,
            micro_batches,
            loss_of,
            self.trainable_variables,
            self.encoder.non_trainable_variables + self.projection_head.non_trainable_variables,
            penalty,
        )
        self._descend(gradients)
        return shown

    # -- micro-batches -----------------------------------------------------------------------

    def _views_in_micro_batches(self, data, seed):
        """A function of k that returns the views of micro-batch k, and the `MicroBatches`.

        The views are those of `views(data, seed)`, equal at each call. They are drawn again at each
        call where that is possible, so that one micro-batch of them is in memory.
        """
        images = None if self.augment is False else self._images(data)
        if self.augment is False or not self._draws_again(self._families(images)):
            views = self.views(data, seed)
            micro_batches = MicroBatches(_count(views[0]), self.micro_batch_size, len(views))
            slices = [micro_batches.slices(view) for view in views]
            return lambda k: [rows(k) for rows in slices], micro_batches
        families, extents = self._families(images), unpack(data).extents
        micro_batches = MicroBatches(_count(images), self.micro_batch_size, len(families))
        first_row, _ = replica_offset_and_fraction(images)
        seeds = seeds_of_views(seed, len(families))
        images_of = micro_batches.slices(images)
        extents_of = (lambda k: None) if extents is None else micro_batches.slices(extents)

        def views_of(k):
            row = first_row + k * micro_batches.size
            return self._draw(families, images_of(k), extents_of(k), seeds, row)

        return views_of, micro_batches

    def _draws_again(self, families):
        """Whether gradient caching draws the views of a micro-batch twice, or keeps all of them.

        Where micro-batches are unrolled each would have a graph of the views of its own.
        """
        return not must_unroll() and all(map(augmentations.is_repeatable, families))

    def get_config(self):
        """Returns the constructor's arguments, layers and functions serialised."""
        objective = self.objective and _keras.saving.serialize_keras_object(self.objective)
        return {
            **super().get_config(),
            "micro_batch_size": self.micro_batch_size,
            "objective": objective,
            "weight_average": self.weight_average,
        }


def _check_micro_batch_size(size, views):
    if size is None:
        return
    check_number("micro_batch_size", size, at_least=2, whole=True)
    if size % (views or 1):
        rule = "even" if views in (2, None) else f"a multiple of the {views} views"
        raise ArgumentError(f"micro_batch_size must be {rule}; got {size}.")


def _count(batch):
    """The length of the first axis: an int where it is static, else a tensor."""
    return batch.shape[0] if batch.shape[0] is not None else tf.shape(batch)[0]
