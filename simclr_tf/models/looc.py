"""LooC as a `keras.Model`: an embedding space for each augmentation that h is to keep.

`train_step` reads top to bottom: views -> encoder -> heads -> loss -> gradient. Which views share
parameters is in `augment.shared_view`, the loss is in `losses.looc`; how the model is fed, compiled
and saved is in `contrastive.py`.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf import augment as augmentations
from simclr_tf.augment.shared_view import check_kept
from simclr_tf.errors import ArgumentError
from simclr_tf.heads import SpaceHeads
from simclr_tf.losses import looc_loss_with_top1
from simclr_tf.models.contrastive import ContrastiveModel

REPRESENTATIONS = ("h", "spaces")


@_keras.saving.register_keras_serializable(package="simclr_tf")
class LooC(ContrastiveModel):
    """Leave-one-out contrastive learning (LooC, Xiao et al., arXiv:2008.05659).

    SimCLR makes h invariant to all augmentations. Here h also keeps what the augmentations `kept`
    change, such as colour, for tasks that need it: besides a space that is invariant to all of
    them, there is one for each that is invariant to all others alone. The batches are those of
    `SimCLR`; `project` returns z of all spaces, [B, (n + 1) output_dim] float32.

    A step has n + 2 views: a query, and n + 1 keys of which n share one augmentation with it.

    Args:
      encoder: a `keras.Model` that maps images to vectors, such as `ResNet(18)`.
      kept: names of the n augmentations that h keeps, 1 or more: "crop", "flip", "color", "blur",
        "rotate90" and others, see `augment.SharedView`.
      projection_head: maps h to z, a `SpaceHeads` of n + 1 spaces; None is `SpaceHeads(n + 1)`.
      augment: the family of the views, a `RandomView`, an operator or a `Compose`, which has every
        kept augmentation. None is the paper's family for the size of the images, with rotations
        and blur where they are kept (`augment.family_with`). A list of n + 2 callables draws a view
        by each, the query first (`augment.leave_one_out`); False is for a dataset of tuples of such
        views. Then `kept` are names alone.
      temperature: T, above 0.
      representation: what `model(images)`, `predict` and `export` return: "h", the encoder's [B,
        D]; or "spaces", z of all spaces, the part of each scaled to length 1 (the paper's LooC++).
      seed: as of `SimCLR`.

    The logs are `contrastive_accuracy`, how often in the all-invariant space the key that shares
    nothing with the query beats every negative, as SimCLR's other view does; and for each kept
    augmentation such as colour `color_accuracy`, how often in its space the key that shares it
    does, where the other keys of the image are negatives too.

    Raises:
      ArgumentError: an argument out of range, or a kept augmentation that the family lacks; from
        `fit`, as `SimCLR`.

    Example:

    >>> model = simclr_tf.models.LooC(encoder, kept=["color"], seed=1)
    >>> model.compile(optimizer=simclr_tf.LARS(learning_rate=0.1))
    >>> sorted(model.fit(dataset, epochs=1, verbose=0).history)
    ['color_accuracy', 'contrastive_accuracy', 'loss']
    """

    def __init__(
        self,
        encoder,
        kept=("color",),
        projection_head=None,
        augment=None,
        temperature=0.1,
        representation="h",
        seed=None,
        name="looc",
        **kwargs,
    ):
        if representation not in REPRESENTATIONS:
            known = " or ".join(REPRESENTATIONS)
            raise ArgumentError(f"representation must be {known}; got {representation!r}.")
        _check_views(augment, kept)
        spaces = len(kept) + 1
        projection_head = SpaceHeads(spaces) if projection_head is None else projection_head
        if getattr(projection_head, "spaces", None) != spaces:
            raise ArgumentError(
                f"projection_head must be a SpaceHeads of {spaces} spaces, one more than the "
                f"augmentations kept; got {projection_head!r}."
            )
        logs = ["loss", "contrastive_accuracy", *(f"{each}_accuracy" for each in kept)]
        super().__init__(encoder, projection_head, augment, temperature, seed, logs, name, **kwargs)
        self.kept, self.representation = list(kept), representation

    def call(self, images, training=False):
        """Returns h, [B, D] float32, or the spaces: see `representation`."""
        h = super().call(images, training=training)
        if self.representation == "h":
            return h
        return self.projection_head.unit_spaces(h, training=training)

    def project(self, images, training=False):
        """Returns z of all spaces, [B, (n + 1) output_dim] float32, not normalised."""
        if not self.built:
            self.build(images.shape)
        h = super().call(images, training=training)
        return self.projection_head(h, training=training)

    def embed_views(self, views):
        """H and z of the all-invariant space, see `SimCLR.embed_views`."""
        h, z = super().embed_views(views)
        return h, z[..., : z.shape[-1] // (len(self.kept) + 1)]  # the first space

    def _families(self, images):
        """The families of the query and of the n + 1 keys."""
        if isinstance(self.augment, (tuple, list)):
            return self.augment
        family = self.augment
        if family is None:  # `self.augment` stays None, so that the config keeps it
            size = min(augmentations.static_size(images))
            family = self._default_family
            if family is None or family.output_size(size) != size:
                family = augmentations.family_with(self.kept, size)
                self._default_family = family
        return augmentations.leave_one_out(self.kept, family)

    # -- the steps ---------------------------------------------------------------------------

    def train_step(self, data):
        """One update; Keras calls it with a batch."""
        views = self._checked_views(data, self._step_seed(self.optimizer.iterations))
        penalties = []
        with tf.GradientTape() as tape:
            z = self._embed(views, True, penalties)  # [V, B, S d]
            loss, logs = self._loss(z)
            total, loss = self._fraction_of(loss, z[0])
            total = _keras.scale_loss(self.optimizer, total + self._penalty(penalties))
        self._descend(tape.gradient(total, self.trainable_variables))
        return self._log(loss, logs, data, training=True)

    def test_step(self, data):
        """Loss and logs of views that are the same at each call; inference mode."""
        views = self._checked_views(data, self._evaluation_seed())
        return self._log(*self._loss(self._embed(views, training=False)), data)

    def _loss(self, z):
        """(loss, logs) of z [V, B, S d]."""
        views, spaces = z.shape[0], len(self.kept) + 1
        if views != spaces + 1:
            raise ArgumentError(
                f"LooC that keeps {', '.join(self.kept)} needs {spaces + 1} views, a query and "
                f"{spaces} keys; got {views}."
            )
        z = tf.reshape(z, [views, -1, spaces, z.shape[-1] // spaces])
        z = tf.transpose(z, [2, 0, 1, 3])  # [S, V, B, d]
        loss, correct = looc_loss_with_top1(z, self.temperature)
        of_spaces = {f"{name}_accuracy": each for name, each in zip(self.kept, correct[1:])}
        return loss, {"contrastive_accuracy": correct[0][0], **of_spaces}

    # -- Keras's methods ---------------------------------------------------------------------

    def export(self, path, **kwargs):
        """Writes what `model(images)` is as a SavedModel; see `export.export_encoder`.

        `layer="h"`, "head1" and the like export a layer of the encoder or of the heads.
        """
        kwargs = {"layer": self.representation, **kwargs}
        return super().export(path, **kwargs)

    def get_config(self):
        """Returns the constructor's arguments, layers and functions serialised."""
        return {
            **super().get_config(),
            "kept": self.kept,
            "representation": self.representation,
        }


def _check_views(augment, kept):
    """Raises `ArgumentError` unless the views of `augment` can share what is kept."""
    if augment is not None and not isinstance(augment, (tuple, list, augmentations.Operator, bool)):
        raise ArgumentError(
            "augment must be an augment.Operator, whose parameters views can share, a list of "
            f"families, None or False; got {augment!r}."
        )
    check_kept(kept)
    if augment is None:
        augment = augmentations.family_with(kept, 32)  # of any size: the names are checked
    if isinstance(augment, augmentations.Operator):
        augmentations.leave_one_out(kept, augment)
    if isinstance(augment, (tuple, list)) and len(augment) != len(kept) + 2:
        raise ArgumentError(
            f"augment must have {len(kept) + 2} families, a query and {len(kept) + 1} keys, to "
            f"keep {', '.join(kept)}; got {len(augment)}."
        )
