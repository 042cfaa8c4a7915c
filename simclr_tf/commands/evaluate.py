"""`simclr-tf evaluate`: scores of an encoder on one data set, or a table over several."""

from __future__ import annotations

import json

from tensorflow import keras

from simclr_tf import evaluate
from simclr_tf.commands.build import DataOptions, build_encoder, load_encoder, log
from simclr_tf.commands.classifiers import evaluate_classifier, is_classifier
from simclr_tf.commands.data_set_scores import DataSetScores, load_splits
from simclr_tf.commands.layers import Layers, OneLayer, needs_head
from simclr_tf.commands.protocols import PROTOCOLS, protocol_names, settings_of
from simclr_tf.commands.transfer import transfer
from simclr_tf.evaluate.feature_cache import FeatureCache


def evaluate_encoder(options, invocation):
    """Prints a table of scores and one JSON line; returns its dict.

    Args:
      options: attributes named as the flags of `simclr-tf evaluate`.
      invocation: `trained`, the options of the run's `pretrain`, or None without a run.
    """
    trained = invocation.trained
    loaded = load_encoder(options, trained, needs_head(options.layer))
    if options.protocol is None and not options.output and is_classifier(loaded.encoder):
        return evaluate_classifier(options, trained, loaded)
    options = options.replace(protocol=options.protocol or "knn")
    layers = Layers(loaded, options.layer or ("h" if loaded.whitening is None else "h,whitened"))
    score = transfer if options.output else _one_data_set
    result = {"protocol": options.protocol, **score(options, trained, loaded, layers)}
    result.update(encoder_source=loaded.source, encoder_path=loaded.path, **loaded.progress)
    print(json.dumps(result), flush=True)
    return result


def _one_data_set(options, trained, loaded, layers):
    """Prints a row for each baseline and each layer; returns what goes into the JSON line."""
    images = DataOptions.of(options, trained)
    train, test = load_splits(images, loaded.image_size)
    protocols, cache = protocol_names(options.protocol), FeatureCache(options.cache_dir)
    scores, rows = DataSetScores(options, train, test, cache), {}
    for name, encoder in _baselines(options, trained, loaded):
        rows[name] = scores.score(protocols, OneLayer(encoder))["h"]
        _print_row(name, rows[name], header=len(rows) == 1)
    by_layer = scores.score(protocols, layers, loaded)
    for layer, row in by_layer.items():
        name = "trained encoder" if list(by_layer) == ["h"] else layer
        _print_row(name, row, header=not rows and layer == layers.names[0])
    return {
        **_summary(options, protocols, by_layer, rows),
        **scores.counts,
        "dataset": images.dataset,
        "train_split": train.split,
        "test_split": test.split,
        "settings": {
            "image_size": train.image_size,
            "crop": "centre square",
            **settings_of(options, protocols),
        },
    }


def _baselines(options, trained, loaded):
    """Yields a name and an encoder for each baseline that is asked for."""
    if not options.baselines:
        return
    yield "raw pixels", evaluate.pixel_features
    if trained and trained.command == "pretrain":
        keras.utils.set_random_seed(trained.seed)
        yield "random encoder", build_encoder(trained, loaded.image_size)
    else:
        log("no random encoder among the baselines: it needs the options of a run.")


def _headings(row):
    headings = {key: text for each in PROTOCOLS.values() for key, text in each.headings.items()}
    return {key: text for key, text in headings.items() if key in row}


def _print_row(name, row, header):
    headings = _headings(row)
    if header:
        print(f"{'features':<18}" + "".join(f"{text:>14}" for text in headings.values()))
    cells = "".join(f"{100 * row[key]:>12.2f} %" for key in headings)
    print(f"{name:<18}{cells}", flush=True)


def _summary(options, protocols, by_layer, baselines):
    """The scores: those of the first layer, of each layer if there are several, of baselines."""
    layer, first = next(iter(by_layer.items()))
    result = {"accuracy": first[protocols[-1]], "layer": layer, **first}
    if "knn" in protocols:
        result["temperature"] = options.knn_temperature
    if len(by_layer) > 1:
        result["layers"] = by_layer
    for name, row in baselines.items():
        result[name.replace(" ", "_")] = {key: row[key] for key in _headings(row)}
    return result
