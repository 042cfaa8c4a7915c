"""Where Keras 2 and Keras 3 differ.

The only place that touches private or undocumented TensorFlow and Keras API. Every entry is small
and gives its reason; the public modules call these and never ask for a version themselves.

One thing that Keras does not document is left where it is used, since it needs no private name:
`ResNet` and `Airbench` enter their blocks by the blocks' own `call` methods (see
`encoders.blocks`).
"""

from __future__ import annotations

import importlib
import numbers
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging
from tensorflow import keras
from tensorflow.core.protobuf import trackable_object_graph_pb2

try:
    from tensorflow.python.ops import control_flow_util
except ImportError:  # it may move in any release
    control_flow_util = None

# Keras 2.15 has no `version`, and tf_keras reports 2.
IS_KERAS_2 = getattr(keras, "version", lambda: "2")().startswith("2")

# `tf.keras` has no `saving` in Keras 3, though `keras` has; both are the same package there.
saving = keras.saving if hasattr(keras, "saving") else importlib.import_module("keras").saving

# Raised where an operation is missing, takes other arguments or has no kernel.
_BUILD_ERRORS = (
    AttributeError,
    TypeError,
    ValueError,
    NotImplementedError,
    tf.errors.OpError,
)


# ---- tracing


def repeats_collectives():
    """Whether a loop of Keras can take several steps in one call where replicas share gradients.

    Keras 3 calls the step from a condition within a loop, where TensorFlow does not pass on the
    keys of collectives: "You must feed a value for placeholder tensor" (keras-team/keras#19246).
    """
    return IS_KERAS_2


def under_xla():
    """Whether what is being traced is part of a function that XLA compiles as a whole.

    No public name tells. Where the private one is missing, every traced function counts as compiled
    by XLA: callers then avoid operations that XLA lacks, which costs time and nothing else.
    """
    if control_flow_util is None:
        return tf.inside_function()
    graph = tf.compat.v1.get_default_graph()
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))


def map_rows(function, batches):
    """Applies a function to every row of a batch; rows run in parallel, each on one core.

    `tf.map_fn` divides every operation among all cores, which takes longer than the operation where
    rows are as small as one image. The result has no gradient, and XLA cannot compile it. Where
    `tf.raw_ops.MapDefun`, which is undocumented, is missing or cannot be built, `tf.map_fn` is used
    and returns the same result.

    Args:
      function: called with one row of each item of `batches`; returns one tensor.
      batches: a tuple of tensors [B, ...], or of nested structures of them.

    Returns:
      [B, ...], the results of `function`, of its dtype.
    """
    flat = tf.nest.flatten(batches)
    specs = [tf.TensorSpec(batch.shape[1:], batch.dtype) for batch in flat]
    packed = tf.function(lambda *row: function(*tf.nest.pack_sequence_as(batches, row)))
    concrete = packed.get_concrete_function(*specs)
    (out,) = concrete.outputs
    try:
        (made,) = tf.raw_ops.MapDefun(
            arguments=flat,
            captured_inputs=concrete.captured_inputs,
            output_types=[out.dtype],
            output_shapes=[out.shape],
            f=concrete,
            max_intra_op_parallelism=1,
        )
    except _BUILD_ERRORS as error:
        logging.log_first_n(
            logging.WARNING, "Large views are slower, without MapDefun: %s", 1, error
        )
        spec = tf.TensorSpec(out.shape, out.dtype)
        made = tf.map_fn(lambda row: function(*row), batches, fn_output_signature=spec)
    return made


# ---- tensors


def shared_tensor(array):
    """Returns a NumPy array as a tensor that shares its memory; both must be left unchanged.

    `tf.constant` copies, and what it copies into a graph may hold 2 GB at most. DLPack is
    experimental in TensorFlow. The array must start at a multiple of 64 bytes.
    """
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def stateless_shuffle(tensor, seed):
    """Returns the rows of a tensor in an order that depends on the seed, [2] int64, alone.

    TensorFlow's function for it is experimental; the order of every run depends on it.
    """
    return tf.random.experimental.stateless_shuffle(tensor, seed=seed, alg="philox")


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


def tf_variables(variables):
    """The `tf.Variable` of each variable, a list: Keras 3 has one in every `keras.Variable`.

    `tf.saved_model.save` and `tf.distribute` know no others.
    """
    return [v if isinstance(v, tf.Variable) else v.value for v in variables]


def input_shape(model):
    """The shape that a functional or sequential model takes, (None, H, W, 3); None for others.

    Of a subclassed model Keras 2 knows it after the first call, and Keras 3 raises.
    """
    try:
        return model.input_shape
    except (AttributeError, RuntimeError):
        return None


