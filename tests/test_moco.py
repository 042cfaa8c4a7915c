"""MoCo: its loss against slow loops, ten steps of a reference, replicas, files and runs."""

import copy
import json
import math
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import reference
import simclr_tf
from runs import weights_of
from simclr_tf import MoCo, ProjectionHead, SimCLR, augment, cli, distribute, errors, losses
from simclr_tf.commands import pretrain
from simclr_tf.losses import log_sum_exp

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, [12, 8, 8, 3], np.uint8)
each_tile_size = pytest.mark.parametrize("tile_size", [None, 1, 4, 16])


def unit(*shape):
    """Random float32 vectors of length 1."""
    vectors = RNG.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def model_of(method=MoCo, seed=3, batch_norm=False, head=None, **arguments):
    """A model of a small encoder whose only randomness is a crop and a flip."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(6, 3), keras.layers.GlobalAveragePooling2D()]
    if batch_norm:
        layers.insert(1, keras.layers.BatchNormalization(synchronized=True))
    encoder = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    view = augment.Compose([augment.RandomCropResize(8, area=(0.3, 1.0)), augment.RandomFlip()])
    head = head or ProjectionHead(output_dim=4, batch_norm=False)
    if method is MoCo:
        arguments = {"queue_size": 16, "momentum": 0.6, **arguments}
    model = method(encoder, head, view, temperature=0.5, seed=seed, **arguments)
    model.build((None, 8, 8, 3))
    model.compile(optimizer=keras.optimizers.SGD(0.5))
    return model


def fit(model, images=IMAGES, epochs=1, batch_size=4):
    """The history of a `fit` in the order of the images."""
    return model.fit(images, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0).history


# -- the loss ----------------------------------------------------------------------------------


@each_tile_size
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_info_nce_is_the_slow_loop(temperature, tile_size):
    """In float64, over all queries and negatives."""
    queries, keys, queue = 3 * unit(7, 5), 2 * unit(7, 5), unit(11, 5)
    expected = reference.info_nce(queries, keys, queue, temperature)
    loss, correct = losses.info_nce(queries, keys, queue, temperature, tile_size)
    assert float(loss) == pytest.approx(expected, rel=2e-5)
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys))
    np.testing.assert_array_equal(correct, (q * k).sum(1) > (q @ queue.T).max(1))


@each_tile_size
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_with_a_queue_is_the_slow_loop(views, decoupled, tile_size):
    """The queue is in the denominator of every pair; also for a single image."""
    for images in (1, 5):
        z, queue = 2 * unit(views, images, 5), unit(11, 5)
        expected = reference.nt_xent_of_views(z, 0.2, decoupled, queue)
        arguments = {"tile_size": tile_size, "decoupled": decoupled, "queue": queue}
        loss, correct = losses.nt_xent_with_top1(z, None, 0.2, **arguments)
        assert float(loss) == pytest.approx(expected, rel=2e-5)
        assert correct.shape == (views * (views - 1) * images,)
    wins = losses.nt_xent_with_top1(z, None, 0.2, queue=z[0])[1]
    assert not np.any(wins[:images]), "the first view itself is in the queue"


@pytest.mark.parametrize("name", ["info_nce", "nt_xent"])
@pytest.mark.parametrize("tile_size", [None, 4])
def test_gradient_is_that_of_finite_differences(name, tile_size):
    """Central differences of the slow loop; keys and queue have no gradient."""
    x, keys, queue = unit(2, 4, 3), unit(4, 3), unit(6, 3)

    def ours(x):
        if name == "nt_xent":
            return losses.nt_xent(x, None, 0.3, tile_size, queue=tf.constant(queue))
        return losses.info_nce(x[0], keys, queue, 0.3, tile_size)[0]

    def slow(x):
        if name == "nt_xent":
            return reference.nt_xent_of_views(x, 0.3, queue=queue)
        return reference.info_nce(x[0], keys, queue, 0.3)

    with tf.GradientTape() as tape:
        tape.watch(variable := tf.constant(x))
        loss = ours(variable)
    gradient, step = tape.gradient(loss, variable).numpy(), 1e-6
    for index in np.ndindex(*x.shape):
        high, low = x.astype(np.float64), x.astype(np.float64)
        high[index] += step
        low[index] -= step
        slope = (slow(high) - slow(low)) / (2 * step)
        assert gradient[index] == pytest.approx(slope, abs=2e-5)


def test_closed_forms():
    """Where all vectors are equal: log of the number of logits."""
    same = np.ones([5, 4], np.float32)
    loss, correct = losses.info_nce(same, same, same[:3] / 2.0, 0.2)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-5) and not np.any(correct)
    loss = losses.nt_xent(np.stack([same, same]), queue=np.ones([3, 4], np.float32) / 2.0)
    assert float(loss) == pytest.approx(math.log(2 * 5 - 1 + 3), rel=1e-5)


def test_memory_is_linear_in_the_queue(monkeypatch):
    """No tensor of value and gradient has as many numbers as there are logits."""
    monkeypatch.setattr(log_sum_exp, "MAX_DENSE_LOGITS", 0)
    specs = [tf.TensorSpec([2000, 4]), tf.TensorSpec([2000, 4]), tf.TensorSpec([6000, 4])]

    @tf.function(input_signature=specs)
    def gradient(queries, keys, queue):
        return tf.gradients(losses.info_nce(queries, keys, queue)[0], queries)[0]

    graph = gradient.get_concrete_function().graph
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    tensors = [out for g in graphs for op in g.get_operations() for out in op.outputs]
    assert max(t.shape.num_elements() or 0 for t in tensors) <= 2048 * 1024 < 2000 * 6000 / 4


# -- steps -------------------------------------------------------------------------------------


class Reference:
    """MoCo in a few lines of float64, over the views that a model draws.

    An independent embedding of the small encoder: the mean of a convolution is a product of its
    kernel with the mean of each 3 x 3 neighbourhood.
    """

    def __init__(self, model):
        networks = model.encoder.get_weights() + model.projection_head.get_weights()
        self.q = [tf.Variable(w, dtype=tf.float64) for w in networks]
        self.k = [w.numpy() for w in self.q]
        self.queue = tf.convert_to_tensor(model.queue).numpy().astype(np.float64)
        self.model = model

    def embed(self, view, weights):
        kernel, bias, w1, b1, w2, b2 = weights
        x = tf.cast(view, tf.float64)
        mean = tf.stack(
            [
                tf.reduce_mean(x[:, i : i + 6, j : j + 6], [1, 2])
                for i in range(3)
                for j in range(3)
            ],
            axis=1,
        )  # [B, 9, 3]
        h = tf.reshape(mean, [-1, 27]) @ tf.reshape(kernel, [27, -1]) + bias
        z = tf.nn.relu(h @ w1 + b1) @ w2 + b2
        return z / tf.norm(z, axis=1, keepdims=True)

    def step(self, views):
        m, t = self.model.momentum, self.model.temperature
        self.k = [m * k + (1 - m) * q.numpy() for k, q in zip(self.k, self.q)]
        keys = [self.embed(view, self.k).numpy() for view in views]
        pairs = [(0, 1), (1, 0)] if self.model.symmetric else [(0, 1)]
        with tf.GradientTape() as tape:
            total = []
            for a, b in pairs:
                queries = self.embed(views[a], self.q)
                for i in range(len(keys[b])):
                    positive = tf.reduce_sum(queries[i] * keys[b][i]) / t
                    negative = tf.linalg.matvec(self.queue, queries[i]) / t
                    logits = tf.concat([[positive], negative], axis=0)
                    total.append(tf.reduce_logsumexp(logits) - positive)
            loss = tf.reduce_mean(total)
        for q, gradient in zip(self.q, tape.gradient(loss, self.q)):
            q.assign_sub(0.5 * gradient)
        pushed = keys if self.model.symmetric else keys[1:]
        rows = np.stack(pushed, axis=1).reshape(-1, self.queue.shape[1])
        self.queue = np.concatenate([rows, self.queue])[: len(self.queue)]
        return float(loss)


@pytest.mark.parametrize("symmetric", [True, False])
def test_ten_steps_are_those_of_the_reference(symmetric):
    """Losses, weights, averages and queue, whose length the batches do not divide."""
    model = model_of(symmetric=symmetric, queue_size=15)
    slow = Reference(model)
    for step in range(10):
        images = IMAGES[step % 8 : step % 8 + 4]
        expected = slow.step(model.views(images, model._step_seed(step)))
        got = fit(model, images)["loss"][0]
        assert got == pytest.approx(expected, rel=1e-4), step
    weights = model.encoder.get_weights() + model.projection_head.get_weights()
    averages = model.momentum_encoder.get_weights() + model.momentum_head.get_weights()
    for ours, theirs in zip([*weights, *averages], [*slow.q, *slow.k]):
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(np.asarray(model.queue), slow.queue, atol=2e-5)
    moved = [np.abs(a - b).max() for a, b in zip(weights, averages)]
    assert min(moved) > 1e-5, "the averages are not the weights"


def test_without_queue_and_momentum_it_is_simclr():
    """Loss and weights after some steps, with batch normalisation."""
    head = {"head": None, "batch_norm": True}
    ours = model_of(queue_size=0, momentum=0.0, in_batch_negatives=True, **head)
    theirs = model_of(SimCLR, **head)
    theirs.encoder.set_weights(ours.encoder.get_weights())
    theirs.projection_head.set_weights(ours.projection_head.get_weights())
    history = fit(ours, epochs=2)
    for name, values in fit(theirs, epochs=2).items():
        assert history[name] == pytest.approx(values, rel=1e-4)
    for a, b in zip(theirs.encoder.get_weights(), ours.encoder.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_form_of_simclrv2():
    """The loss of the first step is NT-Xent of the views, with the queue as it is made."""
    model = model_of(in_batch_negatives=True)
    views, queue = model.views(IMAGES, model._step_seed(0)), np.asarray(model.queue)
    z = np.stack([model.project(view) for view in views])
    expected = reference.nt_xent_of_views(z, 0.5, queue=queue)
    assert fit(model, batch_size=12)["loss"] == [pytest.approx(expected, rel=1e-4)]
    rows = np.asarray(model.queue)
    assert rows.shape == queue.shape and not np.any(np.all(rows == queue, axis=1))


def test_batch_norm_of_the_momentum_encoder_uses_the_batch():
    """Its moving statistics change in training, and nothing changes in `evaluate`."""
    model = model_of(batch_norm=True)
    before = model.momentum_encoder.get_weights()
    fit(model)
    after = model.momentum_encoder.get_weights()
    assert all(np.any(a != b) for a, b in zip(before, after))
    weights = model.get_weights()
    model.evaluate(IMAGES, batch_size=4, verbose=0)
    for a, b in zip(weights, model.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", [{"symmetric": False}, {"in_batch_negatives": True}])
def test_two_replicas_equal_one(form):
    """With synchronised batch normalisation, and a last batch that they share unevenly."""
    batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(5)
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    several = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    results = []
    for strategy in (tf.distribute.get_strategy(), several):
        with strategy.scope():
            model = model_of(batch_norm=True, **form)
        history = model.fit(batches.take(2), epochs=2, verbose=0).history
        results.append((model.get_weights(), history))
    for one, two in zip(results[0][0], results[1][0]):
        np.testing.assert_allclose(two, one, rtol=2e-3, atol=1e-5)
    assert results[1][1]["loss"] == pytest.approx(results[0][1]["loss"], rel=1e-4)


def test_variables_are_updated_on_every_replica():
    """Outside of a replica, inside of one, and for variables of Keras."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        a, b = tf.Variable(1.0), tf.Variable(3.0)

    def update():
        distribute.update_variables(lambda x, y: 0.5 * (x + y), [a], [b])

    tf.function(lambda: strategy.run(update))()
    with strategy.scope():
        update()
    assert [float(v) for v in strategy.experimental_local_results(a)] == [2.5, 2.5]


