"""Steps of several views, of several sizes, with an objective of one's own; what `fit` takes."""

import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import reference
import simclr_tf
from simclr_tf import ProjectionHead, SimCLR, _keras, augment, errors
from simclr_tf.devices import convolves_nothing

RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, [16, 8, 8, 3], np.uint8)


def encoder_of(batch_norm=False, *more, regularizer=None, activity=None):
    """Images of any size to [B, 6]; the same weights each time."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    steps = [layers.Conv2D(6, 3, kernel_regularizer=regularizer, activity_regularizer=activity)]
    steps += [layers.BatchNormalization()] if batch_norm else []
    steps += [layers.Activation("tanh"), *more, layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((None, None, 3)), *steps])


def model_of(augmentation, micro_batch_size=None, encoder=None, built=True, eager=False, **kwargs):
    """A compiled model, the same each time."""
    keras.utils.set_random_seed(0)
    head = ProjectionHead(output_dim=4, batch_norm=False)
    encoder = encoder or encoder_of()
    model = SimCLR(encoder, head, augmentation, 0.2, micro_batch_size, seed=3, **kwargs)
    model.compile(optimizer=keras.optimizers.SGD(0.05), run_eagerly=eager)
    return build(model) if built else model


def build(model):
    """Makes all variables, those of the optimizer too."""
    model.build((None, 8, 8, 3))
    model.optimizer.build(model.trainable_variables)
    return model


class Centre(augment.Operator):
    """The centre of 6 pixels: a small view that is quickly traced."""

    def draw(self, draw):
        return {}

    def apply(self, images, parameters):
        return images[:, 1:7, 1:7]


def multi_crop():
    """Two views of 8 pixels and one of 6 between them."""
    return [augment.RandomFlip(), Centre(), augment.RandomFlip()]


def batches(batch_size=8):
    data = tf.data.Dataset.from_tensor_slices(IMAGES)
    return data.batch(batch_size, drop_remainder=len(IMAGES) % batch_size == 0)


def test_a_step_of_three_views_is_their_nt_xent():
    """Sizes of their own, in the order of the list; z, loss and gradient by hand."""
    model = model_of(multi_crop(), built=False)
    views = model.views(IMAGES[:8], model._step_seed(0))
    assert [view.shape[1] for view in views] == [8, 6, 8]
    model.build((None, 8, 8, 3))
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        z = tf.stack([model.projection_head(model.encoder(v, training=True)) for v in views])
        loss = simclr_tf.nt_xent(z, temperature=0.2)
    gradients = tape.gradient(loss, model.trainable_variables)
    logs = model.train_on_batch(IMAGES[:8], return_dict=True)
    assert logs["loss"] == pytest.approx(reference.nt_xent_of_views(z.numpy(), 0.2), rel=1e-5)
    for old, new, gradient in zip(before, model.trainable_variables, gradients):
        np.testing.assert_allclose(new, old - 0.05 * gradient, rtol=1e-4, atol=1e-5)


def test_the_seed_of_a_view_is_that_of_its_step_and_its_number():
    """fold_in(fold_in(seed, step), view)."""
    family = augment.RandomFlip()
    model = model_of([family] * 3)
    views = model.views(IMAGES, model._step_seed(5))
    step = augment.random.fold_in(augment.as_seed(3), 5)
    for number, view in enumerate(views):
        np.testing.assert_array_equal(view, family(IMAGES, augment.random.fold_in(step, number)))
    assert np.abs(views[0] - views[1]).max() > 0


@pytest.mark.parametrize("batch_size", [6, 7])
def test_micro_batches_of_three_views_have_the_gradient_of_the_whole(batch_size):
    """Static batches, and a last one that is smaller (7, 7, 2)."""
    data = batches(7)
    if batch_size == 6:
        data = tf.data.Dataset.from_tensor_slices(IMAGES[:12]).batch(6, drop_remainder=True)
    results = []
    for micro_batch_size in (None, 6):
        model = model_of(multi_crop(), micro_batch_size, eager=micro_batch_size is None)
        history = model.fit(data, verbose=0)
        results.append((history.history["loss"], model.get_weights()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    for whole, parts in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_micro_batches_count_regularisation_losses():
    """The penalty of a layer's weights has its full gradient."""
    weights = []
    for micro_batch_size in (None, 4):
        encoder = encoder_of(regularizer=keras.regularizers.L2(1.0))
        eager = micro_batch_size is None
        model = model_of(augment.RandomFlip(), micro_batch_size, encoder, eager=eager)
        model.fit(batches(), verbose=0)
        weights.append(model.get_weights())
    for whole, parts in zip(*weights):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    unregularised = model_of(augment.RandomFlip(), eager=True)
    unregularised.fit(batches(), verbose=0)
    assert np.abs(unregularised.get_weights()[0] - weights[0][0]).max() > 1e-3


