"""Sketches of what the package is to carry, each on its seams alone: none needs a change in it.

A supervised objective, a run of three views of two sizes, and a classifier, each on drawn shapes
in the resumable loop: stopped within an epoch, started again, on one device and on two replicas.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ProjectionHead, SimCLR, augment, data
from simclr_tf.distribute import gather_rows
from simclr_tf.training import ResumableLoop, RunDirectory, Steps
from simclr_tf.training.run_directory import read_metrics

pytestmark = pytest.mark.end_to_end

BATCH_SIZE, STEPS = 16, Steps(per_epoch=4, total=10)


def encoder_of():
    layers = keras.layers
    steps = [layers.Conv2D(8, 3, 2, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((None, None, 3)), *steps])


# ---- sketch 1: all views of images of one class are positives (Khosla et al., arXiv:2004.11362)


def supervised_positives(z, batch, temperature=0.2):
    z = tf.math.l2_normalize(z, axis=-1)
    views, dim = z.shape[0], z.shape[-1]
    columns, _ = gather_rows(tf.transpose(z, [1, 0, 2]))  # [M, V, d]
    labels, first = gather_rows(batch.labels)  # [M]
    images = tf.range(tf.shape(z)[1])
    own = [(first + images) * views + view for view in range(views)]
    logits = tf.reshape(z, [-1, dim]) @ tf.transpose(tf.reshape(columns, [-1, dim])) / temperature
    itself = tf.range(tf.shape(logits)[1]) == tf.concat(own, 0)[:, None]
    row_labels = tf.tile(batch.labels, [views])[:, None]
    positives = (tf.repeat(labels, views) == row_labels) & ~itself
    log_p = tf.nn.log_softmax(tf.where(itself, -1e9, logits))
    positives = tf.cast(positives, tf.float32)
    losses = -tf.reduce_sum(positives * log_p, 1) / tf.reduce_sum(positives, 1)
    return tf.reduce_mean(losses), {"positives": tf.reduce_sum(positives, 1)}


def supervised_model():
    head = ProjectionHead(output_dim=8, batch_norm=False)
    return SimCLR(encoder_of(), head, augment.RandomFlip(), seed=1, objective=supervised_positives)


# ---- sketch 2: two views of 32 pixels and one of 16


def multi_crop_model():
    head = ProjectionHead(output_dim=8, batch_norm=False)
    large = augment.RandomFlip()  # of the 32 pixels that there are: quickly traced
    small = augment.RandomCropResize(16, area=(0.08, 0.35))
    return SimCLR(encoder_of(), head, [large, large, small], temperature=0.2, seed=1)


# ---- sketch 3: a classifier of plain Keras


def classifier():
    layers = [keras.layers.Rescaling(1 / 255), encoder_of(), keras.layers.Dense(10)]
    return keras.Sequential(layers)


# ---- what they have in common


@pytest.fixture(scope="module")
def source():
    return data.load("shapes", "train[:64]")


def stream_of(source, as_pairs):
    def stream(epoch, step, replica_slice):
        arguments = {} if replica_slice is None else {"replica_slice": replica_slice}
        dataset = source.epochs(BATCH_SIZE, 7, epoch, True, step, labels=True, **arguments)
        return dataset.map(lambda batch: (batch["image"], batch["label"])) if as_pairs else dataset

    return stream


def run(path, make, source, replicas, stop_at=None):
    """Trains in a run directory, from its latest checkpoint on; returns the weights."""
    keras.utils.set_random_seed(0)
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        model = make()
        is_classifier = make is classifier
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1, 0.9), **({"loss": loss} if is_classifier else {}))
        if not is_classifier:
            model.build((None, 32, 32, 3))

    def after_step(batch, logs):
        if int(model.optimizer.iterations.numpy()) == stop_at:
            raise KeyboardInterrupt

    each = keras.callbacks.LambdaCallback(on_train_batch_end=after_step)
    loop = ResumableLoop(
        model,
        stream_of(source, as_pairs=is_classifier),
        STEPS,
        RunDirectory(path),
        batch_size=BATCH_SIZE,
        strategy=strategy,
        callbacks=[each],
        checkpoint_every_steps=2,
        verbose=0,
    )
    loop.run()
    return model.get_weights()


@pytest.fixture(scope="module")
def whole_run(source, tmp_path_factory):
    """A function that returns weights and metrics of a run that is left alone; it runs it once."""

    @functools.cache
    def weights_and_metrics(make, replicas):
        path = tmp_path_factory.mktemp("whole") / "run"
        return run(path, make, source, replicas), read_metrics(path / "metrics.jsonl")

    return weights_and_metrics


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("make", [supervised_model, multi_crop_model, classifier])
def test_a_sketch_trains_stops_and_goes_on(make, replicas, source, whole_run, tmp_path):
    """The weights and the logs at the end are those of a run that was left alone."""
    whole, expected = whole_run(make, replicas)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, make, source, replicas, stop_at=7)
    resumed = run(tmp_path, make, source, replicas)
    for one, other in zip(resumed, whole):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["loss"] for row in expected], rel=1e-5
    )


@pytest.mark.parametrize("make", [supervised_model, multi_crop_model])
def test_replicas_train_a_sketch_as_one_device_does(make, whole_run):
    """Negatives and positives are those of the global batch; to rounding, after ten steps."""
    (one, _), (two, _) = (whole_run(make, replicas) for replicas in (1, 2))
    for single, several in zip(one, two):
        np.testing.assert_allclose(several, single, atol=1e-4 * max(1.0, np.abs(single).max()))
