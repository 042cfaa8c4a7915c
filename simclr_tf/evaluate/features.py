"""What an encoder makes of a dataset: every last example's h, with its label and id.

The classifiers on top live in knn.py and linear.py; nothing here trains anything.
"""

import inspect
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf.errors import ArgumentError
from simclr_tf.images import as_float, centre_square, check_images, check_range, unpack


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
      dataset: a finite `tf.data.Dataset`, or another iterable, of batches in any form that
        `images.unpack` accepts: images alone; tuples (images, labels) or (images, labels, ids);
        dicts with "image" and optionally "label", "id" and "extent". Images are [B, H, W, 3],
        uint8, or float in [0, 1]; labels are integers [B].
      image_size: int, pixels: the side of the centre square that images of another size are cut
        and resized to, exactly as an exported encoder does (`images.centre_square`). None leaves
        images as they are; batches with "extent" need it, as their images are padded.

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
        batch = unpack(batch)
        images = _images(batch, image_size)
        padded_size = max(padded_size, len(images))
        h = np.asarray(encode(_pad(images, padded_size)))
        if h.ndim != 2 or len(h) != padded_size:
            raise ArgumentError(
                f"encoder must map images to vectors [{padded_size}, D]; got shape {h.shape}. "
                "Pool its feature map, for instance with GlobalAveragePooling2D."
            )
        h = h[: len(images)].astype(np.float32)
        features = Features(h, _labels(batch.labels), _ids(batch.ids))
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
    images = tf.convert_to_tensor(images)
    if tf.executing_eagerly():
        check_range(images)
    images = as_float(images)
    return tf.reshape(images, [tf.shape(images)[0], -1])


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


def _images(batch, image_size):
    """Images of a `Batch` as an encoder takes them, float32 [B, H, W, 3] in [0, 1]."""
    images = tf.convert_to_tensor(batch.images)
    check_images(images)
    check_range(images)
    if batch.extents is not None:
        return _without_padding(images, np.asarray(batch.extents), image_size)
    return as_float(images) if image_size is None else centre_square(images, image_size)


def _without_padding(images, extents, image_size):
    """Centre squares of images that fill only the upper left of [H, W], one image at a time."""
    if image_size is None:
        raise ArgumentError(
            'image_size must be given where a batch has "extent", as its images are padded; '
            "got None. Pass the size that the encoder takes."
        )
    squares = [
        centre_square(image[None, :height, :width], image_size)
        for image, (height, width) in zip(images, extents)
    ]
    return tf.concat(squares, axis=0)


def _pad(images, size):
    """`images` [B, ...] with black ones added to make `size` of them."""
    missing = size - len(images)
    return tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]) if missing else images
