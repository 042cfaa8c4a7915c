"""What an encoder makes of a dataset: every last example's h, with its label and id.

The classifiers on top live in knn.py and linear.py; nothing here trains anything.
"""

import inspect
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf.errors import ArgumentError


class Features(NamedTuple):
    """A dataset as its encoder sees it, in the dataset's order.

    Attributes:
      h: float32 [n, D], the embeddings.
      labels: int64 [n], or None where the dataset has none.
      ids: str [n] (or the dataset's own integers), or None where the dataset has none.
    """

    h: np.ndarray
    labels: Optional[np.ndarray] = None
    ids: Optional[np.ndarray] = None


def extract_features(encoder, dataset, image_size=None, verbose=0):
    """Runs `encoder` in inference mode over every last example of `dataset`, once, in order.

    All of it in memory; `stream_features` gives the same a batch at a time.

    Args:
      encoder, dataset, image_size: see `stream_features`.
      verbose: 1 shows a progress bar, 0 nothing.

    Returns:
      `Features`.

    Raises:
      ValueError: as `stream_features`.
    """
    bar = keras.utils.Progbar(_num_batches(dataset), unit_name="batch", verbose=verbose)
    parts = []
    for features in stream_features(encoder, dataset, image_size):
        parts.append(features)
        bar.add(1)
    return Features(
        *(None if column[0] is None else np.concatenate(column) for column in zip(*parts))
    )


def stream_features(encoder, dataset, image_size=None):
    """The same a batch at a time, in bounded memory.

    No variable changes: batch normalisation uses its moving statistics. A partial batch is padded
    to the size of the largest batch so far, so that nothing is traced or planned twice, and the
    padding is dropped.

    Args:
      encoder: a `keras.Model` (a `SimCLR` gives its h) or any callable from images
        [B, H, W, 3], float32 in [0, 1], to [B, D].
      dataset: a finite `tf.data.Dataset`, or another iterable, of batches: dicts with "image" and,
        where present, "label" and "id"; tuples (images, labels) or (images, labels, ids); or images
        alone. Images are [B, H, W, 3], uint8 or floating in [0, 1].
      image_size: int, pixels; images of another size are resized to this square (bilinear,
        antialiased). None leaves them as they are.

    Yields:
      `Features` of each batch of `dataset`, all with the same columns.

    Raises:
      ValueError: an endless or empty dataset, images of a wrong shape, dtype or range, labels or
        ids in some batches only, an encoder that does not map images to vectors.
    """
    _check_finite(dataset)
    encode = _inference(encoder)
    num_images = num_batches = padded_size = 0
    first = None
    for batch in dataset:
        images, labels, ids = _unpack(batch)
        images = _to_float(images, image_size)
        padded_size = max(padded_size, len(images))
        h = np.asarray(encode(_pad(images, padded_size)))
        if h.ndim != 2 or len(h) != padded_size:
            raise ArgumentError(
                f"encoder must map images to vectors [{padded_size}, D]; got shape {h.shape}. "
                "Pool its feature map, for instance with GlobalAveragePooling2D."
            )
        features = Features(h[: len(images)].astype(np.float32), labels, ids)
        first = first or features
        num_images, num_batches = num_images + len(images), num_batches + 1
        _check_columns(features, first, num_batches)
        yield features
    if not num_images:
        raise ArgumentError("dataset must hold at least one image; got none.")


def pixel_features(images):
    """The images themselves as features, for the raw-pixel baseline.

    Args:
      images: [B, H, W, 3], uint8 or floating in [0, 1].

    Returns:
      float32 [B, H * W * 3] in [0, 1].
    """
    images = _to_float(images, None)
    return tf.reshape(images, [len(images), -1])


