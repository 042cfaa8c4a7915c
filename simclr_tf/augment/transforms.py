"""One class per operator: it draws its parameters per image from a seed and applies a function.

`Operator` holds what they share: seeds, validation, config. The maths lives in `geometry.py`,
`color.py` and `filters.py`, the numbers come from `random.py`; the paper's family is in `views.py`.
"""

from __future__ import annotations

import functools
import math

import tensorflow as tf
from tensorflow import keras

from simclr_tf.augment import color, filters, geometry
from simclr_tf.augment.random import Draw, as_seed, fold_in
from simclr_tf.errors import ArgumentError
from simclr_tf.images import as_float

register = keras.saving.register_keras_serializable(package="simclr_tf")
_CROP_TRIES = 10  # as google-research/simclr and torchvision


def between(unit, low, high):
    """Uniform in [low, high) from uniform in [0, 1)."""
    return low + (high - low) * unit


def below(unit, count):
    """A uniform int32 in 0..count-1 from uniform in [0, 1); count may be a tensor."""
    count = tf.cast(count, tf.float32)
    return tf.cast(tf.minimum(tf.floor(unit * count), count - 1.0), tf.int32)


def check_range(name, pair, low, high):
    """Raises ValueError unless low <= pair[0] <= pair[1] <= high."""
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise ArgumentError(f"{name} must be two numbers {low} <= a <= b <= {high}; got {pair}.")


