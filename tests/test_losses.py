"""NT-Xent: the paper's double loop, closed forms, finite differences, half precision, replicas."""

import math

import numpy as np
import pytest
import tensorflow as tf

import reference
from simclr_tf import NTXent, distribute, losses, nt_xent
from simclr_tf.losses import log_sum_exp

RNG = np.random.default_rng(3)
TILE_SIZES = [None, 1, 4, 16]  # chosen; a row; tiles that do and do not divide; one tile and more


def pair(count=7, dim=5, scale=3.0):
    """Two float32 arrays [count, dim], not normalised."""
    return (RNG.normal(size=[2, count, dim]) * scale).astype(np.float32)


@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 1.0])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_it_is_the_double_loop_of_the_paper(count, temperature, tile_size):
    """1/(2N) of the sum over both directions, self excluded, cosine similarity."""
    z_a, z_b = pair(count)
    expected = reference.nt_xent(z_a, z_b, temperature)
    near = pytest.approx(expected, rel=2e-6, abs=1e-6 / min(1.0, 10 * temperature))
    assert float(nt_xent(z_a, z_b, temperature, tile_size)) == near
    assert float(NTXent(temperature, tile_size)(z_a, z_b)) == near


@pytest.mark.parametrize("tile_size", [None, 5])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("count", [2, 16])
def test_embeddings_that_are_all_alike_give_chance(count, temperature, tile_size):
    """log(2N - 1), whatever the temperature; and no view finds its other one."""
    z = np.tile([[1.0, 2.0, 3.0]], [count, 1])
    loss, correct = losses.nt_xent_with_top1(z, 5.0 * z, temperature, tile_size)
    near = pytest.approx(math.log(2 * count - 1), rel=1e-6, abs=1e-6 / temperature)
    assert float(loss) == near
    assert not np.any(correct)


