"""SimCLR as a Keras model: the step it takes, what it accepts, what it saves."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import reference
import simclr_tf
from simclr_tf import LARS, ProjectionHead, SimCLR, augment
from simclr_tf.losses import log_sum_exp

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, [24, 8, 8, 3], np.uint8)


def small_encoder(batch_norm=True):
    """Conv-BN-pool to [B, 6], built from stock layers."""
    layers = keras.layers
    steps = [layers.Conv2D(6, 3, strides=2, use_bias=not batch_norm)]
    steps += [layers.BatchNormalization()] if batch_norm else []
    steps += [layers.ReLU(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3)), *steps], name="small")


def model_of(seed=3, **kwargs):
    """A small SimCLR with cheap views: those of the paper take five times as long to trace."""
    kwargs.setdefault("augment", augment.RandomFlip())
    head = ProjectionHead(output_dim=4)
    return SimCLR(small_encoder(), head, temperature=0.2, seed=seed, **kwargs)


def paper_views():
    """The paper's family at 8 pixels."""
    return augment.RandomView(8, 0.5, jit_compile=False)


def compiled(optimizer=None, eager=False, **kwargs):
    """The same, ready for fit."""
    model = model_of(**kwargs)
    model.compile(optimizer or keras.optimizers.SGD(0.1, 0.9), run_eagerly=eager)
    return built(model)


def built(model):
    """With all variables, those of the optimizer too."""
    model.build((None, 8, 8, 3))
    model.optimizer.build(model.trainable_variables)
    return model


def fit_again(model, weights, *args, **kwargs):
    """The losses of the first steps, from these weights on; what is traced is traced once."""
    model.set_weights(weights)
    for variable in model.optimizer.variables:
        if "learning_rate" not in variable.name:
            variable.assign(tf.zeros_like(variable))
    return model.fit(*args, shuffle=False, verbose=0, **kwargs).history["loss"]


def dataset(batch_size=8):
    """Batches of uint8 images, of a size known in advance where all are alike."""
    data = tf.data.Dataset.from_tensor_slices(IMAGES)
    return data.batch(batch_size, drop_remainder=len(IMAGES) % batch_size == 0)


def test_one_step_is_nt_xent_of_two_views_and_its_gradient():
    """Loss by the paper's loop over z of the step's own views; weights by hand-made descent."""
    model = compiled(keras.optimizers.SGD(0.1), augment=paper_views())
    before = [v.numpy() for v in model.trainable_variables]
    copy = SimCLR.from_config(model.get_config())
    copy.build((None, 8, 8, 3))
    copy.set_weights(model.get_weights())

    logs = model.train_on_batch(IMAGES[:8], return_dict=True)

    view_a, view_b = copy.views(IMAGES[:8], copy._step_seed(0))
    with tf.GradientTape() as tape:
        h = copy.encoder(tf.concat([view_a, view_b], 0), training=True)
        z = copy.projection_head(h, training=True)
        loss = simclr_tf.nt_xent(z[:8], z[8:], 0.2)
    gradients = tape.gradient(loss, copy.trainable_variables)
    expected = reference.nt_xent(z[:8].numpy(), z[8:].numpy(), 0.2)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    accuracy = reference.contrastive_accuracy(z[:8].numpy(), z[8:].numpy())
    assert logs["contrastive_accuracy"] == pytest.approx(accuracy)
    for old, new, gradient in zip(before, model.trainable_variables, gradients):
        np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=2e-5)


def test_images_of_several_sizes_have_their_own_extent():
    """The step sees what lies within; the padding does not change the loss."""
    model, losses = compiled(augment=augment.RandomCropResize(8)), []
    weights = model.get_weights()
    for padding in (0, 255):
        images = np.full([8, 12, 12, 3], padding, np.uint8)
        images[:, :8, :8] = IMAGES[:8]
        extent = np.full([8, 2], 8, np.int32)
        data = tf.data.Dataset.from_tensors({"image": images, "extent": extent})
        losses.append(fit_again(model, weights, data))
    assert losses[0] == losses[1]


