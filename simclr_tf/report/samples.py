"""What a report shows of an encoder: its features of some images, and what follows from them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from simclr_tf.errors import ArgumentError
from simclr_tf.evaluate import (
    extract_features,
    knn_predict,
    near_duplicate_pairs,
    small_grey,
)
from simclr_tf.evaluate.features import inference
from simclr_tf.images import UNLABELLED
from simclr_tf.metrics import effective_rank
from simclr_tf.report import analysis
from simclr_tf.report.pictures import resized

_THUMBNAIL = 64  # pixels
_PIXELS = 32  # side of the images whose raw pixels are compared
_PAIRS = 128  # images whose views are compared
_NEIGHBOURS = 20  # that vote


class ImageSet(NamedTuple):
    """Images of a split.

    Attributes:
      split: its name.
      thumbnails: uint8 [n, s, s, 3].
      pixels: float32 [n, P], the raw pixels of small copies.
      h: float32 [n, D].
      labels: int [n], -1 where there is none; None where no image has one.
      ids: list of n strings.
    """

    split: str
    thumbnails: np.ndarray
    pixels: np.ndarray
    h: np.ndarray
    labels: Any
    ids: list


@dataclasses.dataclass
class Samples:
    """Images of a run's data set and what its encoder makes of them.

    Attributes:
      train: `ImageSet` of the training split, among which neighbours are searched.
      shown: `ImageSet` of the test split, or the same as `train` where there is none.
      class_names: list of str, or None.
      predicted: int, a class for each image of `shown`; None without labels.
      predictor: what predicts, in words.
      accuracies: dict of "encoder" and "raw pixels" to the accuracy of nearest neighbours in
        [0, 1]; empty without labels.
      positive, negative: cosine similarities, see `analysis.similarities`; None without views.
      embedding: "z" or "h", whose similarities these are.

    Example:

    >>> source = simclr_tf.data.load("shapes", "test[:20]")
    >>> samples = simclr_tf.report.collect_samples(encoder, source)
    >>> samples.same, samples.class_name(1)
    (True, 'ring')
    """

    train: ImageSet
    shown: ImageSet
    class_names: list | None = None
    predicted: np.ndarray | None = None
    predictor: str = ""
    accuracies: dict = dataclasses.field(default_factory=dict)
    positive: np.ndarray | None = None
    negative: np.ndarray | None = None
    embedding: str = "h"

    @functools.cached_property
    def rank(self):
        """Effective rank of h, see `metrics.effective_rank`."""
        return float(effective_rank(self.train.h))

    @property
    def same(self):
        """Whether the images shown are those among which neighbours are searched."""
        return self.shown is self.train

    def class_name(self, label):
        """Name of a class; its number where it has none; "" without a label."""
        if label is None or label == UNLABELLED:
            return ""
        named = self.class_names and 0 <= label < len(self.class_names)
        return str(self.class_names[label]) if named else f"class {label}"


def collect_samples(
    encoder, train, test=None, *, views=None, embed=None, classify=None, examples=500, batch_size=64
):
    """Reads images, and computes their features and what follows from them.

    Args:
      encoder: maps images [B, H, W, 3], float32 in [0, 1], to h [B, D].
      train: `data.Source`.
      test: `data.Source`, labelled; None: the training split is shown.
      views: function of (images, number of the view) to random views of them; None: none.
      embed: function of views to z [B, d]; None: the encoder.
      classify: function of images to class indices [B], instead of nearest neighbours; None.
      examples: maximum number of images of each split, evenly spaced.
      batch_size: images at a time.

    Returns:
      `Samples`.

    Raises:
      ArgumentError: h is not finite.

    Example:

    >>> source = simclr_tf.data.load("shapes", "test[:20]")
    >>> samples = simclr_tf.report.collect_samples(encoder, source)
    >>> samples.shown.h.shape, sorted(samples.accuracies)
    ((20, 8), ['encoder', 'raw pixels'])
    """
    encode = inference(encoder)
    sizes = [split.num_examples for split in (train, test) if split is not None]
    batch_size = min(batch_size, examples, *sizes)  # of one size, for which it is traced once
    index, first = _image_set(encode, train, examples, batch_size)
    shown = index
    if test is not None:
        shown, _ = _image_set(encode, test, examples, batch_size)
    samples = Samples(index, shown, train.class_names)
    if index.labels is not None and shown.labels is not None:
        _predict(samples)
    if classify is not None and shown.labels is not None:
        source = test or train
        predicted = [classify(b["image"]) for b in source.batches(batch_size, examples)]
        samples.predicted, samples.predictor = np.concatenate(predicted), "the classifier"
    if views is not None:
        images = first[:_PAIRS]
        both = [np.asarray((embed or encode)(views(images, view))) for view in range(2)]
        samples.positive, samples.negative = analysis.similarities(*both)
        samples.embedding = "h" if embed is None else "z"
    return samples


def _image_set(encoder, source, examples, batch_size):
    """(`ImageSet`, its first images as uint8)."""
    batches = list(source.batches(batch_size, examples).as_numpy_iterator())
    features = extract_features(encoder, batches)
    if not np.isfinite(features.h).all():
        raise ArgumentError("encoder must return finite numbers; h has some that are not.")
    images = [batch["image"] for batch in batches]
    small = np.concatenate([resized(each, _PIXELS) for each in images])
    thumbnails = np.concatenate([resized(each, _THUMBNAIL) for each in images])
    pixels = small.reshape(len(small), -1).astype(np.float32) / 255 - 0.5
    labels = features.labels
    if labels is not None and (labels == UNLABELLED).all():
        labels = None
    ids = [str(each) for each in features.ids]
    found = ImageSet(source.split, thumbnails, pixels, features.h, labels, ids)
    return found, np.concatenate(images)[:_PAIRS]


def _predict(samples):
    """Nearest neighbours of the encoder and of raw pixels predict the images shown."""
    train, shown = samples.train, samples.shown
    known = shown.labels != UNLABELLED
    for name in ("raw pixels", "encoder"):
        index, query = ((each.h if name == "encoder" else each.pixels) for each in (train, shown))
        if samples.same:
            predicted = _vote(
                train.labels, analysis.nearest_indices(index, query, _NEIGHBOURS, same=True)
            )
        else:
            predicted = knn_predict(index, train.labels, query, k=_NEIGHBOURS)
        correct = predicted[known] == shown.labels[known]
        samples.accuracies[name] = float(correct.mean())
    samples.predicted, samples.predictor = (
        predicted,
        f"the {_NEIGHBOURS} nearest neighbours by the encoder",
    )


def _vote(labels, neighbours):
    """The most frequent label among the neighbours [m, k] of each image; -1 is none."""
    classes = np.unique(labels[labels != UNLABELLED])
    votes = np.stack([(labels[neighbours] == each).sum(axis=1) for each in classes], axis=1)
    return classes[votes.argmax(axis=1)]


def find_duplicates(image_set, limit=12):
    """Pairs (i, j) of images of an `ImageSet` that are nearly the same."""
    return near_duplicate_pairs(small_grey(image_set.thumbnails), limit)
