"""The sections of a page that show images: what the template needs, from `samples.Samples`."""

from __future__ import annotations

import math

import numpy as np

from simclr_tf.report import analysis
from simclr_tf.report.charts import draw_similarities
from simclr_tf.report.pictures import data_url, resized, sprite
from simclr_tf.report.samples import find_duplicates

_QUERIES, _NEIGHBOURS = 6, 5
_MAX_CLASSES = 20  # in the table, and in the legend of the map
_SPRITE_SIDE = 32
_PALETTE = (
    *("#4c8fd6", "#e8853d", "#4daf6a", "#d9534f", "#9b7fd1", "#a3785f", "#e08cc0", "#8c8c8c"),
    *("#b5b83a", "#3fb8c4"),
)


def sections_of(samples):
    """The values of the template's run that come from samples, a dict.

    Args:
      samples: a `Samples`.
    """
    labelled = samples.shown.labels is not None and samples.train.labels is not None
    return {
        "shown_split": samples.shown.split,
        "train_split": samples.train.split,
        "num_shown": f"{len(samples.shown.h):,}",
        "num_train": f"{len(samples.train.h):,}",
        "labelled": labelled,
        "neighbours": _neighbours(samples),
        "map": _map(samples),
        "similarity": _similarity(samples),
        **_classes(samples),
        "duplicates": [
            [_picture(samples, samples.train, i) for i in pair]
            for pair in find_duplicates(samples.train)
        ],
        "outliers": [
            _picture(samples, samples.train, i, note=f"mean similarity {similarity:.2f}")
            for i, similarity in analysis.outliers(samples.train.h)
        ],
    }


def _label(image_set, index):
    return None if image_set.labels is None else int(image_set.labels[index])


def _picture(samples, image_set, index, mark="", note=""):
    """An image for the template: URL, text, and the class of its frame."""
    words = [samples.class_name(_label(image_set, index)), image_set.ids[index][-60:], note]
    text = ", ".join(word for word in words if word)
    return {"url": data_url(image_set.thumbnails[index]), "text": text, "mark": mark}


def _neighbours(samples):
    """Some images with their neighbours by the encoder and by raw pixels."""
    train, shown = samples.train, samples.shown
    count = min(_QUERIES, len(shown.h))
    queries = np.arange(count) * len(shown.h) // max(count, 1)
    rows = []
    found = {}
    for name, of in (("encoder", lambda each: each.h), ("pixels", lambda each: each.pixels)):
        if samples.same:
            nearest = analysis.nearest_indices(of(train), of(shown), _NEIGHBOURS, same=True)
            found[name] = nearest[queries]
        else:
            found[name] = analysis.nearest_indices(of(train), of(shown)[queries], _NEIGHBOURS)
    for number, query in enumerate(queries):
        row = {"query": _picture(samples, shown, query)}
        for name, nearest in found.items():
            row[name] = [
                _picture(samples, train, i, _mark(_label(shown, query), _label(train, i)))
                for i in nearest[number]
            ]
        rows.append(row)
    return rows


def _mark(label, other):
    if label is None or other is None or min(label, other) < 0:
        return ""
    return "right" if label == other else "wrong"


def _map(samples):
    shown = samples.shown
    if len(shown.h) < 3:
        return None
    points, method = analysis.map_2d(shown.h)
    labels = np.zeros(len(points), int) if shown.labels is None else shown.labels
    classes = np.unique(labels)
    number = {each: i for i, each in enumerate(classes)}
    points = [
        {
            "x": f"{100 * x:.2f}",
            "y": f"{100 * (1 - y):.2f}",
            "color": _PALETTE[number[label] % len(_PALETTE)],
            "text": samples.class_name(_label(shown, i)) or shown.ids[i][-60:],
        }
        for i, ((x, y), label) in enumerate(zip(points, labels))
    ]
    columns = math.ceil(math.sqrt(len(points)))
    several = shown.labels is not None and len(classes) <= _MAX_CLASSES
    legend = [
        (samples.class_name(each) or "no label", _PALETTE[number[each] % len(_PALETTE)])
        for each in classes
    ]
    by_class = f", coloured by {len(classes)} classes" if shown.labels is not None else ""
    return {
        "method": method,
        "points": points,
        "columns": columns,
        "rows": -(-len(points) // columns),
        "sprite": data_url(sprite(resized(shown.thumbnails, _SPRITE_SIDE), columns)),
        "legend": legend if several else [],
        "text": f"A map of {len(points)} images{by_class}.",
    }


def _similarity(samples):
    if samples.positive is None:
        return None
    positive, negative = samples.positive, samples.negative
    line = (
        f"Cosine similarities of {samples.embedding} for {len(positive)} images: two views of one "
        f"image {positive.mean():.2f} on average, of different images {negative.mean():.2f}; "
        f"{(positive > np.quantile(negative, 0.99)).mean():.0%} of the first lie above 99% of the "
        "second."
    )
    return {"line": line, "svg": draw_similarities(positive, negative)}


def _classes(samples):
    """Accuracy per class and confusions, where there are labels."""
    if samples.predicted is None:
        return {"classes": None}
    known = samples.shown.labels >= 0
    labels, predicted = samples.shown.labels[known], samples.predicted[known]
    rows = analysis.class_accuracies(labels, predicted)[:_MAX_CLASSES]
    pairs = [
        f"{samples.class_name(true)} as {samples.class_name(wrong)} ({count})"
        for true, wrong, count in analysis.confusions(labels, predicted)
        if count > 1
    ]
    return {
        "predictor": samples.predictor,
        "classes": [
            (samples.class_name(each), f"{100 * correct / total:.0f}", f"{correct} of {total}")
            for each, correct, total in rows
        ],
        "confusions": ", ".join(pairs),
    }
