"""One class per operator, and `Compose`, which chains them.

A class draws the parameters of every image from a seed and calls a function of `geometry.py`,
`color.py` or `filters.py`, where the maths is. The base class is in `base.py`, the random numbers
are in `random.py`, and the paper's family as one operator is in `random_view.py`.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.augment import color, filters, geometry
from simclr_tf.augment.base import (
    Operator,
    call_view,
    is_repeatable,
    register,
    scale_uniform,
    sizes_of,
    uniform_integers,
)
from simclr_tf.augment.random import as_seed, fold_in
from simclr_tf.errors import ArgumentError, check_number, check_pair
from simclr_tf.images import as_float

_CROP_TRIES = 10  # as in google-research/simclr and torchvision
CROP_COLUMNS = 2 * _CROP_TRIES + 2  # an area and an aspect ratio per try, then y and x


def draw_boxes(unit, height, width, area, aspect):
    """Draws random crops, in whole pixels: area, aspect ratio and position are uniform.

    A crop that does not fit the image is drawn again, up to ten times; then the whole image is used
    (SimCLR, appendix A: "random size (uniform from 0.08 to 1.0 in area) and a random aspect ratio
    (default: of 3/4 to 4/3) of the original").

    Args:
      unit: [B, 22] float32, uniform in [0, 1).
      height, width: of the images in pixels; a number, or [B].
      area: (minimum, maximum) fraction of the image's area, in (0, 1].
      aspect: (minimum, maximum) width / height of the crop.

    Returns:
      [B, 4] float32: y, x, height, width, in pixels.
    """
    height, width = (tf.reshape(tf.cast(n, tf.float32), [-1, 1]) for n in (height, width))
    areas = scale_uniform(unit[:, :_CROP_TRIES], *area) * height * width  # [B, tries]
    ratios = scale_uniform(unit[:, _CROP_TRIES : 2 * _CROP_TRIES], *aspect)
    heights = tf.maximum(tf.round(tf.sqrt(areas / ratios)), 1.0)
    widths = tf.maximum(tf.round(tf.sqrt(areas * ratios)), 1.0)
    fits = (heights <= height) & (widths <= width)
    first = tf.one_hot(tf.argmax(tf.cast(fits, tf.int32), axis=1), _CROP_TRIES)
    none_fits = ~tf.reduce_any(fits, axis=1)
    height, width = height[:, 0], width[:, 0]
    h = tf.where(none_fits, height, tf.reduce_sum(heights * first, axis=1))
    w = tf.where(none_fits, width, tf.reduce_sum(widths * first, axis=1))
    y = tf.cast(uniform_integers(unit[:, -2], height - h + 1.0), tf.float32)
    x = tf.cast(uniform_integers(unit[:, -1], width - w + 1.0), tf.float32)
    return tf.stack([y, x, h, w], axis=1)


@register
class RandomCropResize(Operator):
    """Crops a random box out of every image and resizes it to [size, size] (SimCLR, appendix A).

    Args:
      size: side of the result in pixels, at least 1.
      area: (minimum, maximum) fraction of the image's area that the crop covers, in (0, 1].
      aspect: (minimum, maximum) width / height of the crop.
      method: "bicubic" or "bilinear".

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> crop = simclr_tf.augment.RandomCropResize(24, area=(0.2, 1.0))
    >>> crop(images, seed=0).shape
    TensorShape([8, 24, 24, 3])
    """

    _arguments = ("size", "area", "aspect", "method")
    crops = True

    def __init__(self, size, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), method="bicubic"):
        check_number("size", size, at_least=1, whole=True)
        check_pair("area", area, 1e-6, 1.0)
        check_pair("aspect", aspect, 1e-3, 1e3)
        if method not in ("bicubic", "bilinear"):
            raise ArgumentError(f'method must be "bicubic" or "bilinear"; got {method!r}.')
        self.size, self.area, self.aspect, self.method = size, tuple(area), tuple(aspect), method

    def draw(self, draw):
        unit = draw.uniform(CROP_COLUMNS)
        return {"boxes": draw_boxes(unit, *draw.shape[1:], self.area, self.aspect)}

    def apply(self, images, parameters):
        return geometry.crop_resize(images, parameters["boxes"], self.size, self.method)

    def output_size(self, size):
        return self.size


@register
class RandomFlip(Operator):
    """Mirrors images left to right at random (SimCLR, appendix A).

    Args:
      probability: that an image is mirrored, in [0, 1].

    Raises:
      ArgumentError: `probability` is not in [0, 1].

    Example:

    >>> flip = simclr_tf.augment.RandomFlip(probability=1.0)
    >>> bool(tf.reduce_all(flip(images) == images[:, :, ::-1] / np.float32(255)))
    True
    """

    _arguments = ("probability",)

    def __init__(self, probability=0.5):
        check_number("probability", probability, at_least=0, at_most=1)
        self.probability = probability

    def draw(self, draw):
        return {"flipped": draw.uniform() < self.probability}

    def apply(self, images, parameters):
        return geometry.flip(images, parameters["flipped"])


@register
class ColorJitter(Operator):
    """Changes brightness, contrast, saturation and hue in random order (SimCLR, appendix A).

    With s = `strength`, the factors of brightness, contrast and saturation are uniform in
    [max(0, 1 - 0.8 s), 1 + 0.8 s] and the change of the hue is uniform in [-0.2 s, 0.2 s] turns.
    Values are clipped to [0, 1] after each of the four.

    Args:
      strength: 0 or more; the paper uses 1.0 for ImageNet and 0.5 for CIFAR-10.
      probability: that an image is changed, in [0, 1].

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> jitter = simclr_tf.augment.ColorJitter(strength=0.5)
    >>> jitter(images, seed=0).shape
    TensorShape([8, 32, 32, 3])
    """

    _arguments = ("strength", "probability")

    def __init__(self, strength=1.0, probability=0.8):
        check_number("strength", strength, at_least=0)
        check_number("probability", probability, at_least=0, at_most=1)
        self.strength, self.probability = strength, probability

    def draw(self, draw):
        unit = draw.uniform(6)
        spread = 0.8 * self.strength
        # At a strength above 1.25 the lower bound would be negative.
        scales = scale_uniform(unit[:, :3], max(0.0, 1.0 - spread), 1.0 + spread)
        turn = scale_uniform(unit[:, 3:4], -0.2 * self.strength, 0.2 * self.strength)
        jittered = unit[:, 4:5] < self.probability
        factors = tf.concat([scales, turn], axis=1)  # [B, 4]
        factors = tf.where(jittered, factors, tf.constant([color.IDENTITY]))
        return {"factors": factors, "order": uniform_integers(unit[:, 5], len(color.ORDERS))}

    def apply(self, images, parameters):
        return color.color_jitter(images, **parameters)


@register
class ColorDrop(Operator):
    """Converts images to grey at random; they keep three channels (SimCLR, appendix A).

    Args:
      probability: that an image is converted, in [0, 1].

    Raises:
      ArgumentError: `probability` is not in [0, 1].

    Example:

    >>> grey = simclr_tf.augment.ColorDrop(probability=1.0)(images)
    >>> bool(tf.reduce_all(grey[..., 0] == grey[..., 1]))
    True
    """

    _arguments = ("probability",)

    def __init__(self, probability=0.2):
        check_number("probability", probability, at_least=0, at_most=1)
        self.probability = probability

    def draw(self, draw):
        return {"dropped": draw.uniform() < self.probability}

    def apply(self, images, parameters):
        return color.color_drop(images, parameters["dropped"])


@register
class RandomBlur(Operator):
    """Blurs images with a Gaussian at random (SimCLR, appendix A).

    Args:
      probability: that an image is blurred, in [0, 1].
      sigma: (minimum, maximum) standard deviation of the Gaussian in pixels, above 0.
      kernel_size: side of the kernel in pixels, rounded up to an odd number; None is a tenth of the
        image's height, as in the paper.

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> blur = simclr_tf.augment.RandomBlur(probability=1.0, kernel_size=5)
    >>> blur(images, seed=0).shape
    TensorShape([8, 32, 32, 3])
    """

    _arguments = ("probability", "sigma", "kernel_size")

    def __init__(self, probability=0.5, sigma=(0.1, 2.0), kernel_size=None):
        check_number("probability", probability, at_least=0, at_most=1)
        check_pair("sigma", sigma, 1e-3)
        if kernel_size is not None:
            check_number("kernel_size", kernel_size, at_least=1, whole=True)
        self.probability, self.sigma, self.kernel_size = probability, tuple(sigma), kernel_size

    def radius(self, size):
        """Returns the number of taps on either side of the centre, for images `size` pixels high.

        The kernel has 2 radius + 1 taps per axis.
        """
        return (self.kernel_size or size // 10) // 2

    def draw(self, draw):
        unit = draw.uniform(2)
        sigma = scale_uniform(unit[:, 0], *self.sigma)
        return {"sigma": tf.where(unit[:, 1] < self.probability, sigma, 0.0)}

    def apply(self, images, parameters):
        return filters.gaussian_blur(images, parameters["sigma"], self.radius(images.shape[1]))


@register
class Cutout(Operator):
    """Fills a random square of every image with a constant (DeVries and Taylor, arXiv:1708.04552).

    The centre of the square is uniform over the image, so the square may extend beyond it.

    Args:
      probability: that an image is changed, in [0, 1].
      side: (minimum, maximum) side of the square as a fraction of the image's shorter side.
      fill: the value written, in [0, 1].

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> cutout = simclr_tf.augment.Cutout(side=(0.5, 0.5), fill=0.0)
    >>> cutout(images, seed=0).shape
    TensorShape([8, 32, 32, 3])
    """

    _arguments = ("probability", "side", "fill")

    def __init__(self, probability=1.0, side=(0.25, 0.5), fill=0.5):
        check_number("probability", probability, at_least=0, at_most=1)
        check_pair("side", side, 0.0, 1.0)
        check_number("fill", fill, at_least=0, at_most=1)
        self.probability, self.side, self.fill = probability, tuple(side), fill

    def draw(self, draw):
        unit = draw.uniform(4)
        height, width = draw.shape[1:]
        side = tf.round(scale_uniform(unit[:, 0], *self.side) * min(height, width))
        side = tf.where(unit[:, 1] < self.probability, side, 0.0)
        y = tf.round(unit[:, 2] * height - side / 2.0)
        x = tf.round(unit[:, 3] * width - side / 2.0)
        return {"boxes": tf.stack([y, x, side, side], axis=1)}

    def apply(self, images, parameters):
        return geometry.cutout(images, parameters["boxes"], self.fill)


@register
class GaussianNoise(Operator):
    """Adds Gaussian noise to images at random; the result is clipped to [0, 1].

    Args:
      probability: that an image is changed, in [0, 1].
      stddev: (minimum, maximum) standard deviation of the noise, 0 or more; 1 is the range of the
        image.

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> noise = simclr_tf.augment.GaussianNoise(stddev=(0.1, 0.1))
    >>> noise(images, seed=0).shape
    TensorShape([8, 32, 32, 3])
    """

    _arguments = ("probability", "stddev")

    def __init__(self, probability=1.0, stddev=(0.0, 0.1)):
        check_number("probability", probability, at_least=0, at_most=1)
        check_pair("stddev", stddev, 0.0)
        self.probability, self.stddev = probability, tuple(stddev)

    def draw(self, draw):
        unit = draw.uniform(2)
        stddev = scale_uniform(unit[:, 0], *self.stddev)
        stddev = tf.where(unit[:, 1] < self.probability, stddev, 0.0)
        return {"stddev": stddev, "noise": draw.fold_in(1).normal(*draw.shape[1:], 3)}

    def apply(self, images, parameters):
        return filters.gaussian_noise(images, **parameters)


@register
class RandomRotation90(Operator):
    """Rotates square images by 0, 90, 180 or 270 degrees, each with probability 1/4.

    Raises:
      ArgumentError: from the call, where the images are not square.

    Example:

    >>> rotate = simclr_tf.augment.RandomRotation90()
    >>> rotate(images, seed=0).shape
    TensorShape([8, 32, 32, 3])
    """

    def draw(self, draw):
        if draw.shape[1] != draw.shape[2]:
            raise ArgumentError(
                "RandomRotation90 needs square images; "
                f"got {draw.shape[1]} x {draw.shape[2]}. Crop them first."
            )
        return {"quarter_turns": uniform_integers(draw.uniform(), 4)}

    def apply(self, images, parameters):
        return geometry.rotate90(images, parameters["quarter_turns"])


@register
class Sobel(Operator):
    """Replaces images by the magnitude of their gradient at random (SimCLR, figure 4).

    Args:
      probability: that an image is replaced, in [0, 1].

    Raises:
      ArgumentError: `probability` is not in [0, 1].

    Example:

    >>> edges = simclr_tf.augment.Sobel()(images)
    >>> bool(tf.reduce_max(edges) <= 1.0)
    True
    """

    _arguments = ("probability",)

    def __init__(self, probability=1.0):
        check_number("probability", probability, at_least=0, at_most=1)
        self.probability = probability

    def draw(self, draw):
        return {"filtered": draw.uniform() < self.probability}

    def apply(self, images, parameters):
        filtered = geometry.expand_to_rank(parameters["filtered"])
        return tf.where(filtered, filters.sobel(images), images)


@register
class Solarize(Operator):
    """Inverts the values at or above a threshold at random (BYOL, arXiv:2006.07733, appendix B).

    Args:
      probability: that an image is changed, in [0, 1].
      threshold: (minimum, maximum) of the threshold, in [0, 1].

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> solarized = simclr_tf.augment.Solarize(probability=1.0)(images)
    >>> bool(tf.reduce_max(solarized) <= 0.5)
    True
    """

    _arguments = ("probability", "threshold")

    def __init__(self, probability=0.2, threshold=(0.5, 0.5)):
        check_number("probability", probability, at_least=0, at_most=1)
        check_pair("threshold", threshold, 0.0, 1.0)
        self.probability, self.threshold = probability, tuple(threshold)

    def draw(self, draw):
        unit = draw.uniform(2)
        threshold = scale_uniform(unit[:, 0], *self.threshold)
        never = 2.0  # above every value
        return {"threshold": tf.where(unit[:, 1] < self.probability, threshold, never)}

    def apply(self, images, parameters):
        return color.solarize(images, parameters["threshold"])


@register
class Compose(Operator):
    """Applies operators one after the other; each draws from its own seed.

    Args:
      operators: a list of `Operator`s, or of any callables batch -> batch, such as Keras layers.

    Raises:
      ArgumentError: an item that is not callable.

    Example:

    >>> crop, blur = simclr_tf.augment.RandomCropResize(24), simclr_tf.augment.RandomBlur()
    >>> augment = simclr_tf.Compose([crop, blur])
    >>> augment(images, seed=0).shape
    TensorShape([8, 24, 24, 3])
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
        """Whether the first operator begins with a crop."""
        return bool(self.operators) and getattr(self.operators[0], "crops", False)

    @property
    def repeatable(self):
        """Whether all operators are repeatable."""
        return all(is_repeatable(operator) for operator in self.operators)

    def __call__(self, images, seed=None, first_row=0, extent=None):
        if extent is not None:
            sizes_of(self, images, extent)
        images, seed = as_float(images), as_seed(seed)
        for index, operator in enumerate(self.operators):
            images = call_view(operator, images, fold_in(seed, index), first_row, extent)
            extent = None  # after the crop all images have the same size
        return images

    def output_size(self, size):
        steps = (op.output_size for op in self.operators if isinstance(op, Operator))
        return functools.reduce(lambda side, step: step(side), steps, size)

    def get_config(self):
        return {"operators": [_keras.saving.serialize_keras_object(op) for op in self.operators]}

    @classmethod
    def from_config(cls, config):
        restore = _keras.saving.deserialize_keras_object
        return cls([restore(operator) for operator in config["operators"]])


@register
class SharedDraws(Compose):
    """A `Compose` whose operators draw the same in every view of a step.

    The operators at one position draw the same parameters in all views, so that chains which begin
    alike give views that differ only by the rest. In SimCLR, section 3.1, both views are the same
    random crop and one of them is transformed further (figure 5).

    Args:
      operators: as of `Compose`.

    Example:

    >>> crop = simclr_tf.augment.RandomCropResize(24)
    >>> chains = [[crop], [crop, simclr_tf.augment.Sobel()]]
    >>> views = [simclr_tf.augment.SharedDraws(chain) for chain in chains]
    >>> model = simclr_tf.SimCLR(encoder, augment=views)
    """

    shares_draws = True
