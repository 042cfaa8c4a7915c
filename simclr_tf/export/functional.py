"""The encoder as a functional model of stock Keras layers in float32, the form that is exported.

Such a model can be loaded by plain Keras, cut at a layer, and have its batch normalisation folded;
this module does the latter two. `saved_model` and `tflite` write the result.
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
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.errors import ArgumentError

# Raised by Keras when it cannot clone or save a model: a subclass, or a layer without a config.
CLONE_ERRORS = (ValueError, TypeError, NotImplementedError)
_FOLDS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


def functional_copy(encoder, image_shape, layer="h", head=None):
    """Copies the encoder to a functional model in float32 that has its own weights.

    Args:
      encoder: a built `keras.Model`.
      image_shape: (H, W, 3) of its images.
      layer: the layer whose output the copy returns: "h"; "group1" to "group4" or a residual block
        such as "group3_block2" of a ResNet; any other layer by its name; or "head1", "head2", ...
        for the layers of the head, the last of which is also "z"; or "spaces", z of a `SpaceHeads`
        with the part of each space scaled to length 1. A feature map is averaged over the image.
      head: a built `ProjectionHead` or `SpaceHeads`, required for its layers.

    Returns:
      A `keras.Model` from float32 images [batch, H, W, 3] (any H and W for a `ResNet` or an
      `Airbench`) to [batch, D]; None if the encoder is neither functional nor has `to_functional`.

    Raises:
      ArgumentError: there is no such layer, or `layer` is not "h" and the encoder has no functional
        form.

    Example:

    >>> copy = simclr_tf.export.functional_copy(encoder, (32, 32, 3))
    >>> copy(images / np.float32(255)).shape
    TensorShape([8, 8])
    """
    copy = _copy(encoder, image_shape)
    if layer == "h":
        return copy
    if copy is None:
        raise ArgumentError(
            f"layer={layer!r} needs a ResNet, an Airbench or a functional encoder; got a "
            f"{type(encoder).__name__}. Export h."
        )
    if layer in ("z", "spaces") or re.fullmatch(r"head\d+", layer):
        return keras.Model(
            copy.inputs[0], _head_output(copy.outputs[0], layer, head), name=copy.name
        )
    output = copy.get_layer(_layer_name(copy, layer)).output
    if len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D(name="embedding", dtype="float32")(output)
    if len(output.shape) != 2:
        raise ArgumentError(
            f"layer must return [batch, D] or a feature map [batch, H, W, D]; {layer!r} returns "
            f"{tuple(output.shape)}. Choose another layer."
        )
    return keras.Model(copy.inputs[0], output, name=copy.name)


def _copy(encoder, image_shape):
    """Returns a functional copy in float32; None if the encoder has no functional form."""
    try:
        with _policy("float32"):
            if hasattr(encoder, "to_functional"):
                own = type(encoder).from_config({**encoder.get_config(), "dtype": "float32"})
                own.build((None, *image_shape))
                copy_weights(encoder, own)
                return own.to_functional((None, None, image_shape[-1]))
            copy = keras.models.clone_model(encoder, clone_function=_in_float32)
            copy_weights(encoder, copy)
            return copy
    except CLONE_ERRORS:  # a subclass: how its layers are connected is not known
        return None


def set_weights_of_functional(encoder, functional, image_shape):
    """Sets the weights of an encoder to those of a functional copy of one of the same architecture.

    Args:
      encoder: a built `keras.Model`.
      functional: what `functional_copy` of such an encoder returned, or was loaded from its file.
      image_shape: (H, W, 3) of the encoder's images.

    Raises:
      ValueError: the architectures differ.
    """
    with _policy("float32"):
        if hasattr(encoder, "to_functional"):  # whose weights are in another order
            own = type(encoder).from_config({**encoder.get_config(), "dtype": "float32"})
            own.build((None, *image_shape))
            copy_weights(functional, own.to_functional((None, None, image_shape[-1])))
            functional = own
        copy_weights(functional, encoder)


def in_half(encoder):
    """Returns whether any layer of the encoder computes in half precision."""
    return any(layer.compute_dtype != "float32" for layer in _keras.all_layers(encoder))


def in_float32(encoder, image_shape):
    """Returns an encoder without a functional form as a copy that computes in float32.

    An encoder that is already in float32, or that its config cannot rebuild, is returned as it is.

    Args:
      encoder: a built `keras.Model`.
      image_shape: (H, W, 3) of its images.
    """
    if not in_half(encoder):
        return encoder
    try:
        with _policy("float32"):
            copy = type(encoder).from_config(encoder.get_config())
            copy.build((None, *image_shape))
            copy_weights(encoder, copy)
            return copy
    except CLONE_ERRORS:  # a class without a config of its own
        return encoder


@contextlib.contextmanager
def _policy(name):
    """Sets the precision of layers within layers, which is not in the config of the outer ones."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _in_float32(layer):
    if isinstance(layer, keras.Model):
        return keras.models.clone_model(layer, clone_function=_in_float32)
    return _again(layer, dtype="float32")


