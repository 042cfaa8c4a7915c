"""Fine-tuning: a classifier trained as Keras does it, few labels, replicas, frozen layers."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import augment, data
from simclr_tf.evaluate import extract_features, finetune
from simclr_tf.models import Classifier

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, [22, 8, 8, 3], np.uint8)
LABELS = RNG.integers(0, 3, 22)


def encoder_of(batch_norm=False):
    keras.utils.set_random_seed(1)
    norm = [keras.layers.BatchNormalization(momentum=0.8)] if batch_norm else []
    stack = [keras.layers.Conv2D(6, 3, activation="relu"), *norm]
    stack += [keras.layers.Conv2D(5, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3)), *stack])


def trained(replicas=1, images=IMAGES, labels=LABELS, view=False, seed=3, **arguments):
    """A classifier after two epochs of batches of 8, the last of which has 6."""
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        model = Classifier(encoder_of(), 3, view, seed)
        model.build((None, 8, 8, 3))
        model.compile(optimizer=keras.optimizers.SGD(0.5, momentum=0.9), **arguments)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    history = model.fit(batches, epochs=2, verbose=0).history
    return [np.array(w) for w in model.get_weights()], history, model


def assert_close(many, one):
    for got, expected in zip(many, one):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_classifier_is_what_keras_trains_with_a_dense_layer(run_eagerly):
    """Weights, loss and accuracy of `keras.Sequential` with Keras's own loss."""
    dense = keras.layers.Dense(3, kernel_initializer="zeros")
    theirs = keras.Sequential([keras.layers.Rescaling(1 / 255), *encoder_of().layers, dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    theirs.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensor_slices((tf.cast(IMAGES, tf.float32), LABELS)).batch(8)
    expected = theirs.fit(batches, epochs=2, verbose=0).history
    weights, history, _ = trained(run_eagerly=run_eagerly)
    assert_close(weights, theirs.get_weights())
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(history["accuracy"], expected["accuracy"], rtol=1e-6)
    assert np.abs(weights[0] - encoder_of().get_weights()[0]).max() > 1e-3, "nothing was trained"


def test_images_without_a_label_do_not_count():
    """Label -1, in the gradient, the loss and the accuracy."""
    some = np.where(np.arange(22) % 8 < 3, -1, LABELS)
    kept = np.flatnonzero(some >= 0)
    batches = [kept[(kept >= i) & (kept < i + 8)] for i in (0, 8, 16)]
    model = Classifier(encoder_of(), 3, augment=False)
    model.compile(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))

    def without():
        for rows in batches * 2:
            yield IMAGES[rows], LABELS[rows]

    model.fit(without(), steps_per_epoch=3, epochs=2, verbose=0)
    weights = trained(labels=some)[0]
    assert_close(weights, model.get_weights())
    only = trained(images=IMAGES[:8], labels=np.full(8, -1))
    assert only[1]["loss"] == [0.0, 0.0], "no label, no loss"
    assert_close(only[0][:-2], encoder_of().get_weights())


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_train_as_one_device(replicas):
    """With crops and flips, unlabelled images and a last batch that they share unevenly."""
    some = np.where(np.arange(22) % 5 == 0, -1, LABELS)
    view = augment.Compose([augment.RandomCropResize(8), augment.RandomFlip()])
    one, many = (trained(n, labels=some, view=view) for n in (1, replicas))
    assert_close(many[0], one[0])
    np.testing.assert_allclose(many[1]["loss"], one[1]["loss"], rtol=1e-4)


def test_a_seed_gives_the_same_views_and_weights():
    same = [trained(view=None)[0] for _ in range(2)]
    for one, other in zip(*same):
        np.testing.assert_array_equal(one, other)
    assert np.abs(trained(view=None, seed=4)[0][0] - same[0][0]).max() > 1e-6


def test_a_classifier_is_saved_and_loaded(tmp_path):
    model = trained(view=None)[2]
    model.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "classifier.keras")
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-6, atol=1e-6)
    assert loaded.augment is None and loaded.seed == 3


