"""LooC: views that share parameters, the loss of its spaces, its heads, the drawn attributes."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import reference
import simclr_tf
from simclr_tf import augment, cli, distribute, errors, heads, losses
from simclr_tf.augment.random import fold_in
from simclr_tf.commands import pretrain
from simclr_tf.data import shapes
from simclr_tf.losses import log_sum_exp, looc_loss
from simclr_tf.models import LooC, views
from simclr_tf.training import ResumableLoop, RunDirectory, Steps
from simclr_tf.training.run_directory import read_metrics

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, [6, 16, 16, 3], np.uint8)
CLASSES = [
    augment.RandomCropResize,
    augment.RandomFlip,
    augment.ColorJitter,
    augment.ColorDrop,
    augment.RandomBlur,
    augment.RandomRotation90,
]
NAMES = "crop,flip,color_jitter,color_drop,blur,rotate90"
# The parameters of each augmentation that can be kept, as {(class, name)}.
PARAMETERS = {
    "crop": {("RandomCropResize", "boxes")},
    "flip": {("RandomFlip", "flipped")},
    "color": {("ColorJitter", "factors"), ("ColorJitter", "order"), ("ColorDrop", "dropped")},
    "blur": {("RandomBlur", "sigma")},
    "rotate90": {("RandomRotation90", "quarter_turns")},
}


# ---- views


@pytest.fixture
def applied(monkeypatch):
    """The parameters with which operators are applied, a dict that each call adds to."""
    record = {}

    def recording(cls):
        apply = cls.apply

        def call(self, images, parameters):
            for name, value in parameters.items():
                record[cls.__name__, name] = value.numpy()
            return apply(self, images, parameters)

        return call

    for cls in (*CLASSES, augment.RandomView):
        monkeypatch.setattr(cls, "apply", recording(cls))
    return record


def chain():
    return augment.by_name(NAMES, 12)


def random_view():
    return augment.RandomView(12, blur=True, jit_compile=False)


def of_random_view(parameters):
    return {("RandomView", name) for _, name in parameters}


@pytest.mark.parametrize("kept", PARAMETERS)
@pytest.mark.parametrize("make", [chain, random_view])
def test_a_key_has_the_querys_parameters_of_one_augmentation(make, kept, applied):
    """Exactly those of the query; of every other augmentation, some images have others."""
    if make is random_view and kept == "rotate90":
        pytest.skip("no augmentation of a RandomView")
    family, images = make(), np.tile(IMAGES, [5, 1, 1, 1])
    family(images, seed=3)
    query = dict(applied)
    augment.SharedView(family, [kept])(images, seed=4, query_seed=3)
    shared = PARAMETERS[kept]
    shared = of_random_view(shared) if make is random_view else shared
    assert shared <= set(query) == set(applied)
    for name, value in applied.items():
        assert np.array_equal(value, query[name]) == (name in shared), name


def test_all_shared_is_the_query_and_no_query_is_the_family():
    """Images too, bit by bit; eagerly and in a graph, whose seeds are tensors."""
    for family in (chain(), random_view()):
        key = augment.SharedView(family, augment.augmentations_of(family))
        draw = tf.function(lambda a, b, key=key: key(IMAGES, a, query_seed=b))
        query = family(IMAGES, seed=3)
        np.testing.assert_array_equal(key(IMAGES, seed=4, query_seed=3), query)
        np.testing.assert_array_equal(key(IMAGES, seed=3), query)
        np.testing.assert_allclose(draw(tf.constant(4), tf.constant(3)), query, atol=1e-5)


@pytest.mark.parametrize("make", [chain, random_view])
def test_a_slice_of_a_batch_has_the_views_of_the_whole(make):
    """As micro-batches and replicas draw them; with images of several sizes too."""
    key = augment.SharedView(make(), ["color", "crop"])
    extents = np.array([[16, 16], [8, 12], [16, 9], [10, 10], [12, 16], [9, 9]])
    for extent in (None, extents):
        whole = key(IMAGES, 4, extent=extent, query_seed=3)
        part = key(IMAGES[2:5], 4, 2, extent if extent is None else extent[2:5], query_seed=3)
        np.testing.assert_allclose(part, whole[2:5], atol=1e-6)
    query, key = make()(IMAGES, 3, extent=extents), augment.SharedView(make(), ["color"])
    assert np.abs(key(IMAGES, 4, extent=extents, query_seed=3) - query).max() > 0.1


def test_the_views_of_a_step():
    """A query, a key of its own, and a key that shares with the query for each kept one."""
    family = chain()
    families = augment.leave_one_out(["color", "rotate90"], family)
    model = simclr_tf.SimCLR(keras.Sequential(), augment=families, seed=5)
    step = model._step_seed(2)
    drawn = model.views(IMAGES, step)
    seeds = [fold_in(step, view) for view in range(4)]
    assert len(drawn) == len(families) == 4
    for number in (0, 1):
        np.testing.assert_array_equal(drawn[number], family(IMAGES, seeds[number]))
    for number, name in ((2, "color"), (3, "rotate90")):
        expected = augment.SharedView(family, [name])(IMAGES, seeds[number], query_seed=seeds[0])
        np.testing.assert_array_equal(drawn[number], expected)
    same = views.draw(families, IMAGES[3:], None, views.seeds_of_views(step, 4), 3)
    for part, whole in zip(same, drawn):
        np.testing.assert_allclose(part, whole[3:], atol=1e-6)


def test_what_a_family_has():
    """The paper's family, with what it lacks; a wrong name is told."""
    assert augment.augmentations_of(augment.RandomView(96)) == ["crop", "flip", "color", "blur"]
    family = augment.family_with(["blur", "rotate90"], 32, strength=0.3)
    assert augment.augmentations_of(family) == ["crop", "flip", "color", "blur", "rotate90"]
    assert family.operators[0].strength == 0.3
    key = augment.SharedView(family, ["blur"])
    assert key.crops and key.repeatable and key.output_size(64) == 32
    with pytest.raises(errors.ArgumentError, match="crop, flip, color; got 'rotate90'"):
        augment.leave_one_out(["color", "rotate90"], augment.RandomView(32))
    for kept in ([], "color", ["color", "color"]):
        with pytest.raises(errors.ArgumentError, match="kept must be a list of augmentations"):
            augment.leave_one_out(kept, augment.RandomView(32))


