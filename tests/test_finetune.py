"""Fine-tuning: `evaluate.finetune`, and `simclr-tf finetune` from flags to an export."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import Classifier, ProjectionHead, ResNet, data, evaluate, export
from simclr_tf.data import shapes
from simclr_tf.errors import ArgumentError, ExportError
from simclr_tf.export import classifier as export_classifier_module

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
    norm = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
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


def test_it_learns_from_few_labels_and_from_scratch_starts_anew(encoder):
    """Dark against light images are learnt; the baseline does not start at the given weights."""
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
    right.layers[-1].set_weights([kernel + 0.01, *rest])
    monkeypatch.setattr(export_classifier_module, "functional_logits", lambda _: right)
    with pytest.raises(ExportError, match=r"differs from the encoder by .* number of logits"):
        export.export_classifier(classifier, tmp_path / "1")
    assert not list(tmp_path.iterdir())
