"""Scores of one data set: features of both splits, checks of the splits, protocols."""

from __future__ import annotations

import numpy as np

from simclr_tf import evaluate
from simclr_tf.commands.build import load, log, report_unreadable
from simclr_tf.commands.protocols import PROTOCOLS, Task
from simclr_tf.errors import UsageError
from simclr_tf.evaluate.feature_cache import (
    digest_of_arrays,
    digest_of_encoder,
    digest_of_source,
)
from simclr_tf.images import UNLABELLED


def load_splits(options, image_size, **arguments):
    """The training and the test split of a data set, two `data.Source`s.

    Args:
      options: `DataOptions`.
      image_size: side of the images in pixels.
      **arguments: of `data.load`, instead of those that the options hold.

    Raises:
      UsageError: a split without labels, or examples that are in both splits.
    """
    train = _labelled(load(options, options.train_split, "--train_split", image_size, **arguments))
    test = _labelled(load(options, options.test_split, "--test_split", image_size, **arguments))
    check_disjoint(train, test)
    return train, test


def check_disjoint(train, test):
    """Raises UsageError where two `data.Source`s share examples."""
    shared = train.overlap(test)
    if shared:
        raise UsageError(
            f"--test_split must not share examples with --train_split; {shared:,} of the "
            f"{test.num_examples:,} of {test.split} are in {train.split} of {test.name}. Pass "
            "slices that do not overlap, such as train[:90%] and train[90%:]."
        )


def _labelled(source):
    if not source.labelled and not source.multi_label:
        raise UsageError(
            f"evaluation needs labels; {source.name} ({source.split}) has none. "
            "Put the images into class folders, or use `simclr-tf embed`."
        )
    return source


class DataSetScores:
    """Scores encoders on one data set.

    Attributes:
      counts: dict of what is known of the splits once an encoder was scored: examples, unlabelled
        ones, and near duplicates.

    Args:
      options: attributes named as the flags of `simclr-tf evaluate`.
      train, test: `data.Source`s.
      cache: a `FeatureCache`.
    """

    def __init__(self, options, train, test, cache):
        self._options, self._train, self._test, self._cache = options, train, test, cache
        self.counts = {}

    def score(self, protocols, layers, loaded=None):
        """Scores each layer.

        Args:
          protocols: list of names in `PROTOCOLS`.
          layers: a `Layers`, or anything with its `names`, `encoder`, `only` and `split`.
          loaded: the `LoadedEncoder` of the layers, by which features are cached; None: not cached.

        Returns:
          Dict of layer to a dict of scores.
        """
        knn_views = self._options.knn_views if "knn" in protocols else "1"
        views = {knn_views} if protocols == ["knn"] else {"1", knn_views}
        sources = (self._train, self._test)
        with report_unreadable(*sources):
            features = {
                view: [self._features(source, layers, view, loaded) for source in sources]
                for view in sorted(views)
            }
        splits = features[knn_views]
        if not self.counts:
            self._count(splits)
        by_layer = {
            view: [_by_layer(layers, arrays) for arrays in pair] for view, pair in features.items()
        }
        targets = None
        if "targets" in splits[0]:
            targets = tuple(arrays["targets"] for arrays in splits)
        scores = {}
        for name in layers.names:
            of_knn = [each[name] for each in by_layer[knn_views]]
            plain = [each[name] for each in by_layer.get("1", by_layer[knn_views])]
            encoder = layers.only(name)
            task = Task(self._train, self._test, *plain, tuple(of_knn), encoder, targets)
            with report_unreadable(*sources):
                for protocol in protocols:
                    found = PROTOCOLS[protocol].run(self._options, task)
                    scores[name] = {**scores.get(name, {}), **found}
        return scores

    def _features(self, source, layers, views, loaded):
        """{"h", "labels" or "targets", "small"} of a split, from the cache or computed."""
        encoder = evaluate.average_over_views(layers.encoder, views)
        key = digest_of_encoder(loaded.encoder) if loaded and self._cache.stores else None
        if key is None:
            return self._compute(source, encoder)
        head = loaded.projection_head
        settings = {
            "data": source.name,
            "split": source.split,
            "digest": digest_of_source(source),
            "encoder": key,
            "head": head and digest_of_encoder(head),
            "layers": layers.names,
            "image_size": source.image_size,
            "views": views,
        }
        if "whitened" in layers.names:
            settings["whitening"] = digest_of_arrays(*loaded.whitening)
        return self._cache.get(settings, lambda: self._compute(source, encoder))

    def _compute(self, source, encoder):
        small = []

        def batches():
            for batch in source.batches(self._options.batch_size):
                small.append(evaluate.small_grey(batch["image"]))
                yield batch

        features = evaluate.extract_features(encoder, batches())
        labels, targets = features.labels, source.targets()
        # Images that may have several classes have no label.
        found = {"labels": labels} if targets is None else {"targets": targets}
        return {"h": features.h, "small": np.concatenate(small), **found}

    def _count(self, pair):
        train, test = pair
        duplicates = evaluate.count_near_duplicates(train["small"], test["small"])
        self.counts = {
            "train_examples": len(train["h"]),
            "test_examples": len(test["h"]),
            "train_unlabelled": int(np.sum(train.get("labels", 0) == UNLABELLED)),
            "test_unlabelled": int(np.sum(test.get("labels", 0) == UNLABELLED)),
            "near_duplicates": duplicates,
        }
        for split in ("train", "test"):
            count = self.counts[f"{split}_unlabelled"]
            if count:
                log(
                    f"{count:,} of the {self.counts[f'{split}_examples']:,} examples of "
                    f"--{split}_split have no label and are left out."
                )
        if duplicates:
            log(
                f"{duplicates:,} of the {len(test['h']):,} test images are near duplicates of "
                f"training images ({duplicates / len(test['h']):.2%}) in {self._test.name}."
            )


def _by_layer(layers, arrays):
    """`Features` of each layer."""
    labels = arrays.get("labels")
    return {name: evaluate.Features(h, labels) for name, h in layers.split(arrays["h"]).items()}
