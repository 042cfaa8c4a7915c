"""Encoders by name, and the check that a model is an encoder.

The ResNets are in `resnet`, `Airbench` is in `airbench`, KerasCV's backbones are in `keras_cv`, the
networks of `keras.applications` in `keras_applications`. Any other `keras.Model` that passes
`validate` is an encoder too.
"""

import difflib

import numpy as np
from absl import logging
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders import keras_applications, keras_cv, resnet
from simclr_tf.encoders.airbench import Airbench
from simclr_tf.errors import ArgumentError

# Options of this package's networks; those of `Airbench`.
_DEFAULTS = {"width": 1, "sk_ratio": 0, "stem": "auto", "feature_dim": None}
_OF_AIRBENCH = ("width", "feature_dim")
_LIBRARIES = {"keras_cv": keras_cv, "keras_applications": keras_applications}


def by_name(name, image_size=None, width=1, sk_ratio=0.0, stem="auto", feature_dim=None, **kwargs):
    """Creates an encoder with random weights.

    Args:
        name: one of `names()`: "resnet14" to "resnet200"; "airbench"; "keras_cv/NAME" for a
            KerasCV backbone or "keras_applications/NAME" for a network of `keras.applications`,
            both with global average pooling.
        image_size: int, side of the images in pixels. With None, a ResNet or `Airbench` is built on
            its first call. "keras_cv/mit_..." and "keras_applications/nasnet_..." require it, and
            accept images of this size alone.
        width: see `ResNet` and `Airbench`; must be 1 for other encoders.
        sk_ratio: see `ResNet`; must be 0 for other encoders.
        stem: see `ResNet`; must be "auto" for other encoders, which have stems of their own.
        feature_dim: see `ResNet` and `Airbench`; must be None for other encoders.
        **kwargs: further arguments of `ResNet`, of `Airbench`, of the KerasCV backbone's class or
            of the function of `keras.applications`. Batch normalisation of the latter two is not
            synchronised between replicas. EfficientNets have stochastic depth in training, so that
            `micro_batch_size` of `SimCLR` refuses them on Keras 2.

    Returns:
        A `keras.Model` from images, float [batch, height, width, 3] in [0, 1], to h, float32
        [batch, D]. All weights are random.

    Raises:
        ValueError: for an unknown name (the message lists similar ones), for an option that the
            encoder does not have, or for an image_size that the encoder cannot take, such as one
            below the minimum of a network of `keras.applications` (32 for most).

    Example:

    >>> encoder = simclr_tf.encoders.by_name("resnet50", width=2)
    >>> encoder.feature_dim
    4096
    """
    if name not in names():
        raise ArgumentError(_unknown(name))
    options = {"width": width, "sk_ratio": sk_ratio, "stem": stem, "feature_dim": feature_dim}
    options = {key: value for key, value in options.items() if value != _DEFAULTS[key]}
    _check_options(name, options)
    if "/" in name:
        library, network = name.split("/")
        return _LIBRARIES[library].build(network, image_size, **kwargs)
    if name == "airbench":
        encoder = Airbench(**options, **kwargs)
    else:
        encoder = resnet.ResNet(int(name[len("resnet") :]), **options, **kwargs)
    if image_size is not None:
        encoder.build((None, image_size, image_size, 3))
    return encoder


def names():
    """Lists every name that `by_name` accepts.

    RegNet and ResNet-RS of `keras.applications` are listed on Keras 2 only, which has them.

    Example:

    >>> simclr_tf.encoders.names()[:3]
    ['resnet14', 'resnet18', 'resnet34']
    """
    resnets = [f"resnet{depth}" for depth in resnet.DEPTHS]
    return [*resnets, "airbench"] + [
        f"{library}/{name}" for library, module in _LIBRARIES.items() for name in module.names()
    ]


def validate(encoder, image_size):
    """Checks that a model is an encoder, and builds it if necessary.

    Args:
        encoder: any `keras.Model` from images, float [batch, H, W, 3] in [0, 1], to h, float
            [batch, D].
        image_size: int, side of square images in pixels; or (H, W).

    Returns:
        int, D, the length of h.

    Raises:
        ValueError: if encoder is not a `keras.Model`, or its output is not one tensor [batch, D].

    Example:

    >>> simclr_tf.encoders.validate(encoder, 32)
    8
    """
    if not isinstance(encoder, keras.Model):
        raise ArgumentError(f"encoder must be a keras.Model; got {type(encoder).__name__}.")
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    h = encoder(keras.Input((height, width, 3)))  # symbolic: nothing is computed
    shape = tuple(getattr(h, "shape", ()))
    if len(shape) != 2 or shape[1] is None:
        raise ArgumentError(
            f"encoder must map images [batch, {height}, {width}, 3] to one tensor "
            f"[batch, D]; {encoder.name} returns {_describe(h)}. "
            "End it with keras.layers.GlobalAveragePooling2D()."
        )
    return shape[1]


def warn_of_scaling(encoder):
    """Logs a warning if an encoder's first layers expect pixels of 0 to 255.

    Images are in [0, 1] everywhere in this package, so that such an encoder would see values of
    almost 0. Recognised are `Rescaling` and `Normalization` of Keras.

    Args:
        encoder: a built `keras.Model`.
    """
    scale = 1.0
    for layer in _keras.all_layers(encoder):
        if isinstance(layer, keras.layers.Rescaling):
            scale *= float(np.mean(np.abs(layer.scale)))
        is_normalization = isinstance(layer, keras.layers.Normalization)
        if scale < 0.05 or (is_normalization and scale == 1.0 and np.max(layer.mean) > 2.0):
            logging.warning(
                "%s begins with the layer %s, for pixels of 0 to 255, and gets images in [0, 1]. "
                "Build it with include_preprocessing=False or include_rescaling=False, or use "
                'simclr_tf.encoders.by_name("keras_applications/...").',
                encoder.name,
                layer.name,
            )
            return


def _check_options(name, options):
    """Raises `ArgumentError` if an encoder does not have one of the options that are given."""
    has = () if "/" in name else _OF_AIRBENCH if name == "airbench" else _DEFAULTS
    refused = {key: value for key, value in options.items() if key not in has}
    if refused:
        kinds = "resnet14 to resnet200"
        if set(refused) <= set(_OF_AIRBENCH):
            kinds += " or airbench"
        texts = [f"{key}={value!r}" for key, value in refused.items()]
        raise ArgumentError(
            f"encoder must be {kinds} for {' and '.join(texts)}; got {name!r}. Leave "
            f"{'it' if len(texts) == 1 else 'them'} out."
        )


def _describe(output):
    if hasattr(output, "shape"):
        return f"one of shape {tuple(output.shape)}"
    return f"a {type(output).__name__} of {len(output)}"


def _unknown(name):
    library, _, network = str(name).rpartition("/")
    similar = difflib.get_close_matches(str(name), names(), n=4, cutoff=0.5)
    similar += [full for full in names() if full.endswith(f"/{network}") and full not in similar]
    hint = "simclr_tf.encoders.names() lists all."
    if library == "keras_applications" and network in keras_applications.NETWORKS:
        function = keras_applications.NETWORKS[network].function
        hint = f"The installed Keras has no keras.applications.{function}."
    elif similar:
        hint = f"Near matches: {', '.join(similar)}."
    return (
        "encoder must be one of resnet14 to resnet200, airbench, keras_cv/NAME or "
        "keras_applications/NAME; "
        f"got {name!r}. {hint}"
    )
