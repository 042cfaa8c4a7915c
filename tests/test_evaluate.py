"""Features, nearest neighbours and the linear probe, against double loops and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tensorflow import keras

from simclr_tf.evaluate import (
    extract_features,
    knn_accuracy,
    knn_predict,
    linear,
    linear_probe,
    multi_label,
    multi_label_probe,
    pixel_features,
    stream_features,
)
from simclr_tf.images import centre_square


def reference_knn(train_h, train_labels, test_h, k, temperature=None):
    """A vote of the k most similar rows, one test row and one neighbour at a time."""
    predicted = []
    for query in np.asarray(test_h, np.float64):
        similarities = [
            float(query @ row / (np.linalg.norm(query) * np.linalg.norm(row)))
            for row in np.asarray(train_h, np.float64)
        ]
        order = sorted(range(len(train_h)), key=lambda i: (-similarities[i], i))[:k]
        votes = {}
        for i in order:
            vote = 1.0 if temperature is None else math.exp(similarities[i] / temperature)
            votes[train_labels[i]] = votes.get(train_labels[i], 0.0) + vote
        # dicts keep their order: of equals, max takes the label met first, at the nearest row
        predicted.append(max(votes, key=votes.get))
    return np.array(predicted)


def clusters(rows=300, dim=12, classes=4, spread=1.5, seed=0):
    """Overlapping Gaussian clusters with labels that neither start at 0 nor are dense."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, rows)
    h = centres[labels] + spread * rng.normal(size=(rows, dim))
    return h.astype(np.float32), labels * 3 + 2


def encoder():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def images(size=21):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (size, 8, 8, 3), np.uint8), rng.integers(0, 5, size)


def dict_dataset(batch_size, size=21):
    x, y = images(size)
    ids = [f"fichier/é{i}.png" for i in range(size)]
    return tf.data.Dataset.from_tensor_slices({"image": x, "label": y, "id": ids}).batch(batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 20, 64])
def test_every_last_example_comes_back_whatever_the_batch_size(batch_size):
    """Partial batches of every length: h is that of all images at once, in order."""
    net, (x, y) = encoder(), images()
    found = extract_features(net, dict_dataset(batch_size))
    assert found.h.shape == (21, 4) and found.h.dtype == np.float32
    np.testing.assert_allclose(found.h, net(x / np.float32(255), training=False), atol=1e-5)
    np.testing.assert_array_equal(found.labels, y)
    assert found.labels.dtype == np.int64
    assert found.ids.tolist() == [f"fichier/é{i}.png" for i in range(21)]


def test_nothing_of_the_encoder_changes():
    """Not even the moving statistics of its batch normalisation."""
    net = encoder()
    before = [v.numpy() for v in net.variables]
    extract_features(net, dict_dataset(8))
    for a, b in zip(before, net.variables):
        np.testing.assert_array_equal(a, b)


def test_a_partial_batch_is_not_traced_again():
    """The encoder sees one batch shape only."""
    shapes = []

    class Spy(keras.layers.Layer):
        def call(self, inputs):
            shapes.append(tuple(inputs.shape))
            return tf.reduce_mean(inputs, [1, 2])

    assert extract_features(Spy(), dict_dataset(8)).h.shape == (21, 3)
    assert shapes == [(8, 8, 8, 3)]


def test_a_stream_gives_a_batch_before_it_asks_for_the_next():
    """So that memory stays bounded; together they are what extract_features gives."""
    asked = []

    def watched():
        for batch in dict_dataset(8):
            asked.append(len(batch["image"]))
            yield batch

    net, parts = encoder(), []
    for features in stream_features(net, watched()):
        parts.append(features)
        assert asked == [len(part.h) for part in parts]
    assert asked == [8, 8, 5]
    expected = extract_features(net, dict_dataset(8))
    for column, whole in zip(zip(*parts), expected):
        np.testing.assert_array_equal(np.concatenate(column), whole)