def random_generators(model):
    """Returns the `tf.random.Generator`s of a model's layers, such as those of `RandomFlip`.

    Keras 2 does not track them for a SavedModel; of Keras 3, they are variables of the model.
    """
    found = [getattr(layer, "_random_generator", None) for layer in all_layers(model)]
    found = [getattr(generator, "_generator", None) for generator in found]
    return [each for each in found if isinstance(each, tf.random.Generator)]


def all_layers(layer):
    """Returns a layer and all layers within it, at any depth; each before those within it.

    `model.layers` lists the layers of one depth, and only Keras 2 has `tf.Module.submodules`.
    """
    return list(layer._flatten_layers())


def sublayers(layer):
    """Returns all layers inside a layer or model, at any depth, without itself."""
    return all_layers(layer)[1:]


def activity_losses(model):
    """Returns the losses that the last call of a model has added, with `add_loss`.

    `losses` also has those of its weights. The others are in `_eager_losses` of each layer in
    Keras 2, also in graphs, and in `_losses` in Keras 3.
    """
    of_layer = [getattr(layer, "_eager_losses", layer._losses) for layer in all_layers(model)]
    return [loss for losses in of_layer for loss in losses]


def copy_synchronization(source, copy):
    """Makes batch normalisation of a copied model use all replicas where that of the source does.

    A config of Keras 2 does not have it, so that a model made from one normalises by replica.

    Args:
      source, copy: models of the same layers.
    """
    for layer, copied in zip(all_layers(source), all_layers(copy)):
        if IS_KERAS_2 and getattr(layer, "synchronized", False) and hasattr(copied, "synchronized"):
            copied.synchronized, copied.fused = True, False


def same_on_all_replicas():
    """Arguments of `add_weight` for a variable to which all replicas assign the same value.

    Keras 2 takes an enumeration, Keras 3 its name.
    """
    only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return {"aggregation": only_first if IS_KERAS_2 else "only_first_replica"}


def set_save_spec(model, shape):
    """Tells a subclassed model the input that it is saved with, as its first call would.

    Keras 2 needs it for a SavedModel (`model.save("directory")`, `ModelCheckpoint`), and training
    does not call the model itself. Keras 3 has no such method.
    """
    if IS_KERAS_2 and getattr(model, "_saved_model_inputs_spec", 0) is None:
        model._set_save_spec(tf.TensorSpec(shape, tf.float32))


def overestimates_variance(layer):
    """Whether a built batch normalisation moves `moving_variance` by variance * n / (n - 1).

    Keras 2 does where it uses TensorFlow's fused kernel; it records that in `fused`, which is not
    documented. Keras 3 does not use that kernel in training.
    """
    return bool(getattr(layer, "fused", False))


def register_layers_of_applications():
    """Lets `.keras` files with ConvNeXt or InceptionResNetV2 load in Keras 2.

    Both have a layer that is defined in `keras.applications` and has no public name; Keras 2 writes
    it to a file, and does not find it again unless it is registered. Keras 3 does.
    """
    if not IS_KERAS_2:
        return
    applications = keras.applications
    for function, layer in (
        (applications.ConvNeXtTiny, "LayerScale"),
        (applications.InceptionResNetV2, "CustomScaleLayer"),
    ):
        cls = getattr(importlib.import_module(function.__module__), layer, None)
        if cls is not None and saving.get_registered_name(cls) == layer:  # not registered
            saving.register_keras_serializable("keras_applications")(cls)


def leaves_fused_kernel(layer):
    """Whether a batch normalisation of images has no fused kernel in training: that of Keras 3.

    `tests/test_batch_norm.py` checks whether this is still so.
    """
    return (
        not IS_KERAS_2 and isinstance(layer, keras.layers.BatchNormalization) and layer.axis == -1
    )


# ---- functional models


class LayerCall(NamedTuple):
    """A call of a layer in a functional model.

    Attributes:
      layer: the layer.
      sources: the layers whose outputs it takes, in any argument; once for each time.
      arguments: the values of all its arguments, nested as they are.
      outputs: the symbolic tensors that it returns.
    """

    layer: Any
    sources: list
    arguments: list
    outputs: list


