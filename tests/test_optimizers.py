"""LARS, WarmupCosine and optimizers by name, compared with plain NumPy and closed forms."""

import math
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras, optimizers
from simclr_tf.optimizers import LARS, AdamW, WarmupCosine, by_name, lars_update


def reference_lars(w, gradients, rates, momentum, decay, trust, nesterov=False):
    """Weights after each step, by the rule in float64; with trust None the ratio is 1."""
    w, v, history = np.array(w, np.float64), np.zeros(np.shape(w)), []
    for gradient, rate in zip(gradients, rates):
        g = np.asarray(gradient, np.float64) + decay * w
        ratio = 1.0
        if trust is not None and np.linalg.norm(w) > 0 and np.linalg.norm(g) > 0:
            ratio = trust * np.linalg.norm(w) / np.linalg.norm(g)
        v = momentum * v + rate * ratio * g
        w = w - (momentum * v + rate * ratio * g if nesterov else v)
        history.append(w.copy())
    return history


def name_in_model(variable):
    """The name without that of the model, which Keras 3 puts before it."""
    return re.sub("^sequential[^/]*/", "", _keras.variable_name(variable))


def small_model(precision="float32"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv", dtype=precision),
            keras.layers.BatchNormalization(name="norm", dtype=precision),
            keras.layers.ReLU(dtype=precision),
            keras.layers.GlobalAveragePooling2D(dtype=precision),
            keras.layers.Dense(3, name="head", dtype="float32"),
        ]
    )


def small_data(size=48):
    """Images whose brightest channel is their label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size)
    images = 0.5 * rng.random((size, 8, 8, 3)) + 0.5 * np.eye(3)[labels][:, None, None, :]
    return images.astype(np.float32), labels


def fit(optimizer, model=None, epochs=2, **compile_arguments):
    model = model or small_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **compile_arguments)
    images, labels = small_data()
    return model, model.fit(
        images, labels, batch_size=16, epochs=epochs, shuffle=False, verbose=0
    ).history["loss"]


def apply(optimizer, variables, gradients):
    optimizer.apply_gradients(list(zip(gradients, variables)))


def test_two_steps_equal_values_computed_by_hand():
    """|w| = 5 and |g| = 10 give trust 0.1 * 5 / 10 = 0.05; then momentum adds half of the step."""
    w, v = tf.constant([[3.0, 4.0]]), tf.zeros([1, 2])
    g = tf.constant([[6.0, 8.0]])
    w, v = lars_update(w, g, v, 2.0, 0.5, 0.0, 0.1, exclude=False)
    np.testing.assert_allclose(v, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(w, [[2.4, 3.2]], rtol=1e-6)  # |w| = 4, so trust is 0.04
    w, v = lars_update(w, g, v, 2.0, 0.5, 0.0, 0.1, exclude=False)
    np.testing.assert_allclose(v, [[0.3 + 0.48, 0.4 + 0.64]], rtol=1e-6)
    np.testing.assert_allclose(w, [[2.4 - 0.78, 3.2 - 1.04]], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("trust", [1e-3, None])
def test_a_run_equals_plain_numpy(nesterov, trust):
    """20 steps with a schedule, whose changes show that the buffer includes the rate."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(5, 4)), rng.normal(size=(20, 5, 4)).astype(np.float32)
    schedule = WarmupCosine(3.0, total_steps=20, warmup_steps=5)
    rates = [float(schedule(step)) for step in range(20)]
    weight = tf.Variable(start.astype(np.float32), name="kernel")
    lars = LARS(schedule, 0.9, 0.1, trust_coefficient=trust, nesterov=nesterov)
    for gradient, expected in zip(
        gradients, reference_lars(start, gradients, rates, 0.9, 0.1, trust, nesterov)
    ):
        apply(lars, [weight], [tf.constant(gradient)])
        np.testing.assert_allclose(weight, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("w", "g"), [([[0.0, 0.0]], [[3.0, 4.0]]), ([[3.0, 4.0]], [[0.0, 0.0]])])
