"""What a run is watched by: measures against NumPy, the norm of the gradient, waits, callbacks."""

import io
import itertools
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import MoCo, ProjectionHead, SimCLR, augment, cli, errors, metrics, training
from simclr_tf.training import (
    Checkpoints,
    DataWait,
    RunMonitor,
    data_wait,
    embedding_measures,
    progress,
)
from simclr_tf.training.run_directory import read_metrics

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, [32, 8, 8, 3], np.uint8)


def encoder():
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(6, 3, activation="relu")]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


def model_of(method=SimCLR, eager=True, **options):
    """A model of a few hundred weights without batch statistics, each time the same."""
    keras.utils.set_random_seed(0)
    head = options.pop("projection_head", None) or ProjectionHead(output_dim=4)
    model = method(
        encoder(),
        projection_head=head,
        augment=options.pop("augment", augment.RandomFlip()),
        temperature=0.3,
        seed=1,
        **options,
    )
    model.build((None, 8, 8, 3))
    # Graphs take longer to make than these steps to take.
    model.compile(optimizer=keras.optimizers.SGD(0.05), run_eagerly=eager)
    return model


def batches(size=8):
    return tf.data.Dataset.from_tensor_slices(IMAGES).batch(size, drop_remainder=True)


# -- measures --------------------------------------------------------------------------------


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def exp_entropy(values):
    p = values / values.sum()
    p = p[p > 0]
    return np.exp(-(p * np.log(p)).sum())


def lidar_reference(z, delta):
    """By loops over images and views, and the eigenvalues of W^-1 B, which are the paper's."""
    views, images, d = z.shape
    mean, between, within = z.reshape(-1, d).mean(axis=0), np.zeros([d, d]), np.zeros([d, d])
    for i in range(images):
        centre = z[:, i].mean(axis=0)
        between += np.outer(centre - mean, centre - mean) / images
        for v in range(views):
            within += np.outer(z[v, i] - centre, z[v, i] - centre) / (views * images)
    ratio = np.linalg.solve(within + delta * np.eye(d), between)
    return exp_entropy(np.maximum(np.linalg.eigvals(ratio).real, 0))


@pytest.mark.parametrize("shape", [(2, 20, 6), (4, 9, 16)])
def test_lidar_is_the_papers(shape):
    """More images than dimensions, and fewer; of a wide spectrum."""
    z = RNG.normal(size=shape) * np.linspace(0.2, 2, shape[-1])
    z = z + RNG.normal(size=[1, *shape[1:]]) * np.linspace(3, 0.1, shape[-1])
    assert float(metrics.lidar(z, 0.01)) == pytest.approx(lidar_reference(z, 0.01), rel=1e-4)


def test_lidar_leaves_out_what_views_of_one_image_differ_in():
    """Three directions tell images apart; noise in five others counts for the effective rank."""
    z = np.zeros([2, 200, 8])
    z[:, :, :3] = RNG.normal(size=[1, 200, 3])
    z[:, :, 3:] = RNG.normal(size=[2, 200, 5])
    z[:, :, :3] += 0.01 * RNG.normal(size=[2, 200, 3])
    assert float(metrics.lidar(z)) == pytest.approx(3, abs=0.1)
    assert float(metrics.effective_rank(z.reshape(-1, 8))) > 7


@pytest.mark.parametrize("delta", [0.0, -1.0])
def test_lidar_needs_a_delta(delta):
    with pytest.raises(errors.ArgumentError, match="delta must be a finite number above 0"):
        metrics.lidar(np.ones([2, 4, 3]), delta)


