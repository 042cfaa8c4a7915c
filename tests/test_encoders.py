"""Encoders by name: ResNets, KerasCV's and keras.applications'; and the check of a user's model."""

import importlib
import inspect

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import Classifier, SimCLR, _keras, encoders, export
from simclr_tf.encoders import keras_applications
from simclr_tf.encoders.by_name import warn_of_scaling
from simclr_tf.encoders.resnet import ResNet

pytestmark = pytest.mark.end_to_end  # whole networks of other libraries


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
        ("efficientnet_b0", "keras_applications/efficientnet_b0"),
        ("mobilenet_v3_small", "keras_applications/mobilenet_v3_small"),
        ("keras_applications/efficientnet_v2_s", "keras_applications/efficientnetv2_s"),
        ("?", "encoders.names"),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name, near):
    with pytest.raises(ValueError) as error:
        encoders.by_name(name)
    assert repr(name) in str(error.value) and near in str(error.value)


@pytest.mark.parametrize("name", ["keras_cv/resnet18", "keras_applications/resnet50", "airbench"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 2}, "resnet14 to resnet200 or airbench for width=2"),
        ({"feature_dim": 64}, "resnet14 to resnet200 or airbench for feature_dim=64"),
        ({"sk_ratio": 0.1}, "resnet14 to resnet200 for sk_ratio=0.1"),
        ({"stem": "cifar", "sk_ratio": 0.1}, "for sk_ratio=0.1 and stem='cifar'"),
    ],
)
def test_encoders_refuse_the_options_that_they_do_not_have(name, options, message):
    if name == "airbench" and "or airbench" in message:
        assert encoders.by_name(name, **options).feature_dim in (64, 512)
        return
    with pytest.raises(ValueError, match=f"{message}; got '{name}'. Leave"):
        encoders.by_name(name, **options)


def test_a_mix_transformer_needs_a_size_that_is_a_multiple_of_32():
    for image_size in (None, 32, 72):
        with pytest.raises(ValueError, match="multiple of 32"):
            encoders.by_name("keras_cv/mit_b0", image_size=image_size)


# ---- keras.applications -------------------------------------------------------------------------

# The smallest network of each family: the length of h, and whether Keras builds it in seconds.
FAMILIES = {
    "convnext_tiny": (768, True),
    "densenet121": (1024, False),
    "efficientnet_b0": (1280, True),
    "efficientnetv2_b0": (1280, True),
    "inception_resnet_v2": (1536, False),
    "inception_v3": (2048, False),
    "mobilenet": (1024, True),
    "mobilenet_v2": (1280, True),
    "mobilenet_v3_small": (576, True),
    "nasnet_mobile": (1056, False),
    "regnetx002": (368, True),
    "regnety002": (368, False),
    "resnet50": (2048, True),
    "resnet50_v2": (2048, False),
    "resnetrs50": (2048, False),
    "vgg16": (512, True),
    "xception": (2048, False),
}


@pytest.fixture(scope="module")
def network(request):
    """The encoder of a name, which the tests of that name share."""
    side = keras_applications.NETWORKS[request.param].min_size
    return encoders.by_name(f"keras_applications/{request.param}", side)


def unit_images(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def input_of_first_weights(encoder, images):
    """What the first layer with weights takes, except for a normalisation by 0 and 1."""
    with_weights = {
        call.layer.name: call
        for call in _keras.layer_calls(encoder)
        if getattr(call.layer, "weights", None)  # operations of Keras 3 have none
        and not isinstance(call.layer, keras.layers.Normalization)
    }
    first = next(layer.name for layer in encoder.layers if layer.name in with_weights)
    return keras.Model(encoder.inputs, [with_weights[first].arguments[0]])(images)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=() if is_quick else pytest.mark.slow)
        for name, (_, is_quick) in FAMILIES.items()
        if name in keras_applications.names()
    ],
    indirect=True,
)
def test_a_network_of_each_family_embeds_images_in_unit_range(network):
    side = keras_applications.NETWORKS[network.name].min_size
    width = network.input_shape[2] or side + 8  # NASNet takes one size
    images = unit_images(2, side, width, 3)
    h = np.asarray(network(images))
    assert h.shape == (2, FAMILIES[network.name][0]) and h.dtype == np.float32
    assert np.isfinite(h).all() and np.any(h[0] != h[1])
    pixels = np.ravel(input_of_first_weights(network, images))
    pixels = np.sort(pixels[pixels != 0])  # without padding
    np.testing.assert_allclose(pixels, np.sort(images[images != 0]), rtol=1e-6)


@pytest.mark.parametrize(
    "network, arguments, max_value",
    [
        ("efficientnet_b0", {}, 255),  # its documentation: takes pixels in [0, 255]
        ("convnext_tiny", {"include_preprocessing": False}, 1),
        ("vgg16", {}, 1),
    ],
    indirect=["network"],
)
def test_h_is_what_keras_computes_with_the_same_weights(network, arguments, max_value):
    function = getattr(keras.applications, keras_applications.NETWORKS[network.name].function)
    theirs = function(include_top=False, weights=None, pooling="avg", **arguments)
    pairs = zip(network.get_weights(), theirs.get_weights())
    # A depthwise kernel is [k, k, C, 1], one with groups [k, k, 1, C].
    theirs.set_weights([weight.reshape(like.shape) for weight, like in pairs])
    images = unit_images(2, 32, 32, 3)
    h = np.asarray(theirs(max_value * images))
    np.testing.assert_allclose(network(images), h, atol=1e-5 * np.abs(h).max())


