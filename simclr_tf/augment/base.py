"""The base class of the operators, and what all of them share: seeds, shapes and validation.

The operators themselves are in `transforms.py` and `random_view.py`.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.augment.random import Draw
from simclr_tf.errors import ArgumentError
from simclr_tf.images import as_float

register = _keras.saving.register_keras_serializable(package="simclr_tf")


class Operator:
    """Base class of random operators on a batch of images; every image draws its own parameters.

    A subclass implements `draw`, which turns random numbers into parameters, and `apply`, which is
    deterministic. It keeps its constructor arguments as attributes of the same names, listed in
    `_arguments`, and `get_config` returns them.

    Attributes:
      crops: whether the operator begins with a crop, and so can be given an `extent`.
      repeatable: whether the same seed returns the same result again.
      shares_draws: whether every view of a step is drawn with the seed of the first one.

    Example:

    >>> class Invert(simclr_tf.augment.Operator):
    ...     def draw(self, draw):
    ...         return {"inverted": draw.uniform() < 0.5}
    ...     def apply(self, images, parameters):
    ...         return tf.where(parameters["inverted"][:, None, None, None], 1.0 - images, images)
    >>> Invert()(images, seed=0).shape
    TensorShape([8, 32, 32, 3])
    """

    _arguments: tuple = ()
    crops = False
    repeatable = True
    shares_draws = False

    def __call__(self, images, seed=None, first_row=0, extent=None):
        """Returns one view of every image.

        Args:
          images: [B, H, W, 3], uint8, or float in [0, 1].
          seed: int, or [2] int tensor; the same seed returns the same result on every device and
            under XLA. None draws a seed from TensorFlow's global generator.
          first_row: index of the first image within a larger batch of which `images` is a slice;
            each image then gets the view that it gets in the whole batch.
          extent: [B, 2] int, the height and width of each image in pixels, where it fills only the
            upper left of [H, W]; None where all images fill it. Only operators that begin with a
            crop accept it.

        Returns:
          [B, H, W, 3] float32 in [0, 1]; an operator that resizes changes H and W.

        Raises:
          ArgumentError: images of another rank, channel count or dtype; an extent for an operator
            that does not begin with a crop.
        """
        images = as_float(images)
        draw = Draw(seed, (batch_size(images), *sizes_of(self, images, extent)), first_row)
        return self.apply(images, self.draw(draw))

    def draw(self, draw):
        """Returns the parameters of every image, a dict of [B, ...] tensors.

        Args:
          draw: the random numbers and the shape of the batch, a `random.Draw`.
        """
        raise NotImplementedError

    def apply(self, images, parameters):
        """Returns the result for images, [B, H, W, 3] float32 in [0, 1], and drawn parameters."""
        raise NotImplementedError

    def output_size(self, size):
        """Returns the side of the result, in pixels, for square images of side `size`."""
        return size

    def get_config(self):
        """Returns the constructor arguments by name."""
        return {name: getattr(self, name) for name in self._arguments}

    @classmethod
    def from_config(cls, config):
        """Creates an operator from the result of `get_config`."""
        return cls(**config)

    def __repr__(self):
        inside = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({inside})"


# -- shapes --------------------------------------------------------------------------------------


def batch_size(images):
    """Returns the number of images: an int where it is static, else a scalar tensor."""
    return images.shape[0] if images.shape[0] is not None else tf.shape(images)[0]


def static_size(images):
    """Returns the height and width of a batch of images in pixels, two ints.

    Args:
      images: [B, H, W, 3], of any dtype.

    Raises:
      ArgumentError: the height or the width is not known before run time.

    Example:

    >>> simclr_tf.augment.static_size(images)
    (32, 32)
    """
    if images.shape[1] is None or images.shape[2] is None:
        raise ArgumentError(
            f"images must have a static height and width; got shape {images.shape}. "
            "Use tf.ensure_shape(images, [None, height, width, 3])."
        )
    return images.shape[1], images.shape[2]


def sizes_of(augment, images, extent):
    """Returns the heights and widths of the images that an augmentation is called with.

    Args:
      augment: the augmentation, an `Operator` or another callable.
      images: [B, H, W, 3].
      extent: as in `Operator.__call__`.

    Returns:
      Two ints where `extent` is None, else two float32 tensors [B]; in pixels.

    Raises:
      ArgumentError: `augment` does not begin with a crop and there is an extent.
    """
    if extent is None:
        return static_size(images)
    if not getattr(augment, "crops", False):
        name = getattr(augment, "__name__", type(augment).__name__)
        raise ArgumentError(
            "images of several sizes need an augmentation that begins with a crop: RandomView or "
            f"RandomCropResize; got {name}."
        )
    return tf.unstack(tf.cast(extent, tf.float32), num=2, axis=1)


# -- calls ---------------------------------------------------------------------------------------


def is_repeatable(augment):
    """Whether an augmentation returns the same views again when called with the same seed.

    True for the operators of this package; False for other callables, which get no seed.

    Example:

    >>> simclr_tf.augment.is_repeatable(simclr_tf.augment.RandomFlip())
    True
    >>> simclr_tf.augment.is_repeatable(keras.layers.RandomFlip())
    False
    """
    return isinstance(augment, Operator) and augment.repeatable


def call_view(augment, images, seed=None, first_row=0, extent=None):
    """Calls an augmentation of any kind on a batch of images.

    An `Operator` gets the seed. Any other callable gets the images alone, as float32 in [0, 1], and
    draws its own random numbers; a Keras layer is called with `training=True`.

    Args:
      augment: a callable batch -> batch.
      images: [B, H, W, 3], uint8, or float in [0, 1].
      seed, first_row, extent: as in `Operator.__call__`.

    Returns:
      One view of every image, [B, H', W', 3] float32.

    Raises:
      ArgumentError: images of another rank, channel count or dtype; an extent for an augmentation
        that does not begin with a crop.

    Example:

    >>> simclr_tf.augment.call_view(keras.layers.RandomFlip(), images).dtype
    tf.float32
    """
    if isinstance(augment, Operator):
        return augment(images, seed=seed, first_row=first_row, extent=extent)
    if extent is not None:  # raises: only an Operator can tell an image from its padding
        sizes_of(augment, images, extent)
    images = as_float(images)
    if isinstance(augment, keras.layers.Layer):
        images = augment(images, training=True)
    else:
        images = augment(images)
    return tf.cast(images, tf.float32)


# -- parameters ----------------------------------------------------------------------------------


def scale_uniform(unit, low, high):
    """Maps uniform numbers in [0, 1) to uniform numbers in [low, high)."""
    return low + (high - low) * unit


def uniform_integers(unit, count):
    """Maps uniform numbers in [0, 1) to uniform int32 in 0 .. count - 1; count may be a tensor."""
    count = tf.cast(count, tf.float32)
    return tf.cast(tf.minimum(tf.floor(unit * count), count - 1.0), tf.int32)
