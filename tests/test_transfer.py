"""`simclr-tf evaluate`: protocols, layers, settings, tables over data sets, trust in the splits."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from tensorflow import keras

import runs
from conftest import fewer_residual_blocks
from simclr_tf import cli, data, evaluate
from simclr_tf.commands import build, checks, layers, protocols
from simclr_tf.evaluate import count_near_duplicates, small_grey, transfer, whiten
from simclr_tf.evaluate.feature_cache import FeatureCache, digest_of_encoder, digest_of_source
from simclr_tf.evaluate.linear import C_GRID
from test_pretrained import Official

SIDE = 8


def pictures(count, seed, classes=4):
    """Images of 8 pixels whose hue tells the class, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    hue = np.random.default_rng(9).uniform(0, 90, (classes, 1, 1, 3))
    return (hue[labels] + rng.uniform(0, 165, (count, SIDE, SIDE, 3))).astype(np.uint8), labels


def write_npz(path, unlabelled=0):
    (x, y), (x_test, y_test) = pictures(90, 1), pictures(37, 2)
    y[:unlabelled], y_test[: unlabelled // 2] = -1, -1
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run on set.npz with random weights, and a folder of photographs."""
    root = tmp_path_factory.mktemp("transfer")
    write_npz(root / "set.npz")
    for split, seed in (("train", 3), ("test", 4)):
        for index, (image, label) in enumerate(zip(*pictures(24, seed))):
            path = root / "photos" / split / f"class{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((11, 9)).save(path)
    with fewer_residual_blocks():
        runs.untrained_run(root / "run", root / "set.npz", SIDE)
    return root


@pytest.fixture(autouse=True)
def same_network(shallow):
    """The run's ResNet is built with fewer blocks."""


def run(capsys, *flags):
    """The result of an evaluation: its JSON line, and what else it printed."""
    capsys.readouterr()
    assert cli.main(["evaluate", *flags]) == 0
    out, error = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), out, error


def output_of(encoder, head, images):
    return encoder(images, training=False)


def features_of(root, layer_of=output_of, images=None):
    """Output of a layer, and labels, of both splits, computed with the model's own methods."""
    options = cli.options_of_run(str(root / "run"))
    loaded = build.load_encoder(cli.Options(image_size=None), options, projection_head=True)
    with np.load(root / "set.npz") as arrays:
        labels = arrays["y_train"], arrays["y_test"]
        images = images or {split: arrays[f"x_{split}"] for split in ("train", "test")}
    floats = [images[split] / np.float32(255) for split in ("train", "test")]
    outputs = [layer_of(loaded.encoder, loaded.projection_head, each) for each in floats]
    return list(zip(outputs, labels))


# ---- one data set


@pytest.mark.end_to_end
def test_the_numbers_of_one_data_set_are_those_of_the_functions(root, capsys):
    """Defaults, and what the JSON line says of them."""
    result, out, _ = run(capsys, f"--run_dir={root / 'run'}", "--protocol=knn,linear")
    (train_h, y), (test_h, y_test) = features_of(root)
    pair = np.asarray(train_h), y, np.asarray(test_h), y_test
    assert result["knn"] == pytest.approx(evaluate.knn_accuracy(*pair), abs=1 / 37)
    probe = evaluate.linear_probe(*pair)
    assert result["linear"] == result["accuracy"] == pytest.approx(probe.accuracy, abs=1 / 37)
    assert result["linear_top_5"] == 1.0 and result["linear_C"] == [probe.C]
    assert (result["train_examples"], result["test_examples"], result["layer"]) == (90, 37, "h")
    assert result["settings"]["knn"] == {
        "k": 200,
        "temperature": 0.1,
        "similarity": "cosine",
        "views": "1",
        "whitened": False,
    }
    assert result["settings"]["linear"]["normalization"] == "standardized"
    assert "linear_confidence_95" not in result and "trained encoder" in out