def test_tuples_bare_images_and_floats_give_the_same_h():
    net, (x, y) = encoder(), images()
    expected = extract_features(net, dict_dataset(8))
    pairs = extract_features(net, tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
    bare = extract_features(net, tf.data.Dataset.from_tensor_slices(x).batch(8))
    floats = extract_features(net, [x[:8] / 255.0, x[8:16] / 255.0, x[16:] / 255.0])
    dict_and_labels = extract_features(net, [({"image": x[:8]}, y[:8]), ({"image": x[8:]}, y[8:])])
    np.testing.assert_array_equal(dict_and_labels.labels, y)
    for found in (pairs, bare, floats, dict_and_labels):
        np.testing.assert_allclose(found.h, expected.h, atol=1e-6)
        assert found.ids is None
    np.testing.assert_array_equal(pairs.labels, y)
    one_hot = extract_features(
        net, [(x[:8], np.eye(5)[y[:8]]), (x[8:], np.eye(5, dtype=int)[y[8:]])]
    )
    np.testing.assert_array_equal(one_hot.labels, y)
    assert bare.labels is None and one_hot.labels.dtype == np.int64


def test_functions_with_and_without_training_flag_are_encoders():
    flags = []

    def with_flag(batch, training=True):
        flags.append(training)
        return tf.reduce_mean(batch, [1, 2])

    found = extract_features(with_flag, dict_dataset(8))
    plain = extract_features(lambda batch: batch.numpy().mean((1, 2)), dict_dataset(8))
    np.testing.assert_allclose(found.h, plain.h, atol=1e-6)
    assert flags == [False] * 3


def test_half_precision_encoders_give_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    assert extract_features(encoder(), dict_dataset(8)).h.dtype == np.float32


def test_pixels_are_the_image_flattened():
    x, _ = images()
    found = extract_features(pixel_features, dict_dataset(8))
    np.testing.assert_allclose(found.h, x.reshape(21, -1) / 255.0, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16), (8, 8), (5, 7)])
def test_images_of_another_size_are_cut_to_the_centre_square(shape):
    """Landscape, portrait and square images, larger and smaller: the same pixels as in serving."""
    net = encoder()
    x = np.random.default_rng(0).integers(0, 256, (9, *shape, 3), np.uint8)
    found = extract_features(net, [x[:5], x[5:]], image_size=8)
    expected = net(centre_square(x, 8), training=False)
    np.testing.assert_allclose(found.h, expected, atol=1e-5)


def test_padding_outside_an_images_extent_is_not_seen():
    """Images of several sizes, padded into one batch: h is that of each image alone."""
    net, rng = encoder(), np.random.default_rng(0)
    sizes = [(10, 16), (16, 9), (16, 16)]
    alone = [rng.integers(0, 256, (1, *size, 3), np.uint8) for size in sizes]
    padded = np.full((3, 16, 16, 3), 255, np.uint8)
    for row, (image, (height, width)) in enumerate(zip(alone, sizes)):
        padded[row, :height, :width] = image
    batch = {"image": padded, "extent": np.array(sizes), "label": np.arange(3)}
    found = extract_features(net, [batch], image_size=8)
    expected = np.concatenate([extract_features(net, [x], image_size=8).h for x in alone])
    np.testing.assert_allclose(found.h, expected, atol=1e-5)
    assert found.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match='image_size must be given where a batch has "extent"'):
        extract_features(net, [batch])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one image"),
        ([np.zeros((2, 8, 8, 1), np.uint8)], r"width, 3\]; got shape \(2, 8, 8, 1\)"),
        ([np.zeros((8, 8, 3), np.uint8)], r"width, 3\]; got shape \(8, 8, 3\)"),
        ([np.full((2, 8, 8, 3), 200.0)], r"lie in \[0, 1\]; got values from 200"),
        ([np.full((2, 8, 8, 3), np.nan)], r"lie in \[0, 1\]; got values from nan"),
        ([np.zeros((2, 8, 8, 3), np.int64)], "uint8, or float in"),
        ([{"picture": np.zeros((2, 8, 8, 3), np.uint8)}], r"key \"image\"; got \['picture'\]"),
        ([(np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 2)))], "one 1 in each row; got float64"),
        (
            [(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2)), np.zeros((2, 8, 8, 3), np.uint8)],
            "in every batch or in none; got it in 1 of 2",
        ),
    ],
)
def test_unusable_batches_are_named(batches, message):
    with pytest.raises(ValueError, match=message):
        extract_features(pixel_features, batches)


def test_endless_datasets_and_feature_maps_are_refused():
    with pytest.raises(ValueError, match="endless"):
        extract_features(pixel_features, dict_dataset(8).repeat())
    with pytest.raises(ValueError, match=r"vectors \[8, D\]; got shape \(8, 8, 8, 3\)"):
        extract_features(lambda batch: batch, dict_dataset(8))


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_weighted_knn_equals_the_double_loop(k, temperature):
    train_h, train_labels = clusters()
    test_h, _ = clusters(60, seed=1)
    found = knn_predict(train_h, train_labels, test_h, k, temperature)
    expected = reference_knn(train_h, train_labels, test_h, k, temperature)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [1, 2, 4, 10])
