"""MoCo as a `keras.Model`: keys by a momentum encoder, negatives from a queue of earlier keys.

`train_step` reads top to bottom: views -> momentum encoder -> keys -> encoder -> loss -> gradient
-> queue. How it is fed, compiled and saved is in `contrastive.py`.
"""

from __future__ import annotations

import itertools

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.distribute import gather_rows, update_variables
from simclr_tf.encoders.fine_tuning import copy_encoder, copy_weights
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.losses import info_nce, nt_xent_with_top1
from simclr_tf.models.contrastive import ContrastiveModel


@_keras.saving.register_keras_serializable(package="simclr_tf")
class MoCo(ContrastiveModel):
    """Momentum contrast (He et al., arXiv:1911.05722; MoCo v2, arXiv:2003.04297).

    The encoder and the projection head embed a view as a query. Copies of both, whose weights are
    an exponential moving average of theirs, embed the other view as its key. The keys of earlier
    batches, in a queue, are the negatives: their number does not depend on the batch size. Only the
    encoder and its head are trained by gradients; `model(images)`, `predict` and `export` are
    theirs. It is fed and called as `SimCLR`.

    Batch normalisation is synchronised over replicas, as that of `SimCLR`. The paper shuffles the
    images between replicas instead, so that a query cannot be told from others by the statistics of
    its replica's batch; where all images of a step share one set of statistics, these tell nothing.

    Args:
      encoder: a `keras.Model` that maps images to vectors, such as `ResNet(18)`; functional, or a
        class whose config rebuilds it.
      projection_head: maps h to z; None is `ProjectionHead()`.
      augment: as for `SimCLR`: a callable, a list of V of them, None or False.
      temperature: T, above 0.
      momentum: of the momentum encoder, in [0, 1): its weights become momentum x weights +
        (1 - momentum) x those of the encoder, before the keys of each step. The paper has 0.999 for
        ImageNet; its authors have 0.99 for CIFAR-10.
      queue_size: K, the number of keys in the queue, 0 or more. The paper has 65,536 for ImageNet;
        its authors have 4,096 for CIFAR-10. It should hold a part of the training images only,
        since the earlier keys of an image are negatives of it too.
      symmetric: whether each view is a query, with each other view as its key. False: the first
        view is the query, as in the paper.
      in_batch_negatives: True is the form of SimCLRv2 (arXiv:2006.10029, section 2): NT-Xent, with
        the queue as further negatives of every view; the encoder has gradients through all views.
        With a queue of size 0 it is SimCLR.
      seed: int or None, as for `SimCLR`.

    Raises:
      ArgumentError: an argument out of range; an encoder that cannot be copied; from `fit`, as
        `SimCLR`.

    Example:

    >>> model = simclr_tf.MoCo(encoder, simclr_tf.ProjectionHead(output_dim=8), queue_size=64)
    >>> model.compile(optimizer=keras.optimizers.SGD(0.03, momentum=0.9))
    >>> sorted(model.fit(dataset, epochs=1, verbose=0).history)
    ['contrastive_accuracy', 'loss']
    >>> model.queue.shape
    TensorShape([64, 8])
    """

    _must_be_built_ahead = True

    def __init__(
        self,
        encoder,
        projection_head=None,
        augment=None,
        temperature=0.2,
        momentum=0.99,
        queue_size=4096,
        symmetric=True,
        in_batch_negatives=False,
        seed=None,
        name="moco",
        **kwargs,
    ):
        names = ["loss", "contrastive_accuracy"]
        super().__init__(
            encoder, projection_head, augment, temperature, seed, names, name, **kwargs
        )
        check_number("momentum", momentum, at_least=0, below=1, hint="Try 0.99.")
        check_number("queue_size", queue_size, at_least=0, whole=True, hint="Try 4096.")
        if not queue_size and not in_batch_negatives:
            raise ArgumentError(
                "queue_size must be above 0, since the queue holds the negatives; got 0. Pass "
                "in_batch_negatives=True to take those of the batch."
            )
        if in_batch_negatives and not symmetric:
            raise ArgumentError(
                "in_batch_negatives=True treats all views alike; got symmetric=False. Leave it out."
            )
        self.momentum = momentum
        self.queue_size = queue_size
        self.symmetric = symmetric
        self.in_batch_negatives = in_batch_negatives

    # -- the momentum encoder and the queue --------------------------------------------------

    def build(self, input_shape):
        """Creates the variables for images of `input_shape`, (None, H, W, 3)."""
        if self.built:
            return
        if tf.inside_function():
            raise ArgumentError(
                "MoCo copies its encoder before the first step, and must be built by then; got a "
                "model that is not. Call model.build((None, H, W, 3)) with the size of the views."
            )
        super().build(input_shape)
        head = self.projection_head
        self.momentum_encoder = copy_encoder(self.encoder, self._image_shape)
        self.momentum_head = type(head).from_config(head.get_config())
        z = self.momentum_head(self(tf.zeros([1, *self._image_shape])))  # builds it
        self.reset_momentum_encoder()
        self.queue = None
        if self.queue_size:
            self.queue = self.add_weight(
                name="queue",
                shape=(self.queue_size, z.shape[1]),
                initializer=_UnitVectors(),
                dtype="float32",
                trainable=False,
                **_keras.same_on_all_replicas(),
            )

    def reset_momentum_encoder(self):
        """Copies the weights of the encoder and its head to the momentum encoder and its head.

        `build` does so. Call it if you then load other weights into the encoder.
        """
        copy_weights(self.encoder, self.momentum_encoder)
        copy_weights(self.projection_head, self.momentum_head)

    @property
    def trainable_weights(self):
        """Those of the encoder and its head, which the gradient updates."""
        if not self.trainable:
            return []
        return [*self.encoder.trainable_weights, *self.projection_head.trainable_weights]

    @property
    def non_trainable_weights(self):
        """Moving statistics, the momentum encoder with its head, and the queue."""
        networks = [self.encoder, self.projection_head]
        which = "non_trainable_weights" if self.trainable else "weights"
        return [w for n in networks for w in getattr(n, which)] + self._averaged_weights()

    @property
    def trainable_variables(self):
        """As `trainable_weights`."""
        return self.trainable_weights

    @property
    def non_trainable_variables(self):
        """As `non_trainable_weights`."""
        return self.non_trainable_weights

    def _averaged_weights(self):
        if not self.built:
            return []
        queue = [] if self.queue is None else [self.queue]
        return [*self.momentum_encoder.weights, *self.momentum_head.weights, *queue]

    def _update_momentum_encoder(self):
        """Moves each trainable weight of the momentum encoder towards that of the encoder."""
        ours = [self.momentum_encoder, self.momentum_head]
        update_variables(
            lambda average, value: self.momentum * average + (1.0 - self.momentum) * value,
            _keras.tf_variables([w for network in ours for w in network.trainable_weights]),
            _keras.tf_variables(self.trainable_weights),
        )

    def _keys(self, views, training):
        """Keys [V, B, d], unit vectors without a gradient."""
        networks = self.momentum_encoder, self.momentum_head
        keys = self._embed(views, training, networks=networks)
        return tf.stop_gradient(tf.math.l2_normalize(keys, axis=-1))

    def _enqueue(self, keys):
        """Puts keys [V, B, d] of all replicas in front of the queue, whose last ones leave it."""
        if self.queue is None:
            return
        keys = keys if self.symmetric else keys[1:]  # the first view is no key
        rows, _ = gather_rows(tf.transpose(keys, [1, 0, 2]))  # [M, V, d]
        rows = tf.reshape(rows, [-1, keys.shape[2]])
        self.queue.assign(tf.concat([rows, self.queue], axis=0)[: self.queue_size])

    # -- the steps ---------------------------------------------------------------------------

    def train_step(self, data):
        """One update; Keras calls it with a batch."""
        views = self._checked_views(data, self._step_seed(self.optimizer.iterations))
        self._update_momentum_encoder()
        keys = self._keys(views, training=True)  # [V, B, d]
        penalties = []
        with tf.GradientTape() as tape:
            loss, correct = self._loss(views, keys, True, penalties)
            total, loss = self._fraction_of(loss, keys[0])
            total = _keras.scale_loss(self.optimizer, total + self._penalty(penalties))
        self._descend(tape.gradient(total, self.trainable_variables))
        self._enqueue(keys)
        return self._log(loss, {"contrastive_accuracy": correct}, data, training=True)

    def test_step(self, data):
        """Loss and accuracy of views that are the same at each call, against the queue as it is."""
        views = self._checked_views(data, self._evaluation_seed())
        loss, correct = self._loss(views, self._keys(views, training=False), False)
        return self._log(loss, {"contrastive_accuracy": correct}, data)

    def _loss(self, views, keys, training, penalties=None):
        """The loss, and for each query whether its key is nearer than every negative."""
        if self.in_batch_negatives:
            z = self._embed(views, training, penalties)
            queue = None if self.queue is None else tf.convert_to_tensor(self.queue)
            return nt_xent_with_top1(z, temperature=self.temperature, queue=queue)
        count = len(views)
        pairs = itertools.permutations(range(count), 2)
        if not self.symmetric:
            views, pairs = views[:1], ((0, key) for key in range(1, count))
        pairs = list(pairs)
        z = self._embed(views, training, penalties)
        queries = tf.concat([z[query] for query, _ in pairs], axis=0)
        keys = tf.concat([keys[key] for _, key in pairs], axis=0)
        return info_nce(queries, keys, tf.convert_to_tensor(self.queue), self.temperature)

    def get_config(self):
        """Returns the constructor's arguments, layers and functions serialised."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "queue_size": self.queue_size,
            "symmetric": self.symmetric,
            "in_batch_negatives": self.in_batch_negatives,
        }


class _UnitVectors(keras.initializers.Initializer):
    """Random directions, the same in every process, as the paper's code fills the queue."""

    def __call__(self, shape, dtype=None, **kwargs):
        values = tf.random.stateless_normal(shape, [0, 0])  # float32
        return tf.math.l2_normalize(values, axis=1)
