"""Decoupled, supervised and dot-product losses: slow loops, closed forms, replicas, runs."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import special
from tensorflow import keras

import reference
import simclr_tf
from simclr_tf import NTXent, SimCLR, cli, distribute, errors, losses, nt_xent
from simclr_tf.losses import log_sum_exp, supervised_nt_xent

RNG = np.random.default_rng(5)
TILE_SIZES = [None, 1, 4, 16]
LABELS = np.array([2, 0, -1, 2, 7, -1, 0, 2, 3])
IMAGES = RNG.integers(0, 256, [9, 8, 8, 3], np.uint8)


def z_of(views=2, count=9, dim=5):
    """Float32 [views, count, dim], not normalised."""
    return (RNG.normal(size=[views, count, dim]) * 3).astype(np.float32)


def decoupled(z, labels, temperature, tile_size=None):
    """The decoupled loss with the arguments of the supervised one."""
    return nt_xent(z, None, temperature, tile_size, decoupled=True)


def dot_product(z, labels, temperature, tile_size=None):
    """The loss without normalization; at 100 times the temperature, as the lengths are about 7."""
    return nt_xent(z, None, 100 * temperature, tile_size, normalize=False)


LOSSES = {
    "decoupled": decoupled,
    "supervised": supervised_nt_xent,
    "dotproduct": dot_product,
}
SLOW = {
    "decoupled": lambda z, labels, t: reference.nt_xent_of_views(z, t, decoupled=True),
    "supervised": reference.supervised,
    "dotproduct": lambda z, labels, t: reference.nt_xent_of_views(z, 100 * t, normalize=False),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("views", [2, 3])
def test_it_is_the_slow_loop(name, views, temperature, tile_size):
    """In float64, over all pairs; in tiles that do and do not divide, and whole."""
    z = z_of(views)
    expected = SLOW[name](z, LABELS, temperature)
    got = LOSSES[name](z, LABELS, temperature, tile_size)
    assert float(got) == pytest.approx(expected, rel=2e-5, abs=2e-5)


@each_loss
@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("views", [2, 3])
def test_gradient_is_that_of_finite_differences(name, views, tile_size):
    """Central differences of the slow loop in float64, in every coordinate."""
    z = z_of(views, 5, 3)
    labels, step = LABELS[:5], 1e-6
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(z))
        loss = LOSSES[name](x, labels, 0.3, tile_size)
    gradient = tape.gradient(loss, x).numpy()
    for index in np.ndindex(*z.shape):
        high, low = z.astype(np.float64), z.astype(np.float64)
        high[index] += step
        low[index] -= step
        slope = (SLOW[name](high, labels, 0.3) - SLOW[name](low, labels, 0.3)) / (2 * step)
        assert gradient[index] == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("views", [2, 4])
def test_closed_forms(views):
    """Equal embeddings; without labels and with two views, supervised is NT-Xent."""
    same = np.ones([views, 6, 4], np.float32)
    unlabelled = np.full(6, -1)
    assert float(decoupled(same, None, 0.1)) == pytest.approx(math.log(views * 5), rel=1e-5)
    for labels in (unlabelled, LABELS[:6]):
        loss = supervised_nt_xent(same, labels)
        assert float(loss) == pytest.approx(math.log(views * 6 - 1), rel=1e-5)
    z = z_of(2, 6)
    plain = float(nt_xent(z, temperature=0.2))
    assert float(supervised_nt_xent(z, unlabelled, 0.2)) == pytest.approx(plain, rel=1e-5)
    assert float(supervised_nt_xent(z, np.arange(6), 0.2)) == pytest.approx(plain, rel=1e-5)
    whole = supervised_nt_xent(z, np.zeros(6, int), 0.2)  # one class
    assert float(whole) == pytest.approx(reference.supervised(z, np.zeros(6), 0.2), rel=1e-5)


@pytest.mark.parametrize("views", [2, 3])
def test_a_single_image_without_negatives(views):
    """Decoupled, no loss and no gradient; supervised, that of its own views."""
    z = tf.constant(z_of(views, 1))
    for shape in ([views, 1, 5], [views, None, 5]):
        function = tf.function(
            lambda z: (decoupled(z, None, 0.2), tf.gradients(decoupled(z, None, 0.2), z)[0]),
            input_signature=[tf.TensorSpec(shape)],
        )
        loss, gradient = function(z)
        assert float(loss) == 0.0 and not np.any(gradient)
    expected = reference.supervised(z.numpy(), [4], 0.2)
    assert float(supervised_nt_xent(z, [4], 0.2)) == pytest.approx(expected, abs=1e-5)


@each_loss
def test_the_value_does_not_depend_on_how_it_is_called(name):
    """A graph with unknown sizes, XLA, half precision after its cast, int32 and [N, 1] labels."""
    z = tf.constant(z_of())
    expected = LOSSES[name](z, LABELS, 0.2).numpy()
    unknown = [tf.TensorSpec([2, None, 5]), tf.TensorSpec([None], tf.int32)]
    labels = tf.constant(LABELS, tf.int32)
    for options in ({"input_signature": unknown}, {"jit_compile": True}):
        got = tf.function(lambda z, y: LOSSES[name](z, y, 0.2), **options)(z, labels)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(LOSSES[name](z, LABELS[:, None], 0.2), expected, rtol=1e-6)
    half = tf.cast(z, tf.bfloat16)
    exact = LOSSES[name](tf.cast(half, tf.float32), LABELS, 0.2)
    np.testing.assert_allclose(LOSSES[name](half, LABELS, 0.2), exact, rtol=1e-6)


@each_loss
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("tile_size", [None, 3])
def test_two_replicas_are_one_device(name, views, tile_size):
    """Unequal rows, and classes of which each replica has a part."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    z = z_of(views)
    with tf.GradientTape() as tape:
        tape.watch(whole := tf.constant(z))
        expected = LOSSES[name](whole, LABELS, 0.2)
    expected_gradient = tape.gradient(expected, whole)

    def on_replica(rows, labels):
        rows = tf.compat.v1.placeholder_with_default(rows, [views, None, 5])
        labels = tf.compat.v1.placeholder_with_default(labels, [None])
        with tf.GradientTape() as tape:
            tape.watch(rows)
            _, fraction = distribute.replica_offset_and_fraction(rows[0])
            loss = LOSSES[name](rows, labels, 0.2, tile_size) * fraction
        return loss, tape.gradient(loss, rows)

    def values(parts):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    inputs = values([z[:, :5], z[:, 5:]]), values([LABELS[:5], LABELS[5:]])
    parts, gradients = tf.function(lambda *x: strategy.run(on_replica, x))(*inputs)
    total = sum(strategy.experimental_local_results(parts))
    gradients = np.concatenate(strategy.experimental_local_results(gradients), axis=1)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradients, expected_gradient, rtol=1e-4, atol=1e-5)