def test_plain_knn_equals_the_double_loop(k):
    """Even k bring ties, which go to the label of the nearest neighbour."""
    train_h, train_labels = clusters()
    test_h, _ = clusters(60, seed=1)
    found = knn_predict(train_h, train_labels, test_h, k, weighted=False)
    np.testing.assert_array_equal(found, reference_knn(train_h, train_labels, test_h, k))


def test_knn_accuracy_equals_scikit_learn():
    train_h, train_labels = clusters(500)
    test_h, test_labels = clusters(200, seed=1)

    def weights(distances):
        return np.exp((1 - distances) / 0.1)

    weighted = KNeighborsClassifier(50, metric="cosine", weights=weights).fit(train_h, train_labels)
    found = knn_accuracy(train_h, train_labels, test_h, test_labels, k=50)
    assert found == pytest.approx(weighted.score(test_h, test_labels), abs=1e-9)
    plain = KNeighborsClassifier(1, metric="cosine").fit(train_h, train_labels)
    found = knn_accuracy(train_h, train_labels, test_h, test_labels, k=1, weighted=False)
    assert found == pytest.approx(plain.score(test_h, test_labels), abs=1e-9)
    assert 0.3 < found < 0.95  # neither chance nor trivial


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_the_batch_size_of_knn_does_not_matter(batch_size):
    train_h, train_labels = clusters()
    test_h, _ = clusters(60, seed=1)
    at_once = knn_predict(train_h, train_labels, test_h, 20)
    batched = knn_predict(train_h, train_labels, test_h, 20, batch_size=batch_size)
    np.testing.assert_array_equal(batched, at_once)


def test_lengths_of_embeddings_do_not_matter():
    """Cosine: rows scaled by anything above 0 predict the same."""
    train_h, train_labels = clusters()
    test_h, _ = clusters(60, seed=1)
    scale = np.random.default_rng(0).uniform(0.1, 50, (300, 1))
    np.testing.assert_array_equal(
        knn_predict(train_h * scale, train_labels, test_h * 7, 20),
        knn_predict(train_h, train_labels, test_h, 20),
    )


def test_equally_similar_rows_go_by_index():
    """Four copies of one row with labels 5, 5, 3, 3: the first k of them vote."""
    row = np.array([[1.0, 2.0]])
    train_h, labels = np.repeat(row, 4, 0), [5, 5, 3, 3]
    assert knn_predict(train_h, labels, row, 2).tolist() == [5]
    assert knn_predict(train_h, labels[::-1], row, 3).tolist() == [3]
    assert knn_predict(train_h, labels[::-1], row, 4, weighted=False).tolist() == [3]  # a tie


def test_k_beyond_the_training_set_is_all_of_it():
    train_h, train_labels = clusters(30)
    test_h, _ = clusters(20, seed=1)
    np.testing.assert_array_equal(
        knn_predict(train_h, train_labels, test_h, 1000),
        knn_predict(train_h, train_labels, test_h, 30),
    )


def test_a_row_of_zeros_is_no_error():
    train_h, train_labels = clusters(30)
    assert knn_predict(train_h, train_labels, np.zeros((1, 12)), 3)[0] in train_labels


@pytest.mark.parametrize("c", [1e-3, 0.1])
def test_linear_probe_equals_a_scikit_learn_pipeline(c):
    train_h, train_labels = clusters(500)
    test_h, test_labels = clusters(300, seed=1)
    train_h[:, 0] = 100 + 5 * train_h[:, 0]  # what standardisation is for
    test_h[:, 0] = 100 + 5 * test_h[:, 0]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000, tol=1e-5))
    pipeline.fit(train_h.astype(np.float64), train_labels)
    probe = linear_probe(train_h, train_labels, test_h, test_labels, C=c, tolerance=1e-5)
    assert probe.accuracy == pytest.approx(pipeline.score(test_h, test_labels), abs=0.5 / 300)
    np.testing.assert_array_equal(probe.predicted, pipeline.predict(test_h.astype(np.float64)))
    assert probe.classes.tolist() == [2, 5, 8, 11]
    assert probe.converged and probe.C == c and probe.held_out_accuracy == {}