# ---- the loss


def z_of(kept=2, count=5, dim=4):
    """Float32 [kept + 1, kept + 2, count, dim], not normalised."""
    return (RNG.normal(size=[kept + 1, kept + 2, count, dim]) * 3).astype(np.float32)


@pytest.mark.parametrize("tile_size", [None, 1, 4, 16])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("kept", [1, 3])
def test_the_loss_is_the_slow_loop(kept, temperature, tile_size):
    """In float64, over all images, spaces and keys; in tiles that do and do not divide."""
    z = z_of(kept)
    got = looc_loss(z, temperature, tile_size)
    assert float(got) == pytest.approx(reference.looc(z, temperature), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("tile_size", [None, 4])
def test_the_gradient_is_that_of_finite_differences(tile_size):
    """Central differences of the slow loop in float64, in every coordinate."""
    z, step = z_of(1, 3, 3), 1e-6
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(z))
        loss = looc_loss(x, 0.3, tile_size)
    gradient = tape.gradient(loss, x).numpy()
    for index in np.ndindex(*z.shape):
        high, low = z.astype(np.float64), z.astype(np.float64)
        high[index] += step
        low[index] -= step
        slope = (reference.looc(high, 0.3) - reference.looc(low, 0.3)) / (2 * step)
        assert gradient[index] == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("kept", [1, 2])
def test_closed_forms(kept):
    """Equal embeddings; no kept augmentation is NT-Xent's terms of the query."""
    same = np.ones([kept + 1, kept + 2, 6, 4], np.float32)
    negatives = (kept + 2) * 5
    expected = math.log(1 + negatives)
    expected += kept / (kept + 1) * math.log(kept + 1 + negatives)
    assert float(looc_loss(same)) == pytest.approx(expected, rel=1e-5)
    z = z_of(0, 6)
    both = looc_loss(z, 0.2), looc_loss(z[:, ::-1].copy(), 0.2)
    plain = simclr_tf.nt_xent(z[0], temperature=0.2)
    assert float(sum(both)) / 2 == pytest.approx(float(plain), rel=1e-5)