def test_fit_learns():
    """Images that each have a colour of their own are told apart: the loss falls below chance."""
    colours = RNG.integers(0, 256, [32, 1, 1, 3])
    images = np.clip(colours + RNG.integers(-20, 20, [32, 8, 8, 3]), 0, 255).astype(np.uint8)
    model = compiled(keras.optimizers.Adam(0.03))
    loss = model.fit(images, batch_size=32, epochs=30, verbose=0).history["loss"]
    assert loss[-1] < 0.7 * np.log(2 * 32 - 1)


def test_what_a_batch_may_be():
    """Images, (images, labels), a dict, float in [0, 1]: one and the same step."""
    labels = np.zeros(24, np.int64)
    as_float = IMAGES.astype(np.float32) / 255.0
    forms = [
        tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(8),
        tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": labels}).batch(8, True),
        tf.data.Dataset.from_tensor_slices(as_float).batch(8, True),
    ]
    model = compiled()
    weights = model.get_weights()
    losses = [fit_again(model, weights, form) for form in forms]
    losses.append(fit_again(model, weights, IMAGES, labels, batch_size=8))
    np.testing.assert_allclose(losses, [losses[0]] * 4, rtol=1e-5)


def test_predict_is_h_and_project_is_z():
    """Inference mode, every last example, whatever the batch."""
    model = compiled()
    model.fit(dataset(), verbose=0)
    h = model.predict(dataset(7), verbose=0)
    assert h.shape == (24, 6) and h.dtype == np.float32
    expected = model.encoder(IMAGES.astype(np.float32) / 255.0, training=False)
    np.testing.assert_allclose(h, expected, atol=1e-6)
    np.testing.assert_allclose(model(IMAGES), expected, atol=1e-6)
    z = model.projection_head(expected, training=False)
    np.testing.assert_allclose(model.project(IMAGES), z, atol=1e-6)


def test_evaluate_changes_nothing_and_repeats():
    """The same two views of each batch every time, batch norm in inference mode."""
    model = compiled()
    model.fit(dataset(), verbose=0)
    before = model.get_weights()
    first, second = (model.evaluate(dataset(), verbose=0) for _ in range(2))
    assert first == second and len(first) == 2
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_keras_features_work():
    """Validation data, callbacks, steps_per_execution, a last partial batch, a progress bar."""
    model = model_of()
    model.compile(optimizer="sgd", steps_per_execution=2)
    built(model)
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs))
    model.fit(dataset(7), epochs=2, validation_data=dataset(8), callbacks=[callback], verbose=0)
    assert {"loss", "contrastive_accuracy", "val_loss", "val_contrastive_accuracy"} <= set(seen[1])
    assert int(model.optimizer.iterations) == 8


def test_steps_with_a_seed_do_not_depend_on_what_ran_before():
    """Same seed, same weights, same data: the same losses; another seed: others."""
    models = {seed: compiled(seed=seed) for seed in (3, 4)}
    weights, losses = models[3].get_weights(), []
    for seed, noise in ((3, 0), (3, 5), (4, 0)):
        tf.random.set_seed(99)
        tf.random.uniform([noise])  # uses the global generator
        losses.append(fit_again(models[seed], weights, dataset(), epochs=2))
    assert losses[0] == losses[1] and losses[0] != losses[2]


@pytest.mark.parametrize(
    "views",
    [
        None,
        keras.layers.GaussianNoise(0.1),
        tf.image.flip_left_right,
        (augment.RandomCropResize(8), augment.Compose([augment.RandomFlip(), augment.Cutout()])),
    ],
    ids=["default", "keras layer", "function", "pair"],
)
def test_what_augment_may_be(views):
    """Anything from batch to batch, or a pair, each drawn twice on the device."""
    model = model_of(augment=views)
    model.compile(optimizer=LARS(0.1))  # built by its first batch
    model.fit(dataset(), verbose=0)
    if views is None:
        family, _ = model._families(IMAGES)
        assert family.size == 8 and family.strength == 0.5
        assert model.augment is None and model.get_config()["augment"] is None