def layer_calls(model):
    """Returns the `LayerCall`s of a functional model.

    Neither Keras documents a way to walk the graph of a model. In both it is in `_nodes_by_depth`;
    a node keeps its layer and its arguments under other names in Keras 3.
    """

    def call_of(node):
        if hasattr(node, "operation"):
            args, kwargs = node.arguments.args, node.arguments.kwargs
        else:
            args, kwargs = node.call_args, node.call_kwargs
        sources = [_layer_of(parent) for parent in node.parent_nodes]
        arguments = [*args, *kwargs.values()]
        return LayerCall(_layer_of(node), sources, arguments, tf.nest.flatten(node.outputs))

    return [call_of(node) for nodes in model._nodes_by_depth.values() for node in nodes]


def _layer_of(node):
    return node.operation if hasattr(node, "operation") else node.layer


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

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Creates the optimizer; a file of Keras 2 has two arguments that Keras 3 lacks."""
        if not IS_KERAS_2:
            config = {**config}
            for name in ("jit_compile", "is_legacy_optimizer"):
                config.pop(name, None)
        return super().from_config(config, custom_objects)

    def get_config(self):
        """The arguments of `keras.optimizers.Optimizer`, and the learning rate."""
        config = super().get_config()
        if IS_KERAS_2:
            rate = self._learning_rate
            is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
            serialize = keras.optimizers.schedules.serialize
            config["learning_rate"] = serialize(rate) if is_schedule else float(rate.numpy())
        return config


if not IS_KERAS_2:

    @saving.register_keras_serializable(package="simclr_tf")
    class LAMB(keras.optimizers.Lamb):
        """Keras's LAMB with the weight decay of the paper (arXiv:1904.00962, algorithm 2).

        The decay is part of the update whose norm the trust ratio is taken of. That of Keras's LAMB
        is applied before, outside of it. Variables of rank 1 or less (biases, the gamma and beta of
        normalisation layers) have neither weight decay nor trust ratio.

        Args:
            learning_rate: float, or a `keras.optimizers.schedules.LearningRateSchedule`.
            lamb_weight_decay: float, 0 or more.
            epsilon: float, added to the root of the second moment.
            name: name of the optimizer.
            **kwargs: other arguments of `keras.optimizers.Lamb`.
        """

        def __init__(
            self, learning_rate, lamb_weight_decay=0.0, epsilon=1e-6, name="LAMB", **kwargs
        ):
            super().__init__(learning_rate, epsilon=epsilon, name=name, **kwargs)
            self.lamb_weight_decay = lamb_weight_decay

        def update_step(self, gradient, variable, learning_rate):
            """Updates one variable."""
            index = self._get_variable_index(variable)
            m, v = self._momentums[index], self._velocities[index]
            step = tf.cast(self.iterations + 1, variable.dtype)
            m.assign(self.beta_1 * m + (1.0 - self.beta_1) * gradient)
            v.assign(self.beta_2 * v + (1.0 - self.beta_2) * tf.square(gradient))
            m_hat = m / (1.0 - tf.pow(tf.cast(self.beta_1, step.dtype), step))
            v_hat = v / (1.0 - tf.pow(tf.cast(self.beta_2, step.dtype), step))
            update, ratio = m_hat / (tf.sqrt(v_hat) + self.epsilon), 1.0
            if len(variable.shape) > 1:
                update += self.lamb_weight_decay * variable
                w_norm, norm = tf.norm(variable), tf.norm(update)
                ratio = tf.where((w_norm > 0) & (norm > 0), w_norm / norm, 1.0)
            self.assign_sub(variable, ratio * tf.cast(learning_rate, variable.dtype) * update)

        def get_config(self):
            """The arguments of the constructor."""
            config = super().get_config()
            del config["weight_decay"]
            return {**config, "lamb_weight_decay": self.lamb_weight_decay}


def lamb(learning_rate, weight_decay, excluded, **kwargs):
    """Returns LAMB: that of TensorFlow Addons with Keras 2, where Keras has none, else `LAMB`.

    Args:
        learning_rate: float or schedule.
        weight_decay: float, 0 or more.
        excluded: regular expressions for the names of biases and normalisation parameters.
        **kwargs: further arguments of the optimizer.

    Raises:
        ImportError: with Keras 2, where TensorFlow Addons is not installed.
    """
    if not IS_KERAS_2:
        return LAMB(learning_rate, weight_decay, **kwargs)
    from tensorflow_addons import optimizers  # the import warns that Addons has ended

    return optimizers.LAMB(
        learning_rate,
        weight_decay=weight_decay,
        exclude_from_weight_decay=excluded,
        exclude_from_layer_adaptation=excluded,
        **kwargs,
    )


def is_built(optimizer):
    """Whether an optimizer has its variables: `_built` in Keras 2, `built` in Keras 3."""
    return bool(getattr(optimizer, "_built", False) or getattr(optimizer, "built", False))


def build_optimizer(model, trained):
    """Creates the variables of a compiled model's optimizer, if what it trains is built.

    Keras 2 traces a step twice in which variables are created. An optimizer of Keras 2's earlier
    kind, `keras.optimizers.legacy`, creates them by itself. Keras 3's loss scale starts again when
    its optimizer is built twice.

    Args:
        model: a compiled model.
        trained: the layer or model whose weights it trains; mostly the model itself.
    """
    optimizer = getattr(model, "optimizer", None)
    buildable = hasattr(optimizer, "build") and not is_built(optimizer)
    if trained.built and not model.run_eagerly and buildable:
        with model.distribute_strategy.scope():
            optimizer.build(trained.trainable_variables)


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
        self._variables = tf_variables(variables)
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


def scale_loss(optimizer, loss):
    """Returns the loss times the optimizer's loss scale (float16), or the loss itself.

    Keras 2 has `get_scaled_loss` on its loss-scale optimizer alone, Keras 3 has `scale_loss` on
    every optimizer.
    """
    if hasattr(optimizer, "get_scaled_loss"):
        return optimizer.get_scaled_loss(loss)
    return optimizer.scale_loss(loss) if hasattr(optimizer, "scale_loss") else loss


def unscale_gradients(optimizer, gradients):
    """Undoes `scale_loss` on gradients where `apply_gradients` does not do so itself.

    On Keras 3 it does.
    """
    if hasattr(optimizer, "get_unscaled_gradients"):
        return optimizer.get_unscaled_gradients(gradients)
    return gradients


def scale_left(optimizer):
    """Returns the factor that gradients still have after `unscale_gradients`: that of Keras 3."""
    if IS_KERAS_2 or not hasattr(optimizer, "scale_loss"):
        return 1.0
    return tf.cast(optimizer.scale_loss(tf.constant(1.0)), tf.float32)


def with_overflow_of_any_replica(optimizer, gradients):
    """Makes gradients NaN on every replica where those of one are not finite (float16).

    Keras 3 decides by the gradients of the first replica, before they are added, whether to skip a
    step: those of another would make the weights infinite. Keras 2 adds them first.

    Args:
      optimizer: of this step, in a replica context.
      gradients: list of tensors, or None where a variable has no gradient.
    """
    strategy = tf.distribute.get_strategy()
    if IS_KERAS_2 or strategy.num_replicas_in_sync == 1 or not scales_dynamically(optimizer):
        return gradients
    given = [gradient for gradient in gradients if gradient is not None]
    finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in given]
    overflows = 1.0 - tf.cast(tf.reduce_all(finite), tf.float32)
    any_overflows = tf.distribute.get_replica_context().all_reduce("SUM", overflows) > 0
    nan = tf.constant(float("nan"))
    return [
        None if g is None else tf.where(any_overflows, tf.cast(nan, g.dtype), g) for g in gradients
    ]


def scales_dynamically(optimizer):
    """Whether an optimizer adapts its loss scale (float16), and so may skip steps.

    Keras 2 has optimizers of a fixed scale too (`dynamic`), which skip none; Keras 3 has not.
    """
    scales = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
    return scales and getattr(optimizer, "dynamic", True)


def loss_scale(optimizer):
    """Returns the loss scale of an optimizer that `scales_dynamically`, float32 scalar."""
    if hasattr(optimizer, "loss_scale"):
        return tf.convert_to_tensor(optimizer.loss_scale)
    scale = optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale  # Keras 3
    return tf.convert_to_tensor(scale)


def was_skipped(optimizer, scale_before):
    """Returns whether the loss scale skipped the step that was just taken, bool scalar.

    `iterations` does not tell: in Keras 2 it counts skipped steps, in Keras 3 it does not. In both,
    the steps since the last change of the scale begin at 0 again after a skipped step, and also
    after a step that doubles the scale.

    Args:
      optimizer: one that `scales_dynamically`, after `apply_gradients`.
      scale_before: its `loss_scale` before.
    """
    names = ("dynamic_counter", "step_counter")  # in Keras 2, in Keras 3
    counter = next(getattr(optimizer, name) for name in names if hasattr(optimizer, name))
    grown = loss_scale(optimizer) > scale_before
    return (tf.convert_to_tensor(counter) == 0) & ~grown


# ---- files


class _State(tf.Module):
    """Variables in their order, for `tf.train.Checkpoint`."""

    def __init__(self, variables):
        super().__init__()
        self.values = tf_variables(variables)


def trackable(thing):
    """What `tf.train.Checkpoint` saves of a layer, an optimizer or a metric that has variables.

    With Keras 2 that is the object itself. TensorFlow does not reach all variables of Keras 3: not
    those of metrics, and not those of layers in a list.
    """
    return thing if IS_KERAS_2 else _State(thing.variables)


def trackable_model(model):
    """What `tf.train.Checkpoint` saves of a model whose layers are read by themselves as well.

    With Keras 3, a layer that is an attribute of the model is `trackable` under that name.
    """
    if IS_KERAS_2:
        return model
    layers = {k: v for k, v in vars(model).items() if isinstance(v, keras.layers.Layer)}
    held = {id(variable) for layer in layers.values() for variable in layer.variables}
    state = _State([v for v in model.variables if id(v) not in held])
    for name, layer in layers.items():
        setattr(state, name, trackable(layer))
    return state


def parse_object_graph(serialized):
    """The nodes of the object graph in a checkpoint: `TrackableObjectGraph.nodes`.

    TensorFlow has no public reader of the names that lead from an object to a variable's key.

    Args:
        serialized: bytes, the checkpoint's entry `_CHECKPOINTABLE_OBJECT_GRAPH`.
    """
    return trackable_object_graph_pb2.TrackableObjectGraph.FromString(serialized).nodes


# ---- training


def is_validation_of_fit(arguments):
    """Whether the arguments of `evaluate` say that `fit` calls it on its validation data.

    Keras 2 then ignores the data, and reads the dataset that it made of it before.
    """
    return bool(arguments.get("_use_cached_eval_dataset", False))


class Model(keras.Model):
    """`keras.Model` that `fit` builds without averaging a batch over replicas.

    Keras 3 does so before the first step, which fails where replicas have unequal numbers of rows.
    Its `build` sets `_image_shape`, (H, W, 3), from which a saved model is built again.
    """

    _image_shape = None

    def get_build_config(self):
        """What `build` was called with."""
        return {"input_shape": (None, *self._image_shape)} if self._image_shape else None

    def build_from_config(self, config):
        """Builds from `get_build_config`."""
        if config:
            self.build(config["input_shape"])

    def _maybe_symbolic_build(self, *args, **kwargs):
        if not self.built:
            super()._maybe_symbolic_build(*args, **kwargs)
        elif self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def forget_traced_steps(model):
    """Has Keras trace the steps of a model again at its next `fit` and `evaluate`."""
    for name in ("train_function", "test_function", "train_tf_function"):
        if hasattr(model, name):
            setattr(model, name, None)


class StepCallback(keras.callbacks.Callback):
    """A base class for callbacks that act every few steps, with logs as they are on the device.

    Keras 2 converts the logs of every step to NumPy, and so waits for the device, as soon as one
    callback has a batch hook and does not set `_supports_tf_logs`. This class sets it, has the
    batch hook, and calls `on_steps_end` only when it is due.

    Args:
      every_steps: steps of an epoch between two calls.
    """

    def __init__(self, every_steps=1):
        super().__init__()
        self._supports_tf_logs = True
        self._call_every_steps, self._calls = every_steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        """Counts the steps from 0 again."""
        self._calls = 0

    def on_train_batch_end(self, batch, logs=None):
        """Calls `on_steps_end` when due; with steps_per_execution, `batch` advances by more."""
        calls = (batch + 1) // self._call_every_steps
        if calls != self._calls:
            self._calls = calls
            self.on_steps_end(batch + 1, logs)

    def on_steps_end(self, steps, logs):
        """Acts after `steps` steps of this epoch, counted from the start of this `fit`."""
        raise NotImplementedError


def build_with_metrics(model, spec):
    """Creates the variables of a compiled model, its optimizer and its metrics ahead of `fit`.

    Keras 2 creates those of the metrics in the first step, too late to restore them.

    Args:
      model: a compiled `keras.Model`.
      spec: `element_spec` of the dataset it will be trained on.
    """
    batch = tf.nest.map_structure(lambda each: tf.zeros([1, *each.shape[1:]], each.dtype), spec)
    x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
    if not model.built:
        model(x, training=False)
    if hasattr(model.optimizer, "build"):
        model.optimizer.build(model.trainable_variables)
    if y is None or getattr(model, "loss", None) is None:
        return  # its metrics, where it has some, are its own

    @tf.function
    def update():
        tf.distribute.get_strategy().run(update_replica)

    def update_replica():
        predictions = model(x, training=False)
        model.compute_loss(x, y, predictions, weights)
        model.compute_metrics(x, y, predictions, weights)

    update()
    model.reset_metrics()