def _again(layer, **changes):
    """Returns a new layer of the same class, whose config has some changes."""
    if not isinstance(layer, keras.layers.Layer):  # Keras 3 has operations too, such as x + y
        changes = {}
    return type(layer).from_config({**layer.get_config(), **changes})


def _layer_name(model, name):
    """Returns the name of the layer for the name of a layer, a residual block or a group."""
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


def layers_of_head(head):
    """The layers of a projection head in words, for messages: "head1 to head2, or z"."""
    return f"head1 to head{head.layers}, or z" if head.layers else "h or z, since there is no head"


def _head_output(h, layer, head):
    if head is None:
        raise ArgumentError(
            f"layer={layer!r} needs the projection head; got head=None. Pass it, or export h."
        )
    count = head.layers
    if layer == "spaces" and not hasattr(head, "unit_spaces"):
        raise ArgumentError("layer='spaces' needs a SpaceHeads; got a head of one space. Use z.")
    index = count if layer in ("z", "spaces") else int(layer[len("head") :])
    if layer not in ("z", "spaces") and not 1 <= index <= count:
        raise ArgumentError(f"layer must be {layers_of_head(head)}; got {layer!r}.")
    with _policy("float32"):
        copy = type(head).from_config({**head.get_config(), "dtype": "float32"})
        copy.build((None, h.shape[-1]))
        copy_weights(head, copy)
        return copy.unit_spaces(h) if layer == "spaces" else copy.hidden_outputs(h)[index]


def functional_logits(classifier):
    """Copies what a `Classifier` computes from h to a functional model in float32.

    Args:
      classifier: a built `models.Classifier`.

    Returns:
      A functional `keras.Model` from h, float32 [B, D], to logits [B, C].
    """
    layer, head = classifier.head_layer, classifier.projection_head
    first = classifier.logits_layer if head is None else head.dense_layers[0]
    h = keras.Input((first.kernel.shape[0],))
    features = _head_output(h, f"head{layer}", head) if layer else h
    logits = keras.layers.Dense(classifier.num_classes, dtype="float32", name="logits")
    model = keras.Model(h, logits(features))
    logits.set_weights(classifier.logits_layer.get_weights())
    return model


# -- batch normalisation folded into the preceding layer ------------------------------------------


def folded(model, dtype="float32"):
    """Folds batch normalisation into the preceding convolutions and dense layers.

    In inference mode, gamma (conv(x) - mean) / sqrt(variance + epsilon) + beta is a convolution
    with another kernel and bias. The result is the same up to rounding. Batch normalisation is kept
    where the preceding layer is of another kind, has an activation, or where either is used twice.

    Args:
      model: a functional `keras.Model`, such as `functional_copy` returns.
      dtype: dtype of the weights and the arithmetic of the result.

    Returns:
      A functional `keras.Model` with its own weights, for inference only.

    Example:

    >>> conv, norm = keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()
    >>> model = keras.Sequential([keras.Input((32, 32, 3)), conv, norm])
    >>> len(model.weights), len(simclr_tf.export.folded(model).weights)
    (6, 2)
    """
    pairs = _foldable(model)
    norms = {norm: layer for layer, norm in pairs.items()}

    def clone(layer):
        if isinstance(layer, keras.Model):
            return folded(layer, dtype)
        if layer in norms:
            return _FoldedNorm(name=layer.name, dtype=dtype)
        return _again(layer, dtype=dtype, **({"use_bias": True} if layer in pairs else {}))

    with _policy(dtype):
        copy = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        if layer in pairs:
            copy.get_layer(layer.name).set_weights(_fold(layer, pairs[layer]))
        elif layer not in norms and layer.weights and not isinstance(layer, keras.Model):
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


class _FoldedNorm(keras.layers.Layer):
    """In the place of batch normalisation; it takes the same arguments."""

    def call(self, inputs, training=None, mask=None):
        return inputs


def folded_where_exact(model, image_shape):
    """Returns `folded(model)`, or the model if they differ by over 1e-4 of the largest number."""
    try:
        result = folded(model)
    except CLONE_ERRORS:
        return model
    return result if outputs_match(result, model, image_shape) else model


def outputs_match(a, b, image_shape, tolerance=1e-4):
    """Returns whether two encoders return the same for random images, in inference mode.

    Args:
      a, b: `keras.Model`s from images [B, H, W, 3] in [0, 1] to [B, D].
      image_shape: (H, W, 3).
      tolerance: largest difference, as a fraction of the largest number of b.
    """
    images = np.random.default_rng(1).random((2, *image_shape), dtype=np.float32)
    a, b = (np.asarray(encoder(images, training=False), np.float32) for encoder in (a, b))
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def _foldable(model):
    """Returns {layer: batch normalisation} where the normalisation alone takes the output."""
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
    """Returns whether a call is batch normalisation of the last axis in inference mode."""
    return (
        type(call.layer) is keras.layers.BatchNormalization
        and not any(argument is True for argument in call.arguments)  # training=True
        and list(tf.nest.flatten(call.layer.axis)) in ([-1], [rank - 1])
    )


def _fold(layer, norm):
    """Returns [kernel, bias] of a layer with its batch normalisation folded in; in float64."""
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
