"""The paper's family of views: crop-resize, flip, colour jitter, colour drop, blur.

`RandomView` draws the parameters of its operators and applies them in a few compiled passes over
planar images: the flip is part of the crop's weights, and colours need no transposition. On a CPU,
large views are computed one image at a time instead, in `per_image.py`.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from simclr_tf.augment import color, filters, geometry, per_image
from simclr_tf.augment.base import Operator, batch_size, register, sizes_of, static_size
from simclr_tf.augment.random import Draw, PredrawnUniforms, as_seed
from simclr_tf.augment.transforms import (
    CROP_COLUMNS,
    ColorDrop,
    ColorJitter,
    RandomBlur,
    RandomCropResize,
    RandomFlip,
)
from simclr_tf.devices import on_cpu, under_xla
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.images import check_images, max_value

_COLUMNS = CROP_COLUMNS + 10  # random numbers per image: flip 1, jitter 6, drop 1, blur 2
SMALL_SIZE = 64  # up to this size the paper's family for CIFAR-10 is used: no blur, strength 0.5


@register
class RandomView(Operator):
    """Draws t from the paper's family T for every image and returns one view of each.

    The family crops and resizes to [size, size], flips, jitters colours with probability 0.8, drops
    colours with probability 0.2, and blurs with probability 0.5 (SimCLR, arXiv:2002.05709, appendix
    A; for CIFAR-10, appendix B.9: strength 0.5 and no blur).

    Args:
      size: side of the view in pixels, at least 1.
      strength: of the colour jitter, the paper's s, 0 or more.
      blur: True, False, or "auto", which blurs views of more than 64 pixels.
      area, aspect, method: of the crop, see `RandomCropResize`.
      jitter_probability, drop_probability, blur_probability, flip_probability: in [0, 1].
      jit_compile: whether to compile the view with XLA, once per shape of the batch.

    Raises:
      ArgumentError: an argument outside its range.

    Example:

    >>> view = simclr_tf.RandomView(24, strength=0.5, jit_compile=False)  # for a single call
    >>> view(images, seed=0).shape
    TensorShape([8, 24, 24, 3])
    """

    _arguments = (
        "size",
        "strength",
        "blur",
        "area",
        "aspect",
        "method",
        "jitter_probability",
        "drop_probability",
        "blur_probability",
        "flip_probability",
        "jit_compile",
    )
    crops = True

    def __init__(
        self,
        size,
        strength=1.0,
        blur="auto",
        area=(0.08, 1.0),
        aspect=(3 / 4, 4 / 3),
        method="bicubic",
        jitter_probability=0.8,
        drop_probability=0.2,
        blur_probability=0.5,
        flip_probability=0.5,
        jit_compile=True,
    ):
        if blur not in (True, False, "auto"):
            raise ArgumentError(f'blur must be True, False or "auto"; got {blur!r}.')
        check_number("jitter_probability", jitter_probability, at_least=0, at_most=1)
        check_number("drop_probability", drop_probability, at_least=0, at_most=1)
        check_number("blur_probability", blur_probability, at_least=0, at_most=1)
        check_number("flip_probability", flip_probability, at_least=0, at_most=1)
        self.crop = RandomCropResize(size, area, aspect, method)
        self.flip = RandomFlip(flip_probability)
        self.jitter = ColorJitter(strength, jitter_probability)
        self.drop = ColorDrop(drop_probability)
        has_blur = size > SMALL_SIZE if blur == "auto" else blur
        self.blurring = RandomBlur(blur_probability) if has_blur else None
        self.size, self.strength, self.blur = size, strength, blur
        self.area, self.aspect, self.method = self.crop.area, self.crop.aspect, method
        self.jitter_probability, self.drop_probability = jitter_probability, drop_probability
        self.blur_probability, self.flip_probability = blur_probability, flip_probability
        self.jit_compile = jit_compile
        # Several functions, not one: fused into one, XLA would draw the random numbers again for
        # every pixel, and its batched matrix products on a CPU take twice the time of TensorFlow's.
        compiled = functools.partial(_function, jit_compile=True) if jit_compile else _identity
        self._compiled_draw = compiled(self._draw_for)
        self._compiled_prepare = compiled(self._prepare)
        self._compiled_colours = compiled(self._colours)
        self._compiled_finish = compiled(_finish)
        self._compiled_by_image = _function(self._by_image)  # calls compiled functions

    @classmethod
    def for_size(cls, size, strength=None, **kwargs):
        """Creates the paper's family for views of a size.

        Args:
          size: side of the view in pixels.
          strength: of the colour jitter; None is 0.5 up to 64 pixels and 1.0 above.
          **kwargs: further arguments of the class.
        """
        return cls(size, default_strength(size) if strength is None else strength, **kwargs)

    def chain(self):
        """Returns the operators of the family, in the order in which they are applied."""
        operators = [self.crop, self.flip, self.jitter, self.drop, self.blurring]
        return [operator for operator in operators if operator is not None]

    def __call__(self, images, seed=None, first_row=0, extent=None):
        images = tf.convert_to_tensor(images)
        return self.apply(images, self.parameters(images, seed, first_row, extent))

    def parameters(self, images, seed=None, first_row=0, extent=None):
        """Returns the parameters of a call with these arguments, as `apply` takes them."""
        images = tf.convert_to_tensor(images)
        check_images(images)
        first_row = tf.cast(first_row, tf.int64)
        return self._compiled_draw(images, as_seed(seed), first_row, extent)

    def _draw_for(self, images, seed, first_row, extent=None):
        draw = Draw(seed, (batch_size(images), *sizes_of(self, images, extent)), first_row)
        return self.draw(draw)

    def draw(self, draw):
        uniforms, parameters = PredrawnUniforms(draw, _COLUMNS), {}
        for operator in self.chain():
            parameters.update(operator.draw(uniforms))
            uniforms.shape = (draw.shape[0], self.size, self.size)
        return parameters

    def apply(self, images, parameters):
        if self._goes_by_image():
            return self._compiled_by_image(images, parameters)
        count = _parallel_slices(images) if self.jit_compile else 1
        slices = [tf.split(x, count) for x in (images, *parameters.values())]
        views = [self._view(some, dict(zip(parameters, rest))) for some, *rest in zip(*slices)]
        return views[0] if count == 1 else tf.concat(views, axis=0)

    def _view(self, images, parameters):
        """Computes the views of a batch at once, with dense matrices for crop and blur."""
        planar, weights = self._compiled_prepare(images, parameters)
        planar = geometry.resample_planar(planar, *weights["crop"])
        planar = self._compiled_colours(planar, parameters)
        if self.blurring is not None:
            planar = geometry.resample_planar(planar, *weights["blur"])
        return self._compiled_finish(planar)

    def _goes_by_image(self):
        large = self.size > SMALL_SIZE
        return self.jit_compile and large and on_cpu() and not under_xla()

    def _by_image(self, images, parameters):
        """Computes the same views as `_view`, one image at a time."""
        radius = self.blurring and self.blurring.radius(self.size)
        return per_image.views(images, parameters, self.size, self.method, radius)

    def _prepare(self, images, parameters):
        """Returns planar images [B, 3, H, W] in [0, 1], and the matrices of crop and blur."""
        # Transposed before the conversion, which makes uint8 four times as large.
        planar = tf.cast(geometry.to_planar(images), tf.float32) / max_value(images.dtype)
        size = (self.size, self.size)
        boxes, flipped = parameters["boxes"], parameters["flipped"]
        in_size = static_size(images)
        weights = {"crop": geometry.crop_weights(boxes, in_size, size, self.method, flipped)}
        if self.blurring is not None:
            radius = self.blurring.radius(self.size)
            weights["blur"] = filters.blur_weights(parameters["sigma"], radius, size)
        return planar, weights

    def _colours(self, planar, parameters):
        """Applies colour jitter and colour drop to planar images."""
        planar = tf.clip_by_value(planar, 0.0, 1.0)  # bicubic overshoots
        planar = color.jitter_planar(planar, parameters["factors"], parameters["order"])
        return color.grey_planar(planar, parameters["dropped"])

    def output_size(self, size):
        return self.size


def default_strength(size):
    """Returns the paper's strength of the colour jitter for views of `size` pixels."""
    return 0.5 if size <= SMALL_SIZE else 1.0