def test_micro_batches_draw_the_numbers_of_the_whole_batch():
    """Layers that draw from a state do so alike in both passes; one micro-batch is the batch."""
    if _keras.IS_KERAS_2:
        pytest.skip("layers of Keras 2 have no such state: see the next test")
    results = []
    for micro_batch_size in (None, 16):
        keras.utils.set_random_seed(0)
        encoder = encoder_of(False, keras.layers.Dropout(0.5, seed=3))
        model = model_of(augment.RandomFlip(), micro_batch_size, encoder)
        model.compile(optimizer="sgd")
        model.fit(batches(), verbose=0)
        results.append(model.get_weights())
    for whole, parts in zip(*results):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not _keras.IS_KERAS_2, reason="layers of Keras 3 draw from a state")
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 6])
def test_regularisation_losses_of_all_sizes_of_views(micro_batch_size, run_eagerly):
    """A penalty of activations counts for each pass, one of weights once: a slow sum of them."""
    encoder = encoder_of(
        regularizer=keras.regularizers.L2(0.5), activity=keras.regularizers.L2(2.0)
    )
    model = model_of(multi_crop(), micro_batch_size, encoder)
    model.compile(optimizer=keras.optimizers.SGD(0.05), run_eagerly=run_eagerly)
    views = model.views(IMAGES[:8], model._step_seed(0))
    model.build((None, 8, 8, 3))
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        z = tf.stack([model.projection_head(model.encoder(v, training=True)) for v in views])
        convolution = encoder.layers[0]
        total = simclr_tf.nt_xent(z, temperature=0.2) + 0.5 * tf.reduce_sum(convolution.kernel**2)
        for pass_of in ([views[0], views[2]], [views[1]]):
            activations = tf.nn.bias_add(
                tf.nn.conv2d(tf.concat(pass_of, 0), convolution.kernel, 1, "VALID"),
                convolution.bias,
            )
            total += 2.0 * tf.reduce_sum(activations**2) / (8 * len(pass_of))
    gradients = tape.gradient(total, model.trainable_variables)
    data = tf.data.Dataset.from_tensors(IMAGES[:8])
    model.fit(data.map(lambda x: tf.ensure_shape(x, [8, 8, 8, 3])), verbose=0)
    for old, new, gradient in zip(before, model.trainable_variables, gradients):
        np.testing.assert_allclose(new, old - 0.05 * gradient, rtol=1e-4, atol=1e-5)


class Noise(keras.layers.Layer):
    """Draws from TensorFlow's global generator."""

    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("layer", ["Dropout", "Noise"])
def test_micro_batches_refuse_layers_that_draw_random_numbers(layer, run_eagerly):
    """The two passes would differ, and the gradient be wrong."""
    if layer == "Dropout" and not _keras.IS_KERAS_2:
        pytest.skip("layers of Keras 3 draw from a state")
    random = keras.layers.Dropout(0.5) if layer == "Dropout" else Noise()
    model = model_of(augment.RandomFlip(), 4, encoder_of(False, random))
    model.compile(optimizer="sgd", run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match=r"micro_batch_size needs layers .* random numbers"):
        model.fit(batches(), verbose=0)


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_views_of_other_augmentations_are_in_range(micro_batch_size, run_eagerly):
    """A Keras layer that works on 0 to 255 is refused, and any callable; within [0, 1] they fit."""
    for family in (keras.layers.RandomBrightness(0.2), lambda images: 255.0 * images):
        model = model_of(family, micro_batch_size)
        model.compile(optimizer="sgd", run_eagerly=run_eagerly)
        with pytest.raises(errors.ArgumentError, match=r"views in \[0, 1\]; got values from -?\d"):
            model.fit(batches(), verbose=0)
    model = model_of(keras.layers.RandomBrightness(0.2, value_range=(0, 1)), micro_batch_size)
    model.compile(optimizer="sgd", run_eagerly=run_eagerly)
    model.fit(batches(), verbose=0)
    assert 0.0 <= float(tf.reduce_min(model.views(IMAGES)[0]))


