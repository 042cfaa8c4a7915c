"""Fine-tuning: `evaluate.finetune`, and `simclr-tf finetune` from flags to an export."""

import contextlib
import io
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from runs import untrained_run, weights_of
from simclr_tf import Classifier, ProjectionHead, ResNet, cli, data, evaluate, export
from simclr_tf.commands import build, classifiers
from simclr_tf.commands import finetune as finetune_command
from simclr_tf.commands.pretrained import load_pretrained
from simclr_tf.data import shapes
from simclr_tf.errors import ArgumentError, ExportError, UsageError
from simclr_tf.export import classifier as export_classifier_module
from simclr_tf.training import run_directory
from test_pretrained import Official

IMAGES, LABELS = shapes.draw(50, 0, size=12)


@pytest.fixture(scope="module")
def encoder(quick_runs):
    """A small ResNet."""
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, 12, 12, 3))
    return encoder


def head_of(encoder):
    head = ProjectionHead(output_dim=4)
    head.build((None, encoder.feature_dim))
    return head


def flat(*models):
    return np.concatenate([w.ravel() for model in models for w in model.get_weights()])


def test_the_given_encoder_and_head_do_not_change(encoder):
    """Weights and moving statistics bit for bit, and whether they are trainable."""
    head = head_of(encoder)
    before, flags = flat(encoder, head), len(head.trainable_variables)
    result = evaluate.finetune(
        encoder,
        (IMAGES, LABELS),
        (IMAGES, LABELS),
        head,
        head_layer=1,
        train_from="group3",
        epochs=2,
        learning_rate=0.5,
    )
    np.testing.assert_array_equal(flat(encoder, head), before)
    assert len(head.trainable_variables) == flags and encoder.blocks[0].trainable
    changed = flat(result.classifier.encoder, result.classifier.projection_head) != before
    assert 0.1 < changed.mean() < 0.999  # group3 and later


def test_the_score_is_that_of_the_last_weights(encoder):
    """Against the predictions of the classifier that is returned; -1 does not count."""
    labels = np.where(np.arange(50) % 5, LABELS, -1)
    test = tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(7)
    result = evaluate.finetune(encoder, (IMAGES, LABELS), test, epochs=3, batch_size=16)
    predicted = result.classifier.predict(IMAGES, verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(result.predicted, predicted)
    rows = labels >= 0
    assert result.accuracy == pytest.approx(np.mean(predicted[rows] == labels[rows]))
    loss, accuracy = result.classifier.evaluate(test, verbose=0)
    assert accuracy == pytest.approx(result.accuracy) and np.isfinite([loss, result.loss]).all()


def small_encoder():
    """A convolution with batch normalisation, functional."""
    layers = keras.layers
    inputs = keras.Input((12, 12, 3))
    norm = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(norm))


def test_the_same_seed_gives_the_same_result_from_every_form_of_data(tmp_path):
    """A Source twice; a tf.data.Dataset in the order of the arrays is another order."""
    encoder = small_encoder()
    np.savez(tmp_path / "set.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    source = data.load(f"npz:{tmp_path}/set.npz", "train", labels_per_class=2)
    assert source.num_examples == 2 * len(np.unique(LABELS))
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, np.eye(10)[LABELS])).batch(8)
    results = [
        evaluate.finetune(encoder, train, (IMAGES, LABELS), epochs=1, seed=seed)
        for train, seed in ((source, 0), (source, 0), (source, 1), (dataset, 0))
    ]
    weights = [flat(result.classifier) for result in results]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any() and (weights[0] != weights[3]).any()


def test_it_learns_from_few_labels_and_from_scratch_starts_anew():
    """Dark against light images are learnt; the baseline does not start at the given weights."""
    encoder = small_encoder()
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    images = (rng.random([32, 12, 12, 3]) * 90 + 150 * labels[:, None, None, None]).astype("uint8")
    options = {"epochs": 40, "learning_rate": 0.4}
    result = evaluate.finetune(encoder, (images, labels), (images, labels), **options)
    assert result.accuracy > 0.9 and result.loss < 0.2
    keras.utils.set_random_seed(1)
    scratch = evaluate.finetune(
        encoder, (images, labels), (images, labels), epochs=1, learning_rate=1e-9, from_scratch=True
    )
    ours = scratch.classifier.encoder
    kernels = [w for w in zip(ours.get_weights(), encoder.get_weights()) if w[0].ndim == 4]
    assert kernels and not any(np.allclose(one, other) for one, other in kernels)


