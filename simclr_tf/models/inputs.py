"""What `fit`, `evaluate` and `predict` take, checked before the first step.

Keras forgets the shapes of what a generator or a `keras.utils.Sequence` yields; here the size of
the images is read off the first batch.
"""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf._keras import repeats_collectives
from simclr_tf.devices import convolves_nothing
from simclr_tf.errors import ArgumentError
from simclr_tf.images import (
    RANGE_RULE,
    UNLABELLED,
    VIEW_RULE,
    check_images,
    range_message,
    unpack,
    view_message,
)


def check_batch_size(batch_size, element_shape=None):
    """Raises `ArgumentError` for batches of one image, which have no negatives."""
    static = element_shape is not None and element_shape.rank and element_shape[0]
    if 1 in (batch_size, static):
        raise ArgumentError(
            "a batch must have 2 images or more, since the negatives are the other images of the "
            "batch; got batch_size=1."
        )


def check(x, single=False):
    """Raises `ArgumentError` for what can be told of the input before the first step.

    Args:
      x: what `fit` takes.
      single: whether a batch may be a single image.
    """
    if isinstance(x, tf.data.Dataset):
        if int(x.cardinality()) == 0:
            raise ArgumentError(
                "the dataset has no batch; with drop_remainder=True it holds fewer images than "
                "one batch. Take a smaller batch."
            )
        for spec in tf.nest.flatten(unpack(x.element_spec).images):
            check_images(spec)
            if not single:
                check_batch_size(None, spec.shape)
    elif hasattr(x, "shape") and hasattr(x, "dtype"):
        check_images(x)


def peek(x):
    """Returns (the input again, its first batch), without losing the batch of a generator.

    Args:
      x: a tf.data.Dataset, a `keras.utils.Sequence`, a generator, or arrays.

    Returns:
      (x, batch); the batch is None where it cannot be read beforehand.
    """
    if isinstance(x, tf.data.Dataset):
        return x, next(iter(x.take(1)), None)
    if isinstance(x, keras.utils.Sequence):
        return x, x[0]
    if hasattr(x, "__next__"):
        first = next(x, None)
        return _chain([] if first is None else [first], x), first
    if hasattr(x, "shape"):
        return x, x[:2]
    if isinstance(x, (tuple, list)) and all(hasattr(each, "shape") for each in x):
        return x, type(x)(each[:2] for each in x)
    return x, None


def _chain(*iterables):
    """`itertools.chain` as Keras 3 takes iterators: a generator of tuples."""
    for batch in itertools.chain(*iterables):
        yield batch if isinstance(batch, tuple) else (batch,)


def needs_peek(x):
    """Whether the height and width of the images are not known without reading a batch."""
    if isinstance(x, tf.data.Dataset):
        specs = tf.nest.flatten(unpack(x.element_spec).images)
        return any(s.shape.rank is None or None in s.shape[1:] for s in specs)
    return isinstance(x, keras.utils.Sequence) or hasattr(x, "__next__")


def static_size(x):
    """(H, W) of the images; None where it is not known without reading a batch."""
    if needs_peek(x):
        return None
    if isinstance(x, tf.data.Dataset):
        return tuple(tf.nest.flatten(unpack(x.element_spec).images)[0].shape[1:3])
    return tuple(x.shape[1:3]) if hasattr(x, "shape") else None


def image_spec(x):
    """The `tf.TensorSpec` of a batch of two images; None where their size needs reading a batch."""
    size = static_size(x)
    if size is None:
        return None
    if isinstance(x, tf.data.Dataset):
        x = tf.nest.flatten(unpack(x.element_spec).images)[0]
    return tf.TensorSpec([2, *size, 3], x.dtype)


LABEL_RULE = "labels must be -1 (no label) or lie in [0, num_classes)"


def labels_assertion(labels, num_classes):
    """Returns an operation that fails where a label is neither -1 nor a class; XLA drops it."""
    known = (labels >= UNLABELLED) & (labels < num_classes)
    return tf.debugging.Assert(tf.reduce_all(known), [LABEL_RULE, labels])


REPLICA_RULE = "every replica needs images in every step"


def rows_assertion(images):
    """Returns an operation that fails on a replica without images, where layers do not take none.

    None where they do, and where every step has images by its static shape.
    """
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if not several or images.shape[0] or convolves_nothing():
        return None
    return tf.debugging.Assert(tf.shape(images)[0] > 0, [REPLICA_RULE])


def is_uneven(error):
    """Whether an error of TensorFlow comes from replicas that differ in their number of images.

    Collectives of several steps in one call must all have the same shape.
    """
    is_wrong_input = isinstance(error, tf.errors.InvalidArgumentError)
    return is_wrong_input and ("Collective ops" in str(error) or REPLICA_RULE in str(error))


def _lacks_a_key(error):
    return not repeats_collectives() and "must feed a value for placeholder" in str(error)


def may_end_unevenly(x):
    """Whether the last batch of what `fit` takes may have fewer images than the others."""
    if isinstance(x, tf.data.Dataset):
        specs = tf.nest.flatten(unpack(x.element_spec).images)
        return any(spec.shape.rank is None or spec.shape[0] is None for spec in specs)
    return not isinstance(x, tf.distribute.DistributedDataset)  # whose batches its maker divides


@contextlib.contextmanager
def named_errors(x, model):
    """Raises what TensorFlow says of the input within the block as an `ArgumentError`.

    Args:
      x: what `fit` takes.
      model: the Keras model whose loop runs within the block.
    """
    several_replicas = model.distribute_strategy.num_replicas_in_sync > 1
    steps = getattr(model, "steps_per_execution", 1)  # an attribute of Keras 3
    try:
        yield
    except tf.errors.OpError as error:
        if RANGE_RULE in str(error):
            raise ArgumentError(range_message()) from error
        if VIEW_RULE in str(error):
            raise ArgumentError(view_message(error)) from error
        if LABEL_RULE in str(error):
            raise ArgumentError(
                f"{LABEL_RULE}, and some do not. Count the classes from 0, or raise num_classes."
            ) from error
        if several_replicas and steps > 1 and _lacks_a_key(error):
            raise ArgumentError(
                "steps_per_execution must be 1 with several replicas and Keras 3, which cannot "
                f"repeat their collectives within a call; got {steps}."
            ) from error
        if several_replicas and is_uneven(error) and may_end_unevenly(x):
            raise ArgumentError(
                f"{REPLICA_RULE} and, with steps_per_execution above 1, as many as in "
                "the other steps; the last batch has too few. Batch the dataset with "
                "drop_remainder=True."
            ) from error
        raise


def validation_input(data):
    """Returns `validation_data` in a form that Keras does not take for labels or a truth value."""
    return (data,) if isinstance(data, (np.ndarray, tf.Tensor)) else data
