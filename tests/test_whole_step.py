"""A whole training step as one XLA program, as a TPU runs it: static, and without its host."""

import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import LARS, ProjectionHead, ResNet, SimCLR, augment
from simclr_tf.augment import random_view
from simclr_tf.encoders import convolution
from simclr_tf.losses import log_sum_exp

pytestmark = pytest.mark.end_to_end

BATCH = 8
IMAGES = np.random.default_rng(2).integers(0, 256, [BATCH, 20, 20, 3], np.uint8)
EXTENT = np.array([[20, 14], [13, 20]] * (BATCH // 2), np.int32)


@pytest.fixture
def off_the_processor(monkeypatch):
    """The forms of the operators that another device takes."""
    for module in (random_view, convolution):
        monkeypatch.setattr(module, "on_cpu", lambda: False)


def model_of(view_size=16, micro_batch_size=None, jit_compile=True, depth=18):
    """A model of one image size, with the paper's views and LARS."""
    keras.utils.set_random_seed(0)
    view = augment.RandomView(view_size, blur=True, jit_compile=jit_compile)
    model = SimCLR(
        ResNet(depth, width=1 / 16),
        ProjectionHead(output_dim=8),
        view,
        micro_batch_size=micro_batch_size,
        seed=5,
    )
    model.build((None, view_size, view_size, 3))
    model.compile(optimizer=LARS(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def hlo_of(model, batch):
    """What XLA is given of views, encoder, loss, gradients, LARS and metrics."""
    step = tf.function(model.train_step, jit_compile=True)
    return step.experimental_get_compiler_ir(batch)(stage="hlo")


# Whatever talks to the host, and what a TPU has no kernel for.
FORBIDDEN = r"\b(custom-call|infeed|outfeed|send|recv|host-transfer|rng-get-and-update-state)\("


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("kind", ["squares", "photographs", "blocks", "pieces"])
def test_the_step_is_static_and_needs_no_host(kind, off_the_processor, monkeypatch):
    """No dynamic dimension, no call of the host, no 64-bit floats."""
    if kind == "blocks":  # as with a large batch
        monkeypatch.setattr(log_sum_exp, "MAX_DENSE_LOGITS", 0)
    model = model_of(micro_batch_size=8 if kind == "pieces" else None)
    images = tf.constant(IMAGES)
    batch = {"image": images, "extent": tf.constant(EXTENT)} if kind == "photographs" else images
    hlo = hlo_of(model, batch)
    assert "convolution(" in hlo and "u8[8,20,20,3]" in hlo, "the views are part of the program"
    assert len(re.findall(r" parameter\(", hlo)) > 100, "and the optimizer"
    assert "<=" not in hlo, "a dynamic dimension is written f32[<=8]"
    assert not re.findall(FORBIDDEN, hlo)
    assert "f64[" not in hlo


@pytest.mark.slow
def test_the_program_of_xla_trains_as_tensorflow_does(off_the_processor):
    """Loss and weights of a step, compiled as a whole and not compiled at all."""
    results = []
    for whole in (True, False):
        model = model_of(jit_compile=whole)
        step = tf.function(model.train_step, jit_compile=whole)
        results.append((step(tf.constant(IMAGES))["loss"].numpy(), model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    for ours, theirs in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("replicas", [1, 2])
def test_many_steps_in_one_call_are_the_same_steps(replicas):
    """`steps_per_execution`, which a TPU needs: as many calls of one step."""
    results = []
    for steps in (1, 3):
        keras.utils.set_random_seed(0)
        strategy = tf.distribute.get_strategy()
        if replicas > 1:
            devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
            strategy = tf.distribute.MirroredStrategy(
                devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
            )
        with strategy.scope():
            encoder = keras.Sequential(
                [
                    keras.layers.Conv2D(4, 3, input_shape=(20, 20, 3)),
                    keras.layers.GlobalAveragePooling2D(),
                ]
            )
            head = ProjectionHead(output_dim=4, batch_norm=False)
            model = SimCLR(encoder, head, augment.RandomFlip(), 0.5, seed=5)
            model.build((None, 20, 20, 3))
            model.compile(optimizer=LARS(0.1), steps_per_execution=steps)
            model.optimizer.build(model.trainable_variables)
        data = tf.data.Dataset.from_tensors(IMAGES).repeat(6)
        results.append((model.fit(data, verbose=0).history["loss"], model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    for ours, theirs in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