def test_other_keys_of_an_image_are_negatives_where_an_augmentation_is_kept():
    """In space 1, descending moves k_0 away from the query; what is correct there shows it."""
    z = z_of(1, 1)  # no other images
    z[1, 1] = z[1, 0] + RNG.normal(size=[1, 4])
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(z))
        loss = looc_loss(x, 0.2)
    slope = tape.gradient(loss, x)[1, 1]
    assert np.sum(slope * z[1, 0]) > 1e-4
    _, correct = losses.looc_loss_with_top1(np.ones([2, 3, 4, 5], np.float32))
    assert not np.any(correct[0]) and not np.any(correct[1])
    distinct = np.tile(np.eye(4, 5, dtype=np.float32), [2, 3, 1, 1])
    _, correct = losses.looc_loss_with_top1(distinct)
    assert np.all(correct[0]) and not np.any(correct[1])
    distinct[1, 1, :, 4] = 1.0
    assert np.all(losses.looc_loss_with_top1(distinct)[1][1])


def test_a_single_image_has_no_other_negatives():
    """Space 0 has no loss then; static sizes and unknown ones, gradients without nan."""
    z = tf.constant(z_of(1, 1))
    for shape in ([2, 3, 1, 4], [2, 3, None, 4]):
        function = tf.function(
            lambda z: (looc_loss(z, 0.2), tf.gradients(looc_loss(z, 0.2), z)[0]),
            input_signature=[tf.TensorSpec(shape)],
        )
        loss, gradient = function(z)
        assert float(loss) == pytest.approx(reference.looc(z.numpy(), 0.2), abs=1e-5)
        assert not np.any(gradient[0]) and np.all(np.isfinite(gradient))


def test_the_loss_does_not_depend_on_how_it_is_called():
    """A graph with unknown sizes, XLA, half precision after its cast."""
    z = tf.constant(z_of())
    expected = looc_loss(z, 0.2).numpy()
    unknown = [tf.TensorSpec([3, 4, None, 4])]
    for options in ({"input_signature": unknown}, {"jit_compile": True}):
        got = tf.function(lambda z: looc_loss(z, 0.2), **options)(z)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    half = tf.cast(z, tf.bfloat16)
    exact = looc_loss(tf.cast(half, tf.float32), 0.2)
    np.testing.assert_allclose(looc_loss(half, 0.2), exact, rtol=1e-6)