@each_loss
def test_memory_is_linear_in_the_batch(name, monkeypatch):
    """No tensor of a step has the size of the matrix of logits."""
    monkeypatch.setattr(log_sum_exp, "MAX_DENSE_LOGITS", 0)
    count = 3000
    specs = [tf.TensorSpec([2, count, 4]), tf.TensorSpec([count], tf.int64)]

    @tf.function(input_signature=specs)
    def gradient(z, labels):
        return tf.gradients(LOSSES[name](z, labels, 0.2), z)[0]

    sizes = []

    def collect(graph):
        for operation in graph.get_operations():
            sizes.extend(out.shape.num_elements() or 0 for out in operation.outputs)

    concrete = gradient.get_concrete_function()
    collect(concrete.graph)
    for function in concrete.graph._functions.values():
        collect(function.graph if hasattr(function, "graph") else concrete.graph)
    assert max(sizes) <= 2048 * 1024 * 3 < (2 * count) ** 2


@pytest.mark.parametrize(
    "objective", [losses.Decoupled(0.2), losses.Supervised(0.2), losses.DotProduct(20.0)]
)
@pytest.mark.parametrize("micro_batch_size", [None, 6])
def test_an_objective_trains_and_is_saved(objective, micro_batch_size, tmp_path):
    """The logged loss is that of the step's views; the file keeps class and temperature."""
    stack = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    encoder = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    head = simclr_tf.ProjectionHead(output_dim=4, batch_norm=False)
    model = SimCLR(encoder, head, simclr_tf.augment.RandomFlip(), seed=3, objective=objective)
    model.build((None, 8, 8, 3))
    z = np.stack([head(encoder(v)) for v in model.views(IMAGES, model._step_seed(0))])
    name = type(objective).__name__.lower()
    expected = SLOW[name](z, LABELS, 0.2)
    model.micro_batch_size = micro_batch_size
    model.compile("sgd")
    history = model.fit(IMAGES, LABELS, batch_size=9, shuffle=False, verbose=0).history
    assert history["loss"] == [pytest.approx(expected, rel=1e-4)]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.objective) is type(objective)
    assert loaded.objective.temperature == objective.temperature