@pytest.mark.end_to_end
def test_several_seeds_give_an_interval(root, capsys, monkeypatch):
    """The mean over the seeds, and the half width of Student's interval; the flags arrive."""
    results, train_classifier = [], evaluate.linear_classifier

    def classifier(encoder, train, test, seed, **settings):
        """Trains for the first seed only; it is 0.1 better with each of the others."""
        if not results:
            results.append(train_classifier(encoder, train, test, seed=seed, **settings))
            results.append(settings)
        assert settings == results[1]
        return results[0]._replace(accuracy=results[0].accuracy + 0.1 * seed)

    monkeypatch.setattr(evaluate, "linear_classifier", classifier)
    flags = ["--protocol=linear_views", "--seeds=3", "--linear_views_epochs=2"]
    flags += ["--linear_views_learning_rate=20", "--linear_views_batch_size=32"]
    result, _, _ = run(capsys, f"--run_dir={root / 'run'}", *flags)
    values = results[0].accuracy + np.array([0.0, 0.1, 0.2])
    assert result["linear_views"] == pytest.approx(values.mean())
    half_width = evaluate.confidence_interval(values)[1]
    assert result["linear_views_confidence_95"] == pytest.approx(half_width)
    assert results[1] == {
        "epochs": 2,
        "batch_size": 32,
        "optimizer": "nesterov",
        "learning_rate": 20.0,
        "image_size": SIDE,
    }
    assert result["settings"]["linear_views"]["epochs"] == 2
    assert len(results[0].predicted) == 37


@pytest.mark.end_to_end
def test_all_layers_stand_side_by_side(root, capsys):
    """h, the head's hidden layer and z, each as when it is scored alone."""
    run_dir = f"--run_dir={root / 'run'}"
    result, out, _ = run(capsys, run_dir, "--layer=all", "--knn_k=5")
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["features", "h", "head1", "z"]
    assert list(result["layers"]) == ["h", "head1", "z"] and result["layer"] == "h"
    plain, _, _ = run(capsys, run_dir, "--knn_k=5")
    assert result["accuracy"] == plain["accuracy"] == result["layers"]["h"]["knn"]
    for index, name in ((1, "head1"), (2, "z")):
        (train_h, y), (test_h, y_test) = features_of(
            root,
            lambda encoder, head, x, i=index: head.hidden_outputs(encoder(x, training=False))[i],
        )
        expected = evaluate.knn_accuracy(np.asarray(train_h), y, np.asarray(test_h), y_test, k=5)
        assert result["layers"][name]["knn"] == pytest.approx(expected, abs=1 / 37)
    block, _, _ = run(capsys, run_dir, "--layer=group2,z", "--knn_k=5")
    assert block["layer"] == "group2" and block["layers"]["z"] == result["layers"]["z"]


