"""float16: the steps that the loss scale skips are counted, logged, and kept over a resume."""

import itertools
import logging

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ProjectionHead, SimCLR, _keras, augment
from simclr_tf.models import LossScale
from simclr_tf.training import ResumableLoop, RunDirectory, Steps
from simclr_tf.training.run_directory import read_metrics

IMAGES = np.random.default_rng(3).integers(0, 256, [32, 8, 8, 3], np.uint8)
# So large that gradients overflow in the first steps; the weights differ with the Keras.
SCALE = 2.0 ** (36 if _keras.IS_KERAS_2 else 30)


@pytest.fixture(autouse=True)
def half_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")


def model_of(replicas=1, micro_batch_size=None, dynamic=True, scale=SCALE, **compiled):
    """A model of a few hundred weights, each time the same; without batch statistics."""
    keras.utils.set_random_seed(0)
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
        encoder = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        head = ProjectionHead(output_dim=4, batch_norm=False)
        model = SimCLR(encoder, head, augment.RandomFlip(), 0.2, micro_batch_size, seed=1)
        model.build((None, 8, 8, 3))
        sgd = keras.optimizers.SGD(0.01)
        if keras.mixed_precision.global_policy().name == "mixed_float16":
            sgd, more = scaled(sgd, dynamic, scale)
            compiled.update(more)
        model.compile(optimizer=sgd, **compiled)
    return model


def scaled(optimizer, dynamic, scale):
    """An optimizer with a loss scale, and arguments of `compile` that it needs."""
    if not dynamic and not _keras.IS_KERAS_2:
        optimizer.loss_scale_factor = 8.0
        return optimizer, {"auto_scale_loss": False}
    fixed = {} if dynamic else {"dynamic": False}
    growth = {"dynamic_growth_steps": 4} if dynamic and scale < SCALE else {}
    scale = scale if dynamic else 8.0
    wrap = keras.mixed_precision.LossScaleOptimizer
    return wrap(optimizer, initial_scale=scale, **fixed, **growth), {}


def scale_of(model):
    return float(_keras.loss_scale(model.optimizer).numpy())


class UnchangedWeights(keras.callbacks.Callback):
    """Counts steps after which every weight is what it was before: those that were skipped."""

    def on_epoch_begin(self, epoch, logs=None):
        self.count, self._before = 0, self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        weights = self.model.get_weights()
        self.count += all(map(np.array_equal, weights, self._before))
        self._before = weights


def fit(model, *callbacks, **kwargs):
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8, drop_remainder=True).repeat(5)
    return model.fit(data, verbose=0, callbacks=[*callbacks], **kwargs).history


@pytest.mark.parametrize(
    ("replicas", "micro_batch_size"), [(1, None), (2, None), (3, None), (1, 4), (2, 4)]
)
def test_skipped_steps_are_those_that_change_no_weight(replicas, micro_batch_size):
    """Some of twenty; on one device and on replicas, at once and in micro-batches."""
    unchanged = UnchangedWeights()
    model = model_of(replicas, micro_batch_size)
    history = fit(model, unchanged)
    assert history["skipped_steps"] == [unchanged.count]
    assert 4 < unchanged.count < 18
    assert history["loss_scale"] == [SCALE / 2**unchanged.count]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert scale_of(model) == history["loss_scale"][0]