def test_trust_ratio_is_one_where_a_norm_is_zero(w, g):
    new, _ = lars_update(
        tf.constant(w), tf.constant(g), tf.zeros([1, 2]), 0.5, 0.9, 0.0, 1e-3, exclude=False
    )
    np.testing.assert_allclose(new, np.array(w) - 0.5 * np.array(g), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_norms_do_not_overflow_in_half_precision(dtype):
    """A gradient of norm 4e5 has a square beyond float16; the dtypes of the variables are kept."""
    w = tf.ones([100, 100], dtype)
    new_w, new_v = lars_update(
        w, tf.fill([100, 100], tf.constant(4e3, dtype)), 0 * w, 100.0, 0.9, 0.0, 1e-3, exclude=False
    )
    assert new_w.dtype == new_v.dtype == dtype
    np.testing.assert_allclose(tf.cast(new_w, tf.float64), 0.9, rtol=4e-3)


def test_vectors_and_named_variables_have_neither_decay_nor_trust_ratio():
    """The convolution follows LARS; bias, norm and the head named by a pattern follow SGD."""
    model = small_model()
    before = [v.numpy() for v in model.trainable_variables]
    gradients = [np.full(w.shape, 0.1, np.float32) for w in before]
    lars = LARS(1.0, weight_decay=0.5, exclude=["(^|/)head/"])
    for _ in range(2):
        apply(lars, model.trainable_variables, map(tf.constant, gradients))
    adapted = []
    for variable, w, g in zip(model.trainable_variables, before, gradients):
        as_lars = reference_lars(w, [g, g], [1.0] * 2, 0.9, 0.5, 1e-3)[-1]
        as_sgd = reference_lars(w, [g, g], [1.0] * 2, 0.9, 0.0, None)[-1]
        if np.allclose(variable, as_lars, atol=1e-6):
            adapted.append(name_in_model(variable))
        else:
            np.testing.assert_allclose(variable, as_sgd, rtol=1e-5, atol=1e-6)
    assert adapted == ["conv/kernel"]


def test_keras_decoupled_decay_is_not_added():
    """With a gradient of zero on an excluded variable, nothing moves, whatever the decay."""
    bias = tf.Variable([1.0, 2.0], name="bias")
    apply(LARS(1.0, weight_decay=0.5), [bias], [tf.zeros(2)])
    np.testing.assert_array_equal(bias, [1.0, 2.0])


def test_a_sparse_gradient_equals_the_dense_one():
    """Repeated indices add up, and rows without a gradient still decay."""
    table = tf.Variable(tf.reshape(tf.range(1.0, 9.0), [4, 2]))
    same = tf.Variable(table)
    sparse = tf.IndexedSlices(
        tf.constant([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), tf.constant([1, 3, 1]), [4, 2]
    )
    apply(LARS(10.0, weight_decay=0.1), [table], [sparse])
    apply(LARS(10.0, weight_decay=0.1), [same], [tf.convert_to_tensor(sparse)])
    np.testing.assert_allclose(table, same, rtol=1e-6)
    assert np.all(table.numpy()[0] < [1.0, 2.0])


def test_config_round_trip_keeps_everything():
    lars = LARS(
        WarmupCosine(2.0, 100, 10, 0.1),
        0.8,
        1e-4,
        2e-3,
        True,
        ["head", "^norm"],
        "mine",
        clipnorm=5.0,
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(lars))
    assert type(again) is LARS
    assert again.get_config() == lars.get_config()
    config = again.get_config()
    expected = {
        "momentum": 0.8,
        "weight_decay": 1e-4,
        "trust_coefficient": 2e-3,
        "nesterov": True,
        "exclude": ["head", "^norm"],
        "name": "mine",
        "clipnorm": 5.0,
    }
    assert {key: config[key] for key in expected} == expected
    assert float(LARS.from_config(config).learning_rate) == 0.0  # step 0 of the warm-up


def test_trust_coefficient_none_survives_the_round_trip():
    sgd = by_name("sgd", 0.1, weight_decay=5e-4)
    assert LARS.from_config(sgd.get_config()).trust_coefficient is None
    assert sgd.name == "SGD"


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_a_loaded_model_trains_like_the_one_that_was_saved(name, tmp_path):
    """A .keras file keeps the momentum, the step of the schedule and the exclusions."""
    optimizer = by_name(name, WarmupCosine(0.5, 12, 3), weight_decay=0.1)
    model, _ = fit(optimizer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 6
    images, labels = small_data()
    for net in (model, loaded):
        net.fit(images, labels, batch_size=16, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.weights, loaded.weights):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_checkpoint_restores_the_momentum(tmp_path):
    model, _ = fit(LARS(1.0))
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "ckpt")
    other, _ = fit(LARS(1.0), epochs=1)
    status = tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path)
    status.assert_consumed()
    assert len(model.optimizer.momentum_buffers) == len(model.trainable_variables)
    for a, b in zip(model.optimizer.momentum_buffers, other.optimizer.momentum_buffers):
        np.testing.assert_array_equal(a, b)
        assert np.any(a)


def test_xla_equals_plain_execution():
    plain, _ = fit(LARS(1.0, exclude=["head"]))
    compiled, _ = fit(LARS(1.0, exclude=["head"]), jit_compile=True)
    for a, b in zip(plain.trainable_variables, compiled.trainable_variables):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_trains_in_mixed_precision(policy):
    """A LossScaleOptimizer wraps it for float16; the variables stay float32 and move."""
    optimizer = LARS(2.0)
    if policy == "mixed_float16":
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    model, losses = fit(optimizer, small_model(policy), epochs=4)
    assert all(v.dtype == tf.float32 for v in model.trainable_variables)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["lars", "sgd"])