def check_probability(name, value):
    """Raises ValueError unless value lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ArgumentError(f"{name} must be a probability in [0, 1]; got {value}.")


class Operator:
    """A random operator on a batch of images; every image draws its own parameters.

    Subclasses give `draw` (parameters from random numbers) and `apply` (the deterministic part),
    and keep their arguments as attributes of the same name, which is all of `get_config`.
    """

    _arguments: tuple = ()
    crops = False  # whether it begins with a crop, and so can tell an image from what is beside it
    repeatable = True  # whether a seed gives the same result again

    def __call__(self, images, seed=None, first_row=0, extent=None):
        """One view of every image.

        Args:
          images: [B, H, W, 3], uint8, or float in [0, 1].
          seed: int, or [2] int tensor; the same seed gives the same result on every device and
            under XLA. None draws a seed from TensorFlow's global generator.
          first_row: place of the first image when these are a part of a larger batch: each image
            then gets the view that it gets in the whole batch.
          extent: [B, 2] int, the height and width of each image, where it fills only the upper left
            of [H, W]; None where all fill it. For operators that begin with a crop.

        Returns:
          [B, H, W, 3] float32 in [0, 1]; a resizing operator changes H and W.

        Raises:
          ValueError: images of another rank, channel count or dtype; an extent for an operator
            that does not begin with a crop.
        """
        images = as_float(images)
        draw = Draw(seed, (batch_size(images), *sizes_of(self, images, extent)), first_row)
        return self.apply(images, self.draw(draw))

    def draw(self, draw):
        """A dict of per-image parameters, [B, ...] each."""
        raise NotImplementedError

    def apply(self, images, parameters):
        """Float images and drawn parameters to images."""
        raise NotImplementedError

    def output_size(self, size):
        """Side of the result for images of that side."""
        return size

    def get_config(self):
        """Constructor arguments by name."""
        return {name: getattr(self, name) for name in self._arguments}

    @classmethod
    def from_config(cls, config):
        """The operator of a config."""
        return cls(**config)

    def __repr__(self):
        inside = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({inside})"


def batch_size(images):
    """The number of images: an int where it is static, else a tensor."""
    return images.shape[0] if images.shape[0] is not None else tf.shape(images)[0]


def static_size(images):
    """(height, width) of a batch of images; raises ValueError where they are not static."""
    if images.shape[1] is None or images.shape[2] is None:
        raise ArgumentError(
            f"images must have a static height and width; got shape {images.shape}. "
            "Use tf.ensure_shape(images, [None, height, width, 3])."
        )
    return images.shape[1], images.shape[2]


def sizes_of(augment, images, extent):
    """Height and width of the images that an augmentation gets: numbers, or [B] each."""
    if extent is None:
        return static_size(images)
    if not getattr(augment, "crops", False):
        name = getattr(augment, "__name__", type(augment).__name__)
        raise ArgumentError(
            "images of several sizes need an augmentation that begins with a crop: RandomView or "
            f"RandomCropResize; got {name}."
        )
    return tf.unstack(tf.cast(extent, tf.float32), num=2, axis=1)


def draw_boxes(unit, height, width, area, aspect):
    """Random crops: area uniform, aspect ratio uniform, place uniform, in whole pixels.

    A draw that does not fit the image is drawn again, ten times at most; then the whole image is
    taken (SimCLR, appendix A: "random size (uniform from 0.08 to 1.0 in area) and a random aspect
    ratio (default: of 3/4 to 4/3) of the original").

    Args:
      unit: [B, 22] uniform in [0, 1).
      height, width: of the images, in pixels; a number, or [B].
      area: (least, greatest) share of the image's area.
      aspect: (least, greatest) width/height of the crop.

    Returns:
      [B, 4] float32: y, x, height, width.
    """
    height, width = (tf.reshape(tf.cast(n, tf.float32), [-1, 1]) for n in (height, width))
    areas = between(unit[:, :_CROP_TRIES], *area) * height * width
    ratios = between(unit[:, _CROP_TRIES : 2 * _CROP_TRIES], *aspect)
    heights = tf.maximum(tf.round(tf.sqrt(areas / ratios)), 1.0)
    widths = tf.maximum(tf.round(tf.sqrt(areas * ratios)), 1.0)
    fits = (heights <= height) & (widths <= width)
    first = tf.one_hot(tf.argmax(tf.cast(fits, tf.int32), axis=1), _CROP_TRIES)
    none_fits = ~tf.reduce_any(fits, axis=1)
    height, width = height[:, 0], width[:, 0]
    h = tf.where(none_fits, height, tf.reduce_sum(heights * first, axis=1))
    w = tf.where(none_fits, width, tf.reduce_sum(widths * first, axis=1))
    y = tf.cast(below(unit[:, -2], height - h + 1.0), tf.float32)
    x = tf.cast(below(unit[:, -1], width - w + 1.0), tf.float32)
    return tf.stack([y, x, h, w], axis=1)


@register
class RandomCropResize(Operator):
    """A random crop, resized to [size, size].

    Args:
      size: side of the result in pixels.
      area: range of the crop's share of the area.
      aspect: range of width/height.
      method: "bicubic" or "bilinear".
    """

    _arguments = ("size", "area", "aspect", "method")
    crops = True

    def __init__(self, size, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), method="bicubic"):
        if size < 1:
            raise ArgumentError(f"size must be at least 1 pixel; got {size}.")
        check_range("area", area, 1e-6, 1.0)
        check_range("aspect", aspect, 1e-3, 1e3)
        if method not in ("bicubic", "bilinear"):
            raise ArgumentError(f'method must be "bicubic" or "bilinear"; got {method!r}.')
        self.size, self.area, self.aspect, self.method = size, tuple(area), tuple(aspect), method

    def draw(self, draw):
        unit = draw.uniform(2 * _CROP_TRIES + 2)
        return {"boxes": draw_boxes(unit, *draw.shape[1:], self.area, self.aspect)}

    def apply(self, images, parameters):
        return geometry.crop_resize(images, parameters["boxes"], self.size, self.method)

    def output_size(self, size):
        return self.size


@register
class RandomFlip(Operator):
    """Mirrors left to right with probability `probability`."""

    _arguments = ("probability",)

    def __init__(self, probability=0.5):
        check_probability("probability", probability)
        self.probability = probability

    def draw(self, draw):
        return {"flipped": draw.uniform() < self.probability}

    def apply(self, images, parameters):
        return geometry.flip(images, parameters["flipped"])


@register
class ColorJitter(Operator):
    """Brightness, contrast, saturation and hue in random order (SimCLR, appendix A).

    With probability `probability` an image is multiplied by a brightness factor from
    [max(0, 1 - 0.8 s), 1 + 0.8 s], likewise contrast and saturation, and its hue is turned by
    [-0.2 s, 0.2 s] turns, s = `strength`; clipped to [0, 1] after each.
    """

    _arguments = ("strength", "probability")

    def __init__(self, strength=1.0, probability=0.8):
        if strength < 0.0:
            raise ArgumentError(f"strength must be 0 or more; got {strength}.")
        check_probability("probability", probability)
        self.strength, self.probability = strength, probability

    def draw(self, draw):
        unit = draw.uniform(6)
        spread = 0.8 * self.strength
        # Over a strength of 1.25 the lower bound would be negative.
        scales = between(unit[:, :3], max(0.0, 1.0 - spread), 1.0 + spread)
        turn = between(unit[:, 3:4], -0.2 * self.strength, 0.2 * self.strength)
        jittered = unit[:, 4:5] < self.probability
        factors = tf.concat([scales, turn], axis=1)
        factors = tf.where(jittered, factors, tf.constant([[1.0, 1.0, 1.0, 0.0]]))
        return {"factors": factors, "order": below(unit[:, 5], len(color.ORDERS))}

    def apply(self, images, parameters):
        return color.color_jitter(images, **parameters)


@register
class ColorDrop(Operator):
    """Makes an image grey with probability `probability`; it keeps three channels."""

    _arguments = ("probability",)

    def __init__(self, probability=0.2):
        check_probability("probability", probability)
        self.probability = probability

    def draw(self, draw):
        return {"dropped": draw.uniform() < self.probability}

    def apply(self, images, parameters):
        return color.color_drop(images, parameters["dropped"])


@register
class RandomBlur(Operator):
    """Gaussian blur with probability `probability`; sigma, in pixels, is uniform in `sigma`.

    kernel_size: taps a side (rounded up to odd); None takes a tenth of the image's height.
    """

    _arguments = ("probability", "sigma", "kernel_size")

    def __init__(self, probability=0.5, sigma=(0.1, 2.0), kernel_size=None):
        check_probability("probability", probability)
        check_range("sigma", sigma, 1e-3, math.inf)
        self.probability, self.sigma, self.kernel_size = probability, tuple(sigma), kernel_size

    def radius(self, size):
        """Taps on either side of the centre, for images of that height."""
        return (self.kernel_size or size // 10) // 2

    def draw(self, draw):
        unit = draw.uniform(2)
        sigma = between(unit[:, 0], *self.sigma)
        return {"sigma": tf.where(unit[:, 1] < self.probability, sigma, 0.0)}

    def apply(self, images, parameters):
        return filters.gaussian_blur(images, parameters["sigma"], self.radius(images.shape[1]))


@register
class Cutout(Operator):
    """Fills a square with `fill`; its centre is uniform over the image, so part may lie outside.

    side: the square's side as a share of the image's shorter side, uniform in this range.
    """

    _arguments = ("probability", "side", "fill")

    def __init__(self, probability=1.0, side=(0.25, 0.5), fill=0.5):
        check_probability("probability", probability)
        check_range("side", side, 0.0, 1.0)
        self.probability, self.side, self.fill = probability, tuple(side), fill

    def draw(self, draw):
        unit = draw.uniform(4)
        height, width = draw.shape[1:]
        side = tf.round(between(unit[:, 0], *self.side) * min(height, width))
        side = tf.where(unit[:, 1] < self.probability, side, 0.0)
        y = tf.round(unit[:, 2] * height - side / 2.0)
        x = tf.round(unit[:, 3] * width - side / 2.0)
        return {"boxes": tf.stack([y, x, side, side], axis=1)}

    def apply(self, images, parameters):
        return geometry.cutout(images, parameters["boxes"], self.fill)


@register
class GaussianNoise(Operator):
    """Adds normal noise with probability `probability`; its deviation is uniform in `stddev`."""

    _arguments = ("probability", "stddev")

    def __init__(self, probability=1.0, stddev=(0.0, 0.1)):
        check_probability("probability", probability)
        check_range("stddev", stddev, 0.0, math.inf)
        self.probability, self.stddev = probability, tuple(stddev)

    def draw(self, draw):
        unit = draw.uniform(2)
        stddev = tf.where(unit[:, 1] < self.probability, between(unit[:, 0], *self.stddev), 0.0)
        return {"stddev": stddev, "noise": draw.part(1).normal(*draw.shape[1:], 3)}

    def apply(self, images, parameters):
        return filters.gaussian_noise(images, **parameters)


@register
class RandomRotation90(Operator):
    """Rotates square images by 0, 90, 180 or 270 degrees, each with probability 1/4."""

    def draw(self, draw):
        if draw.shape[1] != draw.shape[2]:
            raise ArgumentError(
                "RandomRotation90 needs square images; "
                f"got {draw.shape[1]} x {draw.shape[2]}. Crop them first."
            )
        return {"quarter_turns": below(draw.uniform(), 4)}

    def apply(self, images, parameters):
        return geometry.rotate90(images, parameters["quarter_turns"])


@register
class Sobel(Operator):
    """Replaces an image by the magnitude of its gradient with probability `probability`."""

    _arguments = ("probability",)

    def __init__(self, probability=1.0):
        check_probability("probability", probability)
        self.probability = probability

    def draw(self, draw):
        return {"filtered": draw.uniform() < self.probability}

    def apply(self, images, parameters):
        filtered = geometry.per_image(parameters["filtered"])
        return tf.where(filtered, filters.sobel(images), images)


@register
class Solarize(Operator):
    """Inverts values above a threshold, uniform in `threshold`, with probability `probability`."""

    _arguments = ("probability", "threshold")

    def __init__(self, probability=0.2, threshold=(0.5, 0.5)):
        check_probability("probability", probability)
        check_range("threshold", threshold, 0.0, 1.0)
        self.probability, self.threshold = probability, tuple(threshold)

    def draw(self, draw):
        unit = draw.uniform(2)
        threshold = between(unit[:, 0], *self.threshold)
        never = 2.0  # above every value
        return {"threshold": tf.where(unit[:, 1] < self.probability, threshold, never)}

    def apply(self, images, parameters):
        return color.solarize(images, parameters["threshold"])


@register
class Compose(Operator):
    """Applies operators one after the other; each draws from a seed of its own.

    Args:
      operators: `Operator`s, or any callables batch -> batch (a Keras layer too).
    """

    def __init__(self, operators):
        for operator in operators:
            if not callable(operator):
                raise ArgumentError(
                    f"operators must be callables batch -> batch; got {operator!r}."
                )
        self.operators = list(operators)

    @property
    def crops(self):
        """As the first operator."""
        return bool(self.operators) and getattr(self.operators[0], "crops", False)

    @property
    def repeatable(self):
        """Whether all operators are."""
        return all(is_repeatable(operator) for operator in self.operators)

    def __call__(self, images, seed=None, first_row=0, extent=None):
        if extent is not None:
            sizes_of(self, images, extent)
        images, seed = as_float(images), as_seed(seed)
        for place, operator in enumerate(self.operators):
            images = call_view(operator, images, fold_in(seed, place), first_row, extent)
            extent = None  # a crop leaves images of one size
        return images

    def output_size(self, size):
        steps = (op.output_size for op in self.operators if isinstance(op, Operator))
        return functools.reduce(lambda side, step: step(side), steps, size)

    def get_config(self):
        return {"operators": [keras.saving.serialize_keras_object(op) for op in self.operators]}

    @classmethod
    def from_config(cls, config):
        restore = keras.saving.deserialize_keras_object
        return cls([restore(operator) for operator in config["operators"]])


def is_repeatable(augment):
    """Whether an augmentation gives the same views again when it is called with the same seed."""
    return isinstance(augment, Operator) and augment.repeatable


def call_view(augment, images, seed=None, first_row=0, extent=None):
    """Calls any augmentation on a batch [B, H, W, 3] of uint8, or float in [0, 1].

    Arguments are those of `Operator.__call__`.

    An `Operator` gets the seed. Every other callable gets float32 in [0, 1], a Keras layer in
    training mode, and gives its views as it likes: without a seed.
    """
    if isinstance(augment, Operator):
        return augment(images, seed=seed, first_row=first_row, extent=extent)
    if extent is not None:  # only ours can tell an image from what is beside it
        sizes_of(augment, images, extent)
    images = as_float(images)
    if isinstance(augment, keras.layers.Layer):
        images = augment(images, training=True)
    else:
        images = augment(images)
    return tf.cast(images, tf.float32)
