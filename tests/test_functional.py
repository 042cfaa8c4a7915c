"""Encoders as functional copies: batch normalisation folded, layers by name."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ProjectionHead, ResNet, _keras, encoders
from simclr_tf._keras import all_layers
from simclr_tf.export import folded, functional, functional_copy

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 20, 20, 3), dtype=np.float32)


def scrambled(model):
    """Gives a model random weights, as after training: variances above 0, none of them 1."""
    values = []
    for weight in model.weights:
        value = RNG.normal(0, 0.3, weight.shape)
        positive = "variance" in weight.name or "gamma" in weight.name
        values.append(np.abs(value) + 0.3 if positive else value)
    model.set_weights(values)
    return model


def norms(model):
    """Returns the batch normalisation layers of a model."""
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def assert_close(got, expected, fraction):
    """Compares up to a fraction of the largest number expected."""
    np.testing.assert_allclose(got, expected, atol=fraction * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module")
def resnet():
    """Built for 20 pixels, scrambled."""
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, 20, 20, 3))
    return scrambled(encoder)


@pytest.fixture(scope="module")
def resnet_copy(resnet):
    """Its functional copy."""
    return functional_copy(resnet, (20, 20, 3))


def test_the_copy_of_a_resnet_is_the_same_function_in_stock_layers(resnet, resnet_copy):
    """For any height and width; it has its own weights."""
    np.testing.assert_array_equal(resnet_copy(IMAGES), resnet(IMAGES))
    np.testing.assert_array_equal(resnet_copy(IMAGES[:, :9, :13]), resnet(IMAGES[:, :9, :13]))
    assert not {id(w) for w in resnet_copy.weights} & {id(w) for w in resnet.weights}
    assert {type(x).__module__.split(".")[0] for x in resnet_copy.layers} == {"keras"}


def test_every_batch_norm_of_a_resnet_folds(resnet, resnet_copy):
    """The result is the same to 1e-4 of the largest number."""
    small = folded(resnet_copy)
    assert not norms(small) and len(norms(resnet_copy)) == 21
    assert_close(small(IMAGES), resnet(IMAGES), 1e-4)


def test_a_space_to_depth_stem_is_copied_and_folded():
    """In stock layers, for even and odd sizes."""
    encoder = ResNet(14, width=1 / 16, stem="space_to_depth")
    encoder.build((None, 20, 20, 3))
    copy = functional_copy(scrambled(encoder), (20, 20, 3))
    np.testing.assert_array_equal(copy(IMAGES), encoder(IMAGES))
    np.testing.assert_array_equal(copy(IMAGES[:, :9, :13]), encoder(IMAGES[:, :9, :13]))
    assert {type(x).__module__.split(".")[0] for x in copy.layers} == {"keras"}
    smaller = folded(copy)
    assert not norms(smaller)
    assert_close(smaller(IMAGES, training=False), encoder(IMAGES), 1e-4)


def test_every_kind_of_layer_folds_and_the_rest_stays():
    """Convolutions with bias and without, depthwise, dense; not if others take the output."""
    layers = keras.layers
    images = keras.Input((20, 20, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(images)
    x = layers.BatchNormalization(scale=False, epsilon=0.1)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.BatchNormalization(center=False)(x)
    x = layers.Conv2D(5, 1, activation="relu")(x)
    x = layers.BatchNormalization(name="after_relu")(x)
    x = taken_twice = layers.Conv2D(5, 1)(x)
    x = layers.Add()([layers.BatchNormalization(name="one_of_two")(x), taken_twice])
    x = layers.Dense(6)(layers.GlobalAveragePooling2D()(x))
    x = layers.BatchNormalization()(x)
    last = layers.Dense(2)(x)
    model = scrambled(keras.Model(images, layers.Concatenate()([last, layers.ReLU()(last)])))
    small = folded(model)
    assert [layer.name for layer in norms(small)] == ["after_relu", "one_of_two"]
    assert_close(small(IMAGES), model(IMAGES), 1e-5)
    # The output of the convolution is an output of the model too.
    conv = layers.Conv2D(4, 3)(images)
    both = scrambled(keras.Model(images, [conv, layers.BatchNormalization()(conv)]))
    assert len(norms(folded(both))) == 1


KINDS = ["second argument", "twice", "shared norm", "training", "subclass"]


# Keras 3 refuses `training` as a positional argument.
@pytest.mark.parametrize("kind", [*KINDS, *(["positional training"] if _keras.IS_KERAS_2 else [])])
def test_a_norm_that_cannot_be_folded_stays(kind):
    """Outputs taken twice, layers called twice, batch statistics, other classes: none folds."""
    layers = keras.layers
    images = keras.Input((20, 20, 3))
    conv, norm = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    if kind == "second argument":
        x = conv(images)
        h = layers.ReLU()(norm(x)) + x
    elif kind == "twice":
        h = conv(norm(conv(images)))
    elif kind == "shared norm":
        h = layers.Add()([norm(conv(images)), norm(layers.Conv2D(3, 1)(images))])
    elif kind == "training":
        h = norm(conv(images), training=True)
    elif kind == "positional training":
        h = norm(conv(images), True)
    else:
        h = norm(layers.Conv2DTranspose(5, 3)(images))
    model = scrambled(keras.Model(images, layers.GlobalAveragePooling2D()(h)))
    small = folded(model)
    assert len(norms(small)) == 1
    assert_close(small(IMAGES, training=False), model(IMAGES, training=False), 1e-5)


def test_folding_that_is_not_exact_is_not_used(monkeypatch):
    """A difference over 1e-4 of the largest number returns the model itself."""
    images = keras.Input((20, 20, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(images))
    model = scrambled(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)))
    assert not norms(functional.folded_where_exact(model, (20, 20, 3)))
    fold = functional._fold
    monkeypatch.setattr(functional, "_fold", lambda *pair: [1.01 * w for w in fold(*pair)])
    assert functional.folded_where_exact(model, (20, 20, 3)) is model


def test_a_frozen_encoder_has_a_copy(resnet):
    """All of it frozen, or its batch normalisation alone; the encoder's own flags stay."""
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, 20, 20, 3))
    encoder.set_weights(resnet.get_weights())
    expected = resnet(IMAGES)
    some = [x for x in all_layers(encoder) if isinstance(x, keras.layers.BatchNormalization)]
    for layer in some:
        layer.trainable = False
    np.testing.assert_array_equal(functional_copy(encoder, (20, 20, 3))(IMAGES), expected)
    assert encoder.trainable and not any(layer.trainable for layer in some)
    encoder.trainable = False
    np.testing.assert_array_equal(functional_copy(encoder, (20, 20, 3))(IMAGES), expected)


