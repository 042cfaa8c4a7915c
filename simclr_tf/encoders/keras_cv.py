"""KerasCV's image backbones as encoders, by name, with random weights.

The architectures are written out here because KerasCV downloads its presets' configurations.
KerasCV itself is imported only when a backbone is built.
"""

from tensorflow import keras

from simclr_tf import _quiet
from simclr_tf.errors import ArgumentError, needs_package


def build(name, image_size=None, **kwargs):
    """Builds a KerasCV backbone with global average pooling.

    Args:
        name: a key of `BACKBONES`.
        image_size: side of the images, in pixels; only Mix Transformers ("mit_...") need it.
        **kwargs: further arguments of the backbone's class.

    Returns:
        A functional `keras.Model` from images, float [batch, height, width, 3] in [0, 1], to h,
        float32 [batch, D].

    Raises:
        ValueError: for a Mix Transformer, unless image_size is a multiple of 32 from 64 on; where
            KerasCV cannot be imported.
    """
    class_name, settings = BACKBONES[name]
    with needs_package("keras-cv", f"encoder='keras_cv/{name}'"):
        models = _quiet.import_keras_cv().models
    if class_name == "MiTBackbone":  # its feature maps are reshaped to sizes fixed at construction
        kwargs["input_shape"] = _mix_transformer_shape(name, image_size)
    # Images are in [0, 1] already, so the backbone must not divide by 255.
    arguments = {"include_rescaling": False, **settings, **kwargs}
    backbone = getattr(models, class_name)(**arguments)
    # float32, so that h is not rounded under mixed precision
    pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")
    if all(type(layer).__module__.startswith("keras.") for layer in backbone.layers):
        # Built from the backbone's layers instead of the backbone as one layer, so that an exported
        # encoder loads without KerasCV.
        return keras.Model(backbone.input, pool(backbone.output), name=name)
    images = keras.Input(backbone.input_shape[1:])
    return keras.Model(images, pool(backbone(images)), name=name)


def names():
    """Lists the backbones."""
    return list(BACKBONES)


def _mix_transformer_shape(name, image_size):
    if image_size is None or image_size < 64 or image_size % 32:
        raise ArgumentError(
            f"keras_cv/{name} needs image_size, a multiple of 32 from 64 on; got {image_size}."
        )
    return (image_size, image_size, 3)


def _resnets(class_name, suffix):
    layouts = {
        18: ("basic_block", (2, 2, 2, 2)),
        34: ("basic_block", (3, 4, 6, 3)),
        50: ("block", (3, 4, 6, 3)),
        101: ("block", (3, 4, 23, 3)),
        152: ("block", (3, 8, 36, 3)),
    }
    return {
        f"resnet{depth}{suffix}": (
            class_name,
            {
                "stackwise_filters": [64, 128, 256, 512],
                "stackwise_blocks": list(blocks),
                "stackwise_strides": [1, 2, 2, 2],
                "block_type": block_type,
            },
        )
        for depth, (block_type, blocks) in layouts.items()
    }


# (width, depth) of EfficientNet B0, B1, ... (arXiv:1905.11946, as released)
_EFFICIENTNET_SCALES = (
    (1.0, 1.0),
    (1.0, 1.1),
    (1.1, 1.2),
    (1.2, 1.4),
    (1.4, 1.8),
    (1.6, 2.2),
    (1.8, 2.6),
    (2.0, 3.1),
)


def _scaled(class_name, prefix, count, settings):
    return {
        f"{prefix}_b{index}": (
            class_name,
            {**settings, "width_coefficient": width, "depth_coefficient": depth},
        )
        for index, (width, depth) in enumerate(_EFFICIENTNET_SCALES[:count])
    }