@pytest.mark.parametrize("tile_size", [None, 3])
def test_two_replicas_are_one_device(tile_size):
    """Unequal rows; the loss and every gradient."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    z = z_of(1)
    with tf.GradientTape() as tape:
        tape.watch(whole := tf.constant(z))
        expected = looc_loss(whole, 0.2)
    expected_gradient = tape.gradient(expected, whole)

    def on_replica(rows):
        rows = tf.compat.v1.placeholder_with_default(rows, [2, 3, None, 4])
        with tf.GradientTape() as tape:
            tape.watch(rows)
            _, fraction = distribute.replica_offset_and_fraction(rows[0, 0])
            loss = looc_loss(rows, 0.2, tile_size) * fraction
        return loss, tape.gradient(loss, rows)

    parts = [z[:, :, :3], z[:, :, 3:]]
    inputs = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
    parts, gradients = tf.function(lambda x: strategy.run(on_replica, (x,)))(inputs)
    total = sum(strategy.experimental_local_results(parts))
    gradients = np.concatenate(strategy.experimental_local_results(gradients), axis=2)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradients, expected_gradient, rtol=1e-4, atol=1e-5)


def test_memory_is_linear_in_the_batch(monkeypatch):
    """No tensor of a step has the size of the matrix of logits."""
    monkeypatch.setattr(log_sum_exp, "MAX_DENSE_LOGITS", 0)
    count = 4000

    @tf.function(input_signature=[tf.TensorSpec([2, 3, count, 4])])
    def gradient(z):
        return tf.gradients(looc_loss(z, 0.2), z)[0]

    sizes = []

    def collect(graph):
        for operation in graph.get_operations():
            sizes.extend(out.shape.num_elements() or 0 for out in operation.outputs)

    concrete = gradient.get_concrete_function()
    collect(concrete.graph)
    for function in concrete.graph._functions.values():
        collect(function.graph if hasattr(function, "graph") else concrete.graph)
    assert max(sizes) <= 2048 * 1024 * 3 < 3 * count**2


def test_what_is_wrong_with_z_is_told():
    """One line each."""
    for shape in ([2, 3, 4], [2, 2, 5, 4]):
        with pytest.raises(errors.ArgumentError, match=r"z must be \[spaces, views, batch, dim\]"):
            looc_loss(np.ones(shape, np.float32))
    with pytest.raises(errors.ArgumentError, match="finite number above 0"):
        looc_loss(z_of(), 0.0)


# ---- the heads


@pytest.mark.parametrize("layers", [2, 3])
def test_the_heads_are_projection_heads_of_one_h(layers, tmp_path):
    """Each has weights of its own; a file keeps them, and half precision returns float32."""
    h = RNG.normal(size=[5, 6]).astype(np.float32)
    layer = heads.SpaceHeads(3, hidden_dim=7, output_dim=4, layers=layers)
    model = keras.Sequential([keras.Input([6]), layer])
    # Of new heads of three layers, z is so small that its length counts as 0.
    layer.set_weights([30 * w if w.ndim == 2 else w for w in layer.get_weights()])
    outputs = layer.hidden_outputs(h)
    for index, output in enumerate(outputs[1:], 1):
        parts = [head.hidden_outputs(h)[index] for head in layer.heads]
        np.testing.assert_array_equal(output, np.concatenate(parts, axis=1))
        assert not np.allclose(parts[0], parts[1], rtol=0.01, atol=0.0)
    z = layer(h)
    np.testing.assert_array_equal(z, outputs[-1])
    assert [len(outputs), *z.shape] == [layers + 1, 5, 12]
    assert len(layer.hidden_outputs(h, last=1)) == 2
    unit = z.numpy().reshape(5, 3, 4)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-9)  # some z are 0
    np.testing.assert_allclose(layer.unit_spaces(h), unit.reshape(5, 12), rtol=1e-5, atol=1e-6)
    assert len(layer.trainable_weights) == 3 * len(layer.heads[0].trainable_weights)
    model.save(tmp_path / "head.keras")
    loaded = keras.models.load_model(tmp_path / "head.keras")
    np.testing.assert_array_equal(loaded(h), z)
    assert loaded.layers[-1].get_config() == layer.get_config()


def test_heads_under_mixed_precision_and_wrong_arguments():
    """The result stays float32; the number of spaces is checked, as are a head's arguments."""
    layer = heads.SpaceHeads(2, output_dim=4, dtype="mixed_bfloat16")
    h = RNG.normal(size=[5, 6]).astype(np.float32)
    assert layer(h).dtype == layer.unit_spaces(h).dtype == tf.float32
    assert layer.heads[1].relu.compute_dtype == "bfloat16"
    with pytest.raises(errors.ArgumentError, match="spaces must be a whole number of at least 2"):
        heads.SpaceHeads(1)
    with pytest.raises(errors.ArgumentError, match="layers must be 2"):
        heads.SpaceHeads(2, layers=5)


# ---- drawn images with attributes


@pytest.fixture(scope="module")
def drawn():
    return shapes.draw_with_attributes(1000, seed=1)


def test_the_attributes_are_independent_and_balanced(drawn):
    """Every class has every hue and every orientation, about as often as any other."""
    images, labels = drawn
    assert images.shape == (1000, 32, 32, 3) and images.dtype == np.uint8
    counts = np.zeros([10, 8, 4], int)
    np.add.at(counts, tuple(labels[name] for name in ("class", "color", "orientation")), 1)
    np.testing.assert_array_equal(counts.sum(axis=(1, 2)), 100)
    assert counts.sum(axis=2).min() >= 4 and counts.sum(axis=1).min() >= 12
    fewer, fewer_labels = shapes.draw_with_attributes(260, seed=1)
    np.testing.assert_array_equal(fewer, images[:260])
    for name, some in fewer_labels.items():
        np.testing.assert_array_equal(some, labels[name][:260])


def test_the_hue_is_that_of_the_label(drawn):
    """By the chroma of YIQ, averaged over the image, but for a few whose copies are hidden."""
    images, labels = drawn
    red, green, blue = np.moveaxis(images / 255.0, 3, 0)
    i = 0.596 * red - 0.274 * green - 0.322 * blue
    q = 0.211 * red - 0.523 * green + 0.312 * blue
    turns = np.arctan2(q.sum(axis=(1, 2)), i.sum(axis=(1, 2))) / (2 * np.pi)
    nearest = np.round(turns * 8).astype(int) % 8
    assert (nearest == labels["color"]).mean() > 0.95


