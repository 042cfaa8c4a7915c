"""The moving average of weights: against NumPy, on replicas, in files, and in runs."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from runs import weights_of
from simclr_tf import augment, cli, errors
from simclr_tf.commands import build, pretrain
from simclr_tf.encoders.fine_tuning import paired_weights
from simclr_tf.training import probes

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, [48, 8, 8, 3], np.uint8)
VIEW = augment.Compose([augment.RandomFlip(), augment.GaussianNoise(1.0)])


def small():
    """A functional encoder to 4 numbers."""
    layers = keras.layers
    stack = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3)), *stack])


def model_of(encoder=None, **arguments):
    arguments = {"weight_average": 0.7, "seed": 1, **arguments}
    head = simclr_tf.ProjectionHead(output_dim=4)
    model = simclr_tf.SimCLR(encoder or small(), head, VIEW, **arguments)
    model.compile(keras.optimizers.SGD(0.3))
    return model


def values(model, averaged):
    """Weights of encoder and head in one order, of the averages or of what is trained."""
    pairs = [
        paired_weights(model.encoder, model.averaged_encoder),
        paired_weights(model.projection_head, model.averaged_head),
    ]
    return [weight.numpy() for pair in pairs for weight in pair[averaged]]


class Recorder(keras.callbacks.Callback):
    """Keeps the trained weights after each step."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_train_batch_end(self, batch, logs=None):
        self.rows.append(values(self.model, averaged=False))


@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_it_is_the_average_in_numpy(micro_batch_size):
    """Momentum min(m, (1 + t) / (10 + t)); moving statistics too; trained weights are the same."""
    model = model_of(micro_batch_size=micro_batch_size)
    model.build((None, 8, 8, 3))
    expected, recorder = values(model, averaged=False), Recorder()
    model.fit(PIXELS, batch_size=8, epochs=5, verbose=0, callbacks=[recorder], shuffle=False)
    assert len(recorder.rows) == 30  # (1 + t) / (10 + t) is 0.7 at t = 20
    for step, row in enumerate(recorder.rows):
        m = min(0.7, (1 + step) / (10 + step))
        expected = [m * average + (1 - m) * weight for average, weight in zip(expected, row)]
    got = values(model, averaged=True)
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert any(np.abs(g - t).max() > 1e-3 for g, t in zip(got, recorder.rows[-1]))
    counted = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    of_both = [model.encoder, model.projection_head]
    assert counted == sum(int(np.prod(w.shape)) for n in of_both for w in n.trainable_weights)


def test_training_is_that_without_an_average():
    """The same losses and weights."""
    losses = []
    for average in (None, 0.9):
        keras.utils.set_random_seed(1)
        model = model_of(weight_average=average)
        history = model.fit(PIXELS, batch_size=16, epochs=2, verbose=0, shuffle=False)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_h_and_z_are_of_the_averages_and_the_loss_is_not(tmp_path):
    """Also after save and load; training goes on from there."""
    model = model_of()
    model.fit(PIXELS, batch_size=16, epochs=2, verbose=0)
    images = PIXELS / np.float32(255)
    h = model.averaged_encoder(images, training=False)
    np.testing.assert_allclose(model(images), h, atol=1e-6)
    np.testing.assert_allclose(model.project(images), model.averaged_head(h), atol=1e-5)
    assert not np.allclose(model.encoder(images), h, atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.weight_average == 0.7
    np.testing.assert_allclose(loaded(images), h, atol=1e-6)
    for one, other in zip(values(loaded, averaged=False), values(model, averaged=False)):
        np.testing.assert_array_equal(one, other)
    loaded.fit(PIXELS, batch_size=16, epochs=1, verbose=0)
    assert not np.allclose(loaded(images), h, atol=1e-6)
    loaded.reset_weight_average()
    np.testing.assert_allclose(loaded(images), loaded.encoder(images), atol=1e-6)


def test_on_two_replicas():
    """The averages of one device, of weights and of moving statistics."""
    results = []
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            norm = keras.layers.BatchNormalization(synchronized=True)
            conv = keras.layers.Conv2D(4, 3, use_bias=False)
            stack = [conv, norm, keras.layers.GlobalAveragePooling2D()]
            encoder = keras.Sequential([keras.Input((8, 8, 3)), *stack])
            head = simclr_tf.heads.LinearHead(output_dim=4)
            model = simclr_tf.SimCLR(encoder, head, VIEW, seed=1, weight_average=0.7)
            model.build((None, 8, 8, 3))
            model.compile(keras.optimizers.SGD(0.3))
        data = tf.data.Dataset.from_tensor_slices(PIXELS).batch(16)
        model.fit(data, epochs=1, verbose=0)
        results.append(model.averaged_encoder.get_weights())
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [0, 1, float("nan"), "x"])
def test_the_momentum_is_within_0_and_1(value):
    """A line that names it."""
    with pytest.raises(errors.ArgumentError, match="weight_average must be a finite number in"):
        model_of(weight_average=value)