def test_schedules_scale_with_the_labels():
    """The paper's numbers of epochs at its numbers of labels; batches of nearly one size."""
    assert [evaluate.default_epochs(n) for n in (12811, 128116, 1281167)] == [60, 30, 30]
    assert [evaluate.default_epochs(n) for n in (1281, 128)] == [120, 240]
    for n in (2, 60, 255, 256, 257, 500, 5000):
        batch = evaluate.even_batch_size(n)
        steps = n // batch
        assert batch <= 256 and steps == -(-n // 256) and n - steps * batch < steps
    assert evaluate.even_batch_size(501, replicas=4) == 248


def test_any_functional_encoder_can_be_copied():
    """Its weights too; a class without a config is refused in a line."""
    encoder = small_encoder()
    before = flat(encoder)
    result = evaluate.finetune(encoder, (IMAGES, LABELS), (IMAGES, LABELS), epochs=1)
    np.testing.assert_array_equal(flat(encoder), before)
    assert np.abs(flat(result.classifier.encoder) - before).max() > 1e-6

    class Own(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = keras.layers.Dense(units)

        def call(self, images, training=None):
            return tf.reduce_mean(self.dense(images), axis=[1, 2])

        def get_config(self):
            raise NotImplementedError("no config")

    own = Own(3)
    own(IMAGES / np.float32(255))
    with pytest.raises(ArgumentError, match="encoder must be a functional"):
        evaluate.finetune(own, (IMAGES, LABELS), (IMAGES, LABELS), epochs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of nesterov, lars, adamw; got 'sgd'"),
        ({"learning_rate": 0}, "learning_rate must be a finite number above 0; got 0"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1; got 0"),
        ({"min_crop_area": 2}, r"min_crop_area must be a finite number in \(0, 1\]; got 2"),
        ({"head_layer": 1}, "head_layer=1 needs the projection head"),
        ({"train": (IMAGES, LABELS[:9])}, "one label for each image, .*; got 50 images and 9"),
        ({"train": (IMAGES, 0 * LABELS)}, "must have two classes or more; got only label 0"),
        ({"train": [IMAGES]}, "train must be a data.Source, a tf.data.Dataset of batches, or two"),
        ({"test": (IMAGES, 0 * LABELS - 1)}, "test must hold a label; all 50 examples are"),
    ],
)
def test_wrong_arguments(encoder, arguments, message):
    """One line each."""
    arguments = {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS), "epochs": 1, **arguments}
    with pytest.raises(ArgumentError, match=message):
        evaluate.finetune(encoder, **arguments)


# -- the export -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(encoder):
    """A classifier of three classes on the head's hidden layer, with random logits."""
    model = Classifier(encoder, 3, head_of(encoder), head_layer=1)
    model.build((None, 12, 12, 3))
    rng = np.random.default_rng(0)
    model.logits_layer.set_weights([rng.normal(size=[32, 3]), rng.normal(size=3)])
    return model


@pytest.fixture(scope="module")
def exported(classifier, tmp_path_factory):
    """Its SavedModel."""
    path = tmp_path_factory.mktemp("models") / "shop" / "1"
    return export.export_classifier(classifier, path, ["shoe", "hat", "müll"])


def test_every_signature_returns_classes_and_the_embedding(classifier, exported):
    """Against the classifier itself and NumPy's softmax."""
    signatures = tf.saved_model.load(str(exported)).signatures
    images, floats = IMAGES[:5], IMAGES[:5] / np.float32(255)
    files = tf.constant([tf.io.encode_png(image).numpy() for image in images])
    logits, h = classifier(images).numpy(), classifier.encoder(floats).numpy()
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    for name, request in (
        ("serving_default", {"images": tf.constant(images)}),
        ("serving_float", {"images": tf.constant(floats)}),
        ("serving_bytes", {"image_bytes": files}),
    ):
        got = signatures[name](**request)
        np.testing.assert_allclose(got["embedding"], h, atol=1e-5)
        np.testing.assert_allclose(got["logits"], logits, atol=1e-4)
        np.testing.assert_allclose(got["probabilities"], e / e.sum(1, keepdims=True), atol=1e-5)
        assert got["class_index"].numpy().tolist() == logits.argmax(axis=1).tolist()
        names = np.array(["shoe", "hat", "müll"])[logits.argmax(axis=1)]
        assert [each.decode() for each in got["class_name"].numpy()] == names.tolist()


def test_it_loads_as_an_encoder_that_classifies(encoder, classifier, exported):
    """`load_exported` and plain Keras read it as an encoder's export."""
    loaded = export.load_exported(exported.parent)
    assert loaded.class_names == ["shoe", "hat", "müll"] and loaded.image_size == 12
    h = encoder(IMAGES / np.float32(255)).numpy()
    np.testing.assert_allclose(loaded(IMAGES), h, atol=1e-5)
    np.testing.assert_allclose(loaded.classify(IMAGES)["logits"], classifier(IMAGES), atol=1e-4)
    plain = keras.models.load_model(exported / "encoder.keras")
    np.testing.assert_allclose(plain(IMAGES / np.float32(255)), h, atol=1e-5)
    with pytest.raises(ArgumentError, match="one for each of the 3 classes; got 2"):
        export.export_classifier(classifier, exported.parent / "2", ["shoe", "hat"])


def test_an_export_that_classifies_otherwise_is_refused(classifier, tmp_path, monkeypatch):
    """Wrong logits are found by the check, and nothing is written."""
    right = export_classifier_module.functional_logits(classifier)
    kernel, *rest = right.layers[-1].get_weights()
    right.layers[-1].set_weights([-kernel, *rest])
    monkeypatch.setattr(export_classifier_module, "functional_logits", lambda _: right)
    with pytest.raises(ExportError, match=r"differs from the encoder by .* number of logits"):
        export.export_classifier(classifier, tmp_path / "1")
    assert not list(tmp_path.iterdir())


# -- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_runs):
    """A directory with set.npz, three classes of 12 pixels, and "run", a pretrained run."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pixels = rng.random([120, 12, 12, 3]) * 60 + 90 * labels[:, None, None, None]
    pixels = pixels.astype(np.uint8)
    arrays = {"x_train": pixels[:90], "y_train": labels[:90]}
    np.savez(place / "set.npz", **arrays, x_test=pixels[90:], y_test=labels[90:])
    untrained_run(place / "run", place / "set.npz", 12)
    return place


def command(place, run_dir, *flags):
    """Words of a small fine-tuning."""
    words = ["finetune", f"--pretrained={place}/run", f"--run_dir={run_dir}"]
    return [*words, "--precision=float32", "--epochs=4", "--batch_size=10", *flags]


@pytest.fixture(scope="module")
def fine_tuned(place):
    """A run on 8 labels of each class, with its baseline, and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        flags = ["--labels_per_class=8", "--from_scratch", "--learning_rate_from_scratch=0.2"]
        assert cli.main(command(place, place / "tuned", *flags)) == 0
    return place / "tuned", out.getvalue()


@pytest.mark.end_to_end
def test_a_run_ends_with_a_table_and_a_json_line(place, fine_tuned):
    """Both results, the labels that were used, and every setting; the run has its files."""
    run, out = fine_tuned
    result = json.loads(out.splitlines()[-1])
    rows = [line.split() for line in out.splitlines() if "%" in line]
    assert [row[0] for row in rows] == ["fine-tuned", "from"]
    assert rows[0][1] == f"{100 * result['accuracy']:.2f}"
    assert rows[1][2] == f"{100 * result['accuracy_from_scratch']:.2f}"
    assert (result["labels"], result["labels_per_class"], result["classes"]) == (24, 8, 3)
    assert result["test_examples"] == 30 and result["dataset"] == f"npz:{place}/set.npz"
    settings = result["settings"]
    assert (settings["batch_size"], settings["epochs"], settings["head_layer"]) == (8, 4, 0)
    for name in ("flags.cfg", "metrics.jsonl", "checkpoints", "report.html", "logs"):
        assert (run / name).exists()
    rows = run_directory.read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9, 12] and "accuracy" in rows[0]
    assert rows[0]["learning_rate"] == pytest.approx(0.05 * 8 / 256 * 0.9, rel=0.06)
    rows = run_directory.read_metrics(run / "from_scratch" / "metrics.jsonl")
    assert rows[0]["learning_rate"] == pytest.approx(0.2 * 8 / 256 * 0.9, rel=0.06)


