"""The views of a batch: which family draws each view, and from which seed.

The families themselves are in `augment`.
"""

from __future__ import annotations

import tensorflow as tf
from absl import logging

from simclr_tf import augment as augmentations
from simclr_tf.augment.random import fold_in
from simclr_tf.errors import ArgumentError
from simclr_tf.images import VIEW_RULE, as_float, range_assertion, unpack, view_message

# Views may be out of [0, 1] by as much, as those of `RandomContrast` are; 0 to 255 is an error.
_FAR = 1.0


def check_augment(augment):
    """Raises `ArgumentError` unless `augment` is what `SimCLR` takes."""
    several = isinstance(augment, (tuple, list))
    if several and (len(augment) < 2 or not all(callable(family) for family in augment)):
        raise ArgumentError(
            f"a list of augmentations must be two callables or more, one per view; got {augment!r}."
        )
    if not several and augment is not None and augment is not False and not callable(augment):
        raise ArgumentError(
            "augment must be a callable batch -> batch, a list of them (one per view), None or "
            f"False; got {augment!r}."
        )


def number_of_views(augment):
    """V, or None where the dataset yields the views itself (`augment=False`)."""
    if augment is False:
        return None
    return len(augment) if isinstance(augment, (tuple, list)) else 2


def seeds_of_views(seed, count):
    """Returns the seed of each view of a step, [2] int64 each: fold_in(seed of the step, view).

    Args:
      seed: of the step, [2]; None draws each from TensorFlow's global generator.
      count: V.
    """
    if seed is None:
        return [augmentations.as_seed(None) for _ in range(count)]
    seed = augmentations.as_seed(seed)
    return [fold_in(seed, view) for view in range(count)]


def draw(families, images, extents, seeds, first_row):
    """Returns a view by each family, a list of [B, S_v, S_v, 3] float32 in [0, 1].

    Args:
      families: V callables.
      images, extents: of a `Batch`.
      seeds: as `seeds_of_views` returns them; a family with `shares_draws` gets the first.
      first_row: position of the first image in the global batch.
    """
    views = []
    for family, seed in zip(families, seeds):
        seed = seeds[0] if getattr(family, "shares_draws", False) else seed
        view = augmentations.call_view(family, images, seed, first_row, extents)
        if not isinstance(family, augmentations.Operator):  # which keep to the range
            view = _in_range(view)
        views.append(view)
    return views


def _in_range(view):
    """Returns a view; where it is far from [0, 1], this or its computation raises."""
    try:
        with tf.control_dependencies([range_assertion(view, VIEW_RULE, _FAR)]):
            return tf.identity(view)
    except tf.errors.InvalidArgumentError as error:  # executed eagerly
        raise ArgumentError(view_message(_extremes([view]))) from error


def _extremes(views):
    """The smallest and largest value of views, as in the message of a `range_assertion`."""
    low = min(float(tf.reduce_min(view)) for view in views)
    high = max(float(tf.reduce_max(view)) for view in views)
    return f"{VIEW_RULE}] [{low:g}] [{high:g}]"


def warn_of_range(views):
    """Logs a warning if views, eager tensors, are not in [0, 1]."""
    try:
        for view in views:
            range_assertion(view, VIEW_RULE)
    except tf.errors.InvalidArgumentError:
        logging.warning("%s", view_message(_extremes(views)))


def given(data):
    """Returns the views that a dataset yields itself, a list of float32 [B, S_v, S_v, 3].

    Args:
      data: a tuple of views, or (tuple of views, labels).

    Raises:
      ArgumentError: fewer than two views.
    """
    return [as_float(view) for view in given_images(data)]


def given_images(data):
    """Returns the views of `given` as the dataset yields them."""
    views = unpack(data).images
    if not isinstance(views, (tuple, list)):
        views = data
    if not isinstance(views, (tuple, list)) or len(views) < 2:
        raise ArgumentError("augment=False needs a dataset of tuples of views (view_a, view_b).")
    return views


def labels_of_given(data):
    """Returns the labels of (tuple of views, labels), or None."""
    return unpack(data).labels if isinstance(unpack(data).images, (tuple, list)) else None


class SizesOfViews:
    """Sizes of the views by the size of the images, for augmentations that do not state them.

    This is an object, since Keras would track a dictionary for checkpoints.
    """

    def __init__(self):
        self._sizes = {}

    def record(self, image_size, views):
        """Records the sizes of views that were drawn of images of `image_size`, (H, W)."""
        self._sizes[image_size] = [tuple(view.shape[1:3]) for view in views]

    def knows(self, image_size):
        """Whether views of images of that size have been recorded."""
        return image_size in self._sizes

    def of(self, image_size, count, otherwise):
        """Returns (H, W) of each of `count` views; `otherwise` where they were not recorded."""
        return self._sizes.get(image_size, [otherwise] * count)


def with_static_size(images, size):
    """Returns images with a static height and width, taken from `size` (H, W) if unknown."""
    known = images.shape.rank is not None and None not in images.shape[1:]
    if known or size is None:
        return images
    batch = images.shape[0] if images.shape.rank is not None else None
    return tf.ensure_shape(images, [batch, *size, 3])
