"""Airbench: the network written out in NumPy, arguments, exports."""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import encoders, evaluate, export
from simclr_tf.encoders import fine_tuning
from test_resnet import ByHand, rand_images, scramble, trainable_parameters

SMALL = {"filters": (4, 6, 8), "width": 0.5}


class AirbenchByHand(ByHand):
    def max_pool(self, x):
        """Of 2x2 pixels; the last row or column of an odd number is alone."""
        x = np.pad(
            x, [(0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)], constant_values=-np.inf
        )
        return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))

    def __call__(self, x, training):
        x = self.conv_bn_relu(x, "stem", training)
        for group in ("group1", "group2", "group3"):
            first = f"{group}_block1"
            x = self.norm(self.max_pool(self.conv(x, first)), first, training)
            x = self.conv_bn_relu(np.maximum(x, 0), f"{group}_block2", training)
        if ("last_conv", "kernel") in self.weights:
            x = self.conv_bn_relu(x, "last", training)
        return x.mean((1, 2))


@pytest.mark.parametrize("feature_dim", [None, 5])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (7, 12), (1, 3)])
def test_h_is_that_of_the_network_written_out(size, training, feature_dim):
    images = rand_images(4, *size, 3)
    model = encoders.Airbench(**SMALL, feature_dim=feature_dim)
    model.build((None, *size, 3))
    by_hand = AirbenchByHand(scramble(model))
    h = model(images, training=training)
    assert h.shape == (4, feature_dim or 4) and model.feature_dim == h.shape[1]
    np.testing.assert_allclose(h, by_hand(images, training), rtol=1e-4, atol=1e-5)


def test_it_has_the_parameters_added_up_by_hand():
    """Kernels, and scale and offset of each batch normalisation."""
    model = encoders.by_name("airbench", 32, feature_dim=2048)
    layers = [(4, 3, 32), (9, 32, 64), (9, 64, 64), (9, 64, 128), (9, 128, 128)]
    layers += [(9, 128, 256), (9, 256, 256), (1, 256, 2048)]
    expected = sum(pixels * inputs * outputs + 2 * outputs for pixels, inputs, outputs in layers)
    assert trainable_parameters(model) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": (64, 128)}, r"three ints, at least 1, such as .*; got \(64, 128\)"),
        ({"filters": (64, 128, 0)}, "filters must be"),
        ({"filters": (64, 128, 1.5)}, "filters must be"),
        ({"filters": 64}, "three ints"),
        ({"width": 0}, "width must be"),
        ({"feature_dim": 0}, "feature_dim must be"),
        ({"bn_momentum": 1}, "bn_momentum must be"),
        ({"bn_epsilon": 0}, "bn_epsilon must be"),
    ],
)
def test_what_it_cannot_be_built_of_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        encoders.Airbench(**arguments)


def test_integers_of_numpy_are_filters():
    """And the config can be written as JSON."""
    config = encoders.Airbench(filters=np.array([4, 6, 8])).get_config()
    assert json.loads(json.dumps(config))["filters"] == [4, 6, 8]


@pytest.mark.parametrize("shape", [(None, 32, 32), (None, 32, 32, None)])
def test_a_shape_without_channels_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"must be .batch, height, width, channels.; got the shape"
    ):
        encoders.Airbench(**SMALL).build(shape)


def test_integers_are_refused_by_its_name():
    with pytest.raises(ValueError, match="Airbench takes float images"):
        encoders.Airbench(**SMALL)(np.zeros([1, 8, 8, 3], np.uint8))


def test_in_bfloat16_h_is_float32_and_near():
    images = rand_images(8, 16, 16, 3)
    exact = encoders.Airbench(**SMALL)
    rounded = encoders.Airbench(**SMALL, dtype="mixed_bfloat16")
    for model in (exact, rounded):
        model.build((None, 16, 16, 3))
    rounded.set_weights(exact.get_weights())
    h = rounded(images)
    assert h.dtype == tf.float32
    np.testing.assert_allclose(h, exact(images), rtol=0.05, atol=0.05)


def test_training_starts_at_a_group():
    model = encoders.Airbench(**SMALL)
    model.build((None, 16, 16, 3))
    fine_tuning.freeze_before(model, "group3")
    assert [block.trainable for block in (model.stem_layers, *model.blocks)] == (
        5 * [False] + 2 * [True]
    )


def test_it_is_whitened_exported_and_cut(tmp_path):
    """As any encoder: the functional copy, an affine last layer, a SavedModel, a feature map."""
    images = rand_images(32, 16, 16, 3)
    model = encoders.Airbench(**SMALL)
    model.build((None, 16, 16, 3))
    whitened = encoders.whitened(model, evaluate.fit_whitening(model, [images]))
    np.testing.assert_allclose(np.mean(whitened(images), 0), 0, atol=1e-3)
    export.export_encoder(model, tmp_path / "1", image_shape=(16, 16, 3))  # checks what it wrote
    group = export.functional_copy(model, (16, 16, 3), layer="group2")
    assert group(images).shape == (32, 3)
    assert all(type(layer).__module__.startswith("keras") for layer in group.layers)
    assert isinstance(group, keras.Model)