def test_similarities_are_those_of_all_pairs():
    """By a loop over the pairs of three views of five images."""
    z = RNG.normal(size=[3, 5, 4])
    rows, positive, negative = unit(z).reshape(15, 4), [], []
    for i in range(15):
        for j in range(i + 1, 15):
            (positive if i % 5 == j % 5 else negative).append(rows[i] @ rows[j])
    for ours, theirs in zip(metrics.similarities(z), (positive, negative)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    gap = np.mean(positive) - np.mean(negative)
    assert float(metrics.similarity_gap(z)) == pytest.approx(gap, abs=1e-6)


def test_embedding_measures_are_numpys():
    """Each from its definition; spread is near 1 for the uniform distribution."""
    h, z = RNG.normal(size=[2, 30, 7]), RNG.normal(size=[2, 30, 4])
    found = embedding_measures(h, z)
    u = unit(z)
    squared = ((u[0][:, None] - u[0][None]) ** 2).sum(-1)[~np.eye(30, dtype=bool)]
    expected = {
        "alignment": ((u[0] - u[1]) ** 2).sum(-1).mean(),
        "uniformity": np.log(np.exp(-2 * squared).mean()),
        "rankme": exp_entropy(np.linalg.svd(z.reshape(60, 4), compute_uv=False)),
        "feature_rank": exp_entropy(np.linalg.svd(h.reshape(60, 7), compute_uv=False)),
        "lidar": lidar_reference(u, 1e-4),
        "spread": 2 * u.reshape(60, 4).std(axis=0).mean(),
        "similarity_gap": float(metrics.similarity_gap(z)),
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0.9 < found["spread"] < 1.1
    collapsed = embedding_measures(np.ones([2, 30, 7]), np.ones([2, 30, 4]))
    assert collapsed["spread"] == pytest.approx(0, abs=1e-3)
    assert collapsed["feature_rank"] == pytest.approx(1, abs=1e-3)


# -- the norm of the gradient ----------------------------------------------------------------


def gradient_norm_by_hand(model, data):
    """From the model's own views and the public loss."""
    views = model.views(data, model._step_seed(0))
    with tf.GradientTape() as tape:
        z = [model.project(view, training=True) for view in views]
        loss = simclr_tf.nt_xent(*z, model.temperature)
    gradients = tape.gradient(loss, model.trainable_variables)
    return float(np.sqrt(sum(np.sum(np.square(g)) for g in gradients if g is not None)))


def no_head():
    """Without batch normalisation, whose statistics would depend on how views are batched."""
    return simclr_tf.heads.NoHead()


@pytest.mark.parametrize("option", ["plain", "micro-batches", "several steps at a time", "float16"])
def test_gradient_norm_is_that_of_the_step(option):
    """Whatever the step computes it by; in float16 without the loss scale."""
    if option == "float16":
        keras.mixed_precision.set_global_policy("mixed_float16")
    micro = {"micro_batch_size": 8} if option == "micro-batches" else {}
    model = model_of(projection_head=no_head(), eager=False, **micro)
    if option == "several steps at a time":
        model.compile(optimizer=keras.optimizers.SGD(0.0), steps_per_execution=2)
    data = batches(16).take(1)
    expected = gradient_norm_by_hand(model, next(iter(data)))
    monitor = RunMonitor(log=lambda line: None)
    history = model.fit(data, callbacks=[monitor], verbose=0).history
    tolerance = 0.02 if option == "float16" else 1e-4
    assert history["gradient_norm"][0] == pytest.approx(expected, rel=tolerance)
    assert "gradient_norm" not in model.evaluate(data, verbose=0, return_dict=True)


def test_gradient_norm_of_replicas_is_that_of_the_sum():
    """Two replicas with half of the batch each have the norm of one device."""
    images = IMAGES[:16]
    expected = gradient_norm_by_hand(model_of(projection_head=no_head()), images)
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        model = model_of(projection_head=no_head(), eager=False)
    data = tf.data.Dataset.from_tensor_slices(images).batch(16, drop_remainder=True)
    history = model.fit(data, callbacks=[RunMonitor(log=print)], verbose=0).history
    assert history["gradient_norm"][0] == pytest.approx(expected, rel=1e-4)


def test_skipped_steps_do_not_count_for_the_norm():
    """The mean is that of the finite gradients."""
    metric = metrics.GradientNorm()
    for value in (3.0, float("nan"), 5.0, float("inf")):
        metric.update_state([None, tf.constant([value, 0.0])])
    assert float(metric.result()) == 4.0


def test_a_monitor_changes_no_weight():
    """Training with and without gives the same weights, but for the rounding of another graph."""
    weights = []
    for callbacks in ([], [RunMonitor(IMAGES, log=lambda line: None)]):
        model = model_of()
        model.fit(batches(), epochs=2, callbacks=callbacks, verbose=0)
        weights.append(model.get_weights())
    for ours, theirs in zip(*weights):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.end_to_end
def test_a_run_of_an_earlier_version_resumes(tmp_path):
    """Its checkpoint has no norm of the gradient; a later one has, and restores it."""
    for tracks in (False, True, True):
        model = model_of()
        if tracks:
            model.track_gradient_norm()
        saver = Checkpoints(tmp_path, model, steps_per_epoch=4, log=print)
        epochs, step = saver.restore()
        assert step == 0
        model.fit(batches(), initial_epoch=epochs, epochs=epochs + 1, callbacks=[saver], verbose=0)
    assert saver.restore() == (3, 0)
    assert float(model._running_means.gradient_norm.result()) > 0


# -- RunMonitor ------------------------------------------------------------------------------

MEASURES = {"alignment", "uniformity", "similarity_gap", "rankme", "lidar", "spread"}


@pytest.mark.parametrize("method", [SimCLR, MoCo, simclr_tf.LooC])
def test_a_monitor_measures_what_the_model_projects(method):
    """The views are those of a step, in inference mode; of LooC, its first space."""
    options = {SimCLR: {}, MoCo: {"queue_size": 16}}.get(method)
    if options is None:
        view = augment.RandomView(8, 0.5, jit_compile=False)
        head = simclr_tf.heads.SpaceHeads(2, output_dim=4)
        options = {"kept": ["color"], "augment": view, "projection_head": head}
    model = model_of(method, **options)
    monitor = RunMonitor(IMAGES[:16], log=lambda line: None)
    logs = model.fit(batches(), callbacks=[monitor], verbose=0).history
    assert MEASURES | {"feature_rank", "gradient_norm"} <= set(logs)
    views = model.views(IMAGES[:16], seed=[0, 0])
    z = np.stack([model.project(view)[:, :4] for view in views])
    expected = float(metrics.effective_rank(z.reshape(-1, 4)))
    assert logs["rankme"][0] == pytest.approx(expected, rel=1e-4)


def test_a_monitor_measures_every_so_many_epochs_and_at_the_end():
    """Epochs 2, 4 and 5 of five."""
    seen = []
    each = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append("rankme" in logs)
    )
    monitor = RunMonitor(IMAGES[:8], every_epochs=2, log=lambda line: None)
    model_of().fit(batches(16), epochs=5, callbacks=[monitor, each], verbose=0)
    assert seen == [False, True, False, True, True]


def test_a_monitor_of_replicas_measures_a_copy():
    """The copy gets the weights of the encoder and of the head."""
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        model = model_of(eager=False)
    copy = model_of()
    copy.encoder.set_weights([weight + 1 for weight in copy.encoder.get_weights()])
    monitor = RunMonitor(IMAGES[:8], measured=copy, log=lambda line: None)
    logs = model.fit(batches(), callbacks=[monitor], verbose=0).history
    for ours, theirs in zip(copy.encoder.get_weights(), model.encoder.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert logs["rankme"][0] >= 1


def test_a_monitor_follows_smaller_views():
    """`ViewSizes` replaces the augmentation, and the views that are measured with it."""
    view = augment.RandomView(8, jit_compile=False)
    model = model_of(augment=view)
    sizes = training.ViewSizes([(6, 0.5), (8, 1)], view, epochs=2)
    monitor, seen = RunMonitor(IMAGES[:8], log=lambda line: None), []
    each = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(monitor._probe.views[0].shape[1])
    )
    model.fit(batches(), epochs=2, callbacks=[sizes, monitor, each], verbose=0)
    assert seen == [6, 8]


# -- waiting for data ------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in place of Python's."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(data_wait, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def step(wait, clock, number, waiting, computing, requests=1):
    """One call of the step: `requests` batches asked for, each `waiting` seconds late."""
    for _ in range(requests):
        wait._ask(0)
        clock.now += waiting
        wait._receive(0)
        clock.now += computing
    wait.on_train_batch_end(number, {"loss": 0.0})


@pytest.mark.parametrize("requests", [1, 4])
def test_data_wait_is_the_share_of_the_waits(clock, requests):
    """Each step waits 1 s and computes 3 s; the first one, which waits for longer, is left out."""
    wait, logs = DataWait(accelerator=False), {}
    wait.on_epoch_begin(0)
    step(wait, clock, requests - 1, 100.0, 3.0, requests)
    for number in range(2, 7):
        step(wait, clock, number * requests - 1, 1.0, 3.0, requests)
    wait.on_epoch_end(0, logs)
    assert logs == {"data_wait": pytest.approx(0.25)}
    wait.on_epoch_begin(1)
    step(wait, clock, requests - 1, 1.0, 3.0, requests)
    logs = {}
    wait.on_epoch_end(1, logs)
    assert logs == {}


def test_data_wait_of_an_accelerator_counts_after_the_device_has_ended(clock):
    """Of every 50th call: the others ask while the device computes, and wait for it in effect."""
    wait, logs = DataWait(accelerator=True), {}
    wait.on_epoch_begin(0)
    for number in range(101):
        timed = number % 50 == 1
        step(wait, clock, number, 1.0 if timed else 9.0, 4.0)
    wait.on_epoch_end(0, logs)
    assert logs == {"data_wait": pytest.approx(0.2)}


@pytest.mark.parametrize("form", ["images", "tuples", "dicts"])
def test_a_watched_dataset_has_the_same_elements(form):
    """In their order, and of the same shapes; every one is timed."""
    data = tf.data.Dataset.range(7).batch(2)
    if form != "images":
        data = data.map(lambda x: (x, x + 1) if form == "tuples" else {"image": x, "label": -x})
    wait, times = DataWait(), []
    wait._receive = lambda index: times.append(index) or np.int64(0)
    watched = wait.watch(data)
    assert watched.element_spec == data.element_spec
    assert watched.cardinality() == data.cardinality()
    for ours, theirs in zip(watched.as_numpy_iterator(), data.as_numpy_iterator()):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)
    assert len(times) == 4


