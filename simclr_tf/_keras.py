"""Where Keras 2 and Keras 3 differ.

The only place that touches private or undocumented TensorFlow and Keras API. Every entry is small
and gives its reason; the public modules call these and never ask for a version themselves.

One thing that Keras does not document is left where it is used, since it needs no private name:
`ResNet` enters its residual blocks by their own `call` methods (see `encoders.resnet`).
"""

from __future__ import annotations

import numbers

import tensorflow as tf
from tensorflow import keras
from tensorflow.core.protobuf import trackable_object_graph_pb2

try:
    from tensorflow.python.ops import control_flow_util
except ImportError:  # it may move in any release
    control_flow_util = None

# Keras 2.15 has no `version`, and tf_keras reports 2.
IS_KERAS_2 = getattr(keras, "version", lambda: "2")().startswith("2")


# ---- tracing


def under_xla():
    """Whether what is being traced is part of a function that XLA compiles as a whole.

    No public name tells. Where the private one is missing, every traced function counts as compiled
    by XLA: callers then avoid operations that XLA lacks, which costs time and nothing else.
    """
    if control_flow_util is None:
        return tf.inside_function()
    graph = tf.compat.v1.get_default_graph()
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))


# ---- layers


def build_named(layer, input_shape):
    """Builds a layer so that the names of its weights start with its own name.

    Keras 3's `build` does so by itself; in Keras 2 only `__call__` does. The map of the official
    weights and the filters of LAMB depend on these names.
    """
    with tf.name_scope(layer.name):
        layer.build(input_shape)


def variable_name(variable):
    """The name of a variable with those of its layers, such as "head/kernel".

    In Keras 2 that is `name`, followed by ":0"; in Keras 3 `name` is "kernel" alone, and `path`
    has the rest.
    """
    return getattr(variable, "path", variable.name).split(":")[0]


def sublayers(layer):
    """All layers inside a layer or model, at any depth, without itself.

    `keras.Model.layers` stops at the first level. Keras 2 has `submodules` for the others, which
    Keras 3 lacks; this method is in both.
    """
    return list(layer._flatten_layers(include_self=False))


def overestimates_variance(layer):
    """Whether a built batch normalisation moves `moving_variance` by variance * n / (n - 1).

    Keras 2 does where it uses TensorFlow's fused kernel; it records that in `fused`, which is not
    documented. Keras 3 does not use that kernel in training.
    """
    return bool(getattr(layer, "fused", False))


# ---- optimizers


class Optimizer(keras.optimizers.Optimizer):
    """`keras.optimizers.Optimizer` that takes and serialises a learning rate, as in Keras 3.

    In Keras 2 that is left to subclasses, and Keras's own use private methods for it.

    Args:
        learning_rate: float, or a `keras.optimizers.schedules.LearningRateSchedule`.
        name: name of the optimizer.
        **kwargs: other arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(self, learning_rate, name, **kwargs):
        if isinstance(learning_rate, numbers.Real):
            learning_rate = float(learning_rate)  # Keras 3 refuses 1 and NumPy's numbers
        if IS_KERAS_2:
            super().__init__(name=name, weight_decay=None, **kwargs)
            self._learning_rate = self._build_learning_rate(learning_rate)
        else:
            super().__init__(learning_rate=learning_rate, name=name, **kwargs)

    def build(self, var_list):
        """Prepares for updates of the variables of `var_list`."""
        super().build(var_list)
        self._built = True  # Keras 2 expects this of subclasses; Keras 3 has set `built`

    def get_config(self):
        """The arguments of `keras.optimizers.Optimizer`, and the learning rate."""
        config = super().get_config()
        if IS_KERAS_2:
            rate = self._learning_rate
            is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
            serialize = keras.optimizers.schedules.serialize
            config["learning_rate"] = serialize(rate) if is_schedule else float(rate.numpy())
        return config


def is_built(optimizer):
    """Whether an optimizer has its variables: `_built` in Keras 2, `built` in Keras 3."""
    return bool(getattr(optimizer, "_built", False) or getattr(optimizer, "built", False))


class VariableIndex:
    """The position of each variable in a list, which may be asked for inside a replica.

    There an optimizer's `update_step` receives the replica's own copy of a distributed variable,
    and in Keras 3 the `tf.Variable` inside a `keras.Variable`. Keras has such an index, under
    private names that differ between 2 and 3. This is an object, since Keras would track a
    dictionary for checkpoints.

    Args:
        variables: list of `tf.Variable` or `keras.Variable`.
    """

    def __init__(self, variables):
        self._variables = [v if isinstance(v, tf.Variable) else v.value for v in variables]
        self._index = {variable.ref(): i for i, variable in enumerate(self._variables)}

    def __getitem__(self, variable):
        if variable.ref() not in self._index:
            self._add_copies()
        return self._index[variable.ref()]

    def _add_copies(self):
        """Adds each replica's copies, which the strategy in effect tells."""
        copies_of = tf.distribute.get_strategy().experimental_local_results
        for i, variable in enumerate(self._variables):
            self._index.update((copy.ref(), i) for copy in copies_of(variable))


# ---- files


def parse_object_graph(serialized):
    """The nodes of the object graph in a checkpoint: `TrackableObjectGraph.nodes`.

    TensorFlow has no public reader of the names that lead from an object to a variable's key.

    Args:
        serialized: bytes, the checkpoint's entry `_CHECKPOINTABLE_OBJECT_GRAPH`.
    """
    return trackable_object_graph_pb2.TrackableObjectGraph.FromString(serialized).nodes