def test_what_is_wrong_is_told():
    """One line each."""
    with pytest.raises(errors.ArgumentError, match="loss must be one of nt_xent, decoupled, sup"):
        losses.by_name("triplet")
    with pytest.raises(errors.ArgumentError, match=r"labels must be integers \[N\]; got float32"):
        supervised_nt_xent(z_of(), np.zeros(9, np.float32))
    with pytest.raises(errors.ArgumentError, match="finite number above 0"):
        supervised_nt_xent(z_of(), LABELS, 0.0)
    with pytest.raises(errors.ArgumentError, match="needs labels; got a batch without"):
        losses.Supervised()(z_of(), simclr_tf.images.Batch(IMAGES))
    with pytest.raises(errors.ArgumentError, match="got loss=decoupled and normalize=False"):
        losses.by_name("decoupled", 0.2, normalize=False)


@pytest.mark.parametrize("settings", [{"decoupled": True}, {"normalize": False}])
def test_the_keras_loss_keeps_its_settings(settings):
    """Through a config round trip."""
    again = NTXent.from_config(NTXent(0.3, **settings).get_config())
    z = z_of()
    assert float(again(z[0], z[1])) == float(nt_xent(z, None, 0.3, **settings))


@pytest.mark.parametrize("tile_size", [None, 4])
def test_dot_products_of_any_length(tile_size):
    """Logits in the thousands neither overflow nor lose the gradient; alike, no view is correct."""
    z = 100 * z_of()
    rows = z.reshape(-1, 5).astype(np.float64)
    logits = rows @ rows.T / 10.0  # exp of these is beyond float64
    np.fill_diagonal(logits, -np.inf)
    positives = np.tile(np.sum(rows[:9] * rows[9:], axis=1) / 10.0, 2)
    expected = np.mean(special.logsumexp(logits, axis=1) - positives)
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(z))
        loss = nt_xent(x, None, 10.0, tile_size, normalize=False)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert np.all(np.isfinite(tape.gradient(loss, x)))
    same = np.full([2, 6, 4], 30.7, np.float32)
    loss, correct = losses.nt_xent_with_top1(same, None, 10.0, tile_size, normalize=False)
    assert float(loss) == pytest.approx(math.log(11), rel=1e-3) and not np.any(correct)


@pytest.mark.end_to_end
@pytest.mark.parametrize("flag", ["--loss=decoupled", "--loss=supervised", "--nonormalize"])
def test_a_run_by_the_command(flag, tmp_path, one_layer, capsys):
    """The flag reaches the model, the labels the loss, and a resumed run goes on."""
    pixels = np.repeat(IMAGES, 4, axis=0)
    np.savez(tmp_path / "set.npz", x_train=pixels, y_train=np.arange(36) % 3)
    words = [f"--dataset=npz:{tmp_path}/set.npz", f"--run_dir={tmp_path}/run", flag]
    words = ["pretrain", *words, "--batch_size=12", "--epochs=2", "--precision=float32"]
    assert cli.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) for row in rows)
    assert cli.main([*words, "--temperature=0.3"]) == 2
    capsys.readouterr()
    np.savez(tmp_path / "set.npz", x_train=pixels)
    words[2] = f"--run_dir={tmp_path}/new"
    code = cli.main(words)
    assert code == (2 if flag == "--loss=supervised" else 0)
    if code:
        assert "--loss=supervised needs labels" in capsys.readouterr().err
