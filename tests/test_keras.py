"""Private Keras and TensorFlow API is used in `_keras.py` alone, and has the way out it needs."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import _keras
from simclr_tf.optimizers import LARS

PACKAGE = pathlib.Path(simclr_tf.__file__).parent
PRIVATE = (
    r"tensorflow\.python\b",
    r"\btrackable_object_graph_pb2\b",
    r"\bkeras\.src\b",
    r"\bcontrol_flow_util\b",
    r"\._build_learning_rate\b",
    r"\._learning_rate\b",
    r"\._index_dict\b",
    r"\._var_key\b",
    r"\._get_variable_index\b",
    r"\._serialize_hyperparameter\b",
    r"\b_built\b",
    r"\.fused\b",
    r"\._flatten_layers\b",
    r"\btf\.name_scope\b",
    r"\.submodules\b",
    r"\binbound_nodes\b",
    r"\b_nodes_by_depth\b",
    r"\bget_(un)?scaled_",
    r"\bcompiled_loss\b",
    r"\.minimize\(",
    r"\bMapDefun\b",
    r"\b_supports_tf_logs\b",
    r"\btrain_function\b",
    r"\bmetric\w*\.[gs]et_weights\b",
    r"\bdlpack\b",
    r"experimental\.stateless_shuffle\b",
)


@pytest.mark.parametrize("pattern", PRIVATE)
def test_private_api_is_used_in_one_module(pattern):
    """The names, as regular expressions, in no other source file of the package."""
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "_keras.py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found


SEVERAL_STEPS = """
import numpy as np, tensorflow as tf
from tensorflow import keras
cpu, two = tf.config.list_physical_devices("CPU")[0], 2 * [tf.config.LogicalDeviceConfiguration()]
tf.config.set_logical_device_configuration(cpu, two)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=2)
model.fit(np.zeros([8, 2], "f"), np.zeros([8, 1], "f"), batch_size=4, verbose=0)
"""


@pytest.mark.end_to_end
def test_keras_repeats_collectives_within_a_call_or_fails():
    """If this fails, Keras 3 can take several steps in a call: `repeats_collectives` may go."""
    command = [sys.executable, "-c", SEVERAL_STEPS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == _keras.repeats_collectives(), done.stderr[-500:]
    if done.returncode:
        assert "must feed a value for placeholder" in done.stderr


def test_xla_is_seen_from_inside():
    """Eagerly and in a graph there is none; also in a function called from a compiled one."""
    answers = []

    @tf.function
    def inner(x):
        answers.append(_keras.under_xla())
        return x

    inner(tf.zeros([1]))
    tf.function(lambda x: inner(x) + 1.0, jit_compile=True)(tf.zeros([2]))
    assert answers == [False, True] and not _keras.under_xla()


def test_without_the_private_module_every_graph_counts_as_compiled(monkeypatch):
    """Eagerly there is still none."""
    monkeypatch.setattr(_keras, "control_flow_util", None)
    assert not _keras.under_xla()
    assert tf.function(lambda: tf.constant(_keras.under_xla()))()


def test_sublayers_are_found_at_any_depth():
    """Those of a model in a model too; the outer one is not among them."""
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="deep")])
    outer = keras.Sequential([inner, keras.layers.ReLU(name="last")])
    names = [layer.name for layer in _keras.sublayers(outer)]
    assert {"deep", "last", inner.name} <= {*names} and outer.name not in names
    assert not _keras.sublayers(outer.layers[-1])


def test_weights_are_named_after_their_layer():
    """What the map of the official weights and LAMB's filter rely on."""
    dense = keras.layers.Dense(2, name="head")
    _keras.build_named(dense, (None, 3))
    assert [_keras.variable_name(v) for v in dense.weights] == ["head/kernel", "head/bias"]


def test_an_index_tells_equal_variables_apart():
    """By identity; what is not in the list is a KeyError."""
    variables = [tf.Variable(1.0), tf.Variable(1.0)]
    index = _keras.VariableIndex(variables)
    assert [index[v] for v in variables] == [0, 1]
    with pytest.raises(KeyError):
        index[tf.Variable(1.0)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("replicas", [1, 2])
def test_lars_finds_the_buffer_of_each_replica(replicas, compiled):
    """Of two variables of one shape; also where Keras 2 compiles each update, as on a GPU."""
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variables = [tf.Variable(tf.ones([2, 2]), name=name) for name in "ab"]
        optimizer = LARS(1.0, weight_decay=0.0, trust_coefficient=None)
        optimizer.build(variables)
    optimizer.jit_compile = compiled

    def update():
        gradients = [tf.fill([2, 2], value / replicas) for value in (1.0, 2.0)]
        optimizer.apply_gradients(list(zip(gradients, variables)))

    step = tf.function(lambda: strategy.run(update))
    step()
    step()
    for gradient, variable, buffer in zip([1.0, 2.0], variables, optimizer.momentum_buffers):
        np.testing.assert_allclose(variable, np.full([2, 2], 1 - gradient * (1 + 1.9)), rtol=1e-5)
        np.testing.assert_allclose(buffer, np.full([2, 2], gradient * 1.9), rtol=1e-5)


@pytest.mark.skipif(_keras.IS_KERAS_2, reason="Keras 2 adds the gradients first")
def test_keras_3_overlooks_an_overflow_of_another_replica():
    """Why `with_overflow_of_any_replica` is there; where this fails, it can go."""
    devices = [d.name for d in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        weight = keras.Variable([1.0])
        optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        optimizer.build([weight])

    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        gradient = tf.constant([0.0, np.inf])[replica]
        optimizer.apply_gradients([(gradient[None], weight)])

    tf.function(strategy.run)(tf.function(step))
    assert not np.isfinite(weight.numpy()).any()