def test_a_pair_gives_each_view_its_own_family():
    """First callable for the first view, second for the second."""
    model = model_of(augment=(tf.zeros_like, tf.ones_like))
    view_a, view_b = model.views(IMAGES)
    assert float(tf.reduce_max(view_a)) == 0.0 and float(tf.reduce_min(view_b)) == 1.0


def test_a_dataset_of_pairs_skips_the_views():
    """augment=False: the two views as they come, with or without labels."""
    model = compiled(augment=False)
    pairs = tf.data.Dataset.from_tensor_slices((IMAGES, IMAGES[::-1])).batch(8, True)
    model.fit(pairs, verbose=0)
    with_labels = tf.data.Dataset.from_tensor_slices(((IMAGES, IMAGES), np.zeros(24)))
    model.fit(with_labels.batch(8, True), verbose=0)
    view_a, view_b = model.views((IMAGES, IMAGES[::-1]))
    np.testing.assert_allclose(view_b[::-1], view_a)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(policy):
    """Finite loss, float32 h and z; with loss scaling where the policy wants it."""
    keras.mixed_precision.set_global_policy(policy)
    model = compiled(LARS(0.1))
    history = model.fit(dataset(), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model(IMAGES).dtype == tf.float32 and model.project(IMAGES).dtype == tf.float32


@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
def test_save_and_load_go_on_where_they_were(tmp_path, kind):
    """A loaded model gives the same h and z, and trains on as the saved one does."""
    keras.utils.set_random_seed(0)
    model = compiled(LARS(0.1), augment=augment.RandomFlip(0.3))
    model.fit(dataset(), verbose=0)
    path = tmp_path / f"model.{kind}"
    if kind == "keras":
        model.save(path)
        loaded = keras.models.load_model(path)
        assert int(loaded.optimizer.iterations) == 3
        assert loaded.augment.get_config() == model.augment.get_config()
    else:
        model.save_weights(path)
        loaded = compiled(augment=model.augment)
        loaded.build((None, 8, 8, 3))
        loaded.load_weights(path)
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)
    np.testing.assert_allclose(loaded.project(IMAGES), model.project(IMAGES), atol=1e-6)
    if kind == "keras":
        again = loaded.fit(dataset(), verbose=0).history["loss"]
        assert again == pytest.approx(model.fit(dataset(), verbose=0).history["loss"], rel=1e-5)