# -- runs -------------------------------------------------------------------------------------


def words(images, run, *flags):
    small = ["--batch_size=16", "--precision=float32", "--learning_rate=0.3", "--optimizer=sgd"]
    small += ["--projection_dim=8", "--probe_every_epochs=1", "--weight_average=0.8"]
    small += ["--augmentations=flip,gaussian_noise"]
    return ["pretrain", f"--dataset=npz:{images}", f"--run_dir={run}", *small, *flags]


@pytest.fixture
def images(tmp_path):
    """An npz of 48 labelled images."""
    labels = np.arange(48) % 2
    np.savez(tmp_path / "set.npz", x_train=PIXELS, y_train=labels, x_test=PIXELS, y_test=labels)
    return tmp_path / "set.npz"


def test_a_probe_scores_the_averages(monkeypatch):
    model, seen = model_of(), []
    model.build((None, 8, 8, 3))
    data = tf.data.Dataset.from_tensors({"image": PIXELS[:4], "label": [0, 0, 1, 1]})
    extract = probes.extract_features
    monkeypatch.setattr(
        probes,
        "extract_features",
        lambda encoder, data: seen.append(encoder) or extract(encoder, data),
    )
    probe = probes.KNNProbe(data, data, k=1, epochs=1)
    probe.set_model(model)
    probe.on_epoch_end(0, {})
    assert len(seen) == 2 and all(encoder is model.averaged_encoder for encoder in seen)


@pytest.mark.end_to_end
@pytest.mark.usefixtures("quick_runs", "one_layer")
def test_a_run_resumes_and_exports_the_averages(images, tmp_path, monkeypatch):
    """Interrupted in the middle: the averages of the run that was not."""
    exported = []

    def export_encoder(encoder, path, *_):
        path.mkdir(parents=True)
        exported.append([weight.numpy() for weight in encoder.weights])

    monkeypatch.setattr(pretrain, "export_encoder", export_encoder)
    assert cli.main(words(images, tmp_path / "whole", "--epochs=2")) == 0

    class Interrupted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    callbacks = pretrain._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_callbacks", lambda *a: [*callbacks(*a), Interrupted()])
        with pytest.raises(KeyboardInterrupt):
            cli._execute(*_parsed(words(images, tmp_path / "parts", "--epochs=2", *EACH_STEP)))
    assert cli.main(words(images, tmp_path / "parts", "--epochs=2", *EACH_STEP)) == 0
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-6, err_msg=name)
    options = cli.options_of_run(tmp_path / "whole")
    averaged, trained = (encoder_of(options.replace(weight_average=each)) for each in (0.8, 0.0))
    assert len(averaged) == len(exported[0]) == 6
    for got in exported:  # Keras lists frozen weights in another order
        sums = [sorted(float(np.sum(each)) for each in some) for some in (averaged, got)]
        np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-5)
    assert np.abs(averaged[0] - trained[0]).max() > 1e-4


def encoder_of(options):
    """The encoder's weights that other commands read of a run."""
    found = build.submodels_of_run(
        options, lambda side: build.build_encoder_and_head(options, side)
    )
    return [weight.numpy() for weight in found.submodels["encoder"].weights]


EACH_STEP = ["--checkpoint_every_steps=1"]


def _parsed(argv):
    name, flag_values = cli.parse(argv)
    return cli.COMMANDS[name], flag_values


@pytest.mark.end_to_end
def test_other_methods_have_none(images, tmp_path, capsys):
    """MoCo has an average of its own."""
    assert cli.main(words(images, tmp_path / "run", "--method=moco")) == 2
    assert "--weight_average needs --method=simclr; got --method=moco" in capsys.readouterr().err
