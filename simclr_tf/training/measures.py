"""What is measured of the embeddings of a fixed batch, without labels and outside the step."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from simclr_tf import metrics
from simclr_tf.images import unpack
from simclr_tf.models.views import number_of_views

MAX_IMAGES = 256
_MAX_PIXELS = 2**24  # of all views together, 200 MB


def embedding_measures(h, z):
    """Returns the measures of embeddings, a dict of name to float.

    Args:
      h: [V, N, D], any float dtype: features of V views, 2 or more, of N images, 2 or more.
      z: [V, N, d], any float dtype: their projections.

    Returns:
      alignment, uniformity, similarity_gap and rankme, of z (see `metrics`); lidar, of unit z;
      spread, the mean of `metrics.dimension_spread` times sqrt(d), 1 where all directions are used
      alike; feature_rank, `metrics.effective_rank` of h.

    Example:

    >>> measures = simclr_tf.training.embedding_measures(h[None] + np.ones([2, 1, 1]), [z_a, z_b])
    >>> sorted(measures)[:4]
    ['alignment', 'feature_rank', 'lidar', 'rankme']
    """
    with tf.device("CPU:0"):  # its decompositions of small matrices are faster and deterministic
        h, z = tf.cast(h, tf.float32), tf.cast(z, tf.float32)
        rows = tf.reshape(z, [-1, z.shape[-1]])  # [V N, d]
        spread = tf.reduce_mean(metrics.dimension_spread(rows)) * float(z.shape[-1]) ** 0.5
        found = {
            "alignment": metrics.alignment(z),
            "uniformity": metrics.uniformity(tf.reshape(z[:1], [-1, z.shape[-1]])),
            "similarity_gap": metrics.similarity_gap(z),
            "rankme": metrics.effective_rank(rows),
            "lidar": metrics.lidar(tf.math.l2_normalize(z, axis=-1)),
            "spread": spread,
            "feature_rank": metrics.effective_rank(tf.reshape(h, [-1, h.shape[-1]])),
        }
    return {name: float(value) for name, value in found.items()}


class ProbeBatch:
    """A fixed batch, its views, and what a model makes of them.

    Args:
      batch: images or whatever the model's `fit` takes as a batch, at least 2 images; at most 256
        are used, fewer of large views.

    Attributes:
      views: tuple of V tensors [N, S, S, 3] float32, as trained; None before `draw`.

    Example:

    >>> probe = simclr_tf.training.measures.ProbeBatch(images)
    >>> probe.draw(simclr_tf.SimCLR(encoder))
    >>> [view.shape[1:] for view in probe.views]
    [TensorShape([32, 32, 3]), TensorShape([32, 32, 3])]
    """

    def __init__(self, batch):
        self._batch, self.views, self._augment = _rows(batch, MAX_IMAGES), None, None
        self._embed = None

    @property
    def images(self):
        """The images of the batch; of a batch of views, the first view."""
        images = unpack(self._batch).images
        return images[0] if isinstance(images, (tuple, list)) else images

    def draw(self, model):
        """Draws the views, unless they are those of the model's augmentation already."""
        if self.views is not None and self._augment is model.augment:
            return
        _, height, width, _ = self.images.shape
        pixels = (number_of_views(model.augment) or 2) * height * width
        batch = _rows(self._batch, max(2, _MAX_PIXELS // pixels))
        self.views = tuple(model.views(batch, seed=[0, 0]))
        self._augment = model.augment
        self._embed = tf.function(model.embed_views)

    def embed(self):
        """Returns h [V, N, D] and z [V, N, d], float32 arrays, of the views that were drawn."""
        return [np.asarray(each) for each in self._embed(self.views)]

    def last_map_side(self):
        """Side of the encoder's last feature map in pixels; None where its pooling is not found.

        That is the input of the last mean or maximum over height and width in the graph.
        """
        operations = self._embed.get_concrete_function(self.views).graph.get_operations()
        pools = [op for op in operations if op.type in ("Mean", "Max") and _is_pooling(op)]
        return pools[-1].inputs[0].shape[1] if pools else None


def _is_pooling(operation):
    before, after = operation.inputs[0].shape, operation.outputs[0].shape
    return before.rank == 4 and (after.rank == 2 or after[1:3] == [1, 1])


def _rows(batch, count):
    return tf.nest.map_structure(lambda column: tf.convert_to_tensor(column)[:count], batch)
