"""The networks of `keras.applications` as encoders, by name, with random weights.

Names are the functions' in lower case, with underscores before variants and sizes as in KerasCV's
names: `EfficientNetV2B0` is "efficientnetv2_b0", `ResNet50V2` is "resnet50_v2".
"""

from __future__ import annotations

from typing import NamedTuple

from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError

_keras.register_layers_of_applications()


class Network(NamedTuple):
    """How to build one of the networks.

    Attributes:
        function: name of the function in `keras.applications`.
        min_size: the smallest side of images that the function accepts, in pixels.
        fixed_size: whether the network is built for images of one size.
        divides_by_255: whether its first layer divides by 255, without an argument to leave it out.
        has_preprocessing: whether the function has the argument `include_preprocessing`.
        has_depthwise_groups: whether its depthwise convolutions are `Conv2D` with a group for each
            channel.
    """

    function: str
    min_size: int = 32
    fixed_size: bool = False
    divides_by_255: bool = False
    has_preprocessing: bool = False
    has_depthwise_groups: bool = False


def build(name, image_size=None, **kwargs):
    """Builds a network of `keras.applications` with global average pooling.

    Args:
        name: one of `names()`.
        image_size: side of the images, in pixels. Only NASNet needs it; the other networks accept
            images of any size from their minimum on.
        **kwargs: further arguments of the function, such as `alpha` of the MobileNets.

    Returns:
        A functional `keras.Model` from images, float [batch, height, width, 3] in [0, 1], to h,
        float32 [batch, D].

    Raises:
        ValueError: for an image_size below the network's minimum, for NASNet without image_size,
            and for arguments that are the encoder's own, such as `weights`.
    """
    network = NETWORKS[name]
    _check_size(name, network, image_size)
    _check_arguments(name, kwargs)
    if network.has_preprocessing:
        kwargs["include_preprocessing"] = False  # the images are in [0, 1] already
    side = image_size if network.fixed_size else None
    images = pixels = keras.Input((side, side, 3))
    if network.divides_by_255:
        pixels = keras.layers.Rescaling(255.0, dtype="float32", name="scale_to_255")(images)
    function = getattr(keras.applications, network.function)
    model = function(include_top=False, weights=None, input_tensor=pixels, **kwargs)
    # Built from the network's layers instead of the network as one layer, so that each of them can
    # be found by its name.
    encoder = keras.Model(images, _pooled(model), name=name)
    if network.has_depthwise_groups:
        encoder = keras.models.clone_model(encoder, clone_function=_depthwise)
    return encoder


def names():
    """Lists the networks that the installed Keras has; RegNet and ResNet-RS are in Keras 2 only."""
    return [name for name in NETWORKS if hasattr(keras.applications, NETWORKS[name].function)]


def _pooled(model):
    """The mean over all pixels, [batch, D], in float32: h is not rounded in mixed precision."""
    pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")
    last = model.layers[-1]
    if not isinstance(last, keras.layers.LayerNormalization):
        return pool(model.output)
    # ConvNeXt normalises after the pooling (arXiv:2201.03545); asked for no pooling, its function
    # normalises the feature map.
    norm = keras.layers.LayerNormalization(epsilon=last.epsilon, dtype="float32", name="pool_norm")
    return norm(pool(last.input))


def _depthwise(layer):
    """Returns a copy of a layer: a `DepthwiseConv2D` for a `Conv2D` with a group for each channel.

    Both compute the same, with the same initial values. TensorFlow compiles a convolution with
    groups by XLA on a CPU, where a training step of ConvNeXt takes 18 times as long.
    """
    config = layer.get_config()
    if isinstance(layer, keras.layers.Conv2D) and layer.groups == layer.filters:
        kept = ("name", "dtype", "kernel_size", "strides", "padding", "use_bias")
        return keras.layers.DepthwiseConv2D(**{key: config[key] for key in kept})
    return type(layer).from_config(config)


def _check_size(name, network, image_size):
    if image_size is None and network.fixed_size:
        raise ArgumentError(
            f"keras_applications/{name} needs image_size, {network.min_size} or more; got None."
        )
    if image_size is not None and image_size < network.min_size:
        raise ArgumentError(
            f"image_size must be at least {network.min_size} for keras_applications/{name}; got "
            f"{image_size}. Use larger images, or resnet14 to resnet200."
        )


def _check_arguments(name, arguments):
    own = {"include_top", "weights", "input_tensor", "input_shape", "pooling"}
    found = sorted((own | {"include_preprocessing"}) & arguments.keys())
    if found:
        raise ArgumentError(
            f"{', '.join(found)} must be left out for keras_applications/{name}, which has random "
            "weights and takes images in [0, 1]. To set it, pass a model of keras.applications as "
            "the encoder."
        )


def _rows(template, function, values, **settings):
    return {
        template.format(value.lower()): Network(function.format(value), **settings)
        for value in values
    }


_REGNET_SIZES = "002 004 006 008 016 032 040 064 080 120 160 320".split()

# name -> Network. Names are fixed here, since runs and exports store them.
NETWORKS = {
    **_rows(
        "convnext_{}",
        "ConvNeXt{}",
        ("Tiny", "Small", "Base", "Large", "XLarge"),
        has_preprocessing=True,
        has_depthwise_groups=True,
    ),
    **_rows("densenet{}", "DenseNet{}", ("121", "169", "201")),
    **_rows(
        "efficientnet_b{}",
        "EfficientNetB{}",
        "01234567",
        divides_by_255=True,
    ),
    **_rows(
        "efficientnetv2_{}",
        "EfficientNetV2{}",
        ("B0", "B1", "B2", "B3", "S", "M", "L"),
        has_preprocessing=True,
    ),
    "inception_v3": Network("InceptionV3", min_size=75),
    "inception_resnet_v2": Network("InceptionResNetV2", min_size=75),
    "mobilenet": Network("MobileNet"),
    "mobilenet_v2": Network("MobileNetV2"),
    **_rows("mobilenet_v3_{}", "MobileNetV3{}", ("Small", "Large"), has_preprocessing=True),
    **_rows("nasnet_{}", "NASNet{}", ("Mobile", "Large"), fixed_size=True),
    **_rows("regnetx{}", "RegNetX{}", _REGNET_SIZES, has_preprocessing=True),
    **_rows("regnety{}", "RegNetY{}", _REGNET_SIZES, has_preprocessing=True),
    **_rows("resnet{}", "ResNet{}", ("50", "101", "152")),
    **_rows("resnet{}_v2", "ResNet{}V2", ("50", "101", "152")),
    **_rows(
        "resnetrs{}",
        "ResNetRS{}",
        ("50", "101", "152", "200", "270", "350", "420"),
        has_preprocessing=True,
    ),
    **_rows("vgg{}", "VGG{}", ("16", "19")),
    "xception": Network("Xception", min_size=71),
}
