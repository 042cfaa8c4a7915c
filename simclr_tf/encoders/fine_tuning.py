"""What fine-tuning needs of an encoder: a copy with its own weights, and frozen layers."""

import contextlib
import difflib

from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError

# Raised by Keras where it cannot rebuild a model: a subclass without a config of its own.
_CLONE_ERRORS = (ValueError, TypeError, NotImplementedError)


def copy_encoder(encoder, image_shape, keep_weights=True):
    """Returns a copy of an encoder that shares no variable with it.

    The copy belongs to the `tf.distribute` strategy in whose scope it is made. All of it is
    trainable.

    Args:
        encoder: a built `keras.Model`: functional, or a class whose config rebuilds it.
        image_shape: (H, W, 3), for which the copy is built where the encoder does not tell.
        keep_weights: False leaves the copy's weights at their random initial values.

    Raises:
        ArgumentError: the encoder cannot be rebuilt from its config.
    """
    try:
        copy = keras.models.clone_model(encoder)
        if not copy.built:
            # That of the encoder decides the stem of a ResNet.
            copy.build(getattr(encoder, "built_shape", None) or (None, *image_shape))
        copy.trainable = True
        _keras.copy_synchronization(encoder, copy)
        if keep_weights:
            copy_weights(encoder, copy)
    except _CLONE_ERRORS as error:
        raise ArgumentError(
            "encoder must be a functional keras.Model, or a class with get_config and from_config, "
            f"so that it can be copied; {encoder.name}, a {type(encoder).__name__}, cannot: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return copy


def copy_weights(source, target):
    """Copies weights even if some are frozen: Keras lists trainable weights first.

    Args:
        source: a model or layer, built.
        target: one of the same architecture; all of it becomes trainable.
    """
    with _all_trainable(source):
        target.trainable = True
        target.set_weights(source.get_weights())


def paired_weights(source, target):
    """Returns the weights of two models of one architecture in the same order.

    Args:
        source, target: models or layers, built; each may be frozen in part.

    Returns:
        (weights of source, weights of target): lists of `tf.Variable` of the same length.
    """
    with _all_trainable(source), _all_trainable(target):
        return _keras.tf_variables(source.weights), _keras.tf_variables(target.weights)


@contextlib.contextmanager
def _all_trainable(model):
    """Makes all layers of a model trainable within the block."""
    flags = [(layer, layer.trainable) for layer in _keras.all_layers(model)]
    model.trainable = True
    try:
        yield
    finally:
        for layer, flag in flags:  # a layer before those within it
            layer.trainable = flag


def freeze_before(encoder, block):
    """Freezes the layers of an encoder before a residual block, so that training starts there.

    Frozen batch normalisation stays in inference mode, whatever `training` is.

    Args:
        encoder: a built `ResNet` or `Airbench`, or a functional `keras.Model`.
        block: name of the first block or layer to train, such as "group3" or "group3_block2" of a
            ResNet; of a functional model, also the beginning of the name up to an underscore.

    Raises:
        ArgumentError: there is no such block, or the order of the layers is not known.
    """
    if not encoder.built:
        raise ArgumentError(
            f"train_from={block!r} needs a built encoder; got one that is not. Call "
            "encoder.build((None, H, W, 3)) first."
        )
    has_blocks = hasattr(encoder, "blocks") and hasattr(encoder, "stem_layers")
    if not has_blocks and not _keras.input_shape(encoder):
        raise ArgumentError(
            f"train_from={block!r} needs a ResNet, an Airbench or a functional keras.Model, whose "
            f"order of layers is known; got a {type(encoder).__name__}. Leave it out to train "
            "every layer."
        )
    layers = [encoder.stem_layers, *encoder.blocks] if has_blocks else encoder.layers
    names = [layer.name for layer in layers]
    starts = [i for i, name in enumerate(names) if name == block or name.startswith(f"{block}_")]
    if not starts:
        near = difflib.get_close_matches(str(block), names, n=4, cutoff=0.4) or names[:4]
        raise ArgumentError(
            f"train_from must be a block or layer of {encoder.name}; got {block!r}. Near matches: "
            f"{', '.join(near)}."
        )
    for layer in layers[: starts[0]]:
        layer.trainable = False
