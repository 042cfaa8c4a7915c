"""An encoder as a functional model of stock Keras layers, in float32: what leaves the house.

Plain Keras can load such a model, cut it at a layer and fold its batch normalisation, which is what
this module does. Writing it is in `saved_model` and `tflite`.
"""

from __future__ import annotations

import collections
import contextlib
import difflib
import re

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError

# What Keras raises at a subclass of its model, and at a layer without a sound config of its own.
CLONE_ERRORS = (ValueError, TypeError, NotImplementedError)
_FOLDS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


def functional_copy(encoder, image_shape, layer="h", head=None):
    """A copy of the encoder as a functional model in float32, with weights of its own.

    Args:
      encoder: a built `keras.Model`.
      image_shape: (H, W, 3) of its images.
      layer: what it gives: "h"; "group1" to "group4" or a block such as "group3_block2" of a
        ResNet, or any other layer by its name, averaged over the image where it is a feature map;
        "head1", "head2", ... for the outputs of the head's layers, the last of which is "z".
      head: a built `ProjectionHead`, for its layers.

    Returns:
      A `keras.Model` from float32 images [batch, H, W, 3] (any H and W for a `ResNet`) to
      [batch, D]; None where the encoder is neither functional nor makes a functional model.

    Raises:
      ValueError: there is no such layer, or the encoder can only be taken as a whole.
    """
    twin = _copy(encoder, image_shape)
    if layer == "h":
        return twin
    if twin is None:
        raise ArgumentError(
            f"layer={layer!r} needs an encoder made of Keras layers in the functional way, or a "
            f"ResNet; got a {type(encoder).__name__}. Export h."
        )
    if layer == "z" or re.fullmatch(r"head\d+", layer):
        return keras.Model(twin.input, _head_output(twin.output, layer, head), name=twin.name)
    output = twin.get_layer(_layer_name(twin, layer)).output
    if len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D(name="embedding", dtype="float32")(output)
    if len(output.shape) != 2:
        raise ArgumentError(
            f"layer must give [batch, D] or a feature map [batch, H, W, D]; {layer!r} gives "
            f"{tuple(output.shape)}. Take another."
        )
    return keras.Model(twin.input, output, name=twin.name)


def _copy(encoder, image_shape):
    """In float32 whatever the encoder computes in; None where it has no functional form."""
    try:
        with _policy("float32"):
            if hasattr(encoder, "to_functional"):
                own = type(encoder).from_config({**encoder.get_config(), "dtype": "float32"})
                own.build((None, *image_shape))
                _copy_weights(encoder, own)
                return own.to_functional((None, None, image_shape[-1]))
            twin = keras.models.clone_model(encoder, clone_function=_in_float32)
            _copy_weights(encoder, twin)
            return twin
    except CLONE_ERRORS:  # a subclass: its layers are known, and not how they are joined
        return None


def in_half(encoder):
    """Whether a part of it computes in half precision."""
    return any(layer.compute_dtype != "float32" for layer in _keras.all_layers(encoder))


def in_float32(encoder, image_shape):
    """An encoder without a functional form, computing in float32.

    encoder: a built `keras.Model`; image_shape: (H, W, 3). One that cannot be made anew from its
    config, or whose layers carry their own precision in it, comes back as it computes now.
    """
    if not in_half(encoder):
        return encoder
    try:
        with _policy("float32"):
            twin = type(encoder).from_config(encoder.get_config())
            twin.build((None, *image_shape))
            _copy_weights(encoder, twin)
            return twin
    except CLONE_ERRORS:  # a class without a config of its own
        return encoder


