"""`Classifier`: its gradient against NumPy, labels that do not count, frozen blocks, replicas."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import Classifier, ProjectionHead, ResNet
from simclr_tf.data import shapes
from simclr_tf.errors import ArgumentError

IMAGES, LABELS = shapes.draw(12, 0, size=12)
SOME = np.where(np.arange(12) % 3, LABELS, -1)  # every third image has no label


def small_encoder():
    """A convolution without batch normalisation, so that examples do not affect each other."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    stack = [layers.Conv2D(6, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((12, 12, 3)), *stack])


def built_head():
    head = ProjectionHead()
    head.build((None, 6))
    return head


def compiled(encoder=None, learning_rate=1.0, **options):
    """A classifier of ten classes with plain gradient descent, compiled."""
    model = Classifier(encoder or small_encoder(), 10, **{"augment": False, "seed": 0, **options})
    model.compile(keras.optimizers.SGD(learning_rate))
    return model


def fit(model, labels, images=IMAGES, batch_size=12, **options):
    return model.fit(images, labels, batch_size, shuffle=False, verbose=0, **options).history


def test_a_built_model_traces_a_step_once():
    """Its optimizer gets its variables before the step, in which Keras 2 would trace it again."""
    traced = []

    class Counted(Classifier):
        def train_step(self, data):
            traced.append(data)
            return super().train_step(data)

    model = Counted(small_encoder(), 10, augment=False)
    model.build((None, 12, 12, 3))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    fit(model, LABELS)
    assert len(traced) == 1


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_first_step_is_the_gradient_of_the_mean_over_labelled_examples():
    """W = 0 - h^T (p - y) / n with p = 1/10: only the n labelled rows are in it."""
    encoder = small_encoder()
    h = encoder(IMAGES / np.float32(255)).numpy()
    model = compiled(encoder)
    history = fit(model, SOME)
    rows = SOME >= 0
    error = np.full([rows.sum(), 10], 0.1) - np.eye(10)[SOME[rows]]
    expected = -h[rows].T @ error / rows.sum()
    kernel, bias = model.logits_layer.get_weights()
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    np.testing.assert_allclose(bias, -error.mean(axis=0), atol=1e-6)
    assert history["loss"] == [pytest.approx(np.log(10), rel=1e-5)]
    assert history["accuracy"] == [pytest.approx(np.mean(SOME[rows] == 0))]


