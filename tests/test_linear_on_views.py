"""The linear layer on crops and flips: frozen encoder, every example, replicas, a plain loop."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import augment, data
from simclr_tf.augment.random import fold_in
from simclr_tf.evaluate import extract_features, linear_classifier, linear_probe


def encoder_of(size=8):
    layers = keras.layers
    stack = [layers.Conv2D(6, 3, activation="relu"), layers.BatchNormalization()]
    stack += [layers.Dropout(0.5), layers.GlobalAveragePooling2D()]
    net = keras.Sequential([keras.Input((size, size, 3)), *stack])
    net.layers[1].set_weights([np.linspace(0.5, 2, 6), *np.zeros((2, 6)), np.full(6, 0.3)])
    return net


def coloured(count=44, size=8, seed=0):
    """Images of three colours with noise; batches of 12, the last of which has 8."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = 60 * np.eye(3)[labels][:, None, None] + rng.uniform(0, 190, (count, size, size, 3))
    return images.astype(np.uint8), labels * 2 + 1


def batches(images, labels, size=12):
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, len(images), size)]


def plain_loop(net, train, optimizer, rate, epochs, seed=0):
    """The same training written out in NumPy: softmax regression on h of the views."""
    crop = augment.RandomCropResize(8, (0.08, 1.0))
    view = augment.Compose([crop, augment.RandomFlip()])
    w, b = np.zeros((6, 3)), np.zeros(3)
    v_w, v_b = np.zeros_like(w), np.zeros_like(b)
    total, step = epochs * len(train), 0
    for _ in range(epochs):
        for images, labels in train:
            views = view(images, seed=fold_in(augment.as_seed(seed), step))
            h = net(views, training=False).numpy().astype(np.float64)
            targets = np.eye(3)[(labels - 1) // 2]
            p = np.exp(h @ w + b)
            p /= p.sum(1, keepdims=True)
            g_w, g_b = h.T @ (p - targets) / len(h), (p - targets).mean(0)
            lr = rate * (1 + np.cos(np.pi * step / total)) / 2
            trust = 1.0
            if optimizer == "lars" and np.linalg.norm(w):
                trust = 1e-3 * np.linalg.norm(w) / np.linalg.norm(g_w)
            v_w, v_b = 0.9 * v_w + lr * trust * g_w, 0.9 * v_b + lr * g_b
            look = 0.9 if optimizer == "nesterov" else 0.0
            w -= look * v_w + lr * trust * g_w if look else v_w
            b -= look * v_b + lr * g_b if look else v_b
            step += 1
    return w, b


@pytest.mark.parametrize("optimizer", ["nesterov", "lars"])
def test_it_is_the_plain_loop(optimizer):
    """Rate, schedule, momentum, crops, the last partial batch: as in a loop in NumPy."""
    net, train = encoder_of(), batches(*coloured())
    result = linear_classifier(net, train, train, epochs=3, optimizer=optimizer, learning_rate=30.0)
    w, b = plain_loop(net, train, optimizer, 30.0 * 12 / 256, 3)
    np.testing.assert_allclose(result.kernel, w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.bias, b, rtol=1e-3, atol=1e-4)
    h = extract_features(net, train)
    logits = h.h @ w + b
    np.testing.assert_array_equal(result.predicted, np.array([1, 3, 5])[logits.argmax(1)])
    assert result.accuracy == np.mean(result.predicted == h.labels)
    assert result.top_5_accuracy == 1.0 and result.classes.tolist() == [1, 3, 5]


@pytest.mark.parametrize("form", ["probe", "views"])
def test_the_encoder_stays_as_it_is_bit_for_bit(form):
    """All weights of a ResNet, moving statistics included, in both forms of linear evaluation."""
    net = simclr_tf.ResNet(18, width=1 / 16)
    net.build((None, 8, 8, 3))
    train = batches(*coloured())
    before = [weight.numpy() for weight in net.weights]
    if form == "probe":
        features = extract_features(net, train)
        linear_probe(features.h, features.labels, features.h, features.labels)
    else:
        linear_classifier(net, train, train, epochs=2)
    assert len(before) == len(net.weights) > 60
    for weight, value in zip(net.weights, before):
        assert weight.numpy().tobytes() == value.tobytes()


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_train_the_same_layer(replicas):
    """The last batch of 8, and batches that the replicas do not divide, count to the last image."""
    net, train = encoder_of(), batches(*coloured(), size=13)  # 13, 13, 13, 5
    test = batches(*coloured(29, seed=3), size=10)
    alone = linear_classifier(net, train, test, epochs=2, learning_rate=30.0)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")][:replicas]
    strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        together = linear_classifier(net, train, test, epochs=2, learning_rate=30.0)
    np.testing.assert_allclose(together.kernel, alone.kernel, rtol=1e-4, atol=1e-5)
    assert len(together.predicted) == 29 and together.accuracy == alone.accuracy
    assert together.loss == pytest.approx(alone.loss, rel=1e-4)


def test_unlabelled_examples_do_not_count():
    """In the training set they weigh nothing, in the test set they are not scored."""
    images, labels = coloured()
    net, one_hot = encoder_of(), [(x, np.eye(6)[y]) for x, y in batches(images, labels)]
    expected = linear_classifier(net, one_hot, batches(images, labels), epochs=2)
    noise = np.zeros((4, 8, 8, 3), np.uint8)
    mixed = [
        (np.concatenate([x, noise]), np.append(y, np.full(4, -1)))
        for x, y in batches(images, labels)
    ]
    found = linear_classifier(net, mixed, mixed, epochs=2, learning_rate=0.1 * 12 / 16)
    np.testing.assert_allclose(found.kernel, expected.kernel, rtol=1e-4, atol=1e-6)
    assert found.accuracy == expected.accuracy and len(found.predicted) == 60


def test_a_source_is_read_in_another_order_each_epoch():
    """And the same seed gives the same layer again."""
    train, test = (
        data.load("shapes", split, image_size=8) for split in ("train[:60]", "test[:31]")
    )
    net = encoder_of()
    first, again, other = (
        linear_classifier(net, train, test, epochs=2, batch_size=16, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.kernel, again.kernel)
    assert not np.array_equal(first.kernel, other.kernel) and len(first.predicted) == 31
    seen = []

    def spy(batch, training=None):
        return tf.reduce_mean(batch, [1, 2])

    def epochs(*arguments, **keywords):
        seen.append(arguments[2])
        return type(train).epochs(train, *arguments, **keywords)

    train.epochs = epochs
    linear_classifier(spy, train, test, epochs=3, batch_size=16)
    assert seen == [0, 1, 2]


def test_crops_stay_within_an_images_extent():
    """What pads images of several sizes into one batch is neither trained on nor scored."""
    (images, labels), net = coloured(12), encoder_of()
    kernels = []
    for fill in (0, 255):
        padded = np.full((12, 11, 11, 3), fill, np.uint8)
        padded[:, :8, :8] = images
        batch = {"image": padded, "extent": np.full((12, 2), 8), "label": labels}
        result = linear_classifier(net, [batch], [batch], epochs=2, image_size=8)
        kernels.append(result.kernel)
    np.testing.assert_array_equal(*kernels)
    assert np.abs(kernels[0]).max() > 0


def test_what_it_cannot_train_on_is_named():
    net, train = encoder_of(), batches(*coloured())
    for change, message in (
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"optimizer": "adam"}, "optimizer must be one of nesterov, lars; got 'adam'"),
        ({"min_crop_area": 2.0}, "min_crop_area must be a finite number in"),
        ({"train": [train[0][0]]}, "train must have labels"),
        ({"train": []}, "train must hold at least one image"),
        ({"train": [(train[0][0], np.ones(12, int))]}, "two classes or more; got only label 1"),
        ({"test": [(train[0][0], -np.ones(12, int))]}, "test_labels must hold a label"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_classifier(
                **{"encoder": net, "train": train, "test": train, "epochs": 1, **change}
            )
