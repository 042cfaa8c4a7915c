"""Replicas train as one device: loss, weights and moving statistics agree."""

import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ProjectionHead, SimCLR, _keras, augment, devices, optimizers
from simclr_tf.losses import log_sum_exp

IMAGES = np.random.default_rng(11).integers(0, 256, [40, 8, 8, 3], np.uint8)


def strategy_of(replicas):
    """Mirrored over logical CPUs; the default strategy for one."""
    if replicas == 1:
        return tf.distribute.get_strategy()
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def small_encoder(batch_norm, replicas):
    """A convolution, batch norm that replicas share, the mean over pixels.

    One device has the plain kernel here: the fused one scales the moving variance by n / (n - 1),
    n values a channel, which Keras's synchronised layer does not.
    """
    unfused = {"fused": False} if _keras.IS_KERAS_2 else {}  # what Keras 3 is anyway
    shared = {"synchronized": True} if replicas > 1 else unfused
    norm = keras.layers.BatchNormalization(momentum=0.5, **shared)
    parts = [
        keras.layers.Conv2D(6, 3, strides=2, use_bias=not batch_norm, input_shape=(8, 8, 3)),
        *([norm] if batch_norm else []),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
    ]
    return keras.Sequential(parts)


def five_steps(replicas, optimizer="sgd", batch_norm=True, micro_batch_size=None, **kwargs):
    """Losses of the steps, and all weights after them."""
    batch_size, view = kwargs.get("batch_size", 8), kwargs.get("view", augment.RandomFlip())
    keras.utils.set_random_seed(0)
    with strategy_of(replicas).scope():
        head = ProjectionHead(output_dim=4, batch_norm=batch_norm)
        encoder = small_encoder(batch_norm, replicas)
        model = SimCLR(encoder, head, view, 0.2, micro_batch_size, seed=4)
        model.build((None, 8, 8, 3))
        rate, more = 0.02, {}
        if optimizer == "lamb":
            # Its steps are proportional to the weights, ten times those of LARS here. It divides a
            # gradient by its own size, so rounding errors count as much as real gradients.
            rate, more = 0.002, {"epsilon": 0.1}
        model.compile(
            optimizer=optimizers.by_name(optimizer, rate, weight_decay=1e-4, **more),
            steps_per_execution=kwargs.get("steps_per_execution", 1),
        )
        if hasattr(model.optimizer, "build"):  # then `fit` traces a step once; LAMB has none
            model.optimizer.build(model.trainable_variables)
    losses = []
    # Not the logs: during an epoch, Keras 3 logs the mean of the replicas' means.

    def read(batch, logs=None):
        losses.append({metric.name: float(metric.result()) for metric in model.metrics})

    each = keras.callbacks.LambdaCallback(on_train_batch_end=read)
    data = tf.data.Dataset.from_tensor_slices(IMAGES)
    data = data.batch(batch_size, drop_remainder=len(IMAGES) % batch_size == 0)
    model.fit(data, verbose=0, callbacks=[each])
    # Keras logs running means: what differs in one step shows in all that follow.
    return losses, {_keras.variable_name(w): w.numpy() for w in model.weights}


# Keras 3 sums the gradients of biases in another order, and they nearly cancel: 1e-4 was seen.
TOLERANCE = 1e-5 if _keras.IS_KERAS_2 else 3e-4


def assert_same(many, one, tolerance=TOLERANCE):
    """Losses and accuracies step by step; every weight, relative to its largest entry.

    A weight that begins at zero is no larger than what a step moves it: for it 0.05 counts.
    """
    assert len(many[0]) == len(one[0])
    for got, expected in zip(many[0], one[0]):
        assert got == pytest.approx(expected, rel=tolerance)
    for (name, expected), got in zip(one[1].items(), many[1].values()):
        scale = max(np.abs(expected).max(), 0.05)
        np.testing.assert_allclose(got, expected, atol=tolerance * scale, err_msg=name)


def in_tiles(monkeypatch):
    """Makes NT-Xent use tiles of 3, whatever the size of the batch."""
    monkeypatch.setattr(log_sum_exp, "MAX_DENSE_LOGITS", 0)
    monkeypatch.setattr(log_sum_exp, "default_tile_size", lambda: 3)


def test_replicas_train_as_one_device():
    """Five steps on two replicas with the paper's views and batch norm, LARS."""
    view = augment.RandomView(8, 0.5, jit_compile=False)
    one = five_steps(1, "lars", view=view)
    assert any("moving" in name for name in one[1])
    assert_same(five_steps(2, "lars", view=view), one)


