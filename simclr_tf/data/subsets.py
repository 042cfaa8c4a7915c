"""Class-balanced subsets of labelled data sets, for evaluation with few labels."""

from __future__ import annotations

import numbers

import numpy as np
import tensorflow as tf

from simclr_tf.data.examples import UNLABELLED, Example, Examples, Subset
from simclr_tf.data.headers import Headers
from simclr_tf.data.index_cache import IndexCache
from simclr_tf.errors import ArgumentError


def balanced(
    examples: Examples,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Subset:
    """Returns a class-balanced random subset, such as 1% or 10% (arXiv:2002.05709, section 6).

    The choice depends on the labels and the seed alone. With the same seed, a smaller subset is
    contained in every larger one. Images are not decoded; an example whose label cannot be read is
    never chosen.

    Args:
      examples: labelled examples of any reader.
      fraction: fraction of the examples of each class, in (0, 1]; rounded to the closest whole
        number of examples, at least one of each class.
      count: number of examples of each class, 1 or more. Pass exactly one of `fraction` and
        `count`.
      seed: of the choice, in [0, 2**32 - 1].

    Returns:
      The chosen examples, in the order of `examples`.

    Raises:
      ArgumentError: the examples have no labels, not exactly one of `fraction` and `count` is
        passed, a value is out of range, or a class has fewer than `count` examples.

    Example:

    >>> from simclr_tf.data.arrays import Arrays
    >>> subset = simclr_tf.data.subsets.balanced(Arrays(images, labels), count=1)
    >>> sorted(subset.labels().tolist())
    [0, 1, 2, 3]
    """
    return choose(examples, fraction, count, seed, ("fraction", "count", "seed"))


class PartlyLabelled:
    """All examples, of which only those of a `Subset` keep their labels."""

    def __init__(self, examples: Examples, labelled: Subset):
        self.wrapped = self._examples = examples
        self._keeps = np.zeros(len(examples), bool)
        self._keeps[labelled.indices] = True
        self.class_names = examples.class_names
        self.labelled = True
        self.description = examples.description
        self.skipped_suffixes = examples.skipped_suffixes

    def __len__(self) -> int:
        return len(self._examples)

    def id(self, index: int) -> str:
        """Returns a name of the example, which may turn out to be unreadable."""
        return self._examples.id(index)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        return example if self._keeps[index] else example._replace(label=UNLABELLED)

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels without decoding images, int64 [n]."""
        keeps = self._keeps if indices is None else self._keeps[indices]
        return np.where(keeps, self._examples.labels(indices), UNLABELLED)

    def headers(self, indices: np.ndarray, cache: IndexCache | None = None) -> Headers:
        """As `ExamplesInFiles.headers`."""
        headers = self._examples.headers(indices, cache)
        return headers._replace(label=np.where(self._keeps[indices], headers.label, UNLABELLED))

    def ids(self, indices: np.ndarray) -> list[bytes]:
        """As `ExamplesInFiles.ids`."""
        return self._examples.ids(indices)

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """As `ExamplesInFiles.fetch`."""
        return self._examples.fetch(indices)

    def contents(self, fetched: tf.Tensor) -> tf.Tensor:
        """As `ExamplesInFiles.contents`."""
        return self._examples.contents(fetched)


def choose(
    examples: Examples,
    fraction: float | None,
    count: int | None,
    seed: int,
    names: tuple[str, str, str],
) -> Subset:
    """Does what `balanced` does; error messages call the three arguments by `names`."""
    _check(fraction, count, seed, names)
    if not examples.labelled:
        raise ArgumentError(
            f"{names[0] if count is None else names[1]} needs a data set with labels; this one has "
            "none. Pass one with labels, such as class folders."
        )
    labels = examples.labels()
    order = np.random.RandomState(seed).permutation(len(labels))  # its streams are fixed: NEP 19
    chosen = [order[:0]]
    for label in np.unique(labels[labels != UNLABELLED]):
        members = order[labels[order] == label]
        wanted = count or max(1, int(np.floor(fraction * len(members) + 0.5)))
        if wanted > len(members):
            class_name = repr(examples.class_names[label]) if examples.class_names else label
            raise ArgumentError(
                f"{names[1]} must be at most the number of examples of each class; got {count}, "
                f"and class {class_name} has {len(members)}. Lower {names[1]}."
            )
        chosen.append(members[:wanted])
    return Subset(examples, np.sort(np.concatenate(chosen)))


def _check(fraction, count, seed, names: tuple[str, str, str]) -> None:
    if (fraction is None) == (count is None):
        raise ArgumentError(
            f"exactly one of {names[0]} and {names[1]} must be passed; "
            f"got {names[0]}={fraction} and {names[1]}={count}."
        )
    if fraction is not None and not 0 < fraction <= 1:
        raise ArgumentError(f"{names[0]} must be in (0, 1]; got {fraction}.")
    if count is not None and (not isinstance(count, numbers.Integral) or count < 1):
        raise ArgumentError(f"{names[1]} must be a whole number of at least 1; got {count}.")
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ArgumentError(f"{names[2]} must be a whole number in [0, 2**32 - 1]; got {seed}.")