def test_the_copy_of_a_half_precision_encoder_is_float32_up_to_a_layer():
    """So is the pooling that is added, whatever the global policy is."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, 20, 20, 3))
    resnet_copy = functional_copy(encoder, (20, 20, 3), "group1")
    assert {layer.compute_dtype for layer in resnet_copy.layers} == {"float32"}


def test_models_inside_a_model_fold_too():
    """A backbone that is a layer of the encoder; and one of KerasCV."""
    layers = keras.layers
    images = keras.Input((20, 20, 3))
    backbone = keras.Sequential([images, layers.Conv2D(4, 3), layers.BatchNormalization()])
    pool = layers.GlobalAveragePooling2D()
    nested = scrambled(keras.Model(images, pool(backbone(images))))
    small = folded(functional_copy(nested, (20, 20, 3)))
    assert len(small.weights) == 2
    assert_close(small(IMAGES), nested(IMAGES), 1e-5)
    of_keras_cv = encoders.by_name("keras_cv/resnet18_v2", 20)
    small = folded(functional_copy(of_keras_cv, (20, 20, 3)))
    assert len(norms(small)) == 9
    assert_close(small(IMAGES), of_keras_cv(IMAGES), 1e-4)


def test_in_float16(resnet, resnet_copy):
    """Weights and arithmetic; the same to a hundredth of the largest number."""
    small = folded(resnet_copy, "float16")
    assert {tf.as_dtype(weight.dtype) for weight in small.weights} == {tf.float16}
    assert_close(tf.cast(small(IMAGES), tf.float32), resnet(IMAGES), 1e-2)


def test_a_bfloat16_encoder_comes_out_in_float32():
    """A ResNet and a functional model: the same as a float32 model with the same weights."""
    for build in (
        lambda: ResNet(18, width=1 / 16),
        lambda: keras.Sequential(
            [
                keras.Input((20, 20, 3)),
                keras.layers.Conv2D(4, 3),
                keras.layers.GlobalAveragePooling2D(),
            ]
        ),
    ):
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
        half = build()
        half.build((None, 20, 20, 3))
        keras.mixed_precision.set_global_policy("float32")
        whole = build()
        whole.build((None, 20, 20, 3))
        whole.set_weights(scrambled(half).get_weights())
        copy = functional_copy(half, (20, 20, 3))
        assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
        np.testing.assert_array_equal(copy(IMAGES), whole(IMAGES))


def test_blocks_and_groups_by_name(resnet):
    """The pooled output of a block as the encoder computes it."""
    x = resnet.stem_layers(IMAGES)
    expected = {}
    for block in resnet.blocks:
        x = block(x)
        expected[block.name] = tf.reduce_mean(x, [1, 2])
    for name, block in (("group2_block1",) * 2, ("group3", "group3_block2")):
        got = functional_copy(resnet, (20, 20, 3), name)(IMAGES)
        np.testing.assert_allclose(got, expected[block], rtol=1e-5, atol=1e-5)


def test_layers_of_the_head_by_name():
    """head1 is taken after its ReLU; the last layer is z."""
    images = keras.Input((20, 20, 3))
    encoder = keras.Model(images, keras.layers.GlobalAveragePooling2D()(images))
    head = ProjectionHead(hidden_dim=5, output_dim=7, layers=3)
    head.build((None, 3))
    scrambled(head)
    outputs = head.hidden_outputs(encoder(IMAGES))
    for name, index in (("head1", 1), ("head2", 2), ("head3", 3), ("z", 3)):
        got = functional_copy(encoder, (20, 20, 3), name, head)(IMAGES)
        np.testing.assert_allclose(got, outputs[index], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be head1 to head3, or z; got 'head4'"):
        functional_copy(encoder, (20, 20, 3), "head4", head)
    with pytest.raises(ValueError, match=r"'z' needs the projection head"):
        functional_copy(encoder, (20, 20, 3), "z")


def test_an_unknown_layer_is_an_error(resnet):
    """The message lists similar names."""
    with pytest.raises(ValueError, match=r"got 'gruop3'. Near matches: group3"):
        functional_copy(resnet, (20, 20, 3), "gruop3")


def test_a_subclassed_model_has_no_copy():
    """`functional_copy` returns None, and raises for a layer other than h."""

    class Mean(keras.Model):
        def call(self, images, training=None):
            return tf.reduce_mean(images, [1, 2])

    encoder = Mean()
    encoder.build((None, 20, 20, 3))
    assert functional_copy(encoder, (20, 20, 3)) is None
    with pytest.raises(ValueError, match=r"'group1' needs a ResNet, .* got a Mean"):
        functional_copy(encoder, (20, 20, 3), "group1")