@pytest.mark.parametrize("network", ["mobilenet_v3_small"], indirect=True)
def test_a_network_of_keras_is_folded_saved_and_loaded(network, tmp_path):
    images = unit_images(2, 32, 32, 3)
    h = np.asarray(network(images))
    folded = export.folded(export.functional_copy(network, (32, 32, 3)))
    assert not [x for x in folded.layers if isinstance(x, keras.layers.BatchNormalization)]
    np.testing.assert_allclose(folded(images), h, atol=1e-4 * np.abs(h).max())
    network.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_allclose(loaded(images), h, atol=1e-6 * np.abs(h).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", keras_applications.names())
def test_every_network_is_an_encoder(name):
    keras.backend.clear_session()
    side = keras_applications.NETWORKS[name].min_size
    encoder = encoders.by_name(f"keras_applications/{name}", side)
    assert encoders.validate(encoder, side) == encoder.output_shape[-1]


def test_every_network_of_keras_has_a_name():
    functions = [name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)]
    named = [keras_applications.NETWORKS[name].function for name in keras_applications.names()]
    assert sorted(named) == sorted(functions)
    assert {f"keras_applications/{name}" for name in keras_applications.names()} < set(
        encoders.names()
    )


@pytest.mark.parametrize(
    "function, name, arguments",
    [("ConvNeXtTiny", "LayerScale", (0.5, 3)), ("InceptionResNetV2", "CustomScaleLayer", (0.5,))],
)
def test_layers_that_only_keras_applications_has_are_loaded(function, name, arguments, tmp_path):
    module = importlib.import_module(getattr(keras.applications, function).__module__)
    images = keras.Input((4, 4, 3))
    layer = getattr(module, name)(*arguments)
    output = layer(images) if name == "LayerScale" else layer([images, images])
    keras.Model(images, output).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = 0.5 if name == "LayerScale" else 1.5  # x + 0.5 x
    np.testing.assert_allclose(loaded(np.ones([1, 4, 4, 3], np.float32)), expected)


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small"])
def test_a_network_of_keras_returns_float32_under_mixed_precision(name):
    """Of images whose last feature map has several pixels: the mean of one is that pixel."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    encoder = encoders.by_name(f"keras_applications/{name}")
    h = np.asarray(encoder(unit_images(2, 64, 64, 3)))
    assert h.dtype == np.float32
    assert np.any(h != np.asarray(tf.cast(tf.cast(h, tf.bfloat16), tf.float32)))  # not rounded


@pytest.mark.parametrize(
    "name, image_size, message",
    [
        ("vgg16", 31, "image_size must be at least 32 for keras_applications/vgg16; got 31"),
        ("inception_v3", 64, "at least 75"),
        ("xception", 64, "at least 71"),
        ("nasnet_mobile", 16, "at least 32"),
        ("nasnet_mobile", None, "needs image_size, 32 or more; got None"),
    ],
)
def test_a_network_of_keras_refuses_images_below_its_minimum(name, image_size, message):
    with pytest.raises(ValueError, match=message):
        encoders.by_name(f"keras_applications/{name}", image_size)


def test_arguments_that_an_encoder_by_name_sets_itself_are_refused():
    with pytest.raises(ValueError, match="pooling, weights must be left out"):
        encoders.by_name("keras_applications/vgg16", weights="imagenet", pooling="avg")


def test_a_network_that_only_the_other_keras_has_is_named(monkeypatch):
    monkeypatch.delattr(keras.applications, "RegNetX002", raising=False)
    assert "keras_applications/regnetx002" not in encoders.names()
    with pytest.raises(ValueError, match=r"installed Keras has no keras\.applications\.RegNetX002"):
        encoders.by_name("keras_applications/regnetx002")


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


def first_layers(*layers):
    """An encoder that begins with these layers."""
    rest = [keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, *rest])


@pytest.mark.parametrize(
    ("layers", "warns"),
    [
        ([keras.layers.Rescaling(1 / 255)], True),
        ([keras.layers.Rescaling(1 / 127.5, offset=-1)], True),
        ([keras.layers.Normalization(mean=[123.0, 116.0, 103.0], variance=[3e3] * 3)], True),
        ([keras.layers.Normalization(mean=[0.48, 0.45, 0.4], variance=[0.05] * 3)], False),
        ([keras.layers.Rescaling(255.0), keras.layers.Rescaling(1 / 255)], False),
        ([keras.layers.Rescaling(2.0, offset=-1)], False),
    ],
)
def test_an_encoder_for_pixels_up_to_255_is_told(layers, warns, monkeypatch):
    """A warning when a model is built on it, with the layer's name; it gets images in [0, 1]."""
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda line, *args: lines.append(line % args))
    for build in (SimCLR, lambda encoder: Classifier(encoder, 2)):
        build(first_layers(*layers)).build((None, 8, 8, 3))
    assert len(lines) == 2 * warns and all(layers[0].name in line for line in lines)


def test_networks_of_keras_by_name_scale_for_themselves(monkeypatch):
    """`by_name` undoes the scaling inside."""
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda *args: lines.append(args))
    warn_of_scaling(encoders.by_name("keras_applications/mobilenet_v3_small", 32))
    warn_of_scaling(encoders.by_name("keras_applications/efficientnet_b0", 32))
    assert not lines
    own = keras.applications.EfficientNetB0(
        weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3)
    )
    warn_of_scaling(own)
    assert len(lines) == 1