def test_layers_are_the_outputs_of_the_models_own_methods(root):
    """Stored side by side, and alone."""
    options = cli.options_of_run(str(root / "run"))
    loaded = build.load_encoder(cli.Options(image_size=None), options, projection_head=True)
    x = np.random.default_rng(0).random((3, SIDE, SIDE, 3)).astype(np.float32)
    outputs = loaded.projection_head.hidden_outputs(loaded.encoder(x, training=False))
    chosen = layers.Layers(loaded, "z,all")
    found = chosen.split(np.asarray(chosen.encoder(x)))
    assert list(found) == ["z", "h", "head1"]
    for name, output in zip(("h", "head1", "z"), outputs):
        np.testing.assert_allclose(found[name], output, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(chosen.only(name)(x), output, rtol=1e-5, atol=1e-6)


@pytest.mark.end_to_end
def test_official_weights_have_layers_too(root, tmp_path, capsys):
    """The head is read from the official code's files; without one, a line says so."""
    options = cli.options_of_run(str(root / "run"))
    loaded = build.load_encoder(cli.Options(image_size=None), options, projection_head=True)
    dataset = [f"--dataset=npz:{root / 'set.npz'}", "--image_size=8", "--knn_k=5"]
    official = Official(loaded.encoder, loaded.projection_head).save_checkpoint(tmp_path / "both")
    result, _, _ = run(capsys, f"--official_weights={official}", "--layer=all", *dataset)
    expected, _, _ = run(capsys, f"--run_dir={root / 'run'}", "--layer=all", "--knn_k=5")
    assert result["layers"] == expected["layers"]
    official = Official(loaded.encoder).save_checkpoint(tmp_path / "encoder")
    assert cli.main(["evaluate", f"--official_weights={official}", "--layer=z", *dataset]) == 2
    assert "--layer=z needs the projection head; --official_weights" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_examples_without_a_label_are_counted(root, tmp_path, capsys):
    """A line, and the JSON; the numbers are those without them."""
    dataset = f"--dataset=npz:{write_npz(tmp_path / 'set.npz', unlabelled=20)}"
    result, _, error = run(capsys, f"--run_dir={root / 'run'}", dataset, "--protocol=all")
    assert (result["train_unlabelled"], result["test_unlabelled"]) == (20, 10)
    assert "20 of the 90 examples of --train_split have no label and are left out" in error
    (train_h, y), (test_h, y_test) = features_of(root)
    expected = evaluate.knn_accuracy(
        np.asarray(train_h)[20:], y[20:], np.asarray(test_h)[10:], y_test[10:]
    )
    assert result["knn"] == pytest.approx(expected, abs=1 / 27) and result["k"] == 70


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol=knn,fine"], "--protocol must be one or several of knn, linear, linear_views"),
        (["--knn_views=crops:11"], "--knn_views must be 1, flip or crops:N with N in [1, 10]"),
        (["--dataset=shapes,cifar10"], "several data sets need --output"),
        (["--layer=head7"], "--layer must be head1 to head2, or z; got 'head7'"),
        (["--layer=groop1"], "Near matches: group1"),
        (["--train_split=all", "--test_split=test"], "--train_split must be one of train, test"),
        (
            ["--test_split=train[:50%]"],
            "--test_split must not share examples with --train_split; 45 of the 45 of train[:50%]",
        ),
    ],
)
def test_a_mistake_is_one_line(flags, message, root, capsys):
    assert cli.main(["evaluate", f"--run_dir={root / 'run'}", *flags]) == 2
    *others, error = capsys.readouterr().err.splitlines()
    assert message in error and set(others) <= {"the run has 1 of 100 epochs."}


def test_the_command_line_knows_all_protocols():
    """It lists them without importing them."""
    assert tuple(protocols.PROTOCOLS) == checks.PROTOCOLS
    assert protocols.protocol_names("all,linear_views,knn") == ["knn", "linear", "linear_views"]


# ---- kNN options


@pytest.mark.end_to_end
def test_knn_on_averaged_views(root, capsys):
    """The mirror image's features are averaged in, and named."""
    flags = [f"--run_dir={root / 'run'}", "--knn_k=5", "--knn_views=flip", "--knn_whiten"]
    result, _, _ = run(capsys, *flags)

    def both(encoder, head, x):
        return (encoder(x, training=False) + encoder(x[:, :, ::-1], training=False)) / 2

    (train_h, y), (test_h, y_test) = features_of(root, both)
    train_h, test_h = whiten(np.asarray(train_h), np.asarray(test_h))
    expected = evaluate.knn_accuracy(train_h, y, test_h, y_test, k=5)
    assert result["knn"] == pytest.approx(expected, abs=1 / 37)
    assert (result["settings"]["knn"]["views"], result["settings"]["knn"]["whitened"]) == (
        "flip",
        True,
    )