def test_a_batch_without_labels_changes_nothing():
    """Its loss is 0 and so is the gradient."""
    model = compiled()
    model.build((None, 12, 12, 3))
    before = model.get_weights()
    assert fit(model, np.full(12, -1))["loss"] == [0.0]
    for one, other in zip(before, model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_one_hot_labels_are_the_same_as_integers():
    """All forms that the package accepts."""
    weights = []
    for labels in (LABELS, LABELS[:, None], np.eye(10, dtype="f")[LABELS]):
        model = compiled()
        fit(model, labels)
        weights.append(model.get_weights())
    for others in weights[1:]:
        for one, other in zip(weights[0], others):
            np.testing.assert_array_equal(one, other)


def test_evaluate_and_predict_see_every_example_in_inference_mode():
    """Loss and accuracy over uneven batches are those of NumPy; images are cut to the size."""
    model = compiled(label_smoothing=0.2)
    fit(model, LABELS, epochs=2)
    logits = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(logits, model(IMAGES), atol=1e-5)
    loss, accuracy = model.evaluate(IMAGES, SOME, batch_size=5, verbose=0)
    rows = SOME >= 0
    targets = 0.8 * np.eye(10)[SOME[rows]] + 0.02
    expected = -np.sum(targets * np.log(softmax(logits[rows])), axis=1).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == pytest.approx(np.mean(logits[rows].argmax(axis=1) == SOME[rows]))
    large = np.repeat(np.repeat(IMAGES, 2, axis=1), 2, axis=2)  # resized to 12 pixels again
    assert model.evaluate(large, SOME, verbose=0)[0] == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize("head_layer", [1, 2])
def test_logits_on_a_hidden_layer_of_the_head(head_layer):
    """They read its output; the layers after it are neither trained nor used."""
    head = ProjectionHead(hidden_dim=5, output_dim=3, layers=3, batch_norm=False)
    head.build((None, 6))
    model = compiled(projection_head=head, head_layer=head_layer)
    hidden = head.hidden_outputs(model.encoder(IMAGES / np.float32(255)))[head_layer]
    unused = [layer.get_weights() for layer in head.dense_layers[head_layer:]]
    fit(model, LABELS)
    error = np.full([12, 10], 0.1) - np.eye(10)[LABELS]
    kernel = model.logits_layer.get_weights()[0]
    np.testing.assert_allclose(kernel, -hidden.numpy().T @ error / 12, atol=1e-6)
    for layer, weights in zip(head.dense_layers[head_layer:], unused):
        np.testing.assert_array_equal(layer.get_weights()[0], weights[0])
    assert len(model.trainable_variables) == 2 + 2 * head_layer + 2


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("functional", [False, True])
def test_blocks_before_train_from_do_not_change(functional):
    """Neither weights nor moving statistics, bit for bit; those from the block on do."""
    encoder = ResNet(18, width=1 / 16)
    encoder.build((None, 12, 12, 3))
    if functional:
        encoder = encoder.to_functional((12, 12, 3))
    model = compiled(encoder, 0.1, train_from="group3")

    def weights():
        layers = [encoder.stem_layers, *encoder.blocks] if not functional else encoder.layers
        return {layer.name: layer.get_weights() for layer in layers if layer.weights}

    before = weights()
    fit(model, LABELS, epochs=3)  # the gamma of a block starts at 0 and stops its gradient
    frozen = {name for name in before if name.startswith(("stem", "group1", "group2"))}
    frozen |= {name for name in before if name.startswith("_chain")}  # the stem of a ResNet
    for name, after in weights().items():
        same = all(np.array_equal(one, other) for one, other in zip(before[name], after))
        assert same == (name in frozen), name


def test_views_are_crops_and_flips_by_seed_and_step():
    """Colours stay, the seed decides, and a step does not repeat the view of another."""
    model = Classifier(small_encoder(), 10, seed=3)
    colours = np.random.default_rng(0).integers(0, 256, [12, 1, 1, 3], np.uint8)
    view = model.view((np.broadcast_to(colours, [12, 12, 12, 3]), LABELS), seed=[0, 1])
    np.testing.assert_allclose(255 * view, np.broadcast_to(colours, view.shape), atol=0.01)
    one, again, other = (model.view((IMAGES, LABELS), seed=[0, s]) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1

    def weights(seed):
        model = compiled(augment=None, seed=seed)
        fit(model, LABELS, batch_size=6)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    np.testing.assert_array_equal(weights(3), weights(3))
    assert np.abs(weights(3) - weights(4)).max() > 1e-6


def test_two_replicas_equal_one_with_labels_missing_and_a_partial_batch():
    """Views, loss, accuracy and weights; the labels are spread unevenly over the replicas."""
    labels = np.array([1, 2, 3, 4, -1, 5, -1, -1, 6, -1, 7])  # 11: batches of 8 and 3
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES[:11], labels)).batch(8)
    results = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            model = compiled(small_encoder(), augment=None)
        history = model.fit(dataset, epochs=2, verbose=0).history
        evaluated = model.evaluate(dataset, verbose=0)
        results.append([history["loss"], history["accuracy"], evaluated, *model.get_weights()])
    for one, two in zip(*results):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_whole_images_are_cropped_within_their_extent():
    """The padding of a batch with "extent" is never in a view."""
    model = Classifier(ResNet(18, width=1 / 16), 10)
    model.build((None, 8, 8, 3))
    images = np.full([4, 12, 12, 3], 255, np.uint8)
    extent = np.array([[12, 6], [6, 12], [5, 5], [12, 12]], np.int32)
    for image, (height, width) in zip(images, extent):
        image[:height, :width] = 100
    batch = {"image": images, "label": LABELS[:4], "extent": extent}
    view = model.view(batch, seed=[0, 0])
    assert view.shape == (4, 8, 8, 3)
    np.testing.assert_allclose(255 * view, 100, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2; got 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be .* in \[0, 1\); got 1.0"),
        ({"head_layer": 1}, "head_layer=1 needs the projection head, built; got .*=None"),
        ({"head_layer": 1, "projection_head": ProjectionHead()}, "got .*=one that is not built"),
        ({"head_layer": 2, "projection_head": built_head()}, "1 to 1, or 0 for h; got 2"),
        ({"augment": "crop"}, "augment must be a callable"),
        ({"train_from": "group9"}, "train_from must be a block or layer of .*; got 'group9'"),
    ],
)
def test_wrong_arguments(options, message):
    """One line: the rule, the value, the way out."""
    with pytest.raises(ArgumentError, match=message):
        Classifier(small_encoder(), **{"num_classes": 10, **options}).build((None, 12, 12, 3))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, None, "a batch must have labels; got images alone"),
        (IMAGES, LABELS + 5, r"labels must be -1 \(no label\) or lie in \[0, num_classes\)"),
        (IMAGES, LABELS - 9, r"labels must be -1 \(no label\) or lie in \[0, num_classes\)"),
        (IMAGES, LABELS.astype("f"), r"labels must be integers \[B\] or one-hot \[B, 10\]"),
        (IMAGES.astype("f"), LABELS, r"float images must lie in \[0, 1\]"),
    ],
)
def test_wrong_batches(images, labels, message):
    """From `fit`, whatever Keras makes of them."""
    with pytest.raises(ArgumentError, match=message):
        compiled().fit(images, labels, verbose=0)


def test_losses_and_weights_of_examples_are_refused():
    """Rather than ignored."""
    with pytest.raises(ArgumentError, match="has its own loss"):
        compiled().compile("sgd", loss="mse")
    with pytest.raises(ArgumentError, match=r"no class_weight; got one\. Label"):
        compiled().fit(IMAGES, LABELS, class_weight={0: 1.0}, verbose=0)