def test_linear_probe_is_deterministic_and_picks_c_without_the_test_set():
    """Other test rows and labels leave the choice as it is; a second call gives the same."""
    train_h, train_labels = clusters(400)
    test_h, test_labels = clusters(100, seed=1)
    first = linear_probe(train_h, train_labels, test_h, test_labels)
    again = linear_probe(train_h, train_labels, test_h, test_labels)
    other = linear_probe(train_h, train_labels, test_h[::-1] * 0.1, test_labels)
    np.testing.assert_array_equal(first.predicted, again.predicted)
    assert first.accuracy == again.accuracy
    assert other.held_out_accuracy == first.held_out_accuracy == again.held_out_accuracy
    best = max(first.held_out_accuracy.values())
    assert first.C == min(c for c, a in first.held_out_accuracy.items() if a == best)


@pytest.mark.parametrize("probe", [linear, multi_label])
def test_few_features_are_fitted_on_one_thread(probe, monkeypatch):
    """Many on as many as there were; the number is restored."""

    def threads():
        found = threadpoolctl.threadpool_info()
        return {library["num_threads"] for library in found if library["user_api"] == "blas"}

    before, seen, fit = threads(), [], probe.fit
    monkeypatch.setattr(probe, "fit", lambda *args: seen.append(threads()) or fit(*args))
    h, labels = clusters(60, classes=3)
    if probe is linear:
        linear_probe(h, labels, h, labels)
    else:
        targets = (labels[:, None] == np.unique(labels)).astype(int)
        multi_label_probe(h, targets, h, targets)
    assert len(seen) >= 6 and all(each == {1} for each in seen)
    with linear.threads_for(np.zeros([20_000, 64]), 10):
        assert threads() == before
    assert threads() == before


def test_noisy_features_do_not_get_the_weakest_regularisation():
    """Few rows in many dimensions overfit, and the held-out part shows it."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    noisy = rng.normal(size=(120, 300))
    noisy[:, 0] += 2 * labels
    probe = linear_probe(noisy, labels, noisy, labels)
    assert probe.C < 1.0


def test_linear_probe_reports_what_did_not_converge_and_warns_of_nothing():
    train_h, train_labels = clusters(400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear_probe(train_h, train_labels, train_h, train_labels, C=1.0, max_iter=2)
    assert not probe.converged and probe.n_iter == 2
    assert probe.accuracy == probe.train_accuracy


def test_constant_features_are_no_error():
    train_h, train_labels = clusters(100)
    train_h[:, 3] = 7.0
    test_h = train_h.copy()
    test_h[:, 3] = 8.0  # constant in the training set only
    for h in (train_h, test_h):
        probe = linear_probe(train_h, train_labels, h, train_labels)
        assert probe.accuracy > 0.5 and np.isfinite(list(probe.held_out_accuracy.values())).all()


@pytest.mark.parametrize(
    "counts",
    [
        [2] * 40,
        [2, 3, 4, 5] * 10 + [1] * 30,
        [1000] + [2] * 400,
        [2, 1],
        [30_000, 2, 1],
        [2] * 6000,
        [8000] * 3,
    ],
    ids=str,
)
def test_rows_held_out_to_choose_c_are_stratified_and_every_class_is_fitted(counts):
    """Few rows of many classes, single rows, rare classes, and more rows than are looked at."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    fitted, held_out = linear._hold_out(labels, seed=0)
    assert not set(fitted) & set(held_out) and len(held_out)
    assert set(labels[fitted]) == set(range(len(counts)))
    assert not set(labels[held_out]) & {c for c, count in enumerate(counts) if count == 1}
    assert len(fitted) + len(held_out) <= max(10_000, 2 * len(counts)) + len(counts)
    if min(counts) > 100:
        shares = np.bincount(labels[held_out]) / len(held_out)
        np.testing.assert_allclose(shares, np.array(counts) / sum(counts), atol=1e-3)
    again = linear._hold_out(labels, seed=0)
    np.testing.assert_array_equal(again[0], fitted)
    np.testing.assert_array_equal(again[1], held_out)
    assert len(labels) < 4 or not np.array_equal(linear._hold_out(labels, seed=1)[1], held_out)