def _parallel_slices(images):
    """Returns into how many slices to split a batch that a CPU computes in parallel.

    A function compiled by XLA runs on one core. Slices run in parallel in a graph only: eagerly,
    one follows the other.
    """
    even = images.shape[0] is not None and images.shape[0] % 2 == 0
    return 2 if even and on_cpu() and not tf.executing_eagerly() else 1


def _finish(planar):
    """[B, 3, S, S] to [B, S, S, 3], clipped to [0, 1]."""
    return tf.clip_by_value(geometry.from_planar(planar), 0.0, 1.0)


def _identity(function):
    return function


def _function(function, **kwargs):
    """Returns `tf.function(function, **kwargs)`, whose traces are counted for it alone.

    TensorFlow counts the traces of a function or method by its code, over all objects, and would
    warn of too many where views have many sizes. A partial has no code.
    """
    return tf.function(functools.partial(function), **kwargs)


def center_crop(images, fraction=0.875):
    """Cuts the centre square out of images, as the paper does for evaluation at 224 pixels.

    Args:
      images: [B, H, W, 3] of any dtype, with a static height and width.
      fraction: side of the square as a fraction of the images' shorter side, in (0, 1].

    Returns:
      [B, S, S, 3] of the same dtype, S = round(fraction * min(H, W)).

    Raises:
      ArgumentError: `fraction` is not in (0, 1].

    Example:

    >>> simclr_tf.augment.center_crop(images, fraction=0.75).shape
    (8, 24, 24, 3)
    """
    check_number("fraction", fraction, above=0, at_most=1)
    height, width = images.shape[1:3]
    side = round(min(height, width) * fraction)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