def test_views_a_little_out_of_range_are_a_warning(monkeypatch):
    """Once, with both extremes; those in range give none."""
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda line, *args: lines.append(line % args))
    model_of(lambda images: 1.4 * images - 0.2).fit(batches(), epochs=2, verbose=0)
    assert len(lines) == 1
    assert re.match(
        r"augment must return views in \[0, 1\]; got values from -0.\d+ to 1.\d", lines[0]
    )
    model_of(lambda images: 0.5 * images).fit(batches(), verbose=0)
    assert len(lines) == 1


def supervised(z, batch):
    """Minus the mean cosine similarity of all pairs of one class: a simple stand-in."""
    z = tf.math.l2_normalize(z, axis=-1)
    same = tf.cast(batch.labels[:, None] == batch.labels[None, :], tf.float32)
    similarity = tf.einsum("and,bmd->nm", z, z) / z.shape[0] ** 2
    return -tf.reduce_sum(same * similarity) / tf.reduce_sum(same), {"positives": same}


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_an_objective_sees_the_labels_and_logs(micro_batch_size):
    """Labels of the batch, seeds of the views; running means of what it logs."""
    labels = np.arange(16) % 2
    seen = {}

    def objective(z, batch):
        seen.update(shape=z.shape, seeds=len(batch.seeds))
        return supervised(z, batch)

    model = model_of(augment.RandomFlip(), micro_batch_size, objective=objective)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(8, drop_remainder=True)
    history = model.fit(data, verbose=0).history
    assert sorted(history) == ["loss", "positives"]
    assert history["positives"] == [pytest.approx(0.5)]
    assert seen == {"shape": [2, 8, 4], "seeds": 2}
    arrays = model_of(augment.RandomFlip(), micro_batch_size, objective=objective)
    again = arrays.fit(IMAGES, labels, batch_size=8, shuffle=False, verbose=0).history
    assert again["loss"][0] == pytest.approx(history["loss"][0], rel=1e-5)


