"""Findings: each is provoked, the good side of its threshold is not, a healthy run has none."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ProjectionHead, ResNet, SimCLR, augment
from simclr_tf.training import KNNProbe, RunFacts, RunMonitor
from simclr_tf.training.findings import CHECKS, find

FACTS = RunFacts(chance_loss=6.0, warm_up_epochs=1, negatives=510, steps_per_epoch=100)
RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, [32, 8, 8, 3], np.uint8)


def rows_of(losses, **columns):
    """An epoch of 100 steps for each loss; a column has None where it is not measured."""
    rows = [{"epoch": n, "step": 100 * n, "loss": loss} for n, loss in enumerate(losses, 1)]
    for name, values in columns.items():
        for row, value in zip(rows, values):
            if value is not None:
                row[name] = value
    return rows


GOOD = rows_of(
    [6.2, 5.0, 4.5, 4.2],
    knn_accuracy=[0.2, 0.3, 0.4, 0.5],
    feature_rank=[3.0, 8.0, 20.0, 30.0],
    spread=[0.1, 0.5, 0.9, 1.0],
    data_wait=[0.05] * 4,
)
FALLING = [5.5, 5.2, 4.9, 4.6]
# (finding, rows, facts): what provokes it, and the same on the good side of the threshold.
PROVOKED = [
    ("loss_at_chance", rows_of([6.0, 5.99]), {}),
    ("loss_at_chance", rows_of([6.0, 5.9, 5.96]), {}),
    ("views_identical", GOOD, {"view_difference": 0.0}),
    ("features_collapsed", rows_of([6.0, 5.0], feature_rank=[1.0, 1.9]), {}),
    ("features_collapsed", rows_of([6.0, 5.0], spread=[0.0, 0.01], feature_rank=[9, 9]), {}),
    ("probe_flat", rows_of(FALLING, knn_accuracy=[0.3, 0.3, 0.29, 0.301]), {}),
    ("rate_too_high", rows_of([5.5, 4.5, 5.4]), {}),
    ("rate_too_high", rows_of([6.0, 9.0]), {}),
    ("waiting_for_data", rows_of([5.0], data_wait=[0.5]), {}),
    ("duplicates", GOOD, {"duplicates": 0.1}),
    ("few_negatives", [], {"negatives": 30}),
    ("large_stem", [], {"image_side": 32, "last_map_side": 1}),
    ("pixel_range", [], {"largest_pixel": 255.0}),
]
GOOD_SIDE = [
    ("loss at chance during the warm-up", rows_of([6.0]), {}),
    ("loss at chance for few steps", [{"epoch": 2, "step": 40, "loss": 6.0}], {}),
    ("views that differ", GOOD, {"view_difference": 0.1}),
    ("features early in a run", rows_of([6.0], feature_rank=[1.0], spread=[0.0]), {}),
    ("the probe rises", rows_of(FALLING, knn_accuracy=[0.3, 0.3, 0.29, 0.31]), {}),
    ("neither moves", rows_of([5.0, 5.0, 5.0, 4.99], knn_accuracy=[0.3] * 4), {}),
    ("the loss rises a little", rows_of([6.2, 4.5, 4.8]), {}),
    ("waits are short", rows_of([5.0], data_wait=[0.15]), {}),
    ("few duplicates", GOOD, {"duplicates": 0.01}),
    ("negatives enough", [], {"negatives": 126}),
    ("a large image", [], {"image_side": 224, "last_map_side": 7}),
    ("a small stem", [], {"image_side": 32, "last_map_side": 4}),
    ("a bicubic overshoot", [], {"largest_pixel": 1.05}),
]


@pytest.mark.parametrize(("name", "rows", "facts"), PROVOKED, ids=[p[0] for p in PROVOKED])
def test_a_finding_is_provoked(name, rows, facts):
    """It alone; a sentence with what to try."""
    found = find(rows, dataclasses.replace(FACTS, **facts))
    assert list(found) == [name]
    assert ". " in found[name] and found[name].endswith(".") and "\n" not in found[name]


@pytest.mark.parametrize(("supervised", "advice"), [(True, "Raise the temp"), (False, "Lower the")])
def test_the_supervised_loss_at_chance_needs_another_temperature(supervised, advice):
    """What raised it from chance when it was measured: docs/results.md."""
    facts = RunFacts(chance_loss=6.0, supervised=supervised)
    assert f"steps. {advice}" in find(rows_of([6.0, 5.99]), facts)["loss_at_chance"]


def test_all_are_provoked():
    assert {name for name, *_ in PROVOKED} == set(CHECKS)


@pytest.mark.parametrize(("name", "rows", "facts"), GOOD_SIDE, ids=[p[0] for p in GOOD_SIDE])
def test_the_good_side_of_each_threshold(name, rows, facts):
    assert find(rows, dataclasses.replace(FACTS, **facts)) == {}


@pytest.mark.parametrize("epochs", range(5))
def test_a_good_history_has_none(epochs):
    assert find(GOOD[:epochs], FACTS) == {}


def test_nothing_is_said_of_what_is_not_known():
    assert find([], RunFacts()) == {} == find(rows_of([1.0, 1.0]), RunFacts())


# -- the monitor -----------------------------------------------------------------------------


def encoder():
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(6, 3, activation="relu")]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


def watched(batch, model=None, epochs=1, data=None, path=None, **options):
    """The lines that a monitor of a run logs."""
    lines = []
    if model is None:
        model = SimCLR(encoder(), ProjectionHead(output_dim=4), augment.RandomFlip(), seed=1)
        model.compile(optimizer="sgd", run_eagerly=True)
    monitor = RunMonitor(batch, log=lines.append, path=path, **options)
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8) if data is None else data
    model.fit(data, epochs=epochs, callbacks=[monitor], verbose=0)
    return lines


def names(lines):
    found = {name for name in CHECKS for line in lines if SENTENCES[name] in line}
    assert len(found) == len(lines), lines
    return found


SENTENCES = {
    "loss_at_chance": "no better than chance",
    "views_identical": "the views of an image are the same",
    "features_collapsed": "have collapsed",
    "probe_flat": "accuracy did not rise",
    "rate_too_high": "may be too high",
    "waiting_for_data": "waited for data",
    "duplicates": "nearly equal another one",
    "few_negatives": "few make the task easy",
    "large_stem": "a last feature map",
    "pixel_range": "they look like 0",
}


def test_an_augmentation_that_does_nothing_is_found():
    """From the views that the model draws of the batch."""
    model = SimCLR(
        encoder(), ProjectionHead(output_dim=4), augment.Compose([augment.RandomFlip(0)])
    )
    model.compile(optimizer="sgd")
    assert names(watched(IMAGES[:8], model)) == {"views_identical"}


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("stem", "found"), [("imagenet", {"large_stem"}), ("cifar", set())])
def test_a_large_stem_is_found(stem, found):
    """By the encoder's last feature map, before the first step."""
    model = SimCLR(ResNet(18, width=1 / 16, stem=stem), augment=augment.RandomFlip())
    model.build((None, 32, 32, 3))
    model.compile(optimizer="sgd")
    images = RNG.integers(0, 256, [4, 32, 32, 3], np.uint8)
    lines = []
    monitor = RunMonitor(images, log=lines.append)
    monitor.set_model(model)
    monitor.on_train_begin()
    assert names(lines) == found