def _efficientnets_v1():
    lite = {
        "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
        "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
        "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
        "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
        "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
        "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    }
    full = {**lite, "stackwise_squeeze_and_excite_ratios": [0.25] * 7}
    return {
        **_scaled("EfficientNetV1Backbone", "efficientnetv1", 8, full),
        **_scaled("EfficientNetLiteBackbone", "efficientnetlite", 5, lite),
    }


def _efficientnet_v2(repeats, filters, expansions, strides):
    """arXiv:2104.00298: three stages of fused blocks without squeeze-excite, then unfused ones."""
    rest = len(repeats) - 3
    return {
        "stackwise_kernel_sizes": [3] * len(repeats),
        "stackwise_num_repeats": repeats,
        "stackwise_input_filters": filters[:-1],
        "stackwise_output_filters": filters[1:],
        "stackwise_expansion_ratios": expansions,
        "stackwise_squeeze_and_excite_ratios": [0.0] * 3 + [0.25] * rest,
        "stackwise_strides": strides,
        "stackwise_conv_types": ["fused"] * 3 + ["unfused"] * rest,
    }


def _efficientnets_v2():
    six = ([1, 4, 4, 4, 6, 6], [1, 2, 2, 2, 1, 2])
    seven = ([1, 4, 4, 4, 6, 6, 6], [1, 2, 2, 2, 1, 2, 1])
    sizes = {
        "s": ([2, 4, 4, 6, 9, 15], [24, 24, 48, 64, 128, 160, 256], *six),
        "m": ([3, 5, 5, 7, 14, 18, 5], [24, 24, 48, 80, 160, 176, 304, 512], *seven),
        "l": ([4, 7, 7, 10, 19, 25, 7], [32, 32, 64, 96, 192, 224, 384, 640], *seven),
    }
    base = _efficientnet_v2([1, 2, 2, 3, 5, 8], [32, 16, 32, 48, 96, 112, 192], *six)
    unscaled = {"width_coefficient": 1.0, "depth_coefficient": 1.0}
    return {
        **{
            f"efficientnetv2_{size}": (
                "EfficientNetV2Backbone",
                {**_efficientnet_v2(*layout), **unscaled},
            )
            for size, layout in sizes.items()
        },
        **_scaled("EfficientNetV2Backbone", "efficientnetv2", 4, base),
    }


def _mobilenets_v3():
    """arXiv:1905.02244, tables 1 and 2."""
    small = {
        "stackwise_expansion": [1, 72 / 16, 88 / 24, 4, 6, 6, 3, 3, 6, 6, 6],
        "stackwise_filters": [16, 24, 24, 40, 40, 40, 48, 48, 96, 96, 96],
        "stackwise_kernel_size": [3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5],
        "stackwise_stride": [2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1],
        "stackwise_se_ratio": [0.25, None, None, *[0.25] * 8],
        "stackwise_activation": ["relu"] * 3 + ["hard_swish"] * 8,
    }
    large = {
        "stackwise_expansion": [1, 4, 3, 3, 3, 3, 6, 2.5, 2.3, 2.3, 6, 6, 6, 6, 6],
        "stackwise_filters": [16, 24, 24, 40, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160],
        "stackwise_kernel_size": [3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5],
        "stackwise_stride": [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1],
        "stackwise_se_ratio": [*[None] * 3, *[0.25] * 3, *[None] * 4, *[0.25] * 5],
        "stackwise_activation": ["relu"] * 6 + ["hard_swish"] * 9,
    }
    return {
        "mobilenet_v3_small": ("MobileNetV3Backbone", small),
        "mobilenet_v3_large": ("MobileNetV3Backbone", large),
    }


def _densenets():
    repeats = {121: [6, 12, 24, 16], 169: [6, 12, 32, 32], 201: [6, 12, 48, 32]}
    return {
        f"densenet{depth}": ("DenseNetBackbone", {"stackwise_num_repeats": blocks})
        for depth, blocks in repeats.items()
    }


def _csp_darknets():
    sizes = {
        "tiny": (48, [1, 3, 3, 1]),
        "s": (64, [1, 3, 3, 1]),
        "m": (96, [2, 6, 6, 2]),
        "l": (128, [3, 9, 9, 3]),
        "xl": (170, [4, 12, 12, 4]),
    }
    return {
        f"csp_darknet_{size}": (
            "CSPDarkNetBackbone",
            {
                "stackwise_channels": [channels * 2**stage for stage in range(4)],
                "stackwise_depth": depth,
            },
        )
        for size, (channels, depth) in sizes.items()
    }


def _mix_transformers():
    depths = ([2, 2, 2, 2], [2, 2, 2, 2], [3, 4, 6, 3], [3, 4, 18, 3], [3, 8, 27, 3], [3, 6, 40, 3])
    return {
        f"mit_b{index}": (
            "MiTBackbone",
            {
                "depths": depth,
                "embedding_dims": [64, 128, 320, 512] if index else [32, 64, 160, 256],
            },
        )
        for index, depth in enumerate(depths)
    }


# name -> (class in keras_cv.models, its arguments)
BACKBONES = {
    **_resnets("ResNetBackbone", ""),
    **_resnets("ResNetV2Backbone", "_v2"),
    **_efficientnets_v1(),
    **_efficientnets_v2(),
    **_mobilenets_v3(),
    **_densenets(),
    **_csp_darknets(),
    **_mix_transformers(),
}
