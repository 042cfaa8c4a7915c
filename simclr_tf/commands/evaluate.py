"""`simclr-tf evaluate`: accuracies of an encoder, compared with baselines."""

from __future__ import annotations

import json

from tensorflow import keras

from simclr_tf import errors, evaluate
from simclr_tf.commands.build import (
    DataOptions,
    build_encoder,
    load,
    load_encoder,
    log,
    report_unreadable,
)


def evaluate_encoder(options, invocation):
    """Prints a table of accuracies and one JSON line; returns its dict.

    Args:
      options: attributes named as the flags of `simclr-tf evaluate`.
      invocation: `trained`, the options of the run's `pretrain`, or None without a run.
    """
    trained = invocation.trained
    loaded = load_encoder(options, trained)
    images = DataOptions.of(options, trained)
    train = _labelled(load(images, images.train_split, "--train_split", loaded.image_size))
    test = _labelled(load(images, images.test_split, "--test_split", loaded.image_size))
    protocols = ["knn", "linear"] if options.protocol == "all" else [options.protocol]
    rows = []
    for name, encoder in _encoders_to_compare(options, trained, loaded):
        rows.append({"features": name, **_scores(options, protocols, encoder, train, test)})
        _print_row(rows[-1], header=len(rows) == 1)
    result = _summary(options, protocols, rows, train, test)
    result.update(dataset=images.dataset, encoder_source=loaded.source, encoder_path=loaded.path)
    result.update(loaded.progress)
    print(json.dumps(result), flush=True)
    return result


def _labelled(source):
    if not source.labelled:
        raise errors.UsageError(
            f"evaluation needs labels; {source.name} ({source.split}) has none. "
            "Put the images into class folders, or use `simclr-tf embed`."
        )
    return source


def _encoders_to_compare(options, trained, loaded):
    """Yields a name and an encoder: the baselines asked for, then the trained one."""
    if options.baselines:
        yield "raw pixels", evaluate.pixel_features
        if trained:
            keras.utils.set_random_seed(trained.seed)
            yield "random encoder", build_encoder(trained, loaded.image_size)
        else:
            log("no random encoder among the baselines: it needs the options of a run.")
    yield "trained encoder", loaded.encoder


def _scores(options, protocols, encoder, train, test):
    """Accuracies of one encoder: {"knn": ..., "knn_10": ..., "linear": ...}."""
    with report_unreadable(train, test):
        train_h = evaluate.extract_features(encoder, train.batches(options.batch_size))
        test_h = evaluate.extract_features(encoder, test.batches(options.batch_size))
    pair = (train_h.h, train_h.labels, test_h.h, test_h.labels)
    scores = {}
    if "knn" in protocols:
        scores["k"] = min(options.knn_k, len(train_h.h))  # so many vote where there are fewer
        scores["knn"] = evaluate.knn_accuracy(
            *pair, k=options.knn_k, temperature=options.knn_temperature
        )
        scores["knn_10"] = evaluate.knn_accuracy(*pair, k=10, weighted=False)
    if "linear" in protocols:
        scores["linear"] = evaluate.linear_probe(*pair, seed=0).accuracy
    return scores


_HEADINGS = {"knn": "kNN weighted", "knn_10": "kNN k=10", "linear": "linear"}


def _print_row(row, header):
    keys = [key for key in _HEADINGS if key in row]
    if header:
        print(f"{'features':<18}" + "".join(f"{_HEADINGS[key]:>14}" for key in keys))
    cells = "".join(f"{100 * row[key]:>12.2f} %" for key in keys)
    print(f"{row['features']:<18}{cells}", flush=True)


def _summary(options, protocols, rows, train, test):
    trained = rows[-1]
    result = {
        "protocol": options.protocol,
        "accuracy": trained[protocols[-1]],
        **{key: trained[key] for key in _HEADINGS if key in trained},
        "train_examples": train.num_examples,
        "test_examples": test.num_examples,
        "test_split": test.split,
    }
    if "knn" in protocols:
        result.update(k=trained["k"], temperature=options.knn_temperature)
    for row in rows[:-1]:
        result[row["features"].replace(" ", "_")] = {k: row[k] for k in _HEADINGS if k in row}
    return result
