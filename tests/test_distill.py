"""Distillation: the loss, `models.Distillation`, and `simclr-tf distill` up to its export."""

import json
import os
import re
import signal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from runs import untrained_run, weights_of
from simclr_tf import Classifier, augment, cli, data, export, losses
from simclr_tf.commands import build
from simclr_tf.commands import distill as distill_command
from simclr_tf.data import shapes
from simclr_tf.errors import ArgumentError
from simclr_tf.export import load_exported
from simclr_tf.models import Distillation

IMAGES, LABELS = shapes.draw(16, 0, size=12)
LABELS = LABELS % 3
RNG = np.random.default_rng(0)


def softmax(x):
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_cross_entropy_of_two_softmaxes(temperature):
    """Value and gradient by hand; at the teacher's own logits it is their entropy."""
    student, teacher = RNG.normal(size=[2, 5, 4])
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    logits = tf.Variable(student)
    with tf.GradientTape() as tape:
        tape.watch(fixed := tf.constant(teacher))
        loss = losses.distillation_loss(logits, fixed, temperature)
    np.testing.assert_allclose(loss, -(p * np.log(q)).sum(1), rtol=1e-5)
    by_student, by_teacher = tape.gradient(loss, [logits, fixed])
    np.testing.assert_allclose(by_student, (q - p) / temperature, atol=1e-6)
    assert by_teacher is None
    own = losses.distillation_loss(teacher, teacher, temperature)
    np.testing.assert_allclose(own, -(p * np.log(p)).sum(1), rtol=1e-5)
    with pytest.raises(ArgumentError, match="temperature must be"):
        losses.distillation_loss(student, teacher, 0.0)


def encoder_of_one_layer(*_):
    """In place of `build.build_encoder`: quick to trace."""
    layers = keras.layers
    stack = [layers.Conv2D(6, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((12, 12, 3)), *stack])


def teach(images):
    """Three classes by the mean colour of an image."""
    return 4.0 * tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2])


def model_of(label_weight=0.0, view=False, rate=0.1, **arguments):
    """A compiled model whose logits are not 0."""
    keras.utils.set_random_seed(1)
    student = Classifier(encoder_of_one_layer(), 3, augment=view, seed=2)
    student.build((None, 12, 12, 3))
    student.logits_layer.set_weights([np.cos(np.arange(18.0)).reshape(6, 3), np.zeros(3)])
    model = Distillation(student, teach, label_weight=label_weight, **arguments)
    model.compile(keras.optimizers.SGD(rate))
    return model


def test_a_built_student_has_a_step_traced_once():
    """Its optimizer gets its variables before the step, in which Keras 2 would trace it again."""
    traced = []

    def teach_and_count(images):
        traced.append(images)
        return teach(images)

    student = Classifier(encoder_of_one_layer(), 3, augment=False)
    student.build((None, 12, 12, 3))
    model = Distillation(student, teach_and_count)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(IMAGES, batch_size=8, verbose=0)
    assert len(traced) == 1


@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
def test_a_step_descends_the_mixture(label_weight):
    """(1 - w) x the mean over all images + w x the mean over those with a label."""
    labels = np.where(np.arange(16) % 4 == 1, -1, LABELS)
    model = model_of(label_weight, temperature=2.0)
    variables = model.student.trainable_variables
    before = [v.numpy() for v in variables]
    with tf.GradientTape() as tape:
        logits = model(IMAGES, training=True)
        p = tf.nn.softmax(teach(IMAGES / np.float32(255)) / 2.0)
        taught = -tf.reduce_sum(p * tf.nn.log_softmax(logits / 2.0), axis=1)
        known = labels >= 0
        right = -tf.gather(tf.nn.log_softmax(logits), np.maximum(labels, 0), batch_dims=1)
        right = tf.reduce_sum(tf.where(known, right, 0.0)) / known.sum()
        loss = (1 - label_weight) * tf.reduce_mean(taught) + label_weight * right
    gradients = tape.gradient(loss, variables)
    history = model.fit(IMAGES, labels, batch_size=16, shuffle=False, verbose=0).history
    for new, old, gradient in zip(variables, before, gradients):
        np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert history["loss"] == [pytest.approx(float(loss), rel=1e-4)]
    agree = np.argmax(logits, 1) == np.argmax(p, 1)
    assert history["agreement"] == [pytest.approx(agree.mean())]


