"""One table: every public object goes through config, save and load, graph, XLA, half precision.

A row builds the object and calls it on fixed input. A public name without a row fails.
"""

import dataclasses
import typing

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import _keras, augment, optimizers

pytestmark = pytest.mark.usefixtures("shallow")
RNG = np.random.default_rng(2)
IMAGES = RNG.random([4, 12, 12, 3]).astype(np.float32)
Z = RNG.normal(size=[2, 4, 6]).astype(np.float32)


@dataclasses.dataclass
class Row:
    """A public object: how it is made, and what it gives for fixed input."""

    make: typing.Callable
    call: typing.Callable
    serializable: bool = True
    saved_in_a_model: bool = False


def _views(operator):
    return operator(IMAGES, seed=5)


def _model(optimizer=None):
    encoder = simclr_tf.ResNet(18, width=1 / 16)
    view = augment.RandomView(12, 0.5, jit_compile=False)
    head = simclr_tf.ProjectionHead(output_dim=4)
    model = simclr_tf.SimCLR(encoder, head, view, temperature=0.2, seed=1)
    model.build((None, 12, 12, 3))
    model.compile(optimizer=optimizer or simclr_tf.LARS(0.1))
    return model


def _looc():
    head = simclr_tf.heads.SpaceHeads(2, output_dim=4)
    view = augment.RandomView(12, 0.5, jit_compile=False)
    encoder = simclr_tf.ResNet(18, width=1 / 16)
    model = simclr_tf.LooC(encoder, ["color"], head, view, seed=1)
    model.build((None, 12, 12, 3))
    model.compile(optimizer=simclr_tf.LARS(0.1))
    return model


def _moco():
    encoder, head = simclr_tf.ResNet(18, width=1 / 16), simclr_tf.ProjectionHead(output_dim=4)
    view = augment.RandomView(12, 0.5, jit_compile=False)
    model = simclr_tf.MoCo(encoder, head, view, queue_size=8, momentum=0.5, seed=1)
    model.build((None, 12, 12, 3))
    model.compile(optimizer=simclr_tf.LARS(0.1))
    return model


def _classifier():
    encoder, head = simclr_tf.ResNet(18, width=1 / 16), simclr_tf.ProjectionHead(output_dim=4)
    encoder.build((None, 12, 12, 3))
    head.build((None, encoder.feature_dim))
    model = simclr_tf.Classifier(encoder, 5, head, head_layer=1, train_from="group2", seed=1)
    model.build((None, 12, 12, 3))
    model.compile(optimizer=simclr_tf.LARS(0.1))
    kernel, bias = model.logits_layer.get_weights()  # zeros
    model.logits_layer.set_weights([np.cos(np.arange(kernel.size)).reshape(kernel.shape), bias])
    return model


def _descend(optimizer):
    """One step on fixed weights, as the optimizer's own update gives it."""
    weight = tf.Variable(np.linspace(-1, 1, 6).reshape(2, 3).astype("f"), name="kernel")
    optimizer.build([weight])
    optimizer.apply_gradients([(tf.constant(Z[0, :2, :3]), weight)])
    return tf.convert_to_tensor(weight)


def _views_row(make):
    return Row(make, _views)


def _batch_norm_in_inference(layer, inputs):
    return layer(inputs, training=False)


