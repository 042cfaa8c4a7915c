"""Encoders by name, and the check that a model is an encoder.

The ResNets are in `resnet`, KerasCV's backbones in `keras_cv`. Any other `keras.Model` that passes
`validate` is an encoder too.
"""

import difflib

from tensorflow import keras

from simclr_tf.encoders import keras_cv, resnet
from simclr_tf.errors import ArgumentError

_PREFIX = "keras_cv/"


def by_name(name, image_size=None, width=1, sk_ratio=0.0, stem="auto", **kwargs):
    """Builds an encoder.

    Args:
        name: one of `names()`: "resnet18" to "resnet200", or "keras_cv/..." for a KerasCV backbone
            with random weights and global average pooling.
        image_size: side of the images, in pixels. None leaves a ResNet unbuilt until its first
            call; "keras_cv/mit_..." needs it.
        width: see `ResNet`; 1 for KerasCV backbones.
        sk_ratio: see `ResNet`; 0 for KerasCV backbones.
        stem: see `ResNet`; "auto" for KerasCV backbones, which have a stem of their own.
        **kwargs: further arguments of `ResNet`, or of the KerasCV backbone's class. Batch
            normalisation of KerasCV backbones is not synchronised between replicas.

    Returns:
        A `keras.Model` from images, float [batch, height, width, 3] in [0, 1], to h, float32
        [batch, D].

    Raises:
        ValueError: for an unknown name, with those close to it, or for an option the encoder lacks.
    """
    if name not in names():
        raise ArgumentError(_unknown(name))
    if name.startswith(_PREFIX):
        if width != 1 or sk_ratio != 0 or stem != "auto":
            raise ArgumentError(
                f"width, sk_ratio and stem are options of resnet18 to resnet200; got {name} with "
                f"width={width}, sk_ratio={sk_ratio}, stem={stem!r}. Leave them out."
            )
        return keras_cv.build(name[len(_PREFIX) :], image_size, **kwargs)
    depth = int(name[len("resnet") :])
    encoder = resnet.ResNet(depth, width=width, sk_ratio=sk_ratio, stem=stem, **kwargs)
    if image_size is not None:
        encoder.build((None, image_size, image_size, 3))
    return encoder


def names():
    """Every name that `by_name` takes, in a list."""
    ours = [f"resnet{depth}" for depth in resnet.DEPTHS]
    return ours + [_PREFIX + name for name in keras_cv.BACKBONES]


def validate(encoder, image_size):
    """Checks that a model is an encoder, and builds it where it is not built yet.

    Args:
        encoder: any `keras.Model` from images [batch, H, W, 3] to h [batch, D].
        image_size: side of square images in pixels, or (H, W).

    Returns:
        D, the length of h.

    Raises:
        ValueError: when it is no `keras.Model`, or its output is not one tensor [batch, D].
    """
    if not isinstance(encoder, keras.Model):
        raise ArgumentError(f"encoder must be a keras.Model; got {type(encoder).__name__}.")
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    h = encoder(keras.Input((height, width, 3)))  # symbolic: shapes alone
    shape = tuple(getattr(h, "shape", ()))
    if len(shape) != 2 or shape[1] is None:
        raise ArgumentError(
            f"encoder must map images [batch, {height}, {width}, 3] to one tensor "
            f"[batch, D]; {encoder.name} gives {_describe(h)}. "
            "End it with keras.layers.GlobalAveragePooling2D()."
        )
    return shape[1]


def _describe(output):
    if hasattr(output, "shape"):
        return f"one of shape {tuple(output.shape)}"
    return f"a {type(output).__name__} of {len(output)}"


def _unknown(name):
    near = difflib.get_close_matches(str(name), names(), n=4, cutoff=0.5)
    near += [full for full in names() if full == f"{_PREFIX}{name}" and full not in near]
    hint = f"Near matches: {', '.join(near)}." if near else "simclr_tf.encoders.names() lists them."
    return f"encoder must be one of resnet18 to resnet200 or keras_cv/NAME; got {name!r}. {hint}"
