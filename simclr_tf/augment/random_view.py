"""The paper's family of views: crop-resize, flip, colour jitter, colour drop, blur.

`RandomView` draws what the chain of single operators would draw and applies it in a few compiled
passes over planar pixels: the flip is part of the crop's weights, the colours are never transposed.
Large views on a processor are made image by image instead, in `per_image.py`.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from simclr_tf.augment import color, filters, geometry, per_image
from simclr_tf.augment.random import Draw, PredrawnUniforms, as_seed
from simclr_tf.augment.transforms import (
    ColorDrop,
    ColorJitter,
    Operator,
    RandomBlur,
    RandomCropResize,
    RandomFlip,
    batch_size,
    register,
    sizes_of,
    static_size,
)
from simclr_tf.devices import on_cpu, under_xla
from simclr_tf.errors import ArgumentError
from simclr_tf.images import as_float

_COLUMNS = 32  # random numbers an image: crop 22, flip 1, jitter 6, drop 1, blur 2
SMALL_SIZE = 64  # up to here the paper's CIFAR family holds: no blur, strength 0.5


@register
class RandomView(Operator):
    """Draws t from the paper's family T for every image and returns one view of each.

    Crop of `area` resized to [size, size], flip, colour jitter with probability 0.8, colour drop
    with probability 0.2, and blur with probability 0.5 (SimCLR, arXiv:2002.05709, appendix A; for
    CIFAR-10, appendix B.9: strength 0.5 and no blur).

    Args:
      size: side of the view in pixels.
      strength: of the colour jitter, the paper's s.
      blur: True, False, or "auto": blur above 64 pixels.
      area, aspect, method: of the crop, see `RandomCropResize`.
      jitter_probability, drop_probability, blur_probability, flip_probability: in [0, 1].
      jit_compile: compile the view with XLA (one compilation per shape of batch).
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
        # Several clusters: fused into one, XLA would draw the numbers anew for every pixel, and its
        # batched matrix products on a CPU take twice the time of TensorFlow's.
        compiled = functools.partial(tf.function, jit_compile=True) if jit_compile else _as_it_is
        self._compiled_draw = compiled(self._draw_for)
        self._compiled_prepare = compiled(self._prepare)
        self._compiled_colours = compiled(self._colours)
        self._compiled_finish = compiled(_finish)
        self._compiled_by_image = tf.function(self._by_image)  # its parts compile themselves

    @classmethod
    def for_size(cls, size, strength=None, **kwargs):
        """The paper's family at that size: strength 0.5 up to 64 pixels, else 1.0."""
        if strength is None:
            strength = 0.5 if size <= SMALL_SIZE else 1.0
        return cls(size, strength, **kwargs)

    def chain(self):
        """The same family as single operators, in order."""
        parts = [self.crop, self.flip, self.jitter, self.drop, self.blurring]
        return [part for part in parts if part is not None]

    def __call__(self, images, seed=None, first_row=0, extent=None):
        as_float(images)  # a wrong rank or dtype is told before anything is drawn
        images = tf.convert_to_tensor(images)
        first_row = tf.cast(first_row, tf.int64)
        return self.apply(images, self._compiled_draw(images, as_seed(seed), first_row, extent))

    def _draw_for(self, images, seed, first_row, extent=None):
        draw = Draw(seed, (batch_size(images), *sizes_of(self, images, extent)), first_row)
        return self.draw(draw)

    def draw(self, draw):
        shares, parameters = PredrawnUniforms(draw, _COLUMNS), {}
        for operator in self.chain():
            parameters.update(operator.draw(shares))
            shares.shape = (draw.shape[0], self.size, self.size)
        return parameters

    def apply(self, images, parameters):
        if self._goes_by_image():
            return self._compiled_by_image(images, parameters)
        parts = _parts(images) if self.jit_compile else 1
        pieces = [tf.split(x, parts) for x in (images, *parameters.values())]
        views = [self._view(piece, dict(zip(parameters, rest))) for piece, *rest in zip(*pieces)]
        return views[0] if parts == 1 else tf.concat(views, axis=0)

    def _view(self, images, parameters):
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
        radius = self.blurring and self.blurring.radius(self.size)
        return per_image.views(images, parameters, self.size, self.method, radius)

    def _prepare(self, images, parameters):
        """Planar images [B, 3, H, W] in [0, 1], and the matrices of crop and blur."""
        planar = tf.cast(geometry.to_planar(images), tf.float32)
        if images.dtype == tf.uint8:
            planar /= 255.0
        size = (self.size, self.size)
        boxes, flipped = parameters["boxes"], parameters["flipped"]
        in_size = static_size(images)
        weights = {"crop": geometry.crop_weights(boxes, in_size, size, self.method, flipped)}
        if self.blurring is not None:
            radius = self.blurring.radius(self.size)
            weights["blur"] = filters.blur_weights(parameters["sigma"], radius, size)
        return planar, weights

    def _colours(self, planar, parameters):
        """What lies between crop and blur; bicubic overshoots, so it is clipped first."""
        planar = tf.clip_by_value(planar, 0.0, 1.0)
        planar = color.jitter_planar(planar, parameters["factors"], parameters["order"])
        return color.grey_planar(planar, parameters["dropped"])

    def output_size(self, size):
        return self.size


def _parts(images):
    """How many parts of a batch a processor works on side by side; a cluster keeps one core busy.

    In a graph alone: eagerly one follows the other.
    """
    even = images.shape[0] is not None and images.shape[0] % 2 == 0
    return 2 if even and on_cpu() and not tf.executing_eagerly() else 1


def _finish(planar):
    """[B, 3, S, S] to [B, S, S, 3], in [0, 1]."""
    return tf.clip_by_value(geometry.from_planar(planar), 0.0, 1.0)


def _as_it_is(function):
    return function


def center_crop(images, share=0.875):
    """The central square of `share` of the shorter side (evaluation at 224 pixels in the paper).

    images: [B, H, W, 3] of any dtype. Returns [B, S, S, 3] of the same dtype.
    """
    height, width = images.shape[1:3]
    side = round(min(height, width) * share)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