def test_linear_probe_chooses_c_for_many_classes_of_few_rows():
    """Forty classes of one to three rows each; a class of a single row is predicted too."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), np.arange(40) % 3 + 1)
    h = 10 * np.eye(40)[labels] + 0.1 * rng.normal(size=(len(labels), 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear_probe(h, labels, h, labels)
    assert set(probe.held_out_accuracy) == set(linear.C_GRID)
    assert probe.accuracy == 1.0 and probe.classes.tolist() == list(range(40))


def accuracy_of(classify, *arguments):
    result = classify(*arguments)
    return result if isinstance(result, float) else result.accuracy


@pytest.mark.parametrize("classify", [knn_accuracy, linear_probe])
def test_examples_without_a_label_do_not_count(classify):
    """Label -1 in either set: what the labelled rows alone give; not a class, not an error."""
    (train_h, train_labels), (test_h, test_labels) = clusters(), clusters(60, seed=1)
    expected = accuracy_of(classify, train_h, train_labels, test_h, test_labels)
    rng = np.random.default_rng(5)
    rows, test_rows = np.argsort(rng.random(400)) < 300, np.argsort(rng.random(90)) < 60
    mixed = [rng.normal(size=(400, 12)).astype("f"), np.full(400, -1)]
    test_mixed = [rng.normal(size=(90, 12)).astype("f"), np.full(90, -1)]
    mixed[0][rows], mixed[1][rows] = train_h, train_labels
    test_mixed[0][test_rows], test_mixed[1][test_rows] = test_h, test_labels
    assert accuracy_of(classify, *mixed, *test_mixed) == pytest.approx(expected, abs=1e-9)
    for arguments in (
        (train_h, -np.ones(300, int), test_h, test_labels),
        (train_h, train_labels, test_h, -np.ones(60, int)),
    ):
        with pytest.raises(ValueError, match=r"must hold a label; all \d+ are -1"):
            classify(*arguments)


@pytest.mark.parametrize("classify", [knn_accuracy, linear_probe])
def test_one_hot_labels_are_labels(classify):
    (train_h, train_labels), (test_h, test_labels) = clusters(), clusters(60, seed=1)
    expected = accuracy_of(classify, train_h, train_labels, test_h, test_labels)
    one_hot = np.eye(12, dtype="f")
    labels = one_hot[train_labels], one_hot[test_labels].astype(bool)
    assert accuracy_of(classify, train_h, labels[0], test_h, labels[1]) == expected


def test_linear_probe_scores_more_than_top_1():
    """Top-5 and mean per class as scikit-learn has them; a class never seen is an error."""
    (train_h, train_labels), (test_h, test_labels) = (
        clusters(600, classes=8, spread=3.0, seed=seed) for seed in (0, 1)
    )
    test_labels[:20] = 99
    probe = linear_probe(train_h, train_labels, test_h, test_labels, C=0.1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3))
    scores = model.fit(train_h, train_labels).predict_proba(test_h[20:])
    top_5 = metrics.top_k_accuracy_score(test_labels[20:], scores, k=5)
    assert probe.top_5_accuracy == pytest.approx(top_5 * 580 / 600, abs=2 / 600)
    per_class = metrics.recall_score(test_labels, probe.predicted, average=None, zero_division=0)
    assert probe.mean_per_class_accuracy == pytest.approx(per_class.mean())
    binary = linear_probe(train_h, train_labels % 2, test_h, test_labels % 2, C=0.1)
    assert binary.top_5_accuracy == 1.0


@pytest.mark.parametrize("classify", [knn_accuracy, linear_probe])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: None}, "train_labels must be given; got None"),
        ({3: None}, "test_labels must be given; got None"),
        ({0: np.full((10, 4), np.nan)}, "train_h must be finite; 10 of 10 rows"),
        ({2: np.full((6, 4), np.inf)}, "test_h must be finite; 6 of 6 rows"),
        ({1: np.arange(9)}, "one for each of the 10 rows"),
        ({1: np.arange(10) / 2}, r"train_labels must be integers \[B\], or one-hot"),
        ({2: np.ones((6, 5))}, "same number of features; got 4 and 5"),
        ({0: np.ones((0, 4)), 1: np.arange(0)}, "n and D of 1 or more"),
    ],
)
def test_unusable_features_are_named(classify, change, message):
    arguments = [np.ones((10, 4)), np.arange(10) % 2, np.ones((6, 4)), np.arange(6) % 2]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ValueError, match=message):
        classify(*arguments)


def test_settings_out_of_range_are_named():
    h, y = clusters(20)
    for settings, message in (
        ({"k": 0}, "k must be a whole number of at least 1"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            knn_predict(h, y, h, **settings)
    with pytest.raises(ValueError, match="two classes or more; got only label 4"):
        linear_probe(h, np.full(20, 4), h, y)
    with pytest.raises(ValueError, match="C must be a finite number above 0"):
        linear_probe(h, y, h, y, C=0.0)
    with pytest.raises(ValueError, match="each of a class of its own"):
        linear_probe(h, np.arange(20), h, y)