def test_crops_are_parts_of_the_image():
    """The first is all of it; the mean of a constant image's crops is the image."""
    x = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)

    def corners(images):
        return tf.reshape(images[:, ::15, ::15], [-1, 12])

    np.testing.assert_array_equal(evaluate.average_over_views(corners, "crops:1")(x), corners(x))
    flat = np.full((1, 16, 16, 3), 0.25, np.float32)
    for count in (2, 6, 10):
        found = evaluate.average_over_views(corners, f"crops:{count}")(flat)
        np.testing.assert_allclose(found, corners(flat), atol=1e-6)
    left = np.zeros((1, 16, 16, 3), np.float32)
    left[:, :4] = 1.0  # rows 0 to 3: seen by the upper crops alone
    seen = [
        float(tf.reduce_mean(evaluate.average_over_views(_mean, f"crops:{n}")(left))) * n
        for n in range(1, 11)
    ]
    areas = np.diff(seen, prepend=0.0)
    np.testing.assert_allclose(
        areas, [1 / 4, 1 / 6, *[1 / 3] * 2, 0, 0, 1 / 3, *[1 / 6] * 2, 0], atol=0.02
    )
    with pytest.raises(ValueError, match="views must be 1, flip or crops:N"):
        evaluate.average_over_views(corners, "crops")


def _mean(images):
    return tf.reduce_mean(images, [1, 2])


def test_whitening_is_that_of_scikit_learn_turned_back():
    """ZCA is PCA whitening rotated: the same inner products, near the identity of a white set."""
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))).astype("f")
    test = rng.normal(size=(20, 6)).astype("f")
    found, found_test = whiten(train, test, epsilon=1e-9)
    pca = PCA(whiten=True).fit(train.astype(np.float64))
    expected = pca.transform(test.astype(np.float64)) * np.sqrt(500 / 499)
    np.testing.assert_allclose(
        found_test @ found_test.T, expected @ expected.T, rtol=2e-3, atol=2e-3
    )
    np.testing.assert_allclose(found.T @ found / 500, np.eye(6), atol=1e-3)
    again, _ = whiten(found, found, epsilon=1e-9)
    np.testing.assert_allclose(again, found, atol=1e-3)  # PCA would turn it


# ---- trust


def test_near_duplicates_are_found_and_others_are_not():
    """Of drawn shapes: copies that were resized or brightened, and 200 others."""
    x, _ = data.load("shapes", "train[:600]").arrays()[:2]
    train, other = x[:400], x[400:]
    copies = []
    for index, image in enumerate(train[:30]):
        picture = Image.fromarray(image)
        if index % 3 == 0:
            picture = picture.resize((57, 57), Image.BICUBIC).resize((32, 32), Image.BICUBIC)
        elif index % 3 == 1:
            picture = picture.point(lambda level: min(255, level + 3))
        copies.append(np.asarray(picture))
    small = small_grey(train)
    assert count_near_duplicates(small, small_grey(np.stack(copies))) >= 28
    assert count_near_duplicates(small, small_grey(other)) == 0
    both = np.concatenate([other, train[:7], train[:7]])
    assert count_near_duplicates(small, small_grey(both)) == 14  # each test image once
    # Of little contrast: their grey is nearly the same, their structure is not.
    faint = [125 + np.random.default_rng(seed).integers(0, 5, (9, 8, 9, 3)) for seed in (0, 1)]
    faint = [small_grey(images.astype(np.uint8)) for images in faint]
    assert count_near_duplicates(*faint) == 0
    with pytest.raises(ValueError, match=r"train_small must be \[n, 8, 9\]"):
        count_near_duplicates(train, small)


def test_splits_that_share_examples_are_known_by_their_ids(root):
    """Slices of one split; the same names in another split are other examples."""
    name = f"npz:{root / 'set.npz'}"
    load = data.load
    whole, part, rest = (load(name, s) for s in ("train", "train[:30%]", "train[30%:]"))
    assert whole.overlap(part) == part.num_examples == 27
    assert part.overlap(rest) == 0 and whole.overlap(load(name, "test")) == 0
    folder = f"folder:{root / 'photos'}"
    uncached, test = load(folder, "test[:25%]", cache_bytes=0), load(folder, "test")
    assert uncached.overlap(test) == 6 and load(folder, "train").overlap(test) == 0