@contextlib.contextmanager
def _policy(name):
    """For layers within layers, whose config does not say what they compute in."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _copy_weights(source, target):
    """Whatever is frozen: Keras lists what is trained first."""
    flags = [(layer, layer.trainable) for layer in _keras.all_layers(source)]
    source.trainable = target.trainable = True
    try:
        target.set_weights(source.get_weights())
    finally:
        for layer, flag in flags:  # a layer before those within it
            layer.trainable = flag


def _in_float32(layer):
    if isinstance(layer, keras.Model):
        return keras.models.clone_model(layer, clone_function=_in_float32)
    return type(layer).from_config({**layer.get_config(), "dtype": "float32"})


def _layer_name(model, name):
    """The layer that a person means: by its own name, a block's, or a group's."""
    names = [layer.name for layer in model.layers]
    if name in names:
        return name
    ends = [end for end in names if re.fullmatch(rf"{re.escape(name)}(_block\d+)?_relu", end)]
    if ends:
        return ends[-1]
    blocks = [end[: -len("_relu")] for end in names if re.fullmatch(r"group\d_block\d+_relu", end)]
    known = ["h", *sorted({block.split("_")[0] for block in blocks}), *blocks, "head1", "z"]
    near = difflib.get_close_matches(name, [*known, *names], n=4, cutoff=0.4)
    raise ArgumentError(
        f"layer must be h, a block, a layer of the head or another layer of the encoder; got "
        f"{name!r}. Near matches: {', '.join(near or known)}."
    )


def _head_output(h, layer, head):
    if head is None:
        raise ArgumentError(f"layer={layer!r} needs the projection head; none was given. Export h.")
    count = head.layers
    index = count if layer == "z" else int(layer[len("head") :])
    if not 1 <= index <= count:
        raise ArgumentError(f"layer must be head1 to head{count}, or z; got {layer!r}.")
    with _policy("float32"):
        twin = type(head).from_config({**head.get_config(), "dtype": "float32"})
        twin.build((None, h.shape[-1]))
        _copy_weights(head, twin)
        return twin.hidden_outputs(h)[index]


# -- batch normalisation folded into the layer before it ------------------------------------------


def folded(model, dtype="float32"):
    """The same function with batch normalisation inside the convolutions before it.

    y = gamma (conv(x) - mean) / sqrt(variance + epsilon) + beta is a convolution with another
    kernel and a bias, in inference mode. Exact but for rounding. Normalisation that does not
    directly follow a convolution or dense layer of its own, each used once, stays.

    Args:
      model: a functional `keras.Model`, as `functional_copy` gives.
      dtype: in which the copy keeps its weights and computes.

    Returns:
      A functional `keras.Model` with weights of its own; it is for inference alone.
    """
    pairs = _foldable(model)
    norms = {norm: layer for layer, norm in pairs.items()}

    def clone(layer):
        if isinstance(layer, keras.Model):
            return folded(layer, dtype)
        if layer in norms:
            return keras.layers.Activation("linear", name=layer.name, dtype=dtype)
        config = {**layer.get_config(), "dtype": dtype}
        if layer in pairs:
            config["use_bias"] = True
        return type(layer).from_config(config)

    with _policy(dtype):
        twin = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        if layer in pairs:
            twin.get_layer(layer.name).set_weights(_fold(layer, pairs[layer]))
        elif layer not in norms and layer.weights and not isinstance(layer, keras.Model):
            twin.get_layer(layer.name).set_weights(layer.get_weights())
    return twin


def folded_where_exact(model, image_shape):
    """`folded`, or the model itself where that differs by more than 1e-4 of the largest number."""
    try:
        small = folded(model)
    except CLONE_ERRORS:
        return model
    return small if outputs_match(small, model, image_shape) else model


def outputs_match(a, b, image_shape, tolerance=1e-4):
    """Whether two encoders give the same of random images, in inference mode.

    tolerance: the largest difference, as a share of the largest number.
    """
    images = np.random.default_rng(1).random((2, *image_shape), dtype=np.float32)
    a, b = (np.asarray(encoder(images, training=False), np.float32) for encoder in (a, b))
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def _foldable(model):
    """{layer: the batch normalisation that alone follows it}."""
    graph = keras.Model(model.inputs, model.outputs)
    calls = _keras.layer_calls(graph)
    times_called = collections.Counter(call.layer.name for call in calls)
    consumers = collections.defaultdict(list)  # calls that take the output of a layer
    for call in calls:
        for source in call.sources:
            consumers[source.name].append(call)
    model_outputs = {id(output) for output in graph.outputs}
    pairs = {}
    for call in calls:
        followed_by = consumers[call.layer.name]
        if (
            type(call.layer) in _FOLDS
            and call.layer.activation is keras.activations.linear
            and len(followed_by) == 1
            and not model_outputs & {id(output) for output in call.outputs}
            and times_called[call.layer.name] == times_called[followed_by[0].layer.name] == 1
            and _normalizes_channels(followed_by[0], rank=len(call.outputs[0].shape))
        ):
            pairs[call.layer] = followed_by[0].layer
    return pairs


def _normalizes_channels(call, rank):
    """Whether a call is batch normalisation of the last axis, in inference mode."""
    return (
        type(call.layer) is keras.layers.BatchNormalization
        and not any(argument is True for argument in call.arguments)  # training=True
        and list(tf.nest.flatten(call.layer.axis)) in ([-1], [rank - 1])
    )


def _fold(layer, norm):
    """[kernel, bias] of the layer with the normalisation inside; computed in float64."""
    kernel, *bias = [np.asarray(weight, np.float64) for weight in layer.get_weights()]
    mean, variance = (np.asarray(w, np.float64) for w in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    shift = (bias[0] if bias else 0.0) - mean
    shift = shift * scale + (np.asarray(norm.beta, np.float64) if norm.center else 0.0)
    if isinstance(layer, keras.layers.DepthwiseConv2D):  # its kernel is [k, k, C, multiplier]
        return [kernel * scale.reshape(kernel.shape[2:]), shift]
    return [kernel * scale, shift]
