"""The protocols of `simclr-tf evaluate`: what each computes from a data set and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simclr_tf import errors, evaluate
from simclr_tf.evaluate.linear import C_GRID
from simclr_tf.images import UNLABELLED


class Task(NamedTuple):
    """One layer's features of a data set, and what else a protocol may use.

    Attributes:
      train, test: `data.Source`s.
      train_features, test_features: `Features` of one view of each image.
      knn_features: (of train, of test): `Features` averaged over the views of --knn_views.
      encoder: maps images [B, H, W, 3], float32 in [0, 1], to the features.
      targets: (of train, of test): [n, C] where images may have several classes; else None.
    """

    train: Any
    test: Any
    train_features: evaluate.Features
    test_features: evaluate.Features
    knn_features: tuple
    encoder: Callable
    targets: tuple | None = None


class Protocol(NamedTuple):
    """A protocol by which features are scored.

    Attributes:
      run: (options, task) -> dict of scores; that with the protocol's own name is its accuracy, and
        NAME_mean_per_class is the mean per class. Where images may have several classes, they are
        the mean average precision, and NAME_11_points is VOC2007's.
      headings: headings of the printed table by score.
      settings: options -> dict of all settings that the scores depend on.
    """

    run: Callable
    headings: dict
    settings: Callable


def _knn(options, task):
    train, test = task.knn_features
    train_h, test_h = train.h, test.h
    if options.knn_whiten:
        train_h, test_h = evaluate.whiten(train_h, test_h)
    if task.targets:
        k, temperature = options.knn_k, options.knn_temperature
        scores = evaluate.multi_label_knn(train_h, task.targets[0], test_h, k, temperature)
        return {"k": min(k, len(train_h)), **_precisions("knn", [scores], task)}
    labelled = test.labels != UNLABELLED
    labels, neighbours = test.labels[labelled], int(np.sum(train.labels != UNLABELLED))

    def predict(**settings):
        return evaluate.knn_predict(train_h, train.labels, test_h[labelled], **settings)

    weighted = predict(k=options.knn_k, temperature=options.knn_temperature)
    return {
        "k": min(options.knn_k, neighbours),  # so many vote where there are fewer
        "knn": float(np.mean(weighted == labels)),
        "knn_10": float(np.mean(predict(k=10, weighted=False) == labels)),
        "knn_mean_per_class": evaluate.mean_per_class_accuracy(weighted, labels),
    }


def _knn_settings(options):
    return {
        "k": options.knn_k,
        "temperature": options.knn_temperature,
        "similarity": "cosine",
        "views": options.knn_views,
        "whitened": options.knn_whiten,
    }


def _linear(options, task):
    train, test = task.train_features, task.test_features

    def probe(seed):
        if task.targets:
            y_train, y_test = task.targets
            return evaluate.multi_label_probe(train.h, y_train, test.h, y_test, seed=seed)
        return evaluate.linear_probe(train.h, train.labels, test.h, test.labels, seed=seed)

    probes = [probe(seed) for seed in range(options.seeds)]
    if task.targets:
        scores = _precisions("linear", [each.scores for each in probes], task)
        return {**scores, "linear_C": [each.C for each in probes]}
    scores = _over_seeds("linear", probes)
    scores["linear_C"] = [each.C for each in probes]
    scores["linear_converged"] = all(each.converged for each in probes)
    return scores


def _linear_settings(options):
    return {
        "classifier": "logistic regression (L-BFGS, L2)",
        "C": list(C_GRID),
        "C_chosen_on": "held-out training examples",
        "normalization": "standardized",
        "views": "1",
        "seeds": options.seeds,
    }


def _linear_views(options, task):
    if task.targets:
        raise errors.UsageError(
            f"--protocol=linear_views needs images of one class each; those of {task.test.name} "
            "may have several. Pass --protocol=knn,linear."
        )
    results = [
        evaluate.linear_classifier(
            task.encoder,
            task.train,
            task.test,
            epochs=options.linear_views_epochs,
            batch_size=options.linear_views_batch_size,
            optimizer=options.linear_views_optimizer,
            learning_rate=options.linear_views_learning_rate,
            image_size=task.train.image_size,
            seed=seed,
        )
        for seed in range(options.seeds)
    ]
    return _over_seeds("linear_views", results)


def _linear_views_settings(options):
    return {
        "classifier": "linear layer on crops and flips, last epoch",
        "epochs": options.linear_views_epochs,
        "batch_size": options.linear_views_batch_size,
        "optimizer": options.linear_views_optimizer,
        "learning_rate": options.linear_views_learning_rate,
        "learning_rate_scaling": "linear",
        "schedule": "cosine",
        "weight_decay": 0.0,
        "min_crop_area": 0.08,
        "normalization": "none",
        "views": "1",
        "seeds": options.seeds,
    }


def _over_seeds(name, results):
    """The mean of each score over seeds, with its confidence interval if there are several."""
    fields = {
        name: "accuracy",
        f"{name}_top_5": "top_5_accuracy",
        f"{name}_mean_per_class": "mean_per_class_accuracy",
    }
    return _means({key: [getattr(r, field) for r in results] for key, field in fields.items()})


def _precisions(name, scores_by_seed, task):
    """Mean average precisions of scores [m, C], over seeds as in `_over_seeds`."""

    def precisions(eleven_points):
        return [
            evaluate.mean_average_precision(scores, task.targets[1], eleven_points)
            for scores in scores_by_seed
        ]

    return _means({name: precisions(False), f"{name}_11_points": precisions(True)})


def _means(values_by_key):
    scores = {key: float(np.mean(values)) for key, values in values_by_key.items()}
    for key, values in values_by_key.items():
        if len(values) > 1:
            scores[f"{key}_confidence_95"] = evaluate.confidence_interval(values)[1]
    return scores


PROTOCOLS = {
    "knn": Protocol(_knn, {"knn": "kNN weighted", "knn_10": "kNN k=10"}, _knn_settings),
    "linear": Protocol(_linear, {"linear": "linear"}, _linear_settings),
    "linear_views": Protocol(
        _linear_views, {"linear_views": "linear views"}, _linear_views_settings
    ),
}


def protocol_names(text):
    """The protocols that a value of --protocol names, in its order; "all" is knn and linear."""
    words = [{"all": "knn,linear"}.get(word, word) for word in text.split(",")]
    return list(dict.fromkeys(",".join(words).split(",")))


def settings_of(options, protocols):
    """All settings that the scores of some protocols depend on, by protocol."""
    return {name: PROTOCOLS[name].settings(options) for name in protocols}