@pytest.fixture(scope="module")
def skipped():
    """The number of steps of `fit(model_of())` that change no weight."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    unchanged = UnchangedWeights()
    fit(model_of(), unchanged)
    return unchanged.count


@pytest.mark.parametrize("form", ["steps_per_execution", "jit_compile", "run_eagerly"])
def test_the_count_does_not_depend_on_how_keras_runs_a_step(form, skipped):
    """Several steps in a call, XLA, eager execution."""
    history = fit(model_of(**{form: 4 if form == "steps_per_execution" else True}))
    assert history["skipped_steps"][0] == pytest.approx(skipped, abs=form == "jit_compile")


def test_a_validation_does_not_change_the_count(skipped):
    """Nor has it a count of its own."""
    history = fit(model_of(), validation_data=IMAGES[:8])
    assert history["skipped_steps"] == [skipped]
    assert "val_skipped_steps" not in history


def test_a_scale_that_grows_skips_nothing():
    """The steps since its last change begin at 0 again, as after a skipped step."""
    history = fit(model_of(scale=2.0))  # which doubles every four steps
    assert history["skipped_steps"] == [0.0] and history["loss_scale"] == [64.0]


def test_a_line_says_so_once_an_epoch():
    """Of a `fit` of one's own: how many of how many, and the scale; a warning where it is all."""
    lines = []
    model = model_of()
    counts = [fit(model, LossScale(lines.append), steps_per_epoch=4)["skipped_steps"][0]]
    counts += fit(model, LossScale(lines.append))["skipped_steps"]
    assert counts[0] == 4 and 0 < counts[1] < 20
    assert lines == [
        "warning: epoch 1: float16 skipped 4 of 4 steps, whose gradients were not finite; the loss "
        f"scale is now {SCALE / 16:,.0f}. Nothing was learnt. If this continues, use bfloat16 or "
        "float32.",
        f"epoch 1: float16 skipped {counts[1]:.0f} of 20 steps, whose gradients were not finite; "
        f"the loss scale is now {SCALE / 2 ** sum(counts):,.0f}.",
    ]
    model.optimizer.learning_rate = 0.0  # so that the gradients do not grow
    model.fit(IMAGES, batch_size=8, verbose=0, callbacks=[LossScale(lines.append)])
    assert len(lines) == 2, "nothing is skipped any more"


@pytest.mark.parametrize("form", ["none", "one", "list"])
def test_fit_reports_by_itself(form, caplog):
    """Whatever is passed as callbacks; once."""
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
    with caplog.at_level(logging.WARNING, logger="absl"):
        arguments = {"none": {}, "one": {"callbacks": callback}, "list": {"callbacks": [callback]}}
        model_of().fit(IMAGES, batch_size=8, verbose=0, **arguments[form])
    assert [r.message for r in caplog.records if "float16 skipped 4 of 4" in r.message]
    assert all(logs["loss_scale"] == SCALE / 16 for logs in seen)
    assert len(seen) == (form != "none")


@pytest.mark.parametrize("kind", ["float32", "mixed_bfloat16", "a fixed scale"])
def test_where_nothing_can_be_skipped_nothing_is_logged(kind):
    """No entry in the logs, and no metric."""
    if kind != "a fixed scale":
        keras.mixed_precision.set_global_policy(kind)
    model = model_of(dynamic=False)
    assert sorted(fit(model)) == ["contrastive_accuracy", "loss"]
    assert len(model.metrics) == 2


def run(path, stop_at=None):
    """Twelve epochs of two steps in a run directory; returns the model and what was logged."""
    model, lines, steps = model_of(), [], itertools.count(1)
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8, drop_remainder=True).repeat()

    def after_step(batch, logs):
        if next(steps) == stop_at:  # `iterations` of Keras 3 leaves out skipped steps
            raise KeyboardInterrupt

    loop = ResumableLoop(
        model,
        lambda epoch, step, replica_slice: data.skip((3 * epoch + step) % 4),
        Steps(per_epoch=3, total=21),
        RunDirectory(path),
        batch_size=8,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=after_step)],
        checkpoint_every_steps=1,
        log=lines.append,
        verbose=0,
    )
    restored = scale_of(model)
    loop.run()
    return model, lines, restored


@pytest.mark.end_to_end
def test_a_run_keeps_its_scale_and_its_count_over_a_resume(tmp_path):
    """Stopped within an epoch in which steps are skipped; metrics.jsonl is as if it were not."""
    whole, whole_lines, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=6 + 2)
    resumed, lines, restored = run(tmp_path / "stopped")
    assert restored == SCALE / 2**7, "that of the checkpoint of the seventh step"
    for one, other in zip(resumed.get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(one, other)
    rows, expected = (
        read_metrics(tmp_path / name / "metrics.jsonl") for name in ("stopped", "whole")
    )
    assert [row["skipped_steps"] for row in rows][:3] == [3, 3, 3]
    for key in ("epoch", "step", "loss", "skipped_steps", "loss_scale"):
        assert [row[key] for row in rows] == [row[key] for row in expected], key
    assert lines[0] == "resuming after epoch 2 and 1 steps."
    assert lines[1:] == whole_lines[2:] and "epoch 3: float16 skipped 3 of 3" in lines[1]
