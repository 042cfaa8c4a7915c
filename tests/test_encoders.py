"""Encoders by name: ResNets and KerasCV's backbones; and the check that a model is an encoder."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import encoders
from simclr_tf.encoders.resnet import ResNet


def test_a_resnet_by_name_has_the_options_passed():
    encoder = encoders.by_name("resnet50", 48, width=0.25, sk_ratio=0.0625, bn_momentum=0.99)
    assert isinstance(encoder, ResNet) and encoder.built
    assert (encoder.depth, encoder.width, encoder.sk_ratio) == (50, 0.25, 0.0625)
    assert (encoder.bn_momentum, encoder.stem) == (0.99, "auto")


def test_without_a_size_a_resnet_is_built_on_its_first_call():
    assert not encoders.by_name("resnet18", stem="cifar").built


@pytest.mark.parametrize(
    "class_name, preset",
    [
        ("ResNetBackbone", "resnet18"),
        ("ResNetV2Backbone", "resnet18_v2"),
        ("CSPDarkNetBackbone", "csp_darknet_tiny"),
        ("EfficientNetV2Backbone", "efficientnetv2_b0"),
    ],
)
def test_keras_cv_backbones_have_as_many_parameters_as_keras_cv_states(class_name, preset):
    import keras_cv

    stated = getattr(keras_cv.models, class_name).presets[preset]["metadata"]["params"]
    encoder = encoders.by_name(f"keras_cv/{preset}", image_size=32)
    assert encoder.count_params() == stated


@pytest.mark.parametrize(
    "class_name, name",
    [
        ("MobileNetV3Small", "mobilenet_v3_small"),
        pytest.param("MobileNetV3Large", "mobilenet_v3_large", marks=pytest.mark.slow),
        ("DenseNet121", "densenet121"),
        ("EfficientNetB0", "efficientnetv1_b0"),
    ],
)
def test_keras_cv_backbones_have_as_many_parameters_as_the_same_network_in_keras(class_name, name):
    """KerasCV states wrong numbers for these, or none."""
    network = getattr(keras.applications, class_name)
    same = network(include_top=False, weights=None, input_shape=(32, 32, 3))
    scale = sum(
        layer.count_params() for layer in same.layers if type(layer).__name__ == "Normalization"
    )
    assert encoders.by_name(f"keras_cv/{name}").count_params() == same.count_params() - scale


@pytest.mark.parametrize("name", ["keras_cv/mobilenet_v3_small", "keras_cv/resnet18_v2"])
def test_a_keras_cv_encoder_takes_unit_range_images_and_survives_a_save(name, tmp_path):
    encoder = encoders.by_name(name)
    images = np.random.default_rng(0).random((2, 32, 40, 3), dtype=np.float32)
    h = encoder(images)
    assert h.shape == (2, encoder.output_shape[-1]) and h.dtype == tf.float32
    assert not any(isinstance(x, keras.layers.Rescaling) for x in encoder._flatten_layers())
    encoder.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_allclose(loaded(images), h, rtol=1e-6)


def test_a_keras_cv_encoder_returns_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    encoder = encoders.by_name("keras_cv/mobilenet_v3_small")
    assert encoder(tf.zeros([1, 32, 32, 3])).dtype == tf.float32


def test_names_lists_every_encoder():
    names = encoders.names()
    assert len(names) == len(set(names)) and "resnet200" in names
    assert "keras_cv/efficientnetv2_s" in names and "keras_cv/densenet121" in names


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnet51", "resnet50"),
        ("resnet18_v2", "keras_cv/resnet18_v2"),
        ("keras_cv/mobilenet_v3", "keras_cv/mobilenet_v3_small"),
        ("keras_cv/efficientnet_v2_s", "keras_cv/efficientnetv2_s"),
        ("?", "encoders.names"),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name, near):
    with pytest.raises(ValueError) as error:
        encoders.by_name(name)
    assert repr(name) in str(error.value) and near in str(error.value)


@pytest.mark.parametrize("option", [{"width": 2}, {"sk_ratio": 0.1}, {"stem": "cifar"}])
def test_keras_cv_backbones_refuse_the_options_of_resnets(option):
    with pytest.raises(ValueError, match="must be resnet18 to resnet200 for width="):
        encoders.by_name("keras_cv/resnet18", **option)


def test_a_mix_transformer_needs_a_size_that_is_a_multiple_of_32():
    for image_size in (None, 32, 72):
        with pytest.raises(ValueError, match="multiple of 32"):
            encoders.by_name("keras_cv/mit_b0", image_size=image_size)


# ---- validate -----------------------------------------------------------------------------------


def layers_of(*layers):
    return keras.Sequential([keras.layers.Conv2D(5, 3), *layers])


def test_validate_builds_and_returns_the_length_of_h():
    encoder = ResNet(18, width=0.125)
    assert encoders.validate(encoder, 32) == 64
    assert encoder.built_shape == (None, 32, 32, 3)
    assert encoders.validate(layers_of(keras.layers.GlobalMaxPooling2D()), 20) == 5


def test_validate_refuses_feature_maps_and_several_outputs():
    with pytest.raises(ValueError, match=r"one of shape \(None, 18, 18, 5\).*GlobalAveragePooling"):
        encoders.validate(layers_of(), 20)
    images = keras.Input((20, 20, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(images)
    with pytest.raises(ValueError, match="a list of 2"):
        encoders.validate(keras.Model(images, [pooled, pooled]), 20)


def test_validate_refuses_other_objects():
    with pytest.raises(ValueError, match=r"must be a keras.Model; got function"):
        encoders.validate(layers_of, 20)