def test_images_need_no_labels_and_the_student_learns():
    """The teacher is followed on images that it was not trained on."""
    model = model_of(rate=1.0)
    history = model.fit(IMAGES, batch_size=16, epochs=60, verbose=0).history
    assert history["agreement"][-1] > history["agreement"][0]
    assert history["loss"][-1] < history["loss"][0]
    logits = model.student(IMAGES).numpy()
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), logits, atol=1e-6)
    scores = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == LABELS))


def test_two_replicas_equal_one():
    """With labels missing, crops, and a last batch that they share unevenly."""
    labels = np.where(np.arange(16) % 3 == 0, -1, LABELS)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(10)
    view = augment.Compose([augment.RandomCropResize(12), augment.RandomFlip()])
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    several = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    results = []
    for strategy in (tf.distribute.get_strategy(), several):
        with strategy.scope():
            model = model_of(0.4, view)
        history = model.fit(batches, epochs=2, verbose=0).history
        results.append((model.student.get_weights(), history))
    for one, two in zip(results[0][0], results[1][0]):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
    for name, values in results[0][1].items():
        np.testing.assert_allclose(results[1][1][name], values, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": encoder_of_one_layer}, "student must be a Classifier; got a function"),
        ({"teacher": 3}, "teacher must be a callable"),
        ({"temperature": 0}, "temperature must be"),
        ({"label_weight": 1.5}, "label_weight must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    """One line each."""
    student = Classifier(encoder_of_one_layer(), 3)
    with pytest.raises(ArgumentError, match=message):
        Distillation(**{"student": student, "teacher": teach, **arguments})


def test_labels_outside_a_subset_are_hidden(tmp_path):
    """`data.load(keep_unlabelled=True)`: all images, cached or not, the chosen ones labelled."""
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS)
    for cache_bytes in (0, 2**20):
        load = {"name": f"npz:{tmp_path}/a.npz", "cache_bytes": cache_bytes}
        whole = data.load(**load, labels_per_class=2, label_seed=5, keep_unlabelled=True)
        chosen = data.load(**load, labels_per_class=2, label_seed=5)
        images, labels, ids = whole.arrays()
        np.testing.assert_array_equal(images, IMAGES)
        assert sorted(labels[labels >= 0]) == [0, 0, 1, 1, 2, 2]
        assert set(ids[labels >= 0]) == set(chosen.arrays()[2])
        np.testing.assert_array_equal(whole.labels(), labels)


# -- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_runs):
    """A directory with set.npz, three classes of 12 pixels, "run", and "teacher", fine-tuned."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pixels = (rng.random([120, 12, 12, 3]) * 60 + 90 * labels[:, None, None, None]).astype(np.uint8)
    arrays = {"x_train": pixels[:90], "y_train": labels[:90]}
    np.savez(place / "set.npz", **arrays, x_test=pixels[90:], y_test=labels[90:])
    untrained_run(place / "run", place / "set.npz", 12)
    words = [f"--pretrained={place}/run", f"--run_dir={place}/teacher", "--labels_per_class=8"]
    words += ["--precision=float32", "--epochs=4", "--batch_size=10"]
    assert cli.main(["finetune", *words]) == 0
    return place


def command(place, run_dir, *flags):
    """Words of a small distillation into an encoder of another width."""
    words = ["distill", f"--teacher={place}/teacher", f"--run_dir={run_dir}", "--width=0.03125"]
    return [*words, "--precision=float32", "--epochs=2", "--batch_size=20", *flags]


@pytest.mark.end_to_end
def test_a_run_ends_with_a_table_and_is_read_back(place, tmp_path, capsys):
    """Teacher and student beside each other; the export has the teacher's classes."""
    flags = ["--label_weight=0.5", "--labels_per_class=8"]
    assert cli.main(command(place, tmp_path / "run", *flags)) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    rows = [line.split() for line in out.splitlines() if "%" in line]
    assert [row[0] for row in rows] == ["teacher", "student"]
    assert rows[0][1] == f"{100 * result['accuracy_of_teacher']:.2f}"
    assert rows[1][1] == f"{100 * result['accuracy']:.2f}"
    assert (result["labels"], result["train_examples"], result["test_examples"]) == (24, 90, 30)
    assert result["settings"]["width"] == 0.03125 and result["settings"]["epochs"] == 2
    exported = load_exported(tmp_path / "run" / "export" / "1")
    assert exported.class_names == ["0", "1", "2"] and exported.embedding_dim == 16
    assert cli.main(["evaluate", f"--run_dir={tmp_path}/run"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["accuracy"] == result["accuracy"]
    assert cli.main(command(place, tmp_path / "run", *flags, "--learning_rate=0.2")) == 2
    assert "other flags: --learning_rate=0.1, now --learning_rate=0.2" in capsys.readouterr().err


@pytest.mark.end_to_end
@pytest.mark.usefixtures("two_replicas")
def test_replicas_end_with_an_export(place, tmp_path, monkeypatch, capsys):
    """Which classifies as was scored."""
    monkeypatch.setattr(distill_command, "build_encoder", encoder_of_one_layer)
    assert cli.main(command(place, tmp_path / "run", "--strategy=mirrored")) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    flags = [f"--saved_model={tmp_path}/run/export/1", f"--dataset=npz:{place}/set.npz"]
    assert cli.main(["evaluate", *flags]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["accuracy"] == result["accuracy"]


@pytest.mark.end_to_end
def test_a_student_starts_from_trained_weights(place, tmp_path, monkeypatch, capsys):
    """--init_from takes a run; its encoder, bit for bit."""
    students = []

    def stop(options, strategy, task, directory, model):
        students.append(model.student)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill_command, "_loop", stop)
    flags = [f"--init_from={place}/run", "--width=0.0625"]
    assert cli.main(command(place, tmp_path / "new", *flags)) == 130
    trained = cli.options_of_run(place / "run")
    source = build.load_encoder(cli.Options(image_size=None), trained).encoder
    for a, b in zip(students[0].encoder.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert f"the weights of the encoder are those of {place}/run.\n" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_an_interrupted_run_ends_as_another(place, tmp_path, monkeypatch, capsys):
    """Bit for bit."""
    monkeypatch.setattr(distill_command, "build_encoder", encoder_of_one_layer)
    scores = {"accuracy": 0.5, "top_5_accuracy": 1.0, "mean_per_class_accuracy": 0.5}
    monkeypatch.setattr(distill_command, "export_and_score", lambda *arguments: scores)
    monkeypatch.setattr(distill_command, "score_exported", lambda *arguments: scores)
    flags = ["--checkpoint_every_steps=2"]
    assert cli.main(command(place, tmp_path / "whole", *flags)) == 0
    make_loop, stop_at = distill_command._loop, [6]

    def stopped_once(*arguments):
        loop = make_loop(*arguments)

        def after_step(batch, logs):
            if stop_at and int(loop.model.optimizer.iterations.numpy()) == stop_at[0]:
                stop_at.pop()
                os.kill(os.getpid(), signal.SIGTERM)

        loop._callbacks.insert(0, keras.callbacks.LambdaCallback(on_train_batch_end=after_step))
        return loop

    monkeypatch.setattr(distill_command, "_loop", stopped_once)
    assert cli.main(command(place, tmp_path / "stopped", *flags)) == 75
    assert "1 whole epochs and 2 steps" in capsys.readouterr().err
    assert cli.main(command(place, tmp_path / "stopped", *flags)) == 0
    ours, theirs = (weights_of(tmp_path / run) for run in ("stopped", "whole"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--teacher={place}/run", r"--teacher must be a fine-tuned classifier; .* run of pretrain"),
        ("--teacher={place}/encoder", r"--teacher must be a fine-tuned classifier; .* is an encod"),
        ("--teacher={place}/nothing --dataset=shapes", r"--teacher must be .*nothing"),
        (
            "--teacher={place}/teacher/export",
            r"needs --dataset where --teacher is not",
        ),
        ("--labels_per_class=3", r"needs --label_weight above 0 to use labels"),
        ("--label_fraction=0.1 --labels_per_class=3", r"exclude each other"),
        ("--label_weight=2", r"--label_weight must be"),
        ("--batch_size=91", r"--batch_size must be|batch_size must be at most|90"),
    ],
)
def test_a_mistake_is_one_line(place, tmp_path, flags, message, capsys):
    """Exit code 2, and no run is begun."""
    if "encoder" in flags and not (place / "encoder").exists():
        encoder = encoder_of_one_layer()
        export.export_encoder(encoder, place / "encoder" / "1")
    words = command(place, tmp_path / "new", *flags.format(place=place).split())
    if "encoder" in flags:
        words.append(f"--dataset=npz:{place}/set.npz")
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "new" / "checkpoints").exists()