def test_an_orientation_turns_the_scenes_copies(monkeypatch):
    """Drawn alone in the middle without tilt, a copy is the upright one turned by `np.rot90`."""
    centre = [np.full(shapes._BLOCK, 0.5)] * 2
    monkeypatch.setattr(shapes, "_centres", lambda rng: [centre])
    monkeypatch.setattr(shapes, "TILT_DEGREES", 0)
    monkeypatch.setattr(shapes, "HUE_SPREAD", 0.0)
    for name, value in (("RADIUS", (0.3, 0.3)), ("CONTRAST", (0.5, 0.5)), ("GROUND", (0.2, 0.2))):
        monkeypatch.setattr(shapes, name, value)
    monkeypatch.setattr(shapes, "GROUND_SLOPE", 0.0)
    images, labels = shapes.draw_with_attributes(250, seed=2)
    luminance = images @ [0.299, 0.587, 0.114]
    for number in range(10):
        upright = luminance[(labels["class"] == number) & (labels["orientation"] == 0)][0]
        if shapes.CLASS_NAMES[number] in ("disc", "ring", "square", "cross", "hourglass", "bars"):
            assert upright[:16].mean() > upright[16:].mean() + 1.0  # lit from above
        for turns in range(1, 4):
            turned = luminance[(labels["class"] == number) & (labels["orientation"] == turns)][0]
            others = [np.abs(np.rot90(upright, k) - turned).mean() for k in range(4)]
            assert np.argmin(others) == turns


def test_three_names_of_one_drawing():
    """The same images with other labels; `shapes` stays what it was (tests/test_shapes.py)."""
    sources = {
        attribute: simclr_tf.data.load(f"shapes_by_{attribute}", "test[:100]")
        for attribute in ("class", "color", "orientation")
    }
    arrays = {attribute: source.arrays() for attribute, source in sources.items()}
    for attribute, (images, labels, _) in arrays.items():
        np.testing.assert_array_equal(images, arrays["class"][0])
        assert len(set(labels)) == len(sources[attribute].class_names)
    assert [len(source.class_names) for source in sources.values()] == [10, 8, 4]
    assert np.any(simclr_tf.data.load("shapes", "test[:100]").arrays()[0] != images)
    with pytest.raises(errors.ArgumentError, match="train, test of shapes_by_color; got 'all'"):
        simclr_tf.data.load("shapes_by_color", "all")


# ---- the model

SMALL = RNG.integers(0, 256, [12, 8, 8, 3], np.uint8)
each_representation = pytest.mark.parametrize("representation", ["h", "spaces"])


def family_of():
    """Quickly traced; two augmentations to keep."""
    return augment.Compose([augment.RandomFlip(), augment.ColorJitter(0.8)])