def check_features(h, labels, name):
    """Features and labels as arrays that a classifier may rely on.

    Args:
      h: [n, D], any floating dtype.
      labels: integers [n].
      name: what the caller calls the set, for the message: "train" or "test".

    Returns:
      (float32 [n, D], int64 [n]).

    Raises:
      ValueError: no examples, no labels, unequal lengths, NaN or infinite features, and the like.
    """
    h = np.asarray(h, np.float32)
    if h.ndim != 2 or not h.size:
        raise ArgumentError(f"{name}_h must be [n, D] with n and D of 1 or more; got {h.shape}.")
    if labels is None:
        raise ArgumentError(
            f"{name}_labels must be given; got None. Pick a dataset that has labels."
        )
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub" or labels.shape != h.shape[:1]:
        raise ArgumentError(
            f"{name}_labels must be integers, one for each of the {len(h)} rows of {name}_h; "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    bad_rows = int((~np.isfinite(h).all(axis=1)).sum())
    if bad_rows:
        raise ArgumentError(
            f"{name}_h must be finite; {bad_rows} of {len(h)} rows hold NaN or infinity. "
            "Look at the encoder: its training may have diverged."
        )
    return h, labels.astype(np.int64)


def check_pair(train_h, train_labels, test_h, test_labels):
    """`check_features` of both sets, which must agree in D. Returns the four arrays."""
    train_h, train_labels = check_features(train_h, train_labels, "train")
    test_h, test_labels = check_features(test_h, test_labels, "test")
    check_same_width(train_h, test_h)
    return train_h, train_labels, test_h, test_labels


def check_same_width(train_h, test_h):
    """Raises ValueError where the two sets cannot come from one encoder."""
    if train_h.shape[1] != test_h.shape[1]:
        raise ArgumentError(
            "train_h and test_h must be equally wide, from one encoder; "
            f"got {train_h.shape[1]} and {test_h.shape[1]}."
        )


def _inference(encoder):
    """`encoder` as a function of images alone, in inference mode, to float32."""
    if not isinstance(encoder, keras.layers.Layer):
        # Called as it is: it may be NumPy, a tf.function or a loaded SavedModel.
        arguments = {"training": False} if _takes_training(encoder) else {}
        return lambda images: tf.cast(encoder(images, **arguments), tf.float32)

    @tf.function(reduce_retracing=True)
    def encode(images):
        return tf.cast(encoder(images, training=False), tf.float32)

    return encode


def _takes_training(function):
    try:
        return "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False


def _check_finite(dataset):
    cardinality = getattr(dataset, "cardinality", None)
    if cardinality and cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ArgumentError("dataset must end; got an endless one. Leave out .repeat().")


def _check_columns(features, first, num_batches):
    """Raises ValueError where the newest of so many batches has other columns than the first."""
    for name, value, wanted in zip(("label", "id"), features[1:], first[1:]):
        if (value is None) != (wanted is None):
            having = num_batches - 1 if value is None else 1
            raise ArgumentError(
                f'"{name}" must be in every batch or in none; got it in {having} of {num_batches}.'
            )


def _num_batches(dataset):
    """Length of the dataset in batches, or None where it is known only at the end."""
    try:
        return len(dataset)
    except TypeError:
        return None


def _unpack(batch):
    """(images, labels or None, ids or None) of a batch in any of the accepted forms."""
    if isinstance(batch, dict):
        if "image" not in batch:
            raise ArgumentError(f'a dict batch must have the key "image"; got {sorted(batch)}.')
        columns = (batch["image"], batch.get("label"), batch.get("id"))
    elif isinstance(batch, (tuple, list)):
        columns = (*batch, None, None)[:3]
    else:
        columns = (batch, None, None)
    images, labels, ids = columns
    return images, _labels(labels), _ids(ids)


def _labels(labels):
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ArgumentError(
            f"labels must be integers [B]; got {labels.dtype} of shape {labels.shape}. "
            "One-hot labels become integers with argmax."
        )
    return labels.astype(np.int64)


def _ids(ids):
    if ids is None:
        return None
    ids = np.asarray(ids)
    if ids.dtype.kind in "OS":  # strings come out of TensorFlow as bytes
        ids = np.array([i.decode("utf-8", "replace") if isinstance(i, bytes) else i for i in ids])
    return ids


def _to_float(images, image_size):
    """Images, uint8 or floating in [0, 1], as a float32 tensor [B, H, W, 3] in [0, 1]."""
    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4 or images.shape[-1] != 3:
        raise ArgumentError(f"images must be [B, H, W, 3]; got shape {tuple(images.shape)}.")
    if images.dtype == tf.uint8:
        images = tf.cast(images, tf.float32) / 255.0
    elif images.dtype.is_floating:
        images = tf.cast(images, tf.float32)
        _check_range(images)
    else:
        raise ArgumentError(
            f"images must be uint8, or floating in [0, 1]; got {images.dtype.name}. "
            "Cast 0 to 255 to uint8."
        )
    if image_size and tuple(images.shape[1:3]) != (image_size, image_size):
        images = tf.image.resize(images, [image_size, image_size], antialias=True)
        images = tf.clip_by_value(images, 0.0, 1.0)
    return images


def _check_range(images):
    if not tf.executing_eagerly() or not len(images):
        return
    low, high = float(tf.reduce_min(images)), float(tf.reduce_max(images))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # a NaN fails too
        raise ArgumentError(
            f"floating images must lie in [0, 1]; got {low:g} to {high:g}. "
            "Pass uint8, or divide by 255."
        )


def _pad(images, size):
    """`images` [B, ...] with black ones added to make `size` of them."""
    missing = size - len(images)
    return tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]) if missing else images