def test_a_watched_dataset_times_its_source(clock):
    """The clock is read before the source and after it, in the thread that asks."""

    def slow(x):
        clock.now += 5.0
        return x

    data = tf.data.Dataset.range(3).map(lambda x: tf.numpy_function(slow, [x], tf.int64))
    wait = DataWait(accelerator=False)
    for number, _ in enumerate(wait.watch(data), 1):
        assert wait._waited == 5.0 * number
        clock.now += 7.0


# -- progress --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress_of(epochs, **options):
    lines = []
    progress = training.Progress(epochs, 10, 64, 5.0, log=lines.append, **options)
    for epoch in range(epochs):
        progress.on_epoch_begin(epoch)
        for step in range(10):
            progress.on_train_batch_end(step, {"loss": 4.5, "contrastive_accuracy": 0.25})
        logs = {"loss": 4.5, "contrastive_accuracy": 0.25, "images_per_second": 1234.5}
        logs.update({"knn_accuracy": 0.5} if epoch % 2 else {}, data_wait=0.021, learning_rate=0.3)
        progress.on_epoch_end(epoch, logs)
    progress.on_train_end()
    return lines


def test_lines_have_the_same_columns_in_all_epochs():
    """A header, and "-" where an epoch has no value; none of the lines says a thing twice."""
    columns = ["contrastive_accuracy", "knn_accuracy", "gradient_norm"]
    lines = progress_of(3, columns=columns, terminal=False)
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    header, *rows = [line.split() for line in lines]
    assert header == "epoch loss chance contrastive rate images/s waiting kNN left".split()
    assert [row[:8] for row in rows] == [
        ["1/3", "4.5000", "5.0000", "25.00%", "0.3", "1,234", "2%", "-"],
        ["2/3", "4.5000", "5.0000", "25.00%", "0.3", "1,234", "2%", "50.00%"],
        ["3/3", "4.5000", "5.0000", "25.00%", "0.3", "1,234", "2%", "-"],
    ]
    assert rows[-1][8] == "0:00:00"
    assert sum("epoch" in line for line in progress_of(30, terminal=False)) == 2