# -- files and Keras ---------------------------------------------------------------------------


def test_a_file_continues_bit_for_bit(tmp_path):
    """Queue, averages and optimizer are in it; both go on alike."""
    model = model_of()
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is MoCo
    np.testing.assert_array_equal(np.asarray(loaded.queue), np.asarray(model.queue))
    for a, b in zip(loaded.momentum_encoder.weights, model.momentum_encoder.weights):
        np.testing.assert_array_equal(a, b)
    assert fit(loaded) == fit(model)
    for a, b in zip(loaded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_other_weights_reach_the_momentum_encoder():
    """As from another model."""
    model, other = model_of(), model_of()
    fit(other)
    model.encoder.set_weights(other.encoder.get_weights())
    model.reset_momentum_encoder()
    for a, b in zip(model.momentum_encoder.get_weights(), other.encoder.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_fit_builds_it(tmp_path):
    """From arrays, a dataset, tuples of views; and three views of two sizes."""
    stack = [keras.layers.Conv2D(6, 3), keras.layers.GlobalAveragePooling2D()]
    encoder = keras.Sequential([keras.Input((None, None, 3)), *stack])
    small = [augment.RandomCropResize(size) for size in (12, 12, 8)]
    pixels = np.repeat(np.repeat(IMAGES, 2, axis=1), 2, axis=2)
    views = pixels[:4] / np.float32(255)
    for given, data in (
        (None, pixels),
        (None, tf.data.Dataset.from_tensor_slices(pixels).batch(4)),
        (small, pixels),
        (False, tf.data.Dataset.from_tensors((views, views))),
    ):
        model = MoCo(encoder, ProjectionHead(output_dim=4), given, queue_size=8, seed=1)
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        options = {"batch_size": 6} if data is pixels else {}
        assert np.isfinite(model.fit(data, verbose=0, **options).history["loss"][0])
    model.export(tmp_path / "encoder")
    h = simclr_tf.export.load_exported(tmp_path / "encoder")(pixels)
    np.testing.assert_allclose(h, model(pixels), rtol=1e-3, atol=1e-4)


def test_only_the_encoder_is_trained():
    """Not the averages, and nothing where the model is frozen."""
    model = model_of(batch_norm=True)
    trained = model.encoder.trainable_weights + model.projection_head.trainable_weights
    assert [id(w) for w in model.trainable_weights] == [id(w) for w in trained]
    # Each has: encoder 6, of which 2 are moving statistics; head 4; and there is a queue.
    assert len(model.trainable_weights) == 8 and len(model.non_trainable_weights) == 2 + 10 + 1
    assert len(model.weights) == 21
    model.trainable = False
    assert not model.trainable_weights and len(model.non_trainable_weights) == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be a finite number in \[0, 1\); got 1.0. Try 0.99."),
        ({"queue_size": -1}, "queue_size must be"),
        ({"queue_size": 0}, "queue_size must be above 0, since the queue holds the negatives"),
        ({"in_batch_negatives": True, "symmetric": False}, "treats all views alike"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    """One line each."""
    with pytest.raises(errors.ArgumentError, match=message):
        MoCo(keras.Sequential(), **arguments)


def test_what_else_is_wrong():
    """Shapes, an encoder without a config, a step that is traced before `build`."""
    with pytest.raises(errors.ArgumentError, match="queries, keys and queue must be"):
        losses.info_nce(unit(3, 4), unit(3, 4), unit(4))
    model = MoCo(simclr_tf.ResNet(18, width=1 / 16))
    model.compile("sgd")
    with pytest.raises(errors.ArgumentError, match=r"Call model.build\(\(None, H, W, 3\)\)"):
        tf.function(model.train_step)(tf.zeros([4, 16, 16, 3]))
    assert not model.built


# -- the command -------------------------------------------------------------------------------


def command(folder, run_dir, *flags):
    """Words of a small run on folder/set.npz."""
    words = ["pretrain", f"--dataset=npz:{folder}/set.npz", f"--run_dir={run_dir}"]
    words += ["--method=moco", "--queue_size=20", "--batch_size=12", "--epochs=2"]
    return [*words, "--precision=float32", *flags]


@pytest.fixture
def folder(tmp_path):
    """A directory with a data set."""
    np.savez(tmp_path / "set.npz", x_train=np.repeat(IMAGES, 3, axis=0), y_train=np.arange(36) % 3)
    return tmp_path


@pytest.mark.end_to_end
def test_a_stopped_run_ends_as_another(folder, one_layer, monkeypatch, capsys):
    """Bit for bit, the queue included; the encoder is that of any run."""
    flags = ["--checkpoint_every_steps=2"]
    assert cli.main(command(folder, folder / "whole", *flags)) == 0
    callbacks, stop_at = pretrain._callbacks, [5]

    def with_stop(options, model, *rest):
        def after_step(batch, logs):
            if stop_at and int(model.optimizer.iterations.numpy()) == stop_at[0]:
                stop_at.pop()
                os.kill(os.getpid(), signal.SIGTERM)

        stop = keras.callbacks.LambdaCallback(on_train_batch_end=after_step)
        return [stop, *callbacks(options, model, *rest)]

    monkeypatch.setattr(pretrain, "_callbacks", with_stop)
    assert cli.main(command(folder, folder / "stopped", *flags)) == 75
    assert cli.main(command(folder, folder / "stopped", *flags)) == 0
    ours, theirs = (weights_of(folder / run) for run in ("stopped", "whole"))
    assert ours.keys() == theirs.keys()
    shapes = [value.shape for value in ours.values()]
    assert (20, 128) in shapes, "the queue"
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    capsys.readouterr()
    assert cli.main(["evaluate", f"--run_dir={folder}/whole", "--test_split=train[:9]"]) in (0, 2)


@pytest.mark.end_to_end
def test_the_chance_line_and_the_options(folder, one_layer_encoder, monkeypatch):
    """Flags reach the model, and the loss at chance is that of its logits.

    Views are compiled by XLA, as by default.
    """
    made = []
    build = pretrain.build_model

    def keep(*arguments):
        made.append(build(*arguments))
        return made[-1]

    monkeypatch.setattr(pretrain, "build_model", keep)
    given = ["--in_batch_negatives", "--encoder_momentum=0.5", "--temperature=0.3"]
    assert cli.main(command(folder, folder / "run", *given)) == 0
    (model,) = made
    assert (model.queue_size, model.momentum, model.symmetric) == (20, 0.5, True)
    assert model.in_batch_negatives and model.temperature == 0.3
    options = cli.options_of_run(folder / "run")
    assert pretrain.chance_loss(options, model) == pytest.approx(math.log(2 * 12 - 1 + 20))
    other = copy.copy(model)
    other.in_batch_negatives = False
    assert pretrain.chance_loss(options, other) == pytest.approx(math.log(1 + 20))
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert len(rows) == 2 and np.isfinite(rows[-1]["loss"])


@pytest.mark.end_to_end
def test_it_starts_from_other_weights(folder, one_layer, monkeypatch):
    """--init_from: the averages too."""
    assert cli.main(command(folder, folder / "first")) == 0
    made = []
    start = pretrain.initialise

    def keep(model, *arguments):
        start(model, *arguments)
        made.append([model.encoder.get_weights(), model.momentum_encoder.get_weights()])

    monkeypatch.setattr(pretrain, "initialise", keep)
    assert cli.main(command(folder, folder / "second", f"--init_from={folder}/first")) == 0
    for a, b in zip(*made[0]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method=simclr --queue_size=8", "--queue_size needs --method=moco; got --method=simclr"),
        ("--method=simclr --nosymmetric", "--symmetric needs --method=moco"),
        ("--method=moco --loss=supervised", "--method=moco has its own loss; got --loss=superv"),
        ("--method=moco --micro_batch_size=4", "--micro_batch_size needs --method=simclr"),
        ("--method=moco --queue_size=0", "queue_size must be above 0"),
        ("--method=moco --encoder_momentum=1", "--encoder_momentum must be"),
        ("--method=byol", "--method must be one of simclr, moco"),
        ("--method=moco --in_batch_negatives --nosymmetric", "treats all views alike"),
    ],
)
def test_a_mistake_is_one_line(folder, one_layer, flags, message, capsys):
    """Exit code 2, and no run directory."""
    words = ["pretrain", f"--dataset=npz:{folder}/set.npz", f"--run_dir={folder}/run"]
    assert cli.main([*words, "--batch_size=12", *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run").exists()