def test_two_replicas_equal_one(name):
    """Without batch normalisation, whose statistics would differ between replicas."""
    devices = [device.name for device in tf.config.list_logical_devices("CPU")[:2]]
    assert len(devices) == 2
    weights = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(devices)):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = keras.Sequential(
                [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, name="head")]
            )
            optimizer = by_name(name, WarmupCosine(0.5, 6, 1), weight_decay=0.1)
            model, _ = fit(optimizer, model)
        weights.append([v.numpy() for v in model.trainable_variables])
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_sgd_decays_the_weight_through_the_momentum():
    """Coupled L2: two steps by hand, and the bias does not decay."""
    kernel, bias = tf.Variable([[2.0]], name="kernel"), tf.Variable([2.0], name="bias")
    sgd = by_name("sgd", 0.1, weight_decay=0.5, momentum=0.9)
    for _ in range(2):
        apply(sgd, [kernel, bias], [tf.ones([1, 1]), tf.ones([1])])
    # v1 = 0.1 * (1 + 0.5 * 2) = 0.2, w1 = 1.8; v2 = 0.18 + 0.1 * (1 + 0.9) = 0.37
    np.testing.assert_allclose(kernel, [[2.0 - 0.2 - 0.37]], rtol=1e-6)
    np.testing.assert_allclose(bias, [2.0 - 0.1 - 0.19], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_adamw_and_lamb_do_not_decay_biases_and_norms(name):
    """With gradients of zero only weight decay changes variables: kernels and nothing else."""
    model = small_model()
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = by_name(name, 0.1, weight_decay=0.5)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    gradients = [tf.zeros(v.shape) for v in model.trainable_variables]
    apply(optimizer, model.trainable_variables, gradients)
    moved = [
        name_in_model(v)
        for v, w in zip(model.trainable_variables, before)
        if not np.array_equal(v, w)
    ]
    assert moved == ["conv/kernel", "head/kernel"]


def test_lamb_does_not_adapt_biases_and_norms():
    """LAMB's first step on them is Adam's: the rate itself, not the rate times the norm of w."""
    bias = tf.Variable([30.0, 40.0], name="dense/bias")
    kernel = tf.Variable([[30.0, 40.0]], name="dense/kernel")
    optimizer = by_name("lamb", 0.1, weight_decay=0.0)
    apply(optimizer, [bias, kernel], [tf.ones([2]), tf.ones([1, 2])])
    np.testing.assert_allclose(bias, [29.9, 39.9], rtol=1e-5)
    np.testing.assert_allclose(kernel, [[30 - 5 / math.sqrt(2), 40 - 5 / math.sqrt(2)]], rtol=1e-5)


def lamb_in_numpy(w, gradients, rate, decay, adapted, betas=(0.9, 0.999), epsilon=1e-6):
    """arXiv:1904.00962, algorithm 2, in float64; without decay and trust ratio unless adapted."""
    w, m, v = w.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        g = g.astype(np.float64)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        update = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon)
        if adapted:
            update = update + decay * w
            update = update * np.linalg.norm(w) / np.linalg.norm(update)
        w = w - rate * update
    return w


