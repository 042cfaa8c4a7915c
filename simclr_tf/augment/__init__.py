"""Random views of a batch of images: batched, seeded, static shapes, compiled by XLA.

`RandomView` is the paper's family. The operators, `Compose` and `by_name` build others, and views
that share parameters are in `shared_view`. The functions apply given parameters, one per image; the
classes draw them at random.
"""

from simclr_tf.augment.base import Operator, call_view, is_repeatable, static_size
from simclr_tf.augment.by_name import by_name, name_of
from simclr_tf.augment.color import (
    brightness,
    color_drop,
    color_jitter,
    contrast,
    hue,
    saturation,
    solarize,
)
from simclr_tf.augment.filters import gaussian_blur, gaussian_noise, sobel
from simclr_tf.augment.geometry import crop_resize, cutout, flip, rotate90
from simclr_tf.augment.random import as_seed
from simclr_tf.augment.random_view import RandomView, center_crop
from simclr_tf.augment.shared_view import (
    SharedView,
    augmentations_of,
    family_with,
    leave_one_out,
)
from simclr_tf.augment.transforms import (
    ColorDrop,
    ColorJitter,
    Compose,
    Cutout,
    GaussianNoise,
    RandomBlur,
    RandomCropResize,
    RandomFlip,
    RandomRotation90,
    Sobel,
    Solarize,
)
from simclr_tf.images import as_float

__all__ = [
    "ColorDrop",
    "ColorJitter",
    "Compose",
    "Cutout",
    "GaussianNoise",
    "Operator",
    "RandomBlur",
    "RandomCropResize",
    "RandomFlip",
    "RandomRotation90",
    "RandomView",
    "SharedView",
    "Sobel",
    "Solarize",
    "as_float",
    "as_seed",
    "augmentations_of",
    "brightness",
    "by_name",
    "call_view",
    "center_crop",
    "color_drop",
    "color_jitter",
    "contrast",
    "crop_resize",
    "cutout",
    "family_with",
    "flip",
    "gaussian_blur",
    "gaussian_noise",
    "hue",
    "is_repeatable",
    "leave_one_out",
    "name_of",
    "rotate90",
    "saturation",
    "sobel",
    "solarize",
    "static_size",
]
