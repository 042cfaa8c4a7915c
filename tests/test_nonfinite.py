"""A loss that is not finite: the step is found again, kept in the run directory, and replayed."""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ProjectionHead, SimCLR, augment, cli, errors
from simclr_tf.training import RunDirectory, Steps, nonfinite, train

STEPS = Steps(per_epoch=6, total=12)
RNG = np.random.default_rng(0)
IMAGES = RNG.random([12, 4, 6, 6, 3]).astype(np.float32)  # batches of four
BAD = 9  # the fourth step of the second epoch


def model_of(steps_per_execution=1):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3)]
    encoder = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])

    def objective(z, batch):
        """The mean of z squared; infinite for the batch whose first pixel is 1."""
        bad = tf.reduce_max(batch.images) >= 1.0
        return tf.reduce_mean(tf.square(z)) + tf.where(bad, float("inf"), 0.0), {}

    model = SimCLR(encoder, ProjectionHead(output_dim=3), augment.RandomFlip(), seed=1,
                   objective=objective)  # fmt: skip
    model.build((None, 6, 6, 3))
    model.compile(keras.optimizers.SGD(0.1, 0.9), steps_per_execution=steps_per_execution)
    return model


def batches(bad=None):
    images = IMAGES.copy()
    if bad is not None:
        images[bad, 0, 0, 0, 0] = 1.0
    return images


def stream_of(images, per_replica=1):
    def stream(epoch, step, replica_slice):
        rest = images[epoch * 6 + step :]
        if replica_slice is None:
            return tf.data.Dataset.from_tensor_slices(rest)
        first, count, replicas = replica_slice
        parts = rest.reshape([len(rest), replicas, -1, 6, 6, 3])[:, first : first + count]
        return tf.data.Dataset.from_tensor_slices(parts.reshape([-1, *parts.shape[2:]]))

    return stream


@pytest.mark.parametrize(
    ("steps_per_execution", "replicas"), [(1, 1), (3, 1), (1, 2)], ids=["1 step", "3", "replicas"]
)
def test_the_step_is_found_and_kept(steps_per_execution, replicas, tmp_path):
    """Its batch, its position, and the weights that it began with."""
    strategy = None
    if replicas == 2:
        strategy = tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
        )
        with strategy.scope():
            model = model_of()
    else:
        model = model_of(steps_per_execution)
    directory, images = RunDirectory(tmp_path), batches(BAD)
    options = {"batch_size": 4, "verbose": 0, "strategy": strategy, "metadata": {"image_size": 6}}
    with pytest.raises(errors.NonFiniteError, match=r"step 4 of epoch 2 are in .*nonfinite_step"):
        train(model, stream_of(images), STEPS, directory, log=lambda line: None, **options)
    found, about = nonfinite.read_step(directory.nonfinite_step)
    assert (found.epoch, found.step, found.optimizer_step) == (1, 3, BAD)
    assert about["loss"] == "inf" and about["image_size"] == 6
    np.testing.assert_array_equal(found.batch["image"], images[BAD])
    good = model_of()
    for batch in images[:BAD]:
        good.train_on_batch(batch)
    for ours, theirs in zip(found.weights, good.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_step_that_is_finite_the_second_time_is_said(tmp_path):
    """As where kernels are not deterministic."""
    streams = [stream_of(batches(BAD)), stream_of(batches())]
    opened = []

    def stream(epoch, step, replica_slice):
        opened.append((epoch, step))
        return streams[len(opened) > 2](epoch, step, replica_slice)

    with pytest.raises(errors.NonFiniteError, match="were finite this time"):
        train(
            model_of(), stream, STEPS, RunDirectory(tmp_path), batch_size=4, verbose=0,
            log=lambda line: None,
        )  # fmt: skip
    assert not RunDirectory(tmp_path).nonfinite_step.exists()


def test_copies_are_of_finite_states_only():
    """A copy of a state that is not finite leaves the one before."""
    model = model_of()
    copies = nonfinite.StateCopies(every_steps=2)
    copies.set_model(model)
    copies.on_epoch_begin(0)
    before = model.get_weights()
    model.set_weights([np.full_like(weight, np.nan) for weight in before])
    copies.on_train_batch_end(1, {"loss": 1.0})
    assert copies.position == (0, 0)
    copies.restore()
    for ours, theirs in zip(model.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)
    copies.on_train_batch_end(3, {"loss": 1.0})
    assert copies.position == (0, 4)


@pytest.mark.parametrize("form", ["images", "dict", "views"])
def test_a_batch_of_any_form_is_read_as_it_was_written(form, tmp_path):
    batch = {
        "images": IMAGES[0],
        "dict": {"image": IMAGES[0], "extent": np.array([[6, 6]] * 4)},
        "views": (IMAGES[0], IMAGES[1]),
    }[form]
    found = nonfinite.NonFiniteStep(0, 1, 2, float("nan"), [np.ones(3), np.zeros([2, 2])], batch)
    for _ in range(2):  # the second replaces the first
        nonfinite.write_step(tmp_path / "step", found, {"image_size": 6})
    read, about = nonfinite.read_step(tmp_path / "step")
    expected = {"image": batch} if form == "images" else batch
    tf.nest.map_structure(np.testing.assert_array_equal, read.batch, expected)
    assert read[:3] == found[:3] and np.isnan(read.loss) and about["step"] == 2
    assert [weight.shape for weight in read.weights] == [(3,), (2, 2)]


@pytest.mark.end_to_end
def test_the_command_replays_the_step(tmp_path, capsys, one_layer):
    """At a rate that makes the weights infinite; the part is named where it began."""
    np.savez(tmp_path / "set.npz", x_train=(IMAGES.reshape(48, 6, 6, 3) * 255).astype(np.uint8))
    run = f"--run_dir={tmp_path / 'run'}"
    flags = [f"--dataset=npz:{tmp_path / 'set.npz'}", "--batch_size=8", "--optimizer=sgd"]
    flags += ["--learning_rate=1e30", "--precision=float32", "--epochs=4", "--warmup_epochs=0"]
    flags += ["--augmentations=crop,flip"]
    assert cli.main(["replay", run]) == 2
    assert cli.main(["pretrain", run, *flags]) == 1
    error = capsys.readouterr().err
    assert "`simclr-tf replay` computes it again" in error
    step = json.loads((tmp_path / "run" / "nonfinite_step" / "step.json").read_text())
    assert cli.main(["replay", run]) == 0
    out, error = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert str(result["loss"]) == step["loss"]
    assert result["first_not_finite"] in error and "view 1: " in error


@pytest.mark.end_to_end
def test_a_run_without_such_a_step_is_told(tmp_path, capsys):
    RunDirectory(tmp_path).write_flags({"run_dir": str(tmp_path)})
    assert cli.main(["replay", f"--run_dir={tmp_path}"]) == 2
    assert "--run_dir must hold a run whose loss was not finite" in capsys.readouterr().err