@pytest.mark.parametrize("compiled", [False, True])
def test_lamb_follows_the_paper(compiled):
    """Ten steps equal those of the reference, with either Keras."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=[4, 3]).astype("f"), rng.normal(size=[3]).astype("f")
    gradients = [(rng.normal(size=[4, 3]), rng.normal(size=[3])) for _ in range(10)]
    gradients = [(a.astype("f"), b.astype("f")) for a, b in gradients]
    variables = [tf.Variable(kernel, name="dense/kernel"), tf.Variable(bias, name="dense/bias")]
    optimizer = by_name("lamb", 0.05, weight_decay=0.1)
    step = tf.function(apply) if compiled else apply
    if compiled:
        getattr(optimizer, "build", lambda variables: None)(variables)
    for pair in gradients:
        step(optimizer, variables, [tf.constant(g) for g in pair])
    for variable, start, i in zip(variables, (kernel, bias), (0, 1)):
        expected = lamb_in_numpy(start, [g[i] for g in gradients], 0.05, 0.1, adapted=i == 0)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "rate"), [("lars", 1.0), ("lamb", 0.02), ("sgd", 0.1), ("adamw", 0.02)]
)
def test_every_optimizer_learns(name, rate):
    """The loss of three separable classes falls below half the chance level ln 3."""
    optimizer = by_name(name, WarmupCosine(rate, 45, 3), weight_decay=1e-4)
    _, losses = fit(optimizer, epochs=15)
    assert losses[-1] < 0.5 * math.log(3), losses


def test_unknown_optimizer_names_the_four():
    with pytest.raises(ValueError, match=r"lars, lamb, sgd, adamw; got 'adam'"):
        by_name("adam", 0.1)


@pytest.mark.skipif(not _keras.IS_KERAS_2, reason="Keras 3 has its own LAMB")
def test_lamb_without_addons_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    with pytest.raises(ValueError, match="needs TensorFlow Addons"):
        by_name("lamb", 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be a finite number in \[0, 1\)"),
        ({"weight_decay": -1e-4}, "weight_decay must be a finite number of at least 0"),
        ({"trust_coefficient": 0.0}, "trust_coefficient must be a finite number above 0"),
        ({"exclude": ["("]}, "regular expressions"),
    ],
)
def test_lars_refuses_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        LARS(0.1, **arguments)


def test_one_pattern_is_not_split_into_letters():
    assert LARS(0.1, exclude="head").exclude == ("head",)


def test_schedule_at_its_corners():
    schedule = WarmupCosine(0.8, total_steps=110, warmup_steps=10, final_learning_rate=0.2)
    steps = [0, 1, 5, 10, 60, 110, 500]
    rates = [0.0, 0.08, 0.4, 0.8, 0.5, 0.2, 0.2]
    np.testing.assert_allclose([float(schedule(s)) for s in steps], rates, atol=1e-7)


@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_schedule_is_keras_cosine_after_the_warm_up(warmup_steps):
    schedule = WarmupCosine(1.5, 40, warmup_steps)
    cosine = keras.optimizers.schedules.CosineDecay(1.5, 40 - warmup_steps)
    for step in range(warmup_steps, 45):
        expected = float(cosine(step - warmup_steps))
        np.testing.assert_allclose(
            float(schedule(tf.constant(step, tf.int64))), expected, atol=1e-6
        )


@pytest.mark.parametrize(
    ("peak", "total", "warmup", "final"),
    [
        (1.5, 40, 7, 0.25),
        (1.5, 40, 0, 0.0),
        (4.8, 300, 1, 0.0),
        (0.1, 5, 4, 0.1),
        (1e-3, 200, 60, 1e-6),
    ],
)
def test_schedule_equals_its_closed_form_at_every_step(peak, total, warmup, final):
    """In float64 NumPy; float32 cancels near the end, where 1 + cos is about 0."""
    schedule = WarmupCosine(peak, total, warmup, final)
    for step in range(total + 5):
        progress = min(max(step - warmup, 0) / (total - warmup), 1.0)
        expected = final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
        if step < warmup:
            expected = peak * step / warmup
        rate = schedule(tf.constant(step, tf.int64))
        assert rate.dtype == tf.float32 and rate.shape == ()
        np.testing.assert_allclose(rate, expected, rtol=1e-6, atol=2e-7 * peak)


def test_schedule_round_trip():
    schedule = WarmupCosine(1.5, np.int64(40), 7, 0.25)
    serialized = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(serialized)
    assert type(again) is WarmupCosine
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 10), "learning_rate must be a finite number above 0"),
        ((math.nan, 10), "learning_rate must be a finite number above 0"),
        ((1.0, 0), "total_steps must be a whole number of at least 1"),
        ((1.0, 10.5), "total_steps must be a whole number"),
        ((1.0, 10, 10), r"warmup_steps must be a whole number in \[0, 10\)"),
        ((1.0, 10, -1), "warmup_steps must be a whole number in"),
        ((1.0, 10, 0, 2.0), r"final_learning_rate must be a finite number in \[0, 1\.0\]"),
    ],
)
def test_schedule_refuses_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupCosine(*arguments)


def test_scaling_of_the_rate():
    """The paper's two: 0.3 * 4096 / 256 = 4.8 and 0.075 * sqrt(4096) = 4.8."""
    assert optimizers.scale_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert optimizers.scale_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert optimizers.scale_learning_rate(0.3, 4096, "none") == 0.3
    with pytest.raises(ValueError, match="linear, sqrt, none; got 'cubic'"):
        optimizers.scale_learning_rate(0.3, 4096, "cubic")
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1; got 0"):
        optimizers.scale_learning_rate(0.3, 0, "linear")


def test_adamw_decays_once():
    """One step with a gradient of zero takes rate * decay off a kernel, as Loshchilov has it."""
    kernel = tf.Variable([[2.0]], name="kernel")
    apply(AdamW(0.1, weight_decay=0.5), [kernel], [tf.zeros([1, 1])])
    np.testing.assert_allclose(kernel, [[2.0 * (1 - 0.1 * 0.5)]], rtol=1e-6)