def model_of(kept=("color",), compiled=True, **kwargs):
    """A built model, the same each time."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    stack = [layers.Conv2D(6, 3, activation="tanh"), layers.GlobalAveragePooling2D()]
    encoder = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    head = heads.SpaceHeads(len(kept) + 1, 16, output_dim=4, batch_norm=False)
    arguments = {"projection_head": head, "augment": family_of(), "seed": 3, **kwargs}
    model = LooC(encoder, kept, temperature=0.2, **arguments)
    model.build((None, 8, 8, 3))
    if compiled:
        model.compile(optimizer=keras.optimizers.SGD(0.05, 0.9))
        model.optimizer.build(model.trainable_variables)
    return model


def spaces_of(z, spaces, dim=4):
    """Z [V, B, S d] as [S, V, B, d], by slices."""
    return np.stack([z[..., s * dim : (s + 1) * dim] for s in range(spaces)])


@pytest.mark.parametrize("kept", [["color"], ["flip", "color"]])
def test_a_step_is_the_loss_of_its_views(kept):
    """Views, loss and gradient by hand; the logs have the loss and an accuracy for each space."""
    model = model_of(kept, compiled=False)
    model.compile(optimizer=keras.optimizers.SGD(0.05))
    drawn = model.views(SMALL, model._step_seed(0))
    expected_views = views.draw(
        augment.leave_one_out(kept, family_of()),
        SMALL,
        None,
        views.seeds_of_views(model._step_seed(0), len(kept) + 2),
        0,
    )
    for view, expected in zip(drawn, expected_views):
        np.testing.assert_array_equal(view, expected)
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        z = tf.stack([model.projection_head(model.encoder(v, training=True)) for v in drawn])
        parts = tf.split(z, len(kept) + 1, axis=2)
        loss = looc_loss(tf.stack(parts), 0.2)
    gradients = tape.gradient(loss, model.trainable_variables)
    logs = model.train_on_batch(SMALL, return_dict=True)
    slow = reference.looc(spaces_of(z.numpy(), len(kept) + 1), 0.2)
    assert logs["loss"] == pytest.approx(slow, rel=1e-4)
    assert set(logs) == {"loss", "contrastive_accuracy", *(f"{name}_accuracy" for name in kept)}
    _, correct = losses.looc_loss_with_top1(tf.stack(parts), 0.2)
    assert logs["contrastive_accuracy"] == pytest.approx(np.mean(correct[0][0]))
    for name, each in zip(kept, correct[1:]):
        assert logs[f"{name}_accuracy"] == pytest.approx(np.mean(each))
    for old, new, gradient in zip(before, model.trainable_variables, gradients):
        assert np.any(gradient)
        np.testing.assert_allclose(new, old - 0.05 * gradient, rtol=1e-4, atol=1e-5)


def test_what_the_model_returns():
    """H or the spaces, each of length 1; `project` is z of all spaces for both."""
    floats = SMALL / np.float32(255)
    model = model_of(["flip", "color"])
    h = model.encoder(floats)
    np.testing.assert_allclose(model(SMALL), h, rtol=1e-5, atol=1e-6)
    z = model.projection_head(h).numpy()
    np.testing.assert_allclose(model.project(SMALL), z, rtol=1e-5, atol=1e-6)
    model = model_of(["flip", "color"], representation="spaces")
    np.testing.assert_allclose(model.project(SMALL), z, rtol=1e-5, atol=1e-6)
    parts = z.reshape(12, 3, 4) / np.linalg.norm(z.reshape(12, 3, 4), axis=2, keepdims=True)
    expected = parts.reshape(12, 12)
    np.testing.assert_allclose(model(SMALL), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.predict(SMALL, verbose=0), expected, rtol=1e-4, atol=1e-5)


@each_representation
def test_a_file_keeps_the_model(representation, tmp_path):
    """Saved in the middle of training and loaded, it goes on as the model itself does."""
    model = model_of(representation=representation)
    model.fit(SMALL, batch_size=6, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.kept, loaded.representation) == (["color"], representation)
    np.testing.assert_allclose(loaded(SMALL), model(SMALL), rtol=1e-6)
    for each in (model, loaded):
        each.fit(SMALL, batch_size=6, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    scores = [each.evaluate(SMALL, batch_size=6, verbose=0) for each in (model, model, loaded)]
    assert scores[0] == scores[1] and scores[0] == pytest.approx(scores[2], rel=1e-5)


@each_representation
def test_the_export_is_what_the_model_returns(representation, tmp_path):
    """The signature of uint8 images, and encoder.keras."""
    model = model_of(representation=representation)
    model.fit(SMALL, batch_size=6, verbose=0)
    expected = model(SMALL)
    path = model.export(tmp_path / "1")
    loaded = tf.saved_model.load(str(path))
    got = loaded.signatures["serving_default"](images=tf.constant(SMALL))["embedding"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    plain = keras.models.load_model(path / "encoder.keras")
    np.testing.assert_allclose(plain(SMALL / np.float32(255)), expected, rtol=1e-4, atol=1e-5)
    assert simclr_tf.export.functional_copy(
        model.encoder, (8, 8, 3), "head1", model.projection_head
    )(SMALL / np.float32(255)).shape == (12, 32)
    with pytest.raises(errors.ArgumentError, match="layer='spaces' needs a SpaceHeads"):
        head = simclr_tf.ProjectionHead()
        head.build((None, 6))
        simclr_tf.export.functional_copy(model.encoder, (8, 8, 3), "spaces", head)


def steps_of(replicas):
    """Loss and accuracies of the last epoch, and the weights."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        model = model_of()
    data = tf.data.Dataset.from_tensor_slices(SMALL).batch(6, drop_remainder=True)
    losses = []
    read = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs=None: losses.append(
            {metric.name: float(metric.result()) for metric in model.metrics}
        )
    )
    model.fit(data, epochs=2, verbose=0, callbacks=[read])
    return losses, model.get_weights()