def test_micro_batches_and_tiles_train_as_one_whole_batch(monkeypatch):
    """Gradient caching and NT-Xent in tiles; without batch norm, which sees one micro-batch."""
    one = five_steps(1, "lars", batch_norm=False)
    in_tiles(monkeypatch)
    assert_same(five_steps(2, "lars", batch_norm=False, micro_batch_size=4), one)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["at once", "in tiles"])
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_any_of_these_together(replicas, micro, form, monkeypatch):
    """Batch norm where the batch is whole."""
    one = five_steps(1, "lars", batch_norm=micro is None)
    if form == "in tiles":
        in_tiles(monkeypatch)
    many = five_steps(replicas, "lars", batch_norm=micro is None, micro_batch_size=micro)
    assert_same(many, one)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_lamb_on_replicas_and_in_micro_batches(replicas, micro, monkeypatch):
    """In tiles, too."""
    one = five_steps(1, "lamb", batch_norm=micro is None)
    in_tiles(monkeypatch)
    many = five_steps(replicas, "lamb", batch_norm=micro is None, micro_batch_size=micro)
    assert_same(many, one)


@pytest.mark.slow
def test_replicas_in_pieces_share_their_statistics():
    """With batch norm that replicas share, which no TensorFlow loop would allow."""
    losses, weights = five_steps(2, "lars", micro_batch_size=4)
    assert np.isfinite(losses[-1]["loss"])
    assert all(np.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize(
    ("per_epoch", "total", "on_gpu", "on_tpu"),
    [(97, 970, 1, 1), (40, 400, 10, 40), (40, 68, 4, 4)],
)
def test_steps_at_a_time_end_with_the_epoch_and_the_run(
    per_epoch, total, on_gpu, on_tpu, monkeypatch
):
    """One on a CPU; elsewhere as many as fit, on several GPUs if Keras can."""
    assert devices.steps_per_execution(per_epoch, total) == 1
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: [kind] if kind == "GPU" else []
    )
    assert devices.steps_per_execution(per_epoch, total) == on_gpu
    two_replicas = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: two_replicas)
    shared = on_gpu if _keras.repeats_collectives() else 1
    assert devices.steps_per_execution(per_epoch, total) == shared
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: [kind] if kind == "TPU" else []
    )
    assert devices.steps_per_execution(per_epoch, total) == on_tpu


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_batches_that_are_shared_unevenly(steps_per_execution):
    """Seven images, and five in the last batch, on two replicas; also several steps in a call."""
    settings = {"batch_norm": False, "batch_size": 7, "steps_per_execution": steps_per_execution}
    assert_same(five_steps(2, **settings), five_steps(1, **settings))


UNEVEN = """
import sys
import numpy as np, tensorflow as tf
from tensorflow import keras
from simclr_tf import SimCLR, ProjectionHead, augment
count, steps_per_execution, reduction = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
one_device = tf.distribute.ReductionToOneDevice() if reduction == "one_device" else None
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], one_device)
images = np.random.default_rng(0).integers(0, 256, [count, 32, 32, 3], np.uint8)
with strategy.scope():
    layers = [keras.layers.Conv2D(8, 3, 2), keras.layers.GlobalAveragePooling2D()]
    encoder = keras.Sequential([keras.Input((32, 32, 3)), *layers])
    model = SimCLR(encoder, ProjectionHead(output_dim=4, batch_norm=False), augment.RandomFlip())
    model.compile(optimizer="sgd", steps_per_execution=steps_per_execution)
try:
    model.fit(images, batch_size=16, verbose=0)
except ValueError as error:
    print(error)
"""


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("images", "steps_per_execution", "reduction"),
    [
        (33, 1, "one_device"),
        pytest.param(35, 4, "collectives", marks=pytest.mark.slow),
        pytest.param(33, 4, "one_device", marks=pytest.mark.slow),
        pytest.param(33, 1, "collectives", marks=pytest.mark.slow),
    ],
)
def test_what_replicas_cannot_share_is_one_line(images, steps_per_execution, reduction):
    """A replica without images, or a smaller step among others of one call.

    Outside the scope of the strategy, in a process of its own: a collective that fails leaves
    TensorFlow unusable.
    """
    arguments = [str(images), str(steps_per_execution), reduction]
    command = [sys.executable, "-c", UNEVEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-500:]
    if steps_per_execution > 1 and reduction == "collectives" and not _keras.repeats_collectives():
        rule = "steps_per_execution must be 1 with several replicas and Keras 3"
        assert done.stdout.startswith(rule) and done.stdout.endswith("within a call; got 4.\n")
        return
    if not done.stdout and images == 33 and devices.convolves_nothing():
        return  # it trained, since these kernels take no images
    assert done.stdout.startswith("every replica needs images in every step")
    assert done.stdout.endswith("drop_remainder=True.\n")