class Images(keras.utils.Sequence):
    """Batches of 8 as Keras's own class for them."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return IMAGES[8 * index : 8 * index + 8]


def of_unknown_shape():
    """A dataset whose images went through NumPy: not even their rank is known."""
    return batches().map(lambda x: tf.numpy_function(lambda a: a, [x], tf.uint8))


FORMS = {
    "array": lambda: IMAGES,
    "generator": lambda: (IMAGES[start : start + 8] for start in (0, 8)),
    "Sequence": Images,
    "from_generator": lambda: tf.data.Dataset.from_generator(
        lambda: iter([IMAGES[:8], IMAGES[8:]]), output_types=tf.uint8
    ),
    "numpy_function": of_unknown_shape,
    "partial": lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(8),
}


@pytest.fixture(scope="module")
def loss_of_two_steps():
    """The loss of batches whose shapes are all static."""
    return model_of(augment.RandomFlip()).fit(batches(), verbose=0).history["loss"]


# A generator is to micro-batches what a Sequence is, and from_generator what numpy_function is.
@pytest.mark.parametrize(
    ("form", "micro_batch_size"),
    [(form, None) for form in FORMS]
    + [(form, 4) for form in ("array", "Sequence", "numpy_function", "partial")],
)
def test_fit_takes_what_keras_takes(form, micro_batch_size, loss_of_two_steps):
    """One and the same two steps, whatever is known of the shapes, by a model that is not built."""
    model = model_of(augment.RandomFlip(), micro_batch_size, built=False)
    history = model.fit(
        FORMS[form](), batch_size=8 if form == "array" else None, shuffle=False, verbose=0
    ).history
    assert history["loss"] == pytest.approx(loss_of_two_steps, rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [None, 6])
def test_a_model_that_is_not_built_traces_a_step_once(micro_batch_size):
    """All variables are there before: those of the optimizer too. `evaluate` alike."""
    traced = []

    def objective(z, batch):
        traced.append(z.shape)
        return simclr_tf.nt_xent(z), {}

    model = model_of(multi_crop(), micro_batch_size, built=False, objective=objective)
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    model.fit(batches(), verbose=0)
    assert traced == [[3, 8, 4]] and model.image_shape == (8, 8, 3)
    model = model_of(augment.RandomFlip(), built=False, objective=objective)
    model.evaluate(IMAGES, batch_size=8, verbose=0)
    assert len(traced) == 2


@pytest.mark.parametrize("augmentation", ["operator", "function"])
def test_a_built_model_traces_a_step_once(augmentation):
    """Its optimizer gets its variables before the step, in which Keras 2 would trace it again."""
    traced = []

    def objective(z, batch):
        traced.append(z.shape)
        return simclr_tf.nt_xent(z), {}

    view = augment.RandomFlip() if augmentation == "operator" else lambda x: x[:, :, ::-1] / 255
    model = model_of(view, built=False, objective=objective)
    model.build((None, 8, 8, 3))
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    model.fit(batches(), verbose=0)
    assert traced == [[2, 8, 4]]


def test_an_augmentation_of_unknown_shape_takes_the_size_of_the_first_batch():
    """A NumPy function as `augment`."""
    mirrored = lambda x: tf.numpy_function(lambda a: a[:, :, ::-1], [x], tf.float32)  # noqa: E731
    model = model_of(mirrored, built=False)
    history = model.fit(batches(), verbose=0).history
    assert np.isfinite(history["loss"]).all() and model.image_shape == (8, 8, 3)


def cropped(pixels):
    """An augmentation that cuts a margin off in NumPy: nothing is known of its output."""
    return lambda x: tf.numpy_function(
        lambda a: a[:, pixels:-pixels, pixels:-pixels], [x], tf.float32
    )


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_views_of_unknown_size_after_a_prediction(micro_batch_size):
    """Of another size than the images of `predict`, and than one another."""
    model = model_of([cropped(1), cropped(2)], micro_batch_size, built=False)
    model.predict(np.zeros([2, 12, 12, 3], np.uint8), verbose=0)
    assert np.isfinite(model.fit(batches(), verbose=0).history["loss"]).all()
    assert model.image_shape == (12, 12, 3)
    larger = np.pad(IMAGES, [(0, 0), (2, 2), (2, 2), (0, 0)])
    history = model.fit(larger, batch_size=8, validation_data=IMAGES[:8], verbose=0).history
    assert np.isfinite(history["loss"] + history["val_loss"]).all()


def test_validation_data_may_be_an_array():
    """Without labels, as the training data."""
    history = model_of(augment.RandomFlip()).fit(
        IMAGES, batch_size=8, validation_data=IMAGES[:8], verbose=0
    )
    assert "val_loss" in history.history


@pytest.mark.parametrize("data", [IMAGES[:3], batches(1)], ids=["array", "dataset"])
def test_batches_of_one_image_are_refused(data):
    """They have no negatives."""
    arguments = {"batch_size": 1} if isinstance(data, np.ndarray) else {}
    with pytest.raises(ValueError, match="2 images or more"):
        model_of(augment.RandomFlip()).fit(data, verbose=0, **arguments)


def test_a_last_batch_of_one_image_does_no_harm():
    """9 images in batches of 8: the step of one image has no gradient and no NaN."""
    model = model_of(augment.RandomFlip())
    model.fit(IMAGES[:9], batch_size=8, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_saved_model_loads_within_the_scope_of_a_strategy(tmp_path):
    """Metrics are not part of the file."""
    model = model_of(augment.RandomFlip())
    model.fit(batches(), verbose=0)
    model.save(tmp_path / "model.keras")
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)


def test_a_model_checkpoint_needs_no_prediction_before(tmp_path):
    """`ModelCheckpoint` in every format of Keras, in the first `fit` of a model."""
    model = model_of(augment.RandomFlip(), built=False)
    names = ["e{epoch}.keras"] + (["e{epoch}"] if _keras.IS_KERAS_2 else [])
    checkpoints = [keras.callbacks.ModelCheckpoint(str(tmp_path / name)) for name in names]
    model.fit(batches(), callbacks=checkpoints, verbose=0)
    again = keras.models.load_model(tmp_path / "e1.keras")
    np.testing.assert_allclose(again(IMAGES), model(IMAGES), atol=1e-6)
    if not _keras.IS_KERAS_2:  # it writes no SavedModel
        return
    saved = tf.saved_model.load(str(tmp_path / "e1"))
    h = saved(tf.constant(IMAGES / np.float32(255)), training=False)
    np.testing.assert_allclose(h, model(IMAGES), atol=1e-6)


def test_a_generator_for_validation_is_read_as_keras_reads_it():
    """As many validations from six batches as in plain Keras; no batch is lost between them."""

    def validations(model):
        images = (IMAGES[start : start + 8] for start in range(6))
        pairs = images if isinstance(model, SimCLR) else ((x, np.zeros(8)) for x in images)
        data = batches() if isinstance(model, SimCLR) else batches().map(lambda x: (x, tf.zeros(8)))
        arguments = {"validation_data": pairs, "validation_steps": 2, "verbose": 0}
        return len(model.fit(data, epochs=3, **arguments).history["val_loss"])

    plain = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    plain.compile("sgd", "mse", run_eagerly=True)
    assert validations(model_of(augment.RandomFlip())) == validations(plain) > 1


def test_fit_takes_images_of_another_size_later():
    """From a Sequence, whose images have no size that Keras knows."""

    class Larger(Images):
        def __getitem__(self, index):
            return np.pad(super().__getitem__(index), [(0, 0), (2, 2), (2, 2), (0, 0)])

    model = model_of(augment.RandomCropResize(8))
    model.fit(Images(), verbose=0)
    assert np.isfinite(model.fit(Larger(), verbose=0).history["loss"]).all()


class Scale(keras.layers.Layer):
    """NT-Xent times a weight that is trained."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=[], initializer="ones")

    def call(self, z):
        return simclr_tf.nt_xent(z, temperature=0.2) * self.scale