@pytest.mark.parametrize("labels", [[3], [-2]])
def test_labels_out_of_range_are_an_error(labels):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"in \[0, 3\)"):
        trained(images=IMAGES[:1], labels=labels)


def coloured(count, seed):
    """Images of three colours with noise, as a `data.Source` with the labels 1, 3 and 5."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = 60 * np.eye(3)[labels][:, None, None] + rng.uniform(0, 190, (count, 8, 8, 3))
    return images.astype(np.uint8), labels * 2 + 1


def test_few_labels_of_a_source_and_the_encoder_stays_as_it_is(tmp_path):
    """A Source with a class-balanced subset; the classifier learns, its encoder is a copy."""
    (x_train, y_train), (x_test, y_test) = coloured(60, 0), coloured(31, 1)
    np.savez(tmp_path / "set.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    name = f"npz:{tmp_path / 'set.npz'}"
    train = data.load(name, "train", labels_per_class=4)
    test = data.load(name, "test", image_size=train.image_size)
    encoder = encoder_of(batch_norm=True)
    encoder.layers[0].trainable = False  # the copy is trained as a whole all the same
    before = encoder.get_weights()
    result = finetune(encoder, train, test, epochs=60, learning_rate=4.0)
    for one, other in zip(encoder.get_weights(), before):
        np.testing.assert_array_equal(one, other)
    copied = encoder_of(batch_norm=True).get_weights()[0]
    assert np.abs(result.classifier.encoder.get_weights()[0] - copied).max() > 1e-3
    assert result.accuracy > 0.8 and result.classes.tolist() == [1, 3, 5]
    logits = extract_features(result.classifier, [(x_test, y_test)]).h
    np.testing.assert_array_equal(result.predicted, result.classes[logits.argmax(1)])
    assert result.accuracy == np.mean(result.predicted == y_test)
    assert int(result.classifier.optimizer.iterations) == 60 * train.steps_per_epoch(12)
    again = finetune(encoder, train, test, epochs=60, learning_rate=4.0)
    np.testing.assert_array_equal(again.predicted, result.predicted)


def test_layers_before_a_name_are_frozen_with_their_statistics():
    images, labels = coloured(24, 0)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    encoder = simclr_tf.ResNet(18, width=1 / 16)
    encoder(np.zeros([1, 8, 8, 3], "f"))
    network = finetune(
        encoder, batches, batches, epochs=2, learning_rate=1.0, train_from="group3"
    ).classifier.encoder
    network.trainable = True  # for the order of `get_weights`
    first = [layer.name.startswith("group3") for layer in network.layers].index(True)
    for i, (layer, other) in enumerate(zip(network.layers, encoder.layers)):
        same = [np.array_equal(a, b) for a, b in zip(layer.get_weights(), other.get_weights())]
        assert all(same) if i < first else not same or not all(same), layer.name
    with pytest.raises(ValueError, match=r"train_from must be the beginning .* got 'block'"):
        finetune(encoder, batches, batches, train_from="block")


def test_from_scratch_the_weights_of_the_encoder_do_not_matter():
    images, labels = coloured(24, 0)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    encoder = encoder_of()
    results = []
    for scale in (1.0, 0.0):
        encoder.set_weights([scale * w for w in encoder.get_weights()])
        keras.utils.set_random_seed(5)
        result = finetune(encoder, batches, batches, epochs=1, from_scratch=True)
        results.append(result.classifier.get_weights())
    for one, other in zip(*results):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (IMAGES, LABELS)}, "train must be a data.Source or a tf.data.Dataset"),
        ({"epochs": 0}, "epochs must"),
        ({"learning_rate": float("nan")}, "learning_rate must"),
        ({"encoder": keras.layers.Dense(3)}, "encoder must be a keras.Model"),
    ],
)
def test_a_wrong_argument_is_one_line(changes, message):
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    arguments = {"encoder": encoder_of(), "train": batches, "test": batches, **changes}
    with pytest.raises(ValueError, match=message):
        finetune(**arguments)