def test_pixels_up_to_255_are_found():
    """In any model of Keras, whose `fit` does not look."""
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    images = IMAGES.astype(np.float32)
    data = tf.data.Dataset.from_tensors((images, np.zeros([32, 1])))
    assert names(watched(images, model, data=data)) == {"pixel_range"}
    assert not watched(images / 255, model, data=data)


def test_a_finding_is_logged_and_written_once(tmp_path):
    """Also by a run that resumes."""
    path = tmp_path / "findings.jsonl"
    facts = RunFacts(negatives=14)
    assert names(watched(IMAGES, epochs=3, path=path, facts=facts)) == {"few_negatives"}
    assert watched(IMAGES, path=path, facts=facts) == []
    line = path.read_text()
    assert line.startswith('{"epoch": 0, "name": "few_negatives", "text": "a view has 14 negatives')
    assert line.count("\n") == 1


def patterns(count):
    """Images of four classes: the pattern of the class and one of their own, in equal parts."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 4
    coarse = 0.5 * rng.random([4, 4, 4, 3])[labels] + 0.5 * rng.random([count, 4, 4, 3])
    return np.kron(coarse, np.ones([1, 4, 4, 1])).astype(np.float32), labels


@pytest.mark.end_to_end
def test_a_healthy_run_raises_none():
    """An encoder of two convolutions that learns to tell patterns apart."""
    images, labels = patterns(512)
    view = augment.by_name("crop,flip,color_jitter", 16, 0.3, area=(0.5, 1.0))
    layers = [keras.Input((None, None, 3))]
    for filters in (32, 64):
        layers += [keras.layers.Conv2D(filters, 3, 2), keras.layers.BatchNormalization()]
        layers += [keras.layers.ReLU()]
    encoder = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])
    model = SimCLR(encoder, ProjectionHead(output_dim=32), view, 0.2, seed=0)
    model.build((None, 16, 16, 3))
    model.compile(optimizer=keras.optimizers.Adam(5e-3))
    data = tf.data.Dataset.from_tensor_slices(images).shuffle(512, seed=0)
    labelled = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(128)
    probe, lines = KNNProbe(labelled.take(3), labelled.skip(3), k=20), []
    facts = RunFacts(chance_loss=np.log(127), negatives=126, duplicates=0.0)
    monitor = RunMonitor(images[:128], facts, log=lines.append)
    batches = data.batch(64, drop_remainder=True)
    history = model.fit(batches, epochs=13, verbose=0, callbacks=[probe, monitor]).history
    assert lines == [] and monitor.facts.view_difference > 0.05
    assert history["loss"][-1] < np.log(127) - 1.5
    assert history["rankme"][-1] > 5
