"""Reads data sets that TensorFlow Datasets has prepared on disk; nothing is downloaded."""

from __future__ import annotations

import os

import numpy as np

from simclr_tf.data.tfrecord import Fields, Records, Shard
from simclr_tf.errors import ArgumentError, needs_package

_ID_KEYS = ("id", "file_name")


def read_tfds(name: str, split: str, data_dir: str | None) -> Records:
    """Reads one split of a prepared TFDS data set.

    Args:
      name: a TFDS name, optionally with a configuration and version (`cifar10`, `cifar10:3.0.2`).
      split: in TFDS syntax, slices and sums included.
      data_dir: directory in which it was prepared; None is TFDS's default,
        `~/tensorflow_datasets`.

    Returns:
      The examples.

    Raises:
      ArgumentError: unknown name or split, not prepared, not stored as TFRecord, or without images;
        TensorFlow Datasets cannot be imported.
    """
    with needs_package("tensorflow-datasets", f"name={name!r}"):
        builder = _builder(name, data_dir)
    instructions = _file_instructions(builder, name, split)
    shards = [
        Shard(
            os.fspath(file.filename),
            os.path.basename(file.filename),
            file.skip,
            file.examples_in_shard if file.take < 0 else file.skip + file.take,
        )
        for file in instructions
    ]
    fields, class_names = _fields(builder.info, name)
    return Records(shards, fields, class_names)


def _builder(name: str, data_dir: str | None):
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    wrong_name = (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError)
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except (*wrong_name, ParseError) as error:  # the last for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArgumentError(
            "name must be shapes, folder:PATH, npz:PATH, tfrecord:GLOB, tar:GLOB, or one that "
            f"TensorFlow Datasets can load; got {name!r} ({reason.rstrip('.')}). {_way_out(name)}"
        ) from error
    where = data_dir or builder.data_dir
    if not builder.info.splits:
        raise ArgumentError(
            f"{name!r} must be prepared on disk first; it is not under {os.fspath(where)!r}. "
            f"Prepare it with `tfds build {name} --data_dir=DIR`, then pass that DIR as data_dir."
        )
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise ArgumentError(
            f"{name!r} must be stored as tfrecord; under {os.fspath(where)!r} it is "
            f"{builder.info.file_format.value}. "
            f"Prepare it with `tfds build {name} --file_format=tfrecord`."
        )
    return builder


def _way_out(name: str) -> str:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return f"For the image files in that folder, write folder:{name}."
    if os.path.isfile(path):
        return f"For that file, write npz:{name} or tfrecord:{name}."
    return "Correct the name, or prepare the data set again."


def _file_instructions(builder, name: str, split: str):
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise ArgumentError(
            f"split must be one of {', '.join(builder.info.splits)} of {name}; got {split!r}. "
            "Slices are written train[:90%] or train[1000:2000]."
        ) from error


def _fields(info, name: str) -> tuple[Fields, list[str] | None]:
    """Which features hold the image, the label and the id; and the class names."""
    import tensorflow_datasets as tfds

    features = info.features
    keys = [*(info.supervised_keys or ()), "image", "label", *features]
    keys = [key for key in keys if isinstance(key, str) and key in features]
    images = [key for key in keys if isinstance(features[key], tfds.features.Image)]
    labels = [key for key in keys if isinstance(features[key], tfds.features.ClassLabel)]
    lists = [key for key in keys if _is_list_of_classes(features[key])]
    if not images or np.dtype(features[images[0]].np_dtype).kind != "u":
        raise ArgumentError(
            f"{name!r} must have a feature of type Image with unsigned integers; "
            f"it has {', '.join(features)}."
        )
    ids = tuple(key for key in _ID_KEYS if key in features)
    if lists and not labels:
        key = min(lists, key=len)
        certain = f"{key}_no_difficult" if f"{key}_no_difficult" in lists else key  # as in VOC
        names = list(features[key].feature.names)
        return Fields(tuple(images[:1]), (), ids, key, certain), names
    names = features[labels[0]].names if labels else None
    return Fields(tuple(images[:1]), tuple(labels[:1]), ids), list(names) if names else None


def _is_list_of_classes(feature) -> bool:
    import tensorflow_datasets as tfds

    label = getattr(feature, "feature", None)  # of a Sequence
    return isinstance(feature, tfds.features.Sequence) and isinstance(
        label, tfds.features.ClassLabel
    )