@pytest.mark.end_to_end
@pytest.mark.parametrize("by", ["run_dir", "saved_model"])
def test_evaluate_reads_it_back(place, fine_tuned, by, capsys):
    """The same accuracy, whether by the run or by its export."""
    run, out = fine_tuned
    flags = [f"--run_dir={run}"]
    if by == "saved_model":
        flags = [f"--saved_model={run}/export", f"--dataset=npz:{place}/set.npz"]
    assert cli.main(["evaluate", *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    trained = json.loads(out.splitlines()[-1])
    for key in ("accuracy", "top_5_accuracy", "mean_per_class_accuracy"):
        assert result[key] == trained[key]
    assert result["protocol"] == "classifier" and result["encoder_source"] == by


@pytest.mark.end_to_end
def test_a_fine_tuned_run_is_an_encoder_too(fine_tuned, tmp_path, capsys):
    """`evaluate --protocol=knn` and `embed` use its h; other commands say what it is in a line."""
    run, _ = fine_tuned
    assert cli.main(["evaluate", f"--run_dir={run}", "--protocol=knn"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["protocol"] == "knn"
    path = tmp_path / "h.npz"
    assert cli.main(["embed", f"--run_dir={run}", "--split=test", f"--output={path}"]) == 0
    h = export.load_exported(run / "export")(
        data.load(f"npz:{run.parent}/set.npz", "test").arrays()[0]
    )
    np.testing.assert_allclose(np.load(path)["embeddings"], h, atol=1e-5)
    capsys.readouterr()
    assert cli.main(["export", f"--run_dir={run}", f"--output={tmp_path}/1"]) == 2
    assert "export takes a run of `simclr-tf pretrain`; " in capsys.readouterr().err
    assert cli.main(["pretrain", f"--run_dir={run}"]) == 2
    assert "holds a run of `simclr-tf finetune`, not of pretrain" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_the_same_command_on_a_finished_run_prints_its_result(place, fine_tuned, capsys):
    """Nothing is trained; another flag is refused by name."""
    run, out = fine_tuned
    flags = ["--labels_per_class=8", "--from_scratch", "--learning_rate_from_scratch=0.2"]
    words = command(place, run, *flags)
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == json.loads(out.splitlines()[-1])
    assert "holds all 4 epochs" in printed.err
    assert cli.main([*words, "--weight_decay=0.1"]) == 2
    assert "other flags: --weight_decay=0.0, now --weight_decay=0.1" in capsys.readouterr().err


@pytest.fixture
def without_export(monkeypatch):
    """Runs end without a SavedModel and a score, which take longer than the training."""
    scores = {"accuracy": 0.5, "top_5_accuracy": 1.0, "mean_per_class_accuracy": 0.5}
    monkeypatch.setattr(finetune_command, "export_and_score", lambda *arguments: scores)


def encoder_of_one_layer(options, image_size):
    """In place of `build.build_encoder`: quick to trace."""
    return small_encoder()


@pytest.mark.end_to_end
@pytest.mark.usefixtures("two_replicas")
def test_replicas_end_with_an_export(place, tmp_path, monkeypatch, capsys):
    """Which classifies as was scored."""
    monkeypatch.setattr(build, "build_encoder", encoder_of_one_layer)
    untrained_run(tmp_path / "run", place / "set.npz", 12)
    words = command(tmp_path, tmp_path / "tuned", "--strategy=mirrored", "--labels_per_class=8")
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    flags = [f"--saved_model={tmp_path}/tuned/export/1", f"--dataset=npz:{place}/set.npz"]
    assert cli.main(["evaluate", *flags]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["accuracy"] == result["accuracy"]


@pytest.mark.end_to_end
@pytest.mark.usefixtures("without_export")
def test_an_interrupted_run_ends_as_another(place, tmp_path, monkeypatch, capsys):
    """Bit for bit, stopped within the fine-tuning and then within the baseline."""
    monkeypatch.setattr(build, "build_encoder", encoder_of_one_layer)
    untrained_run(tmp_path / "run", place / "set.npz", 12)
    flags = ["--labels_per_class=8", "--from_scratch", "--checkpoint_every_steps=2"]
    assert cli.main(command(tmp_path, tmp_path / "whole", *flags)) == 0
    make_loop, stop_at = finetune_command._loop, [8]

    def stopped_once(*arguments):
        loop = make_loop(*arguments)

        def after_step(batch, logs):
            if stop_at and int(loop.model.optimizer.iterations.numpy()) == stop_at[0]:
                stop_at.pop()
                os.kill(os.getpid(), signal.SIGTERM)

        loop._callbacks.insert(0, keras.callbacks.LambdaCallback(on_train_batch_end=after_step))
        return loop

    monkeypatch.setattr(finetune_command, "_loop", stopped_once)
    words = command(tmp_path, tmp_path / "stopped", *flags)
    assert cli.main(words) == 75
    assert "keeps 2 whole epochs and 2 steps; the same command resumes" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "from_scratch").exists()
    stop_at.append(4)
    assert cli.main(words) == 75
    assert "from_scratch keeps 1 whole epochs and 1 steps" in capsys.readouterr().err
    assert cli.main(words) == 0
    for name in (".", "from_scratch"):
        ours, theirs = (weights_of(tmp_path / run / name) for run in ("stopped", "whole"))
        assert ours.keys() == theirs.keys() and len(ours) > 15
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.end_to_end
def test_every_kind_of_pretrained_encoder(place, fine_tuned, tmp_path):
    """Of a run, its export, a fine-tuned run and official weights: the same h; heads of two."""
    trained = cli.options_of_run(place / "run")
    encoder = build.load_encoder(cli.Options(image_size=None), trained).encoder
    exported = export.export_encoder(encoder, tmp_path / "export" / "1")
    head = ProjectionHead(output_dim=4, layers=3)
    head.build((None, 32))
    official = Official(encoder, head).save_checkpoint(tmp_path / "official")
    h = encoder(IMAGES / np.float32(255)).numpy()
    for path, run, has_head in (
        (place / "run", trained, True),
        (exported.parent, None, False),
        (official, None, True),
        (fine_tuned[0], cli.options_of_run(fine_tuned[0]), False),
    ):
        found, its_head, size, _ = load_pretrained(str(path), "pretrained", run)
        same = np.allclose(found(IMAGES / np.float32(255), training=False), h, atol=1e-4)
        assert same == (path != fine_tuned[0]) and (its_head is not None) == has_head
        assert size == (32 if path == official else 12)


def test_classes_are_matched_by_name():
    """A test folder without one of the classes, with one that is unknown, in another order."""
    of = classifiers._labels_of
    source = SimpleNamespace(name="folder:b", class_names=["bird", "cat", "emu"])
    assert of(source, ["ant", "bird", "cat"])(np.array([0, 1, 2, 1])).tolist() == [1, 2, 3, 2]
    assert of(source, source.class_names) is None
    assert of(SimpleNamespace(class_names=None), ["0", "1"]) is None
    with pytest.raises(UsageError, match="--dataset must have classes of the classifier"):
        of(source, ["0", "1"])


@pytest.mark.end_to_end
@pytest.mark.usefixtures("without_export")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label_fraction=0.1", "--labels_per_class=2"], "got both. Leave out one."),
        (["--learning_rate_from_scratch=0.1"], "needs --from_scratch; got it without"),
        (["--label_fraction=2"], "--label_fraction must be a finite number in"),
        (["--labels_per_class=31"], "--labels_per_class must be at most the number of examples"),
        (["--train_from=group7"], "--train_from must be a block or layer of resnet18; got"),
        (["--head_layer=2"], "--head_layer must be a hidden layer of the head, 1 to 1, or 0"),
        (["--test_split=train[:10]"], "--test_split must not share examples with --train_split"),
        (["--pretrained=nowhere"], "--pretrained must be a SavedModel's directory, a checkpoint"),
        (["--pretrained=nowhere", "--dataset="], "--dataset must be followed by its value"),
    ],
)
def test_a_mistake_is_one_line(place, tmp_path, flags, message, capsys):
    """Exit code 2, and no checkpoint, so that the run directory can be used again."""
    dataset = [f"--dataset=npz:{place}/set.npz"]
    assert cli.main(command(place, tmp_path / "run", *dataset, *flags)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.end_to_end
def test_a_run_is_needed_for_the_default_dataset(place, tmp_path, capsys):
    """One line before TensorFlow does anything."""
    words = ["finetune", "--pretrained=export", f"--run_dir={tmp_path}/run"]
    assert cli.main(words) == 2
    assert "finetune needs --dataset where --pretrained is not a run." in capsys.readouterr().err
    assert cli.main(["evaluate", f"--run_dir={place}/run", "--protocol=knn,no"]) == 2
