"""`load`: a data set by its name, as on the command line."""

from __future__ import annotations

import os
from pathlib import Path

from simclr_tf.data import splits, subsets
from simclr_tf.data.arrays import Arrays, read_npz
from simclr_tf.data.examples import Examples, Subset
from simclr_tf.data.folder import Folder
from simclr_tf.data.source import Source
from simclr_tf.data.tar import read_tar
from simclr_tf.data.tfds import read_tfds
from simclr_tf.data.tfrecord import read_tfrecord
from simclr_tf.errors import ArgumentError

# The drawn data set is the same for every run, whatever the run's own seed.
SHAPES_SIZE = 32
SHAPES_SPLITS = {"train": (5000, 1), "test": (1000, 2)}  # number of examples, seed
# The same images by each of these names, labelled by an attribute of `shapes.draw_with_attributes`.
SHAPES_BY_ATTRIBUTE = {
    f"shapes_by_{attribute}": attribute for attribute in ("class", "color", "orientation")
}
DRAWN = ("shapes", *SHAPES_BY_ATTRIBUTE)


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    source_size: int | None = None,
    max_corrupt_share: float = 0.01,
    cache_bytes: int = 2 * 2**30,
    index_cache: str | os.PathLike | None = None,
    cache_on_demand: bool = False,
    label_fraction: float | None = None,
    labels_per_class: int | None = None,
    label_seed: int = 0,
    keep_unlabelled: bool = False,
) -> Source:
    """Loads a data set by name.

    Args:
      name: `shapes` (drawn in code), `folder:PATH`, `npz:PATH`, `tfrecord:GLOB`, `tar:GLOB`
        (archives of images, as WebDataset has them), or the name of a TFDS data set prepared on
        disk. Nothing is downloaded. `shapes_by_class`, `shapes_by_color`
        and `shapes_by_orientation` are other drawn images, the same by each of the three names,
        with different labels.
      split: `train`, `validation`, `test` or `all`, whole or sliced in TFDS syntax: `train[:90%]`,
        `train[1000:2000]`, `train[:5%]+train[50%:]`. Except with TFDS, slices are cut from one
        fixed random order, so that a slice of class folders has all classes.
      data_dir: directory in which TFDS data sets are prepared; None is TFDS's default.
      image_size: side of the images, pixels, 1 or more. Evaluation resizes the centre square of an
        image to it; training crops views of it from whole images (`Source.epochs`). None keeps the
        native size where all images (in a large data set, a sample of 2,000) are squares of one
        size, and is 224 otherwise.
      source_size: longer side, pixels, to which training reduces larger images before it crops
        views from them; a larger value makes small crops sharper. None is 1.5 x image_size, or
        image_size where all images are squares of one size.
      max_corrupt_share: maximum fraction, in [0, 1], of examples that may be unreadable; these are
        skipped and listed in `Source.corrupt`.
      cache_bytes: maximum size of a data set, as decoded uint8, that is kept in memory; a larger
        one is read and decoded again in every epoch.
      index_cache: directory in which the headers of image files are kept, if there are 10,000 or
        more; the next time, only those of files whose size or modification time has changed are
        read. None keeps none.
      cache_on_demand: whether image files that fit in `cache_bytes` are decoded when an epoch first
        reads them, instead of now. For one of several workers, which then decodes no image that it
        does not need. The order and the treatment of unreadable files are those of a set that is
        not cached.
      label_fraction: fraction of the examples of each class to keep, in (0, 1], for evaluation with
        few labels (`subsets.balanced`). None keeps all.
      labels_per_class: number of examples of each class to keep, instead of a fraction.
      label_seed: seed of the choice of these examples, in [0, 2**32 - 1].
      keep_unlabelled: True keeps the other examples too, without their labels.

    Returns:
      A `Source`.

    Raises:
      ArgumentError: the name, the split, a path or another argument is wrong, there is no example,
        or too many are unreadable.

    Example:

    >>> simclr_tf.data.load("shapes", "test[:20]")
    Source('shapes', 'test[:20]': 20 examples, 32 pixels, labelled=True)
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
        chosen = subsets.choose(examples, label_fraction, labels_per_class, label_seed, names)
        examples = subsets.PartlyLabelled(examples, chosen) if keep_unlabelled else chosen
    return Source(
        examples,
        name=name,
        split=split,
        image_size=image_size,
        source_size=source_size,
        max_corrupt_share=max_corrupt_share,
        cache_bytes=cache_bytes,
        index_cache=index_cache,
        cache_on_demand=cache_on_demand,
    )


def _examples(name: str, split: str, data_dir: str | None, image_size: int | None) -> Examples:
    kind, _, path = name.partition(":")
    drawn = name if name in SHAPES_BY_ATTRIBUTE else kind
    if drawn not in (*DRAWN, "folder", "npz", "tfrecord", "tar"):
        return read_tfds(name, split, data_dir)
    terms = splits.parse(split)
    whole = terms[0].name
    if drawn in DRAWN:
        examples = _shapes(drawn, whole, image_size or SHAPES_SIZE)
    elif not path:
        raise ArgumentError(
            f"name must have a path after the colon; got {name!r}. Write {kind}:PATH."
        )
    elif kind == "folder":
        examples = Folder(Path(path).expanduser(), whole)
    elif kind == "npz":
        examples = read_npz(Path(path).expanduser(), whole)
    elif kind == "tar":
        examples = read_tar(path, whole)
    else:
        examples = read_tfrecord(path, whole)
    indices = splits.take(terms, len(examples))
    return examples if indices is None else Subset(examples, indices)


def _shapes(name: str, split: str, size: int) -> Arrays:
    from simclr_tf.data import shapes

    if split not in SHAPES_SPLITS:
        raise ArgumentError(
            f"split must be one of {', '.join(SHAPES_SPLITS)} of {name}; got {split!r}. "
            "To validate, take a slice such as train[90%:]."
        )
    num_examples, seed = SHAPES_SPLITS[split]
    if name == "shapes":
        images, labels = shapes.draw(num_examples, seed, size=size)
        return Arrays(images, labels, class_names=list(shapes.CLASS_NAMES), prefix=split)
    images, labels = shapes.draw_with_attributes(num_examples, seed, size=size)
    attribute = SHAPES_BY_ATTRIBUTE[name]
    names = {"class": shapes.CLASS_NAMES, "color": shapes.HUE_NAMES}
    names = list(names.get(attribute, shapes.ORIENTATION_NAMES))
    return Arrays(images, labels[attribute], class_names=names, prefix=split)
