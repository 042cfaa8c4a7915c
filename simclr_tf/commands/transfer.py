"""`simclr-tf evaluate --dataset=a,b,c --output=DIR`: a table of one encoder over data sets."""

from __future__ import annotations

import dataclasses
import pathlib

from simclr_tf import errors
from simclr_tf.commands.build import DataOptions, log
from simclr_tf.commands.data_set_scores import DataSetScores, load_splits
from simclr_tf.commands.protocols import protocol_names, settings_of
from simclr_tf.data.by_name import DRAWN
from simclr_tf.evaluate.feature_cache import FeatureCache
from simclr_tf.evaluate.transfer import (
    MEAN_AP,
    MEAN_AP_11,
    MEAN_PER_CLASS,
    TOP_1,
    customary,
    markdown,
    write_table,
)


def transfer(options, trained, loaded, layers):
    """Scores an encoder on several data sets; writes and prints the table.

    A data set that cannot be scored is a row with the reason.

    Args:
      options: attributes named as the flags of `simclr-tf evaluate`.
      trained: the options of the run's `pretrain`, or None.
      loaded: a `LoadedEncoder`.
      layers: its `Layers`.

    Returns:
      What goes into the JSON line.

    Raises:
      errors.UsageError: none of the data sets could be scored.
    """
    protocols = protocol_names(options.protocol)
    names = DataOptions.of(options, trained).dataset.split(",")
    cache = FeatureCache(options.cache_dir or pathlib.Path(options.output) / "features")
    rows = []
    for name in names:
        rows += _rows(options, trained, loaded, layers, protocols, name, cache)
    summary = {
        "protocol": options.protocol,
        "encoder_source": loaded.source,
        "encoder_path": loaded.path,
        **loaded.progress,
        "settings": {
            "image_size": loaded.image_size,
            "crop": "centre square",
            **settings_of(options, protocols),
        },
    }
    with errors.storage_errors(options.output):
        write_table(options.output, rows, summary)
    print(markdown([{key: row[key] for key in _shown(rows)} for row in rows]), end="")
    log(f"wrote table.csv, table.md and table.json to {options.output}")
    failed = [row for row in rows if row["error"]]
    if len(failed) == len(rows):
        raise errors.UsageError(f"none of {', '.join(names)} could be scored; see the table.")
    return {"output": str(options.output), "settings": summary["settings"], "rows": rows}


def _rows(options, trained, loaded, layers, protocols, name, cache):
    """A row for each layer, or one with the reason why there is none."""
    data_set = customary(name)
    try:
        train, test = _load(options, trained, loaded, protocols, name, data_set)
        scores = DataSetScores(options, train, test, cache)
        by_layer = scores.score(protocols, layers, loaded)
    except errors.TryAgainError:
        raise
    except errors.Error as error:
        reason = " ".join(str(error).split())
        log(f"{name}: {reason}")
        return [_row(protocols, name, data_set, error=reason)]
    if train.multi_label and data_set.metric == TOP_1:
        data_set = data_set._replace(metric=MEAN_AP)
    splits = {"train_split": train.split, "test_split": test.split}
    return [
        _row(protocols, name, data_set, layer=layer, **splits, **scores.counts, **found)
        for layer, found in by_layer.items()
    ]


def _load(options, trained, loaded, protocols, name, data_set):
    if data_set.load_as is None:
        raise errors.UsageError(
            f"TFDS does not have {name}. Pass {name}=folder:PATH, with folders train and test."
        )
    images = DataOptions.of(options, trained)
    own = trained is not None and name == trained.dataset
    splits = images if own else options  # the splits of a run are those of its own data set
    images = dataclasses.replace(
        images,
        dataset=data_set.load_as,
        train_split=splits.train_split or data_set.train_split,
        test_split=splits.test_split or data_set.test_split,
    )
    # Images in files are read once for features, again and again for linear_views.
    once = "linear_views" not in protocols
    in_memory = images.dataset in DRAWN or images.dataset.startswith("npz:")
    cache = {"cache_bytes": 0} if once and not in_memory else {}
    return load_splits(images, loaded.image_size, **cache)


def _row(protocols, name, data_set, **found):
    """The columns of the table; each protocol's score is that of the data set's metric."""
    row = {"dataset": name, "layer": found.get("layer"), "metric": data_set.metric}
    suffix = {MEAN_PER_CLASS: "_mean_per_class", MEAN_AP_11: "_11_points"}.get(data_set.metric, "")
    for protocol in protocols:
        row[protocol] = found.get(protocol + suffix)
        row[f"{protocol}_confidence_95"] = found.get(f"{protocol}{suffix}_confidence_95")
    for key in _DETAILS:
        row[key] = found.get(key)
    return row


_DETAILS = (
    *("train_split", "test_split", "train_examples", "test_examples"),
    *("train_unlabelled", "test_unlabelled", "near_duplicates", "linear_C", "error"),
)


def _shown(rows):
    """The columns that are printed: those of which a row has a value."""
    return [key for key in rows[0] if any(row[key] not in (None, 0) for row in rows)]