def test_orthogonal_pairs_have_a_closed_form():
    """Pairs at cosine 1, all else at 0: log(1 + (2N - 2) exp(-1/T))."""
    z = np.eye(8, dtype=np.float32)
    expected = math.log(1.0 + 14.0 * math.exp(-1.0 / 0.5))
    assert float(nt_xent(z, 2.0 * z, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_one_pair_costs_nothing():
    """With N = 1 the positive is the only candidate."""
    assert float(nt_xent(*pair(1))) == pytest.approx(0.0, abs=1e-6)


def test_what_leaves_it_as_it_is():
    """Swapping the views, reordering the images, scaling z."""
    z_a, z_b = pair()
    expected = float(nt_xent(z_a, z_b))
    order = RNG.permutation(len(z_a))
    for again in ((z_b, z_a), (z_a[order], z_b[order]), (7.0 * z_a, 0.1 * z_b)):
        assert float(nt_xent(*again)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("temperature", [0.013, 0.3])  # the lower one takes rows x columns
def test_gradient_is_that_of_finite_differences(temperature, tile_size):
    """Of the slow reference in float64, entry by entry."""
    z_a, z_b = pair(4, 3, 1.0)
    with tf.GradientTape() as tape:
        variables = [tf.Variable(z_a), tf.Variable(z_b)]
        loss = nt_xent(*variables, temperature, tile_size)
    gradients = tape.gradient(loss, variables)
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(z_a.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [z_a.astype(np.float64), z_b.astype(np.float64)]
                moved[which][index] += step
                values.append(reference.nt_xent(*moved, temperature))
            expected = (values[0] - values[1]) / 2e-5
            assert float(gradient[index]) == pytest.approx(expected, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("tile_size", [None, 6])
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_half_precision_is_exact_after_the_cast(dtype, scale, tile_size):
    """Equal to float32 of the same rounded values; finite loss and gradient at every scale."""
    z_a, z_b = (tf.cast(z * scale, dtype) for z in pair(16, 8, 1.0))
    expected = nt_xent(tf.cast(z_a, tf.float32), tf.cast(z_b, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch([z_a, z_b])
        loss = nt_xent(z_a, z_b, tile_size=tile_size)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for gradient in tape.gradient(loss, [z_a, z_b]):
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_zeros_and_copies_give_no_nan(temperature, tile_size):
    """Embeddings that died at 0, and images that are copies of each other."""
    zeros = tf.zeros([4, 3])
    same = tf.ones([4, 3])
    for z_a, z_b in ((zeros, zeros), (same, same), (zeros, same)):
        with tf.GradientTape() as tape:
            tape.watch([z_a, z_b])
            loss = nt_xent(z_a, z_b, temperature, tile_size)
        assert np.isfinite(
            [loss, *(tf.reduce_sum(g) for g in tape.gradient(loss, [z_a, z_b]))]
        ).all()


def value_gradients_top1(z_a, z_b, temperature, tile_size):
    """Of `nt_xent_with_top1`, the gradient with respect to both."""
    with tf.GradientTape() as tape:
        tape.watch([z_a, z_b])
        loss, correct = losses.nt_xent_with_top1(z_a, z_b, temperature, tile_size)
    return loss, *tape.gradient(loss, [z_a, z_b]), correct


def noisy_pair(count, dim=32):
    """Views that agree so far that some find each other and some do not."""
    z_a, noise = pair(count, dim, 1.0)
    return tf.constant(z_a), tf.constant(z_a + 1.5 * noise)


@pytest.mark.parametrize("how", ["static", "dynamic", "xla"])
@pytest.mark.parametrize("temperature", [0.012, 0.1])
@pytest.mark.parametrize(("count", "tile_size"), [(256, 64), (300, 128)])
def test_tiles_equal_the_whole_matrix(count, tile_size, temperature, how):
    """Value, gradient and top-1; shapes known or not, in a graph and under XLA."""
    pairs = noisy_pair(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_sum_exp, "MAX_PRODUCT", 0.0)  # rows against columns, and few: at once
        expected = value_gradients_top1(*pairs, temperature, None)
    assert 0.1 < np.mean(expected[-1]) < 0.9
    unknown = [tf.TensorSpec([None, 32])] * 2 if how == "dynamic" else None
    function = tf.function(
        lambda z_a, z_b: value_gradients_top1(z_a, z_b, temperature, tile_size),
        input_signature=unknown,
        jit_compile=how == "xla",
    )
    got = function(*pairs)
    assert float(got[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    for gradient, whole in zip(got[1:3], expected[1:3]):
        # float32 knows a logit of 1 / T to some 1e-7 / T, and its exponential no better.
        tolerance = 1e-7 / temperature * np.abs(whole).max()
        np.testing.assert_allclose(gradient, whole, rtol=1e-5, atol=tolerance)
    np.testing.assert_array_equal(got[3], expected[3])


@pytest.mark.parametrize("temperature", [0.012, 0.1])
def test_an_unknown_number_of_images_takes_the_form_that_fits(temperature, monkeypatch):
    """Small batches at once, larger ones in tiles, from one graph; both give the same."""
    monkeypatch.setattr(log_sum_exp, "MAX_DENSE_LOGITS", 4 * 40**2)
    monkeypatch.setattr(log_sum_exp, "default_tile_size", lambda: 16)
    function = tf.function(
        lambda z_a, z_b: value_gradients_top1(z_a, z_b, temperature, None),
        input_signature=[tf.TensorSpec([None, 32])] * 2,
    )
    for count in (5, 40, 41):
        pairs = noisy_pair(count)
        for got, one in zip(function(*pairs), value_gradients_top1(*pairs, temperature, 7)):
            np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-7 / temperature)


@pytest.mark.parametrize("temperature", [0.012, 0.1])
def test_no_tensor_has_the_size_of_the_whole_matrix(temperature):
    """In the graph of value and gradient, loops and branches included."""
    count = 2048
    specs = [tf.TensorSpec([count, 32])] * 2
    graph = tf.function(lambda a, b: value_gradients_top1(a, b, temperature, None))
    definition = graph.get_concrete_function(*specs).graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    sizes = [
        np.prod([dim.size for dim in shape.dim])
        for node in nodes
        for shape in node.attr["_output_shapes"].list.shape
    ]
    assert len(sizes) > 100 and 1024**2 in sizes, "the tiles were found"
    assert max(sizes) <= 1024**2 < (2 * count) ** 2


def several_views(views=3, count=7, dim=5):
    """float32 [views, count, dim]: views of images that resemble each other."""
    return (RNG.normal(size=[1, count, dim]) + RNG.normal(size=[views, count, dim])).astype("f")


@pytest.mark.parametrize("tile_size", [None, 1, 4, 16])
@pytest.mark.parametrize("temperature", [0.012, 0.3])  # the lower one takes rows x columns
@pytest.mark.parametrize(("views", "count"), [(2, 5), (3, 1), (3, 7), (4, 6)])
def test_several_views_are_the_double_loop_over_pairs(views, count, temperature, tile_size):
    """Every ordered pair of views; other views of the same image count for nothing."""
    z = several_views(views, count)
    expected = reference.nt_xent_of_views(z, temperature)
    assert float(nt_xent(z, None, temperature, tile_size)) == pytest.approx(
        expected, rel=5e-6, abs=1e-6 / min(1.0, 10 * temperature)
    )


def test_two_of_several_views_are_the_paper():
    """V = 2 in value and in gradient, whichever way the views are passed."""
    z = tf.constant(several_views(2))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        stacked, separate = nt_xent(z, temperature=0.2), nt_xent(z[0], z[1], 0.2)
    assert float(stacked) == float(separate)
    assert float(stacked) == pytest.approx(reference.nt_xent(z[0], z[1], 0.2), rel=2e-6)
    np.testing.assert_array_equal(tape.gradient(stacked, z), tape.gradient(separate, z))


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("temperature", [0.013, 0.3])
def test_gradient_of_several_views_is_that_of_finite_differences(temperature, tile_size):
    """Of the slow reference in float64, entry by entry."""
    z = tf.constant(several_views(3, 4, 3))
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = nt_xent(z, None, temperature, tile_size)
    gradient = tape.gradient(loss, z).numpy()
    for index in np.ndindex(*z.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = z.numpy().astype(np.float64)
            moved[index] += step
            values.append(reference.nt_xent_of_views(moved, temperature))
        expected = (values[0] - values[1]) / 2e-5
        assert gradient[index] == pytest.approx(expected, rel=1e-4, abs=5e-5)


def test_a_single_image_has_no_gradient_and_no_nan():
    """N = 1: there are no negatives, so the loss is 0; in a graph and under XLA too."""

    def value_and_gradient(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = nt_xent(z, temperature=0.2)
        return loss, tape.gradient(loss, z)

    z = tf.constant(several_views(2, 1, 128))
    for function in (value_and_gradient, tf.function(value_and_gradient, jit_compile=True)):
        loss, gradient = function(z)
        assert float(loss) == 0.0 and not np.any(gradient)
    unknown = tf.function(value_and_gradient, input_signature=[tf.TensorSpec([2, None, 128])])
    assert float(unknown(z)[0]) == 0.0 and not np.any(unknown(z)[1])


@pytest.mark.parametrize("tile_size", [None, 3])
def test_replicas_share_the_negatives_of_several_views(tile_size):
    """Two replicas with unequal rows: the weighted loss and gradient are those of one device."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    z = several_views(3, 7)
    with tf.GradientTape() as tape:
        whole = tf.constant(z)
        tape.watch(whole)
        expected = nt_xent(whole, temperature=0.2)
    expected_gradient = tape.gradient(expected, whole)

    def on_replica(rows):
        # As from a dataset whose last batch is smaller: the number of rows is not static.
        rows = tf.compat.v1.placeholder_with_default(rows, [3, None, 5])
        with tf.GradientTape() as tape:
            tape.watch(rows)
            _, fraction = distribute.replica_offset_and_fraction(rows[0])
            loss = nt_xent(rows, None, 0.2, tile_size) * fraction
        return loss, tape.gradient(loss, rows)

    parts = [z[:, :4], z[:, 4:]]
    distributed = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
    losses, gradients = tf.function(lambda x: strategy.run(on_replica, (x,)))(distributed)
    total = sum(strategy.experimental_local_results(losses))
    gradients = np.concatenate(strategy.experimental_local_results(gradients), axis=1)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradients, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_their_negatives(replicas, tile_size):
    """Mean loss and summed gradient of loss / replicas are those of one device with all rows."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:replicas]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    z_a, z_b = pair(8, 5, 1.0)
    with tf.GradientTape() as tape:
        whole = [tf.constant(z_a), tf.constant(z_b)]
        tape.watch(whole)
        expected = nt_xent(*whole, 0.2)
    expected_gradients = tape.gradient(expected, whole)

    def on_replica(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = nt_xent(rows[:, 0], rows[:, 1], 0.2, tile_size)
            scaled = loss / replicas
        return loss, tape.gradient(scaled, rows)

    rows_per_replica = len(z_a) // replicas
    rows = np.stack([z_a, z_b], axis=1)
    distributed = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            rows[context.replica_id_in_sync_group * rows_per_replica :][:rows_per_replica]
        )
    )
    losses, gradients = tf.function(lambda x: strategy.run(on_replica, (x,)))(distributed)
    losses = strategy.experimental_local_results(losses)
    gradients = np.concatenate(strategy.experimental_local_results(gradients))
    assert float(np.mean(losses)) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradients[:, 0], expected_gradients[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[:, 1], expected_gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nt_xent(*pair(), temperature=0.0), "finite number above 0; got 0.0"),
        (lambda: nt_xent(*pair(), temperature=math.inf), "finite number above 0; got inf"),
        (lambda: nt_xent(*pair(), temperature=math.nan), "finite number above 0; got nan"),
        (lambda: NTXent(-1.0), "finite number above 0; got -1.0"),
        (lambda: nt_xent(*pair(), tile_size=0), "at least 1; got 0"),
        (lambda: nt_xent(np.ones([3, 2]), np.ones([4, 2])), r"\(3, 2\) and \(4, 2\)"),
        (lambda: nt_xent(np.ones([3]), np.ones([3])), r"\[batch, dim\]"),
    ],
)
def test_wrong_input_is_told(call, message):
    """The rule and the value."""
    with pytest.raises(ValueError, match=message):
        call()