def test_an_objective_may_have_weights():
    """At once and in micro-batches alike."""

    def scale_after_fit(micro_batch_size):
        layer = Scale()
        layer(tf.ones([2, 4, 4]))

        def objective(z, batch):
            return layer(z), {}

        model = model_of(augment.RandomFlip(), micro_batch_size, built=False, objective=objective)
        model.scale_layer = layer
        build(model).fit(batches(), verbose=0)
        return float(layer.scale)

    scales = [scale_after_fit(micro_batch_size) for micro_batch_size in (None, 4)]
    assert scales[0] != 1.0 and scales[1] == pytest.approx(scales[0], rel=1e-5)


@pytest.mark.parametrize("argument", ["sample_weight", "class_weight"])
def test_weights_of_labels_are_refused(argument):
    """NT-Xent has no use for them."""
    value = np.ones(16) if argument == "sample_weight" else {0: 1.0}
    with pytest.raises(ValueError, match=argument):
        model_of(augment.RandomFlip()).fit(IMAGES, batch_size=8, **{argument: value})


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("images", [9, 15])
def test_replicas_with_unequal_rows(images, run_eagerly):
    """The last batch leaves one replica with one row less, or with none.

    None is one clear line where TensorFlow's convolutions do not take it.
    """
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        model = model_of(augment.RandomFlip(), eager=run_eagerly, built=False)
    if images == 9 and not convolves_nothing():
        with pytest.raises(ValueError, match=r"every replica needs images.*drop_remainder=True"):
            model.fit(IMAGES[:images], batch_size=8, verbose=0)
        return
    history = model.fit(IMAGES[:images], batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_one_view_of_the_same_crop_is_transformed(micro_batch_size):
    """Figure 5 of the paper: the same crop of an image in both views, another one in each step."""
    crop, sobel = augment.RandomCropResize(8), augment.Sobel()
    second = augment.SharedView(augment.Compose([crop, sobel]), ["crop"])
    model = model_of([augment.Compose([crop]), second])
    steps = [model.views(IMAGES, model._step_seed(step)) for step in (0, 1)]
    for first, second in steps:
        np.testing.assert_allclose(sobel(first), second, atol=1e-6)
    assert np.abs(steps[0][0] - steps[1][0]).max() > 0.1
    z = np.stack([model.project(view) for view in steps[0]])
    model.micro_batch_size = micro_batch_size
    loss = model.fit(IMAGES, batch_size=16, shuffle=False, verbose=0).history["loss"]
    assert loss == [pytest.approx(reference.nt_xent(*z, 0.2), rel=1e-4)]
