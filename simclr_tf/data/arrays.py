"""`npz:PATH`, and images and labels in NumPy arrays."""

from __future__ import annotations

import errno
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from simclr_tf.data.examples import UNLABELLED, Example, describe_labels, describe_path
from simclr_tf.errors import ArgumentError
from simclr_tf.images import check_range, class_indices

# Keys (images, labels) by split; the first one found is used.
_SPLIT_KEYS = {
    "train": [("x_train", "y_train"), ("train_images", "train_labels")],
    "validation": [
        ("x_val", "y_val"),
        ("x_validation", "y_validation"),
        ("val_images", "val_labels"),
    ],
    "test": [("x_test", "y_test"), ("test_images", "test_labels")],
    "unlabeled": [("x_unlabeled", ""), ("x_unlabelled", ""), ("unlabeled_images", "")],
}
_WHOLE_KEYS = [("images", "labels"), ("x", "y"), ("image", "label")]
_WHOLE = ("train", "all")

# What zipfile and NumPy raise for damaged files: OSError for a position before the file's start,
# MemoryError for a damaged shape, RuntimeError for a flag that says it is encrypted. ValueError
# also for arrays of Python objects.
_READ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError),
    *(OSError, MemoryError, RuntimeError),
)


class Arrays:
    """Images in memory.

    Args:
      images: [n, height, width], or with 1 or 3 channels last; integers in [0, 255], or float in
        [0, 1].
      labels: integers [n] or [n, 1], or one-hot [n, C], or None; -1 where an example has none.
      class_names: names by label.
      prefix: ids are `prefix/00000`, `prefix/00001`, ...

    Attributes:
      images: uint8 [n, height, width, 3].

    Raises:
      ArgumentError: another shape, dtype or range.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        class_names: list[str] | None = None,
        prefix: str = "train",
    ):
        self.images = _uint8(_three_channels(images))
        self._labels = (
            np.full(len(images), UNLABELLED, np.int64)
            if labels is None
            else _integer_labels(labels, len(images))
        )
        self.labelled = bool((self._labels != UNLABELLED).any())
        self.class_names = class_names
        self.description = describe_labels(class_names, self.labelled)
        self.skipped_suffixes = {}
        self._prefix = prefix

    def __len__(self) -> int:
        return len(self.images)

    def id(self, index: int) -> str:
        """Returns `prefix/` and the position."""
        return f"{self._prefix}/{index:05d}"

    def __getitem__(self, index: int) -> Example:
        return Example(self.id(index), self.images[index], int(self._labels[index]))

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels, int64 [n]."""
        return self._labels if indices is None else self._labels[indices]


def read_npz(path: Path, split: str) -> Arrays:
    """Reads one split of an .npz file.

    The keys are `x_train`, `y_train`, `x_test`, `y_test` (also `x_val`, and `train_images`, ...),
    or `images` and `labels` (also `x` and `y`, `image` and `label`) for a file of one split. Labels
    may be missing. `x_unlabeled` is a split without labels.

    Args:
      path: of the file.
      split: `train`, `validation`, `test`, `unlabeled` or `all`.

    Returns:
      The examples.

    Raises:
      ArgumentError: no such file, not an .npz file, no such split, or arrays of another shape,
        dtype or range.
    """
    if not path.is_file():
        raise ArgumentError(
            f"npz:PATH needs an existing file; got {describe_path(path)}. Correct the path."
        )
    try:
        with _open(path) as arrays:
            images_key, labels_key = _keys(arrays, path, split)
            images = arrays[images_key]
            labels = arrays[labels_key] if labels_key in arrays else None
    except ArgumentError:
        raise
    except _READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # the disk fails, or the like
        raise ArgumentError(
            "npz:PATH needs an undamaged file of arrays that fit into memory; "
            f"got {str(path)!r} ({error}). Write it again with numpy.savez."
        ) from error
    return Arrays(images, labels, prefix=split)


def _open(path: Path) -> np.lib.npyio.NpzFile:
    with path.open("rb") as file:  # a path that cannot be read would be no archive to zipfile
        is_archive = zipfile.is_zipfile(file)
    if not is_archive:
        raise ArgumentError(
            f"npz:PATH needs a file written by numpy.savez; {describe_path(path)} is not one. "
            "Pass another file."
        )
    return np.load(path, allow_pickle=False)


def _keys(arrays: Mapping[str, np.ndarray], path: Path, split: str) -> tuple[str, str]:
    for keys in _candidates(split):
        if keys[0] in arrays:
            return keys
    names = [*_SPLIT_KEYS, "all"]
    found = [name for name in names if any(keys[0] in arrays for keys in _candidates(name))]
    if not found:
        raise ArgumentError(
            "an .npz file needs images, as x_train, x_test or images; "
            f"{str(path)!r} has {', '.join(arrays) or 'no array'}. Write it with these names."
        )
    needs = " or ".join(images for images, _ in _candidates(split))
    raise ArgumentError(
        f"split must be one of {', '.join(found)} in {str(path)!r}, which has "
        f"{', '.join(arrays)}; got {split!r}{f', which needs {needs}' if needs else ''}. "
        f"Pass one of these or a slice of one, such as {found[0]}[:90%]."
    )


def _candidates(split: str) -> list[tuple[str, str]]:
    """The keys of images and labels to look for, in order."""
    return _SPLIT_KEYS.get(split, []) + (_WHOLE_KEYS if split in _WHOLE else [])


def _three_channels(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ArgumentError(
            "images must be [n, height, width], or have 1 or 3 channels last; "
            f"got {list(images.shape)}. numpy.moveaxis(images, 1, -1) puts channels last."
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _uint8(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8 or not images.size:
        return images.astype(np.uint8, copy=False)
    if np.issubdtype(images.dtype, np.integer):
        low, high = images.min(), images.max()
        if low < 0 or high > 255:
            raise ArgumentError(
                f"images of {images.dtype} must lie in [0, 255]; got values from {low} to {high}. "
                "Rescale them before saving."
            )
        return images.astype(np.uint8)
    if not np.issubdtype(images.dtype, np.floating):
        raise ArgumentError(f"images must be uint8, or float in [0, 1]; got {images.dtype}.")
    check_range(images)
    return np.stack([np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in images])


def _integer_labels(labels: np.ndarray, num_images: int) -> np.ndarray:
    if not labels.ndim or len(labels) != num_images:
        raise ArgumentError(
            f"labels must be integers, one for each of the {num_images} images; got {labels.dtype} "
            f"{list(labels.shape)}. Leave them out if there are none."
        )
    return class_indices(labels)