def test_the_loss_in_tiles_trains_as_the_whole_matrix(monkeypatch):
    """Loss, accuracy and weights after three steps."""
    results = []
    for size in (64, 3):
        monkeypatch.setattr(log_sum_exp, "default_tile_size", lambda size=size: size)
        keras.utils.set_random_seed(0)
        model = compiled(LARS(0.1), eager=size == 64)
        history = model.fit(dataset(7), verbose=0).history
        shown = [history["loss"][0], history["contrastive_accuracy"][0]]
        results.append((shown, model.get_weights()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for whole, in_tiles in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(in_tiles, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_micro_batches_have_the_gradient_of_the_whole(policy):
    """Three steps in micro-batches of 4 views end as three of whole batches of 16 views."""
    keras.mixed_precision.set_global_policy(policy)
    results = []
    for micro_batch_size in (None, 4):
        keras.utils.set_random_seed(0)
        head = ProjectionHead(output_dim=4, batch_norm=False)
        model = SimCLR(
            small_encoder(False), head, augment.RandomFlip(), 0.2, micro_batch_size, seed=3
        )
        model.compile(keras.optimizers.SGD(0.01), run_eagerly=micro_batch_size is None)
        if policy == "float32":
            built(model)
        history = model.fit(dataset(), verbose=0)
        results.append((history.history["loss"], model.get_weights()))
    tolerance = 1e-5 if policy == "float32" else 2e-2
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=tolerance)
    for whole, parts in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(parts, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("whole_images", [False, True])
def test_micro_batches_have_the_views_of_the_batch(whole_images):
    """Both views of their images, the same in both passes; photographs that fill a part too."""
    view = paper_views()
    data = tf.constant(IMAGES[:8])
    if whole_images:
        data = {"image": data, "extent": tf.constant([[8, 6], [5, 8]] * 4)}
    model, seed = model_of(augment=view, micro_batch_size=4), tf.constant([3, 8])
    views_of, micro_batches = model._views_in_micro_batches(data, seed)
    views = model.views(data, seed)
    for k in range(micro_batches.count):
        for got, view in zip(views_of(k), views):
            np.testing.assert_allclose(got, view[2 * k : 2 * k + 2])


@pytest.mark.parametrize("chain", [False, True])
def test_views_that_no_seed_repeats_are_kept_for_the_second_pass(chain):
    """Those of a layer that draws as it likes, alone or after an operator of ours."""
    noise = keras.layers.GaussianNoise(0.1)
    view = augment.Compose([augment.RandomFlip(), noise]) if chain else noise
    views_of, _ = model_of(augment=view, micro_batch_size=4)._views_in_micro_batches(
        IMAGES[:8], None
    )
    np.testing.assert_array_equal(views_of(1), views_of(1))
    assert np.abs(views_of(1)[0] - views_of(1)[1]).max() > 0


def test_views_of_no_seed_are_drawn_once_a_step():
    """A model without a seed: both passes see the same views."""
    view = paper_views()
    views_of, _ = model_of(augment=view, micro_batch_size=4)._views_in_micro_batches(
        IMAGES[:8], None
    )
    np.testing.assert_array_equal(views_of(1), views_of(1))


def test_moving_averages_move_once_per_image_in_micro_batches():
    """Two micro-batches of equal images move them exactly twice, not four times."""
    image = np.full([4, 8, 8, 3], 100, np.uint8)
    model = model_of(augment=tf.identity, micro_batch_size=4)
    model.build((None, 8, 8, 3))
    norm = model.encoder.layers[1]
    expected = norm.moving_mean * norm.momentum**2 + (1 - norm.momentum**2) * tf.reduce_mean(
        model.encoder.layers[0](tf.cast(image, tf.float32) / 255.0), axis=[0, 1, 2]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    model.train_on_batch(image)
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4, atol=1e-7)


WRONG_DATA = [
    (np.zeros([4, 8, 8], np.uint8), r"\[batch, height, width, 3\]"),
    (np.zeros([4, 8, 8, 1], np.uint8), r"\[batch, height, width, 3\].*\(4, 8, 8, 1\)"),
    (np.zeros([4, 8, 8, 3], np.int32), "uint8, or float in .*int32"),
    (np.full([4, 8, 8, 3], 255.0, np.float32), r"\[0, 1\].*Divide by 255"),
    (tf.data.Dataset.from_tensor_slices(IMAGES).batch(99, drop_remainder=True), "no batch"),
    (tf.data.Dataset.from_tensor_slices(IMAGES), r"Batch the dataset"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_DATA)
def test_wrong_data_is_one_clear_error(data, message):
    """Before the first step where it can be told, else after it; one line either way."""
    model = compiled()
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(data, verbose=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SimCLR(small_encoder(), temperature=0.0),
            "temperature must be a finite number above 0",
        ),
        (lambda: SimCLR(small_encoder(), augment=3), "augment must be a callable"),
        (lambda: SimCLR(small_encoder(), augment=(tf.identity,)), "two callables or more"),
        (lambda: SimCLR(small_encoder(), micro_batch_size=0), "at least 2; got 0"),
        (lambda: SimCLR(small_encoder(), micro_batch_size=3), "even; got 3"),
        (lambda: SimCLR(tf.identity).build((None, 8, 8, 3)), "keras.Model"),
        (lambda: SimCLR(keras.Sequential([keras.Input((8, 8, 3))])).build((None, 8, 8, 3)), "map"),
    ],
)
def test_wrong_arguments_are_told(make, message):
    """With the rule."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loss_given_to_compile_is_refused():
    """SimCLR has its own."""
    with pytest.raises(ValueError, match="brings its own loss"):
        model_of().compile(optimizer=LARS(0.1), loss="mse")