def test_replicas_train_as_one_device_does():
    """Losses and accuracies of four steps, and the weights after them."""
    one, two = steps_of(1), steps_of(2)
    for single, several in zip(one[0], two[0]):
        assert several == pytest.approx(single, rel=1e-4)
    for single, several in zip(one[1], two[1]):
        np.testing.assert_allclose(several, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_trains_in_mixed_precision(policy):
    """The loss of the first step is near that of float32; it stays finite."""
    expected = model_of().fit(SMALL, batch_size=12, verbose=0).history["loss"]
    keras.mixed_precision.set_global_policy(policy)
    model = model_of(compiled=False)
    model.compile("sgd")
    history = model.fit(SMALL, batch_size=12, epochs=2, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected[0], rel=0.05)
    assert np.all(np.isfinite(history["loss"]))
    assert ("skipped_steps" in history) == (policy == "mixed_float16")


@pytest.mark.end_to_end
def test_a_run_that_was_stopped_goes_on(tmp_path):
    """In the resumable loop, within an epoch: weights and logs are those of a run left alone."""
    source = simclr_tf.data.load("shapes_by_color", "train[:48]")
    plan = Steps(per_epoch=3, total=5)

    def run(path, stop_at=None):
        keras.utils.set_random_seed(0)
        model = model_of()

        def after_step(batch, logs):
            if int(model.optimizer.iterations.numpy()) == stop_at:
                raise KeyboardInterrupt

        each = keras.callbacks.LambdaCallback(on_train_batch_end=after_step)

        def stream(epoch, step, replica_slice):
            dataset = source.epochs(16, 7, epoch, True, step, labels=True)
            return dataset.map(lambda batch: batch["image"][:, ::4, ::4])

        ResumableLoop(
            model,
            stream,
            plan,
            RunDirectory(path),
            batch_size=16,
            strategy=tf.distribute.get_strategy(),
            callbacks=[each],
            checkpoint_every_steps=1,
            verbose=0,
        ).run()
        return model.get_weights(), read_metrics(path / "metrics.jsonl")

    whole, expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop_at=4)
    resumed, rows = run(tmp_path / "run")
    for one, other in zip(resumed, whole):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert rows[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-5)
    assert "color_accuracy" in rows[-1]


def test_the_default_family_and_views_of_the_users_own():
    """What the size and `kept` ask for; a list and a dataset of tuples give the same loss."""
    model = LooC(keras.Sequential(), kept=["rotate90", "blur"], seed=3)
    query, *keys = model._families(tf.zeros([2, 32, 32, 3]))
    assert augment.augmentations_of(query) == ["crop", "flip", "color", "blur", "rotate90"]
    assert [getattr(key, "shared", None) for key in keys] == [None, ["rotate90"], ["blur"]]
    assert model._families(tf.zeros([2, 32, 32, 3]))[0] is query
    families = augment.leave_one_out(["color"], family_of())
    losses_of = {}
    whole = model_of()
    drawn = tuple(whole.views(SMALL, whole._step_seed(0)))
    for name, (augmentation, data) in {
        "family": (family_of(), SMALL),
        "list": (families, SMALL),
        "tuples": (False, tf.data.Dataset.from_tensors(drawn)),
    }.items():
        model = model_of(augment=augmentation)
        losses_of[name] = model.fit(data, shuffle=False, verbose=0)
    first, *others = [history.history["loss"] for history in losses_of.values()]
    assert all(other == pytest.approx(first, rel=1e-5) for other in others)
    with pytest.raises(errors.ArgumentError, match=r"keeps color needs 3 views, .* got 2"):
        model_of(augment=False).fit(tf.data.Dataset.from_tensors(drawn[:2]), verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kept": []}, r"kept must be a list of augmentations, .* got \[\]"),
        ({"kept": "color"}, "kept must be a list"),
        (
            {"kept": ["colour"]},
            "kept must name augmentations of the family of views, .*color; got 'colour'",
        ),
        ({"kept": ["blur"], "augment": augment.RandomView(32)}, "got 'blur'. Add its operator"),
        ({"augment": lambda x: x}, "augment must be an augment.Operator"),
        ({"augment": [augment.RandomFlip()] * 2}, "augment must have 3 families, .* got 2"),
        ({"projection_head": heads.SpaceHeads(3)}, "must be a SpaceHeads of 2 spaces"),
        ({"projection_head": simclr_tf.ProjectionHead()}, "must be a SpaceHeads of 2 spaces"),
        ({"representation": "z"}, "representation must be h or spaces; got 'z'"),
        ({"temperature": 0}, "temperature must be"),
    ],
)
def test_a_wrong_argument_is_told(arguments, message):
    """One line each."""
    with pytest.raises(errors.ArgumentError, match=message):
        LooC(keras.Sequential(), **arguments)