# ---- images of several classes


def targets_of(count, seed):
    """Features of three classes, any of which an image may have; a tenth is unknown."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, 3)) < 0.4).astype(np.int8)
    h = targets @ np.random.default_rng(8).normal(size=(3, 6)) + rng.normal(size=(count, 6))
    targets[rng.random((count, 3)) < 0.1] = -1
    return h.astype(np.float32), targets


def test_knn_of_several_classes_is_the_double_loop():
    (train_h, targets), (test_h, _) = targets_of(50, 0), targets_of(9, 1)
    found = evaluate.multi_label_knn(train_h, targets, test_h, k=7, temperature=0.2)
    for query, scores in zip(test_h, found):
        cosine = train_h @ query / np.linalg.norm(train_h, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosine)[:7]
        weights = np.exp(cosine[nearest] / 0.2)
        expected = [weights[targets[nearest, c] == 1].sum() / weights.sum() for c in range(3)]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_the_probe_of_several_classes_is_scikit_learns():
    (train_h, targets), (test_h, test_targets) = targets_of(300, 0), targets_of(200, 1)
    found = evaluate.multi_label_probe(train_h, targets, test_h, test_targets, C=0.1)
    precisions = []
    for c in range(3):
        known, scored = targets[:, c] >= 0, test_targets[:, c] >= 0
        scaler = StandardScaler().fit(train_h)
        model = LogisticRegression(C=0.1, tol=1e-3).fit(
            scaler.transform(train_h)[known], targets[known, c]
        )
        scores = model.decision_function(scaler.transform(test_h)[scored])
        precisions.append(average_precision_score(test_targets[scored, c], scores))
    assert found.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-3)
    assert found.scores.shape == (200, 3) and found.C == 0.1
    chosen = evaluate.multi_label_probe(train_h, targets, test_h, test_targets)
    other = evaluate.multi_label_probe(train_h, targets, test_h[:50], 1 - abs(test_targets[:50]))
    assert chosen.C == other.C in C_GRID  # the test set has no say
    with pytest.raises(ValueError, match=r"test_targets must be \[200, C\]"):
        evaluate.multi_label_probe(train_h, targets, test_h, test_targets[1:])


@pytest.mark.end_to_end
def test_a_table_of_images_of_several_classes(root, tmp_path, capsys):
    """VOC2007's metric of a set in TFDS's form; twice, the second time from the cache."""
    import tensorflow_datasets as tfds

    classes = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=4))
    features = {"image": tfds.features.Image(shape=(SIDE, SIDE, 3)), "labels": classes}
    signature = {
        "image": tf.TensorSpec((SIDE, SIDE, 3), tf.uint8),
        "labels": tf.TensorSpec([None], tf.int64),
    }
    splits, arrays = {}, {}
    for split, seed in (("train", 5), ("test", 6)):
        (a, y_a), (b, y_b) = pictures(60, seed), pictures(60, seed + 10)
        a[:, SIDE // 2 :] = b[:, SIDE // 2 :]
        arrays[split] = a, np.maximum(np.eye(4)[y_a], np.eye(4)[y_b])
        found = [{"image": image, "labels": sorted({*pair})} for image, *pair in zip(a, y_a, y_b)]
        splits[split] = tf.data.Dataset.from_generator(
            lambda found=found: iter(found), output_signature=signature
        )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="halves",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    flags = [f"--run_dir={root / 'run'}", "--dataset=voc2007=halves,halves", "--knn_k=5"]
    flags += [f"--output={tmp_path}/table", f"--data_dir={tmp_path}", "--protocol=knn,linear"]
    result, _, _ = run(capsys, *flags)
    voc, plain = result["rows"]
    assert (voc["metric"], plain["metric"]) == ("mAP (11 points)", "mAP")
    pairs = features_of(root, images={key: x for key, (x, _) in arrays.items()})
    (train_h, _), (test_h, _) = pairs
    y, y_test = arrays["train"][1], arrays["test"][1]
    scores = evaluate.multi_label_knn(np.asarray(train_h), y, np.asarray(test_h), k=5)
    assert plain["knn"] == pytest.approx(evaluate.mean_average_precision(scores, y_test), abs=0.01)
    assert voc["knn"] == pytest.approx(
        evaluate.mean_average_precision(scores, y_test, eleven_points=True), abs=0.02
    )
    assert voc["linear"] != plain["linear"] and voc["train_examples"] == 60
    assert run(capsys, *flags)[0]["rows"] == result["rows"]
    views = [*flags, "--protocol=linear_views"]
    assert cli.main(["evaluate", *views]) == 2
    assert "linear_views needs images of one class each" in capsys.readouterr().err


# ---- several data sets


@pytest.fixture(scope="module")
def table(root):
    """The flags of a table over five data sets, of which two can be scored; and its rows."""
    names = [
        f"npz:{root}/set.npz",
        f"pets=folder:{root}/photos",
        "cifar10",
        "voc2007",
        "birdsnap",
    ]
    flags = [f"--run_dir={root / 'run'}", f"--dataset={','.join(names)}", "--protocol=knn,linear"]
    flags += [f"--output={root}/table", f"--data_dir={root}/none", "--knn_k=5"]
    text = io.StringIO()
    with (
        fewer_residual_blocks(),
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
    ):
        assert cli.main(["evaluate", *flags]) == 0
    return flags, json.loads(text.getvalue().splitlines()[-1])["rows"], text.getvalue()


@pytest.mark.end_to_end
def test_a_table_has_a_row_for_each_data_set(table, root, capsys):
    """CSV, Markdown and JSON agree; what is not there is a row with its reason."""
    _, rows, text = table
    assert [row["error"] is None for row in rows] == [True, True, False, False, False]
    assert "must be prepared on disk first" in rows[2]["error"]
    assert "must be prepared on disk first" in rows[3]["error"]
    assert "Pass birdsnap=folder:PATH" in rows[4]["error"] and rows[4]["error"] in text
    with open(root / "table" / "table.csv", newline="") as file:
        from_csv = list(csv.DictReader(file))
    assert [float(row["knn"] or -1) for row in from_csv] == [
        -1 if row["knn"] is None else row["knn"] for row in rows
    ]
    from_json = json.loads((root / "table" / "table.json").read_text())
    assert from_json["rows"] == rows and from_json["settings"]["knn"]["k"] == 5
    assert f"{100 * rows[0]['linear']:.2f}" in (root / "table" / "table.md").read_text()
    alone, _, _ = run(capsys, f"--run_dir={root / 'run'}", "--protocol=knn,linear", "--knn_k=5")
    assert (rows[0]["knn"], rows[0]["linear"]) == (alone["knn"], alone["linear"])
    assert rows[0]["metric"] == "top-1"


@pytest.mark.end_to_end
def test_a_data_set_is_scored_as_is_customary(table, root, capsys):
    """Pets: the mean per class, which differs from top-1 here."""
    row = table[1][1]
    dataset = f"--dataset=folder:{root}/photos"
    alone, _, _ = run(capsys, f"--run_dir={root / 'run'}", dataset, "--protocol=all", "--knn_k=5")
    assert row["metric"] == "mean per class"
    assert row["knn"] == alone["knn_mean_per_class"] != alone["knn"]
    assert row["linear"] == alone["linear_mean_per_class"]


@pytest.mark.end_to_end
def test_a_second_table_computes_no_features(table, root, capsys, monkeypatch):
    """Until a file is damaged, or the data changes."""
    flags, rows, _ = table
    computed = []

    def counting(encoder, batches, *arguments, extract=evaluate.extract_features):
        computed.append(encoder)
        return extract(encoder, batches, *arguments)

    monkeypatch.setattr(evaluate, "extract_features", counting)
    assert run(capsys, *flags)[0]["rows"] == rows and not computed
    stored = sorted((root / "table" / "features").iterdir())
    assert len(stored) == 4
    stored[0].write_bytes(stored[0].read_bytes()[:1000])
    assert run(capsys, *flags)[0]["rows"] == rows and len(computed) == 1
    photo = sorted((root / "photos" / "test").glob("*/*.png"))[0]
    before = photo.read_bytes()
    Image.new("RGB", (11, 9), "red").save(photo)
    run(capsys, *flags)
    photo.write_bytes(before)
    assert len(computed) == 2


@pytest.mark.end_to_end
def test_no_data_set_at_all_is_a_failure(root, tmp_path, capsys):
    """Exit code 2; the table is there."""
    flags = [f"--run_dir={root / 'run'}", "--dataset=birdsnap,aircraft", f"--output={tmp_path}/t"]
    assert cli.main(["evaluate", *flags]) == 2
    assert "none of birdsnap, aircraft could be scored" in capsys.readouterr().err
    assert (tmp_path / "t" / "table.csv").read_text().count("\n") == 3


def test_the_twelve_data_sets_of_the_paper():
    """Names that TFDS has, or None; metrics of arXiv:2002.05709, appendix B.8."""
    import tensorflow_datasets as tfds

    builders = set(tfds.list_builders(with_community_datasets=False))
    known = {d.load_as.partition("/")[0] for d in transfer.DATA_SETS.values() if d.load_as}
    assert known <= builders and len(transfer.DATA_SETS) == 12
    by_metric = {}
    for name, data_set in transfer.DATA_SETS.items():
        by_metric.setdefault(data_set.metric, set()).add(name)
    assert by_metric["mean per class"] == {"aircraft", "pets", "caltech101", "flowers"}
    assert by_metric["mAP (11 points)"] == {"voc2007"} and len(by_metric["top-1"]) == 7
    assert transfer.customary("dtd:3.0.1") == transfer.DataSet(
        "dtd:3.0.1", "top-1", "train+validation", "test"
    )
    assert transfer.customary("folder:x=y").load_as == "folder:x=y"


def test_a_digest_changes_with_what_the_features_depend_on(root, tmp_path):
    """A weight, a statistic, an image, a label; not the name that Keras counts up."""

    def encoder():
        layers = [keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()]
        return keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Flatten()])

    keras.utils.set_random_seed(1)
    net = encoder()
    digests = [digest_of_encoder(net)]
    for weight in net.weights[:1] + net.weights[-1:]:
        weight.assign(weight + 1e-3)
        digests.append(digest_of_encoder(net))
    assert len(set(digests)) == 3 and digest_of_encoder(lambda x: x) is None
    again = encoder()
    again.set_weights(net.get_weights())
    assert digest_of_encoder(again) == digests[-1] and again.name != net.name
    x, y = pictures(20, 0)
    found = set()
    for change in ("none", "image", "label"):
        x[3, 0, 0, 0] += change == "image"
        y[5] += change == "label"
        np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
        found.add(digest_of_source(data.load(f"npz:{tmp_path / 'a.npz'}")))
    assert len(found) == 3


def test_a_cache_without_a_directory_stores_nothing(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"h": np.arange(3)}

    for _ in range(2):
        np.testing.assert_array_equal(FeatureCache(None).get({}, compute)["h"], np.arange(3))
    for settings in ({"data": "a/b"}, {"data": "a/b"}, {"data": "a/c"}):
        FeatureCache(tmp_path / "deep" / "er").get(settings, compute)
    assert len(calls) == 2 + 2 and len(list((tmp_path / "deep" / "er").iterdir())) == 2
