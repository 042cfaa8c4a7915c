"""The resumable loop with a plain Keras classifier: it trains, is interrupted, and resumes."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import LARS, _keras, errors
from simclr_tf.data import shapes
from simclr_tf.training import JSONLines, ResumableLoop, RunDirectory, Steps, checkpoints, train
from simclr_tf.training.run_directory import read_metrics

pytestmark = pytest.mark.end_to_end

IMAGES, LABELS = shapes.draw(40, 0, size=16)
STEPS = Steps(per_epoch=5, total=13)


def classifier(optimizer=LARS):
    """A compiled classifier of two layers, each time the same."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(0.1), loss, metrics=["accuracy"])
    return model


def stream(epoch, step, replica_slice):
    """Batches of eight in an order that depends on the epoch alone; or parts of them."""
    first, count, parts = replica_slice or (0, 1, 1)

    def one_epoch(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(40), seed=[0, epoch])
        order = tf.reshape(order, [5, parts, 8 // parts])[:, first : first + count]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, [5 * count, -1]))

    dataset = tf.data.Dataset.range(epoch, 100).flat_map(one_epoch).skip(step * count)
    return dataset.map(lambda rows: (tf.gather(IMAGES, rows), tf.gather(LABELS, rows)))


def run(path, stop=None, model=None, **options):
    """Trains in a run directory; `stop` is called after the eighth step. Returns the weights."""
    model = model or classifier()

    def after_step(batch, logs):
        if stop and int(model.optimizer.iterations.numpy()) == 8:
            stop()

    each = keras.callbacks.LambdaCallback(on_train_batch_end=after_step)
    options = {"batch_size": 8, "callbacks": [each], "verbose": 0, **options}
    train(model, stream, STEPS, RunDirectory(path), checkpoint_every_steps=2, **options)
    return [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]


def assert_same_run(ours, theirs, path, whole_path, tolerance=0.0):
    """Weights and the optimizer's variables, and every metric but the speed; bit for bit at 0."""
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    rows, expected = (read_metrics(each / "metrics.jsonl") for each in (path, whole_path))
    assert [row["step"] for row in rows] == [5, 10, 13]
    for row, other in zip(rows, expected):
        for key in ("epoch", "step", "loss", "accuracy", "learning_rate"):
            assert row[key] == pytest.approx(other[key], rel=tolerance, abs=0.0), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that was not interrupted, and its directory."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    return run(path), path


def crash():
    raise RuntimeError("a fault of the machine")


def test_a_crash_within_an_epoch_costs_the_steps_since_the_checkpoint(whole, tmp_path):
    """The second call resumes at the checkpoint of step 7 and ends as an uninterrupted run."""
    with pytest.raises(RuntimeError, match="a fault"):
        run(tmp_path, crash)
    assert checkpoints.latest_position(tmp_path / "checkpoints") == (1, 2)
    assert_same_run(run(tmp_path), whole[0], tmp_path, whole[1])


def test_sigterm_saves_after_the_step_under_way(whole, tmp_path):
    """Nothing is trained twice; the weights at the end are those of an uninterrupted run."""
    with pytest.raises(errors.PreemptedError):
        run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert checkpoints.latest_position(tmp_path / "checkpoints") == (1, 3)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_same_run(run(tmp_path), whole[0], tmp_path, whole[1])


def test_sigterm_in_the_last_step_of_an_epoch(whole, tmp_path):
    """The epoch ends first: its metrics are written, and the next start begins with the next."""
    model = classifier()

    def after_step(batch, logs):
        if int(model.optimizer.iterations.numpy()) == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    each = keras.callbacks.LambdaCallback(on_train_batch_end=after_step)
    with pytest.raises(errors.PreemptedError):
        run(tmp_path, model=model, callbacks=[each])
    assert checkpoints.latest_position(tmp_path / "checkpoints") == (2, 0)
    assert_same_run(run(tmp_path), whole[0], tmp_path, whole[1])


def test_a_finished_run_is_not_trained_again(whole, tmp_path):
    """It logs so and returns the weights of its end."""
    lines = []
    assert_same_run(run(whole[1], log=lines.append), whole[0], whole[1], whole[1])
    assert lines == [f"{whole[1]} holds all 3 epochs; nothing is left to train."]


def test_replicas_resume_too(tmp_path):
    """Two replicas read their slices of every batch; metrics of an interrupted epoch continue.

    To rounding: a checkpoint holds the mean of the replicas' moving statistics.
    """
    paths = tmp_path / "stopped", tmp_path / "whole"
    weights = []
    for path, stops in zip(paths, ([crash, None], [None])):
        for stop in stops:
            strategy = tf.distribute.MirroredStrategy(
                ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
            )
            with strategy.scope():
                model = classifier(keras.optimizers.SGD)
            try:
                ran = run(path, stop, model, strategy=strategy)
            except RuntimeError as error:
                assert "a fault of the machine" in str(error)
        weights.append(ran)
    assert_same_run(*weights, *paths, tolerance=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    """Before its weights are saved."""
    model = classifier()
    model.optimizer.learning_rate = 1e38
    with pytest.raises(errors.TrainingError, match=r"must be finite.*Lower learning_rate"):
        run(tmp_path, model=model)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_checkpoints_hold_metadata(tmp_path):
    """What a plain model does not know, such as the size of its images."""
    run(tmp_path, metadata={"image_size": 16})
    restored = checkpoints.restore_submodels(tmp_path / "checkpoints", lambda size: {})
    assert restored == ({}, 16, (3, 0))


@pytest.mark.skipif(not _keras.IS_KERAS_2, reason="Keras 3 converts them for every callback")
def test_logs_stay_on_the_device_between_steps(tmp_path):
    """No callback of the loop makes Keras convert the logs of every step to NumPy."""
    seen = []

    class Watching(ResumableLoop):
        def _writers(self):
            return [JSONLines(self.directory.metrics)]

    loop = Watching(classifier(), stream, STEPS, RunDirectory(tmp_path), batch_size=8, verbose=0)
    stop = loop._callbacks[-1]
    after = stop.on_steps_end
    stop.on_steps_end = lambda steps, logs: (seen.append(logs["loss"]), after(steps, logs))
    loop.run()
    assert len(seen) == 13 and all(tf.is_tensor(loss) for loss in seen)
