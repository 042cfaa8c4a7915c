"""Projection heads: formula, outputs of hidden layers, precision, saving."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf.heads import LinearHead, NoHead, ProjectionHead


def rand_h(batch=8, dim=24):
    return np.random.default_rng(0).normal(size=(batch, dim)).astype(np.float32)


def scrambled(head, h):
    head(h)
    rng = np.random.default_rng(1)
    for weight in head.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    for dense in head.dense_layers:
        dense.kernel.assign(rng.normal(size=dense.kernel.shape))
    return head


def by_hand(head, h, training):
    """Every item of hidden_outputs, in float64 NumPy."""
    outputs = [h.astype(np.float64)]
    for index, dense in enumerate(head.dense_layers):
        last = index == len(head.dense_layers) - 1
        x = outputs[-1] @ dense.kernel.numpy().astype(np.float64)
        if head.batch_norm:
            norm = head.norm_layers[index]
            mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
            if training:
                mean, variance = x.mean(axis=0), x.var(axis=0)
            x = norm.gamma.numpy() * (x - mean) / np.sqrt(variance + 1e-5)
            x = x if last else x + norm.beta.numpy()
        else:
            x = x + dense.bias.numpy()
        outputs.append(x if last else np.maximum(x, 0))
    return outputs


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("layers", [2, 3])
def test_head_equals_its_formula(layers, batch_norm, training):
    h = rand_h()
    head = scrambled(ProjectionHead(10, 6, layers=layers, batch_norm=batch_norm), h)
    expected = by_hand(head, h, training)
    outputs = head.hidden_outputs(h, training=training)
    assert len(outputs) == layers + 1
    for output, value in zip(outputs, expected):
        np.testing.assert_allclose(output, value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head(h, training=training), expected[-1], rtol=1e-4, atol=1e-4)


def test_hidden_layers_have_the_width_of_h_by_default():
    h = rand_h(dim=24)
    assert [o.shape[1] for o in ProjectionHead(layers=3).hidden_outputs(h)] == [24, 24, 24, 128]
    assert [o.shape[1] for o in ProjectionHead(7, 5).hidden_outputs(h)] == [24, 7, 5]


@pytest.mark.parametrize("layers", [2, 3])
def test_weights_are_kernels_and_norms_without_biases_and_last_beta(layers):
    head = ProjectionHead(layers=layers)
    head.build((None, 16))
    names = [weight.name.split("/")[-1].split(":")[0] for weight in head.trainable_weights]
    assert sorted(names) == sorted(["kernel", "gamma"] * layers + ["beta"] * (layers - 1))


def test_without_batch_norm_there_are_kernels_and_biases_only():
    head = ProjectionHead(batch_norm=False)
    head.build((None, 16))
    names = [weight.name.split("/")[-1].split(":")[0] for weight in head.weights]
    assert sorted(names) == ["bias", "bias", "kernel", "kernel"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_z_is_float32_under_mixed_precision_and_close_to_float32(policy):
    h = rand_h()
    head = ProjectionHead(dtype=policy)
    head(h)
    plain = ProjectionHead()
    plain(h)
    plain.set_weights(head.get_weights())
    z, expected = head(h, training=True), plain(h, training=True)
    assert z.dtype == tf.float32 and head.relu.compute_dtype == policy[6:]
    np.testing.assert_allclose(z, expected, atol=0.1)


def test_config_round_trip_keeps_everything():
    head = ProjectionHead(
        7, 5, 3, False, bn_momentum=0.8, bn_epsilon=1e-3, name="g", dtype="float64"
    )
    again = ProjectionHead.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    assert (again.hidden_dim, again.output_dim, again.layers, again.batch_norm) == (7, 5, 3, False)
    assert (again.bn_momentum, again.bn_epsilon, again.name) == (0.8, 1e-3, "g")


def test_saved_after_its_first_call_and_loaded(tmp_path):
    h = rand_h()
    model = keras.Sequential([ProjectionHead(layers=3)])
    model(h)
    scrambled(model.layers[0], h)
    model.save(tmp_path / "head.keras")
    loaded = keras.models.load_model(tmp_path / "head.keras")
    np.testing.assert_array_equal(loaded(h), model(h))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layers": 4}, r"layers must be 2 \(SimCLR\) or 3 \(SimCLRv2\); got 4"),
        ({"layers": 1}, "layers must be 2"),
        ({"output_dim": 0}, "output_dim must be a whole number of at least 1; got 0"),
        ({"hidden_dim": 1.5}, "hidden_dim must be a whole number of at least 1; got 1.5"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProjectionHead(**arguments)


def test_h_of_the_wrong_rank_is_refused():
    with pytest.raises(ValueError, match=r"h must be \[batch, D\]"):
        ProjectionHead()(tf.zeros([2, 4, 4, 8]))


@pytest.mark.parametrize("training", [False, True])
def test_a_linear_head_is_a_matrix_and_batch_norm(training):
    """Without ReLU; the same as the last layer of a `ProjectionHead`."""
    h, head = rand_h(), LinearHead(6)
    head(h)
    kernel = np.random.default_rng(1).normal(size=head.dense.kernel.shape)
    head.dense.kernel.assign(kernel)
    x = h.astype(np.float64) @ head.dense.kernel.numpy().astype(np.float64)
    mean, variance = (x.mean(axis=0), x.var(axis=0)) if training else (0.0, 1.0)
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(head(h, training=training), expected, rtol=1e-4, atol=1e-4)
    names = [weight.name.split("/")[-1].split(":")[0] for weight in head.trainable_weights]
    assert sorted(names) == ["gamma", "kernel"]


def test_a_linear_head_without_batch_norm_has_a_bias():
    h, head = rand_h(), LinearHead(6, batch_norm=False)
    head(h)
    head.dense.bias.assign(np.arange(6.0))
    expected = h @ head.dense.kernel.numpy() + np.arange(6.0)
    np.testing.assert_allclose(head(h, training=True), expected, rtol=1e-4, atol=1e-5)
    outputs = head.hidden_outputs(h)
    assert len(outputs) == 2 and outputs[0] is h
    np.testing.assert_array_equal(outputs[1], head(h))


def test_without_a_head_z_is_h():
    h, head = rand_h(), NoHead()
    np.testing.assert_array_equal(head(h, training=True), h)
    (only,) = head.hidden_outputs(h)
    np.testing.assert_array_equal(only, h)
    assert head.weights == [] and head.layers == 0


@pytest.mark.parametrize("make", [lambda: LinearHead(4), NoHead])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_z_of_the_other_heads_is_float32_under_mixed_precision(policy, make):
    keras.mixed_precision.set_global_policy(policy)
    assert make()(rand_h()).dtype == tf.float32
    assert NoHead()(tf.constant(rand_h())).numpy()[0, 0] == rand_h()[0, 0]


@pytest.mark.parametrize("head", [LinearHead(4, False, name="g"), NoHead(name="g")])
def test_config_round_trip_of_the_other_heads(head):
    assert type(head).from_config(head.get_config()).get_config() == head.get_config()


@pytest.mark.parametrize("make", [LinearHead, NoHead])
def test_the_other_heads_refuse_h_of_the_wrong_rank(make):
    with pytest.raises(ValueError, match=r"h must be \[batch, D\]"):
        make()(tf.zeros([2, 4, 4, 8]))
