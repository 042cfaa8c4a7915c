"""NT-Xent: the paper's double loop, closed forms, finite differences, half precision, replicas."""

import math

import numpy as np
import pytest
import reference
import tensorflow as tf

from simclr_tf import NTXent, nt_xent

RNG = np.random.default_rng(3)


def pair(count=7, dim=5, scale=3.0):
    """Two float32 arrays [count, dim], not normalised."""
    return (RNG.normal(size=[2, count, dim]) * scale).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_it_is_the_double_loop_of_the_paper(count, temperature):
    """1/(2N) of the sum over both directions, self excluded, cosine similarity."""
    z_a, z_b = pair(count)
    expected = reference.nt_xent(z_a, z_b, temperature)
    assert float(nt_xent(z_a, z_b, temperature)) == pytest.approx(expected, rel=2e-6, abs=1e-6)
    assert float(NTXent(temperature)(z_a, z_b)) == pytest.approx(expected, rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("count", [2, 64])
def test_embeddings_that_are_all_alike_give_chance(count):
    """log(2N - 1), whatever the temperature."""
    z = np.tile([[1.0, 2.0, 3.0]], [count, 1])
    assert float(nt_xent(z, 5.0 * z, 0.1)) == pytest.approx(math.log(2 * count - 1), rel=1e-6)


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


def test_gradient_is_that_of_finite_differences():
    """Of the slow reference in float64, entry by entry."""
    z_a, z_b = pair(4, 3, 1.0)
    with tf.GradientTape() as tape:
        variables = [tf.Variable(z_a), tf.Variable(z_b)]
        loss = nt_xent(*variables, 0.3)
    gradients = tape.gradient(loss, variables)
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(z_a.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [z_a.astype(np.float64), z_b.astype(np.float64)]
                moved[which][index] += step
                values.append(reference.nt_xent(*moved, 0.3))
            expected = (values[0] - values[1]) / 2e-5
            assert float(gradient[index]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_half_precision_is_exact_after_the_cast(dtype, scale):
    """Equal to float32 of the same rounded values; finite loss and gradient at every scale."""
    z_a, z_b = (tf.cast(z * scale, dtype) for z in pair(16, 8, 1.0))
    expected = nt_xent(tf.cast(z_a, tf.float32), tf.cast(z_b, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch([z_a, z_b])
        loss = nt_xent(z_a, z_b)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for gradient in tape.gradient(loss, [z_a, z_b]):
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_zeros_and_copies_give_no_nan():
    """Embeddings that died at 0, and images that are copies of each other."""
    zeros = tf.zeros([4, 3])
    same = tf.ones([4, 3])
    for z_a, z_b in ((zeros, zeros), (same, same), (zeros, same)):
        with tf.GradientTape() as tape:
            tape.watch([z_a, z_b])
            loss = nt_xent(z_a, z_b, 0.01)
        assert np.isfinite(
            [loss, *(tf.reduce_sum(g) for g in tape.gradient(loss, [z_a, z_b]))]
        ).all()


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_their_negatives(replicas):
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
            loss = nt_xent(rows[:, 0], rows[:, 1], 0.2)
            scaled = loss / replicas
        return loss, tape.gradient(scaled, rows)

    share = len(z_a) // replicas
    rows = np.stack([z_a, z_b], axis=1)
    distributed = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(rows[context.replica_id_in_sync_group * share :][:share])
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
        (lambda: nt_xent(*pair(), temperature=0.0), "above 0; got 0.0"),
        (lambda: NTXent(-1.0), "above 0; got -1.0"),
        (lambda: nt_xent(np.ones([3, 2]), np.ones([4, 2])), r"\(3, 2\) and \(4, 2\)"),
        (lambda: nt_xent(np.ones([3]), np.ones([3])), r"\[batch, dim\]"),
    ],
)
def test_wrong_input_is_told(call, message):
    """The rule and the value."""
    with pytest.raises(ValueError, match=message):
        call()