def test_a_bar_shows_loss_beside_chance(monkeypatch):
    """On a terminal; the lines stay, the bar goes."""
    terminal, clock = Terminal(), itertools.count()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    wait = types.SimpleNamespace(share=0.125)
    lines = progress_of(1, data_wait=wait)
    shown = terminal.getvalue()
    for words in ("epoch 1/1", "loss 4.5000 (chance 5.0000)", "contrastive 25.00%", "images/s"):
        assert words in shown
    assert "waiting 12%" in shown and " left" in shown and "/10, " in shown
    assert len(lines) == 2


def test_time_left_is_that_of_the_steps_so_far(monkeypatch):
    """Every look at the clock is a second later; a run that resumes counts its own steps alone."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    shown = training.Progress(4, 10, terminal=False, log=lambda line: None)
    shown.steps_before = 5
    shown.on_epoch_begin(1)
    for step in range(5):  # 6 to 10 of the second epoch; the first takes long
        clock.now += 2.0 if step else 100.0
        shown.on_train_batch_end(step, {"loss": 1.0})
    assert shown._left(10) == "0:00:40"


def test_time_left_counts_the_sizes_of_views(monkeypatch):
    """Two epochs at 16 pixels, then two at 32, whose steps take four times as long."""
    sizes = training.ViewSizes([(16, 0.5), (32, 1.0)], simclr_tf.RandomView(32), epochs=4)
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    shown = training.Progress(4, 10, terminal=False, epoch_cost=sizes.epoch_cost)
    for epoch, left in [(0, "0:01:30"), (1, "0:01:20"), (2, "0:00:40")]:
        shown.on_epoch_begin(epoch)
        for step in range(10):
            clock.now += 1.0 if epoch < 2 else 4.0
            shown.on_train_batch_end(step, {"loss": 1.0})
        assert shown._left(10) == left


def test_a_run_knows_the_cost_of_its_epochs(tmp_path):
    """`train` asks its callbacks."""
    sizes = training.ViewSizes([(6, 0.5), (12, 1.0)], simclr_tf.RandomView(12), epochs=2)
    directory, steps = training.RunDirectory(tmp_path / "run"), training.Steps(4, 8)
    arguments = {"batch_size": 8, "callbacks": [sizes], "verbose": 0}
    loop = training.ResumableLoop(
        model_of(), lambda epoch, step, replicas: batches(), steps, directory, **arguments
    )
    assert [loop._progress._cost(epoch) for epoch in range(2)] == [36, 144]


# -- probes, milestones, TensorBoard ---------------------------------------------------------


def labelled(count=16):
    images, labels = IMAGES[:count], np.arange(count) % 2
    images = (images // 4 + 190 * labels[:, None, None, None]).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(8)


@pytest.mark.parametrize(
    ("probe", "key"),
    [(training.KNNProbe, "knn_accuracy"), (training.LinearProbe, "linear_accuracy")],
)
def test_probes_work_in_any_fit(probe, key):
    """Every other epoch and at the end; dark and bright images of another set are told apart."""
    options = {"k": 3} if key == "knn_accuracy" else {"C": 1.0}
    callback, seen = probe(labelled(), labelled(), every_epochs=2, **options), []
    each = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(logs.get(key)))
    model_of().fit(batches(16), epochs=3, callbacks=[callback, each], verbose=0)
    assert seen[0] is None and min(seen[1:]) > 0.9


MISSED = {
    "loss<=0.1@2": "the best loss of 2 epochs is 4",
    "knn_accuracy>=0.9@2": "the best knn_accuracy of 2 epochs is 0.5",
    "loss<=4.5@3, knn_accuracy>=0.9@2": "the best knn_accuracy of 2 epochs is 0.5",
    "nothing>=0@1": "no epoch has nothing",
    "loss>=7@3": "the best loss of 3 epochs is 5",
}
ROWS = [
    {"epoch": 1, "loss": 5.0, "knn_accuracy": 0.5},
    {"epoch": 2, "loss": 4.0, "knn_accuracy": 0.4},
    {"epoch": 3, "loss": 3.0, "knn_accuracy": 0.95},
]


@pytest.mark.parametrize("text", MISSED)
def test_a_milestone_that_is_missed_stops(text):
    """At its epoch, and when a run that resumes is beyond it."""
    lines, stopped = [], []
    milestones = training.Milestones(text, log=lines.append)
    milestones.set_model(types.SimpleNamespace(stop_training=False))
    for row in ROWS:
        milestones.on_epoch_end(row["epoch"] - 1, {**row})
        stopped.append(milestones.model.stop_training)
        if stopped[-1]:
            break
    assert len(lines) == 1 and lines[0].endswith(f"was missed; {MISSED[text]}.")
    assert len(stopped) == int(lines[0].partition("@")[2][0])
    assert training.Milestones(text, ROWS).check() == lines[0]


@pytest.mark.parametrize("text", ["knn_accuracy>=0.5@1", "loss<=4@2,loss<=3@3", "loss<=1@4"])
def test_a_milestone_that_is_reached_does_not_stop(text):
    """By an earlier epoch too; one to come is not missed yet."""
    assert training.Milestones(text, ROWS).check() is None


@pytest.mark.parametrize(
    "text", ["", "knn_accuracy", "loss<4@2", "loss<=4", "loss<=4@0", "loss<=nan@1", "loss<=1e999@1"]
)
def test_milestones_are_checked(text):
    with pytest.raises(errors.ArgumentError, match="milestones must be METRIC>=VALUE@EPOCH"):
        training.Milestones(text)


def test_the_projector_has_a_row_and_a_picture_per_image(tmp_path):
    """Embeddings are h; TensorBoard's own reader takes the files; the sprite is cut row by row."""
    from google.protobuf import text_format
    from PIL import Image
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    model = model_of()
    projector = training.EmbeddingProjector(
        tmp_path, labelled(), max_images=10, class_names=["dark", "br\tight"], image_size=8
    )
    model.fit(batches(), callbacks=[projector], verbose=0)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    assert list(embedding.sprite.single_image_dim) == [8, 8]
    rows = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
    images = next(iter(labelled().unbatch().batch(10)))["image"]
    np.testing.assert_allclose(rows, model.predict(images, verbose=0), rtol=1e-3, atol=1e-5)
    names = (tmp_path / embedding.metadata_path).read_text().splitlines()
    assert names[:3] == ["index\tlabel", "0\tdark", "1\tbr ight"] and len(names) == 11
    sheet = np.asarray(Image.open(tmp_path / embedding.sprite.image_path).convert("RGB"))
    assert sheet.shape == (32, 32, 3)
    np.testing.assert_allclose(sheet[8:16, 8:16].astype(int), images[5], atol=1)


