"""`load`: from a data set's name, as on the command line, to a `Source`."""

from __future__ import annotations

from pathlib import Path

from simclr_tf.data import splits, subsets
from simclr_tf.data.arrays import Arrays, read_npz
from simclr_tf.data.examples import Examples, Subset
from simclr_tf.data.folder import Folder
from simclr_tf.data.source import Source
from simclr_tf.data.tfds import read_tfds
from simclr_tf.data.tfrecord import read_tfrecord
from simclr_tf.errors import ArgumentError

# The drawn data set is the same for every run, whatever the run's own seed.
SHAPES_SIZE = 32
SHAPES_SPLITS = {"train": (5000, 1), "test": (1000, 2)}  # number of examples, seed


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    source_size: int | None = None,
    max_corrupt_share: float = 0.01,
    cache_bytes: int = 2 * 2**30,
    label_fraction: float | None = None,
    labels_per_class: int | None = None,
    label_seed: int = 0,
) -> Source:
    """A data set by name.

    Args:
      name: `shapes` (drawn in code), `folder:PATH`, `npz:PATH`, `tfrecord:GLOB`, or the name of a
        TFDS data set prepared on disk.
      split: `train`, `validation`, `test` or `all`, whole or sliced in TFDS syntax: `train[:90%]`,
        `train[1000:2000]`, `train[:5%]+train[50%:]`. Slices of our own sources are cut from one
        fixed random order, so that a slice of class folders has all classes.
      data_dir: where TFDS data sets are prepared; None is TFDS's default.
      image_size: side of the images, pixels: the shorter side is resized to it, the centre square
        kept; training crops its views from whole images instead (`Source.epochs`). None keeps the
        native size where all images (in a large set, 2,000 spread over it) are squares of one size,
        and is 224 otherwise.
      source_size: longer side in pixels at which training keeps images larger than `image_size`,
        to crop views from: the larger, the sharper a small crop. None is 1.5 x image_size, and
        image_size where all images are squares of one size.
      max_corrupt_share: largest share in [0, 1] of examples that may be unreadable; these are
        skipped and listed.
      cache_bytes: a set of up to so many bytes as decoded uint8 is kept in memory; a larger one is
        read and decoded anew in every epoch.
      label_fraction: fraction of the examples of each class to keep, in (0, 1]; the others are left
        out (`subsets.balanced`). None keeps all.
      labels_per_class: number of examples of each class to keep, instead of a fraction.
      label_seed: of the choice of these examples.

    Raises:
      ValueError: the name, the split, a path or a setting is wrong, there is no example, or too
        many are unreadable.
    """
    if image_size is not None and image_size < 1:
        raise ArgumentError(f"image_size must be at least 1 pixel; got {image_size}.")
    if source_size is not None and source_size < 1:
        raise ArgumentError(f"source_size must be at least 1 pixel; got {source_size}.")
    if not 0 <= max_corrupt_share <= 1:
        raise ArgumentError(f"max_corrupt_share must be in [0, 1]; got {max_corrupt_share}.")
    examples = _examples(name, split, data_dir, image_size)
    if label_fraction is not None or labels_per_class is not None:
        names = ("label_fraction", "labels_per_class", "label_seed")
        examples = subsets.choose(examples, label_fraction, labels_per_class, label_seed, names)
    return Source(
        examples,
        name=name,
        split=split,
        image_size=image_size,
        source_size=source_size,
        max_corrupt_share=max_corrupt_share,
        cache_bytes=cache_bytes,
    )


def _examples(name: str, split: str, data_dir: str | None, image_size: int | None) -> Examples:
    kind, _, place = name.partition(":")
    if kind not in ("shapes", "folder", "npz", "tfrecord"):
        return read_tfds(name, split, data_dir)
    parts = splits.parse(split)
    whole = parts[0].name
    if kind == "shapes":
        examples = _shapes(whole, image_size or SHAPES_SIZE)
    elif not place:
        raise ArgumentError(f"{kind}: needs a path after the colon; got {name!r}.")
    elif kind == "folder":
        examples = Folder(Path(place).expanduser(), whole)
    elif kind == "npz":
        examples = read_npz(Path(place).expanduser(), whole)
    else:
        examples = read_tfrecord(place, whole)
    indices = splits.take(parts, len(examples))
    return examples if indices is None else Subset(examples, indices)


def _shapes(split: str, size: int) -> Arrays:
    from simclr_tf.data import shapes

    if split not in SHAPES_SPLITS:
        raise ArgumentError(
            f"shapes has the splits {', '.join(SHAPES_SPLITS)}; got {split!r}. "
            "train[90%:] is a part to validate on."
        )
    num_examples, seed = SHAPES_SPLITS[split]
    images, labels = shapes.draw(num_examples, seed, size=size)
    return Arrays(images, labels, class_names=list(shapes.CLASS_NAMES), prefix=split)