ROWS = {
    "SimCLR": Row(_model, lambda m: m(IMAGES), saved_in_a_model=True),
    "MoCo": Row(_moco, lambda m: m(IMAGES), saved_in_a_model=True),
    "LooC": Row(_looc, lambda m: m(IMAGES), saved_in_a_model=True),
    "Classifier": Row(_classifier, lambda m: m(IMAGES), saved_in_a_model=True),
    "ResNet": Row(
        lambda: simclr_tf.ResNet(18, width=1 / 16),
        lambda m: _batch_norm_in_inference(m, IMAGES),
        saved_in_a_model=True,
    ),
    "ResNet with a longer h": Row(
        lambda: simclr_tf.ResNet(14, width=1 / 16, feature_dim=24),
        lambda m: _batch_norm_in_inference(m, IMAGES),
        saved_in_a_model=True,
    ),
    "Airbench": Row(
        lambda: simclr_tf.encoders.Airbench(width=1 / 16, feature_dim=24),
        lambda m: _batch_norm_in_inference(m, IMAGES),
        saved_in_a_model=True,
    ),
    "ResNet with selective kernels": Row(
        lambda: simclr_tf.ResNet(50, width=1 / 16, sk_ratio=0.0625),
        lambda m: _batch_norm_in_inference(m, IMAGES),
        saved_in_a_model=True,
    ),
    "ProjectionHead": Row(
        lambda: simclr_tf.ProjectionHead(output_dim=4, layers=3),
        lambda layer: _batch_norm_in_inference(layer, Z[0]),
        saved_in_a_model=True,
    ),
    "SpaceHeads": Row(
        lambda: simclr_tf.heads.SpaceHeads(2, output_dim=4),
        lambda layer: _batch_norm_in_inference(layer, Z[0]),
        saved_in_a_model=True,
    ),
    "looc_loss": Row(
        lambda: simclr_tf.losses.looc_loss,
        lambda f: f(np.stack([Z, Z[::-1]]).transpose(0, 2, 1, 3)[:, :3], 0.2),
        serializable=False,
    ),
    "LinearHead": Row(
        lambda: simclr_tf.heads.LinearHead(output_dim=4),
        lambda layer: _batch_norm_in_inference(layer, Z[0]),
        saved_in_a_model=True,
    ),
    "NoHead": Row(
        simclr_tf.heads.NoHead,
        lambda layer: _batch_norm_in_inference(layer, Z[0]),
        saved_in_a_model=True,
    ),
    "nt_xent": Row(lambda: simclr_tf.nt_xent, lambda f: f(Z[0], Z[1], 0.2), serializable=False),
    "NTXent": Row(lambda: simclr_tf.NTXent(0.2), lambda loss: loss(Z[0], Z[1])),
    "ContrastiveAccuracy": Row(
        simclr_tf.ContrastiveAccuracy,
        lambda metric: (metric.update_state(Z[0], Z[1]), metric.result())[1],
    ),
    "LARS": Row(lambda: simclr_tf.LARS(0.1, exclude=["head"]), _descend),
    "AdamW": Row(lambda: optimizers.AdamW(0.1), _descend),
    "WarmupCosine": Row(
        lambda: simclr_tf.WarmupCosine(2.0, 10, 3), lambda s: s(tf.constant(5, tf.int64))
    ),
    "RandomView": _views_row(lambda: simclr_tf.RandomView(8, 0.5, blur=True, jit_compile=False)),
    "Compose": _views_row(
        lambda: simclr_tf.Compose([augment.RandomCropResize(8), augment.Solarize(0.5)])
    ),
    "SharedView": Row(
        lambda: augment.SharedView(augment.by_name("crop,flip,color_jitter", 8), ["color"]),
        lambda operator: operator(IMAGES, seed=5, query_seed=6),
    ),
    "RandomCropResize": _views_row(lambda: augment.RandomCropResize(8, area=(0.2, 0.9))),
    "RandomFlip": _views_row(lambda: augment.RandomFlip(0.4)),
    "ColorJitter": _views_row(lambda: augment.ColorJitter(0.7)),
    "ColorDrop": _views_row(lambda: augment.ColorDrop(0.4)),
    "RandomBlur": _views_row(lambda: augment.RandomBlur(kernel_size=3)),
    "Cutout": _views_row(lambda: augment.Cutout(fill=0.2)),
    "GaussianNoise": _views_row(lambda: augment.GaussianNoise(0.9)),
    "RandomRotation90": _views_row(augment.RandomRotation90),
    "Sobel": _views_row(lambda: augment.Sobel(0.4)),
    "Solarize": _views_row(lambda: augment.Solarize(0.4, (0.2, 0.8))),
}
SERIALIZABLE = [name for name, row in ROWS.items() if row.serializable]
SAVED = [name for name, row in ROWS.items() if row.saved_in_a_model]
# Creating variables or applying gradients is not one compiled computation; test_augment.py compiles
# every operator, in its test_a_seed_gives_the_same_view_everywhere.
COMPILED = [
    name for name, row in ROWS.items() if row.call is not _views and name not in ("LARS", "AdamW")
]


def test_every_public_name_has_a_row():
    """The table cannot fall behind."""
    operators = [
        name
        for name, thing in vars(augment).items()
        if isinstance(thing, type) and issubclass(thing, augment.Operator)
    ]
    missing = {*simclr_tf._PUBLIC, *operators} - {"Operator"} - set(ROWS)
    assert not missing


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_config_round_trip(name):
    """Serialise, restore: same type and config; without weights, the same result too."""
    thing = ROWS[name].make()
    config = _keras.saving.serialize_keras_object(thing)
    again = _keras.saving.deserialize_keras_object(config)
    assert type(again) is type(thing)
    assert _keras.saving.serialize_keras_object(again)["config"] == config["config"]
    if not ROWS[name].saved_in_a_model:
        np.testing.assert_array_equal(ROWS[name].call(again), ROWS[name].call(thing))


@pytest.mark.parametrize("name", SAVED)
def test_save_and_load(name, tmp_path):
    """A `.keras` file gives the same result."""
    thing = ROWS[name].make()
    expected = ROWS[name].call(thing)
    model = thing
    if not isinstance(thing, keras.Model):
        model = keras.Sequential([keras.Input(Z[0].shape[1:]), thing])
    model.save(tmp_path / "it.keras")
    loaded = keras.models.load_model(tmp_path / "it.keras")
    loaded = loaded if isinstance(thing, keras.Model) else loaded.layers[0]
    np.testing.assert_allclose(ROWS[name].call(loaded), expected, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("name", COMPILED)
def test_in_a_function(name, jit_compile):
    """As a graph and under XLA: what it gives eagerly."""
    thing = ROWS[name].make()
    expected = ROWS[name].call(thing)
    if name == "ContrastiveAccuracy":
        thing.reset_state()
    compiled = tf.function(lambda: ROWS[name].call(thing), jit_compile=jit_compile)
    np.testing.assert_allclose(compiled(), expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", list(ROWS))
def test_under_mixed_precision(name, policy):
    """Results stay float32 and near those of float32."""
    keras.utils.set_random_seed(0)
    expected = ROWS[name].call(ROWS[name].make())
    keras.mixed_precision.set_global_policy(policy)
    keras.utils.set_random_seed(0)
    got = ROWS[name].call(ROWS[name].make())
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, expected, atol=0.05 * (1.0 + np.abs(expected).max()))