def test_tensorboard_has_views_and_similarities(tmp_path):
    """By its own reader: pictures of each view, and histograms of as many pairs as there are."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = training.SimilarityBoard(tmp_path, max_images=3)
    monitor = RunMonitor(IMAGES[:8], board=board, log=lambda line: None)
    model_of().fit(batches(16), epochs=2, callbacks=[monitor], verbose=0)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()["tensors"]
    assert sorted(tags) == ["similarity/negative", "similarity/positive", "views/1", "views/2"]
    for tag, pairs in (("similarity/positive", 8), ("similarity/negative", 16 * 15 // 2 - 8)):
        found = events.Tensors(tag)
        assert [event.step for event in found] == [2, 4]
        counts = tf.make_ndarray(found[0].tensor_proto)[:, 2]
        assert counts.sum() == pairs
    assert len(tf.make_ndarray(events.Tensors("views/1")[0].tensor_proto)) == 2 + 3


@pytest.mark.end_to_end
def test_a_run_without_labels_is_probed_and_held_to_milestones(tmp_path, capsys, one_layer):
    """The probes read another data set; a missed milestone ends the run, another lets it go on."""
    images, labels = RNG.integers(0, 256, [32, 8, 8, 3], np.uint8), np.arange(32) % 2
    np.savez(tmp_path / "train.npz", x_train=images)
    np.savez(tmp_path / "probe.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    run = tmp_path / "run"
    command = ["pretrain", f"--run_dir={run}", f"--dataset=npz:{tmp_path / 'train.npz'}"]
    command += ["--batch_size=16", "--epochs=2", "--probe_protocols=knn,linear"]
    command += [f"--probe_dataset=npz:{tmp_path / 'probe.npz'}"]
    assert cli.main([*command, "--milestones=knn_accuracy>=2@1"]) == 1
    assert "milestone knn_accuracy>=2@1 was missed" in capsys.readouterr().err
    assert not (run / "export").exists()
    assert cli.main([*command, "--milestones=knn_accuracy>=0@1"]) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2] and (run / "export").exists()
    assert {"knn_accuracy", "linear_accuracy", "rankme", "gradient_norm"} <= set(rows[-1])
    assert (run / "logs" / "monitor" / "sprite.png").exists()