# -- the command -------------------------------------------------------------------------------


def command(folder, run_dir, *flags):
    """Words of a small run on folder/set.npz."""
    words = ["pretrain", f"--dataset=npz:{folder}/set.npz", f"--run_dir={run_dir}", "--method=looc"]
    return [*words, "--batch_size=12", "--epochs=2", "--precision=float32", *flags]


@pytest.fixture
def folder(tmp_path):
    """A directory with a data set of three classes."""
    pixels = np.random.default_rng(0).integers(0, 256, [36, 12, 12, 3], np.uint8)
    labels = np.arange(36) % 3
    np.savez(tmp_path / "set.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return tmp_path


@pytest.mark.end_to_end
def test_a_run_by_the_command(folder, one_layer, monkeypatch, capsys):
    """Flags reach model and views; every layer is scored; fine-tuning takes the heads."""
    made, build = [], pretrain.build_model
    monkeypatch.setattr(pretrain, "build_model", lambda *a: made.append(build(*a)) or made[-1])
    flags = ["--kept=color, rotate90", "--projection_dim=8", "--blur=no"]
    assert cli.main(command(folder, folder / "run", *flags)) == 0
    (model,) = made
    assert model.kept == ["color", "rotate90"] and model.projection_head.spaces == 3
    assert augment.augmentations_of(model.augment) == ["crop", "flip", "color", "rotate90"]
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert {"color_accuracy", "rotate90_accuracy", "contrastive_accuracy"} <= set(rows[-1])
    same = np.ones([3, 4, 12, 8], np.float32)
    options = cli.options_of_run(folder / "run")
    chance = float(losses.looc_loss(same, 0.1))
    assert pretrain.chance_loss(options, model) == pytest.approx(chance, rel=1e-5)
    capsys.readouterr()
    words = [f"--run_dir={folder}/run", "--protocol=knn", "--knn_k=5", "--layer=all,spaces"]
    assert cli.main(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if "%" in line] == [
        *("h", "head1", "z", "spaces")
    ]
    assert cli.main(command(folder, folder / "run", *flags, "--temperature=0.3")) == 2
    words = [f"--pretrained={folder}/run", f"--run_dir={folder}/tuned", "--head_layer=1"]
    assert cli.main(["finetune", *words]) == 2
    assert "head_layer=1 needs a ProjectionHead; got a SpaceHeads" in capsys.readouterr().err


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--kept=colour",
            "--kept must name augmentations of the family of views, crop, flip, color; got",
        ),
        ("--projection_layers=1", "needs --projection_layers of 2 or 3; got 1"),
        ("--transformed_views=one", "has views of its own; got --transformed_views=one"),
        ("--kept=rotate90 --view_sizes=12:1", "got --kept=rotate90 too"),
        ("--loss=decoupled", "--method=looc has its own loss; got --loss=decoupled"),
        ("--micro_batch_size=4", "--micro_batch_size needs --method=simclr"),
        ("--method=simclr --kept=color", "--kept needs --method=looc; got --method=simclr"),
        ("--method=moco --kept=color", "--kept needs --method=looc; got --method=moco"),
        ("--augmentations=crop,flip --kept=blur", "got 'blur'. Add its operator"),
    ],
)
def test_a_mistake_is_one_line(folder, one_layer, flags, message, capsys):
    """Exit code 2, and no run directory."""
    assert cli.main(command(folder, folder / "run", *flags.split())) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run").exists()
