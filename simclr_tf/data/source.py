"""`Source`: one split of a data set as tf.data pipelines.

Where examples come from is in `folder`, `arrays`, `tfrecord` and `tfds`; how a file becomes pixels
is in `decode`; how images are kept in memory is in `cache`, and the pipelines are in `pipeline`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from simclr_tf.data import pipeline
from simclr_tf.data.cache import Cache, CacheOnDemand
from simclr_tf.data.decode import decode, decode_whole
from simclr_tf.data.decode import image_size as size_of
from simclr_tf.data.decode_ops import (
    BY_PILLOW,
    Plan,
    decode_file,
    decoder,
    pixels,
    plan_centre,
    plan_whole,
)
from simclr_tf.data.examples import Decoded, Examples, are_in_files, shards_of
from simclr_tf.data.graph_reader import GraphReader
from simclr_tf.data.headers import Headers
from simclr_tf.data.index_cache import IndexCache
from simclr_tf.data.pipeline import WHOLE_BATCH, ReplicaSlice
from simclr_tf.errors import ArgumentError, CorruptImageError, check_number

DEFAULT_IMAGE_SIZE = 224
_SIZE_SAMPLE = 2000
_LAST_EPOCH = 2**62
_WHOLE_SIDE = 1.5  # times image_size: a photograph of 3:2 keeps its shorter side


class Source:
    """One split of a data set.

    Attributes:
      name: as passed to `load`.
      split: as passed to `load`.
      num_examples: number of readable examples; of a data set too large for memory, which is not
        read in advance, the number of all examples.
      class_names: names by class index, or None.
      labelled: whether the examples have labels; the label of some may still be -1, which stands
        for none.
      multi_label: whether an image may have several classes (`targets`); `labelled` is then False.
      description: one line: the split's folder, and the number of classes or the reason why there
        are no labels.
      skipped_suffixes: numbers of files in a folder that were left out because they are not images,
        by suffix in lower case, such as {".txt": 3}.
      digest: hash of the ids of all examples in order, by which a resumed run notices that the data
        set has changed.
      image_size: side of the images, pixels.
      whole_side: None where all images are squares of one size and no `source_size` was passed.
        Otherwise training reads whole images (proportions kept, longer side at most `whole_side`
        pixels), from which views are cropped; evaluation reads centre squares of `image_size`,
        the same pixels that serving computes.
      cached: whether all images for training are in memory, and the unreadable ones known. With a
        `whole_side`, those for evaluation are decoded each time.

    Example:

    >>> source = simclr_tf.data.load("shapes", "test[:20]")
    >>> source.epochs(batch_size=8, seed=0, labels=True).element_spec["image"]
    TensorSpec(shape=(8, 32, 32, 3), dtype=tf.uint8, name=None)
    >>> [len(batch["id"]) for batch in source.batches(batch_size=8)]
    [8, 8, 4]
    """

    def __init__(
        self,
        examples: Examples,
        *,
        name: str,
        split: str,
        image_size: int | None = None,
        source_size: int | None = None,
        max_corrupt_share: float = 0.01,
        cache_bytes: int = 2 * 2**30,
        index_cache: str | os.PathLike | None = None,
        cache_on_demand: bool = False,
    ):
        """See `load`, which describes the arguments."""
        check_number("max_corrupt_share", max_corrupt_share, at_least=0, at_most=1)
        if not len(examples):
            raise ArgumentError(
                f"a data set needs at least one example; {name!r} has none in {split!r}. "
                "Pass another split."
            )
        self.name, self.split = name, split
        self.class_names, self.labelled = examples.class_names, examples.labelled
        self.multi_label = getattr(examples, "multi_label", False)
        self.description = f"{name}, split {split}: {examples.description}"
        self.skipped_suffixes = examples.skipped_suffixes
        self.digest, self._id_hashes = _digest(examples)
        self._in_files = are_in_files(examples)
        self._headers = None
        if self._in_files:
            cache = index_cache and IndexCache(index_cache)
            self._headers = examples.headers(np.arange(len(examples)), cache)
        self._plans: dict[bool, Plan] = {}
        common_size = _common_size(examples, self._headers)
        self.image_size = image_size or common_size or DEFAULT_IMAGE_SIZE
        self.whole_side = _whole_side(self.image_size, common_size, source_size)
        self._examples, self._total = examples, len(examples)
        self._shards = shards_of(examples)
        self._max_corrupt_share = max_corrupt_share
        self._corrupt: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self.cached = self._total * self._training_side**2 * 3 <= cache_bytes
        self._memory = None
        if self.cached and cache_on_demand and self._in_files:
            self.cached, self._memory = False, CacheOnDemand(self._total, self._training_side)
        if self.cached:
            self._cache = Cache(self._total, self._training_side, self._read_for_training)
            self.check_corrupt()
            if not self.whole_side and not self.multi_label:
                self._examples = None  # what they hold in memory has been copied
        self._rows = np.array([i for i in range(self._total) if i not in self._corrupt], np.int64)
        self.num_examples = len(self._rows)

    def __repr__(self) -> str:
        return (
            f"Source({self.name!r}, {self.split!r}: {self.num_examples} examples, "
            f"{self.image_size} pixels, labelled={self.labelled})"
        )

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        """(id, reason) of each example found unreadable so far."""
        with self._lock:
            return [self._corrupt[index] for index in sorted(self._corrupt)]

    def check_corrupt(self) -> None:
        """Raises `ArgumentError` if more examples are unreadable than `max_corrupt_share` allows.

        tf.data wraps an exception raised in a pipeline in one of its own; this method raises the
        plain one.
        """
        corrupt, total = self.corrupt, self._total
        if len(corrupt) <= self._max_corrupt_share * total and len(corrupt) < total:
            return
        example_id, reason = corrupt[0]
        raise ArgumentError(
            f"at most {self._max_corrupt_share:.2%} of the examples may be unreadable; "
            f"{len(corrupt)} of {total} in {self.name!r} are, such as {example_id} ({reason}). "
            "Repair or remove them, or raise max_corrupt_share."
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of full batches in an epoch.

        Raises:
          ArgumentError: there is not one.
        """
        _check_batch_size(batch_size)
        if self.num_examples < batch_size:
            raise ArgumentError(
                f"an epoch needs at least one full batch; {self.name!r} has {self.num_examples} "
                f"examples in {self.split!r} and batch_size is {batch_size}. Lower batch_size."
            )
        return self.num_examples // batch_size

    def batches(self, batch_size: int, limit: int | None = None) -> tf.data.Dataset:
        """Every example once, in the order of the source; the last batch may be smaller.

        The pixels are those that serving computes for the same files, whether the source is cached
        or not: `images.centre_square` of the whole decoded image, stored as uint8.

        Args:
          batch_size: examples per batch.
          limit: maximum number of examples, evenly spaced; None reads all.

        Returns:
          A dataset of dicts: "image", uint8 [B, size, size, 3]; "id", string [B]; and, if labelled,
          "label", int64 [B].

        Raises:
          ArgumentError: `batch_size` is below 1.
        """
        _check_batch_size(batch_size)
        count = min(len(self._rows), limit or len(self._rows))
        rows = self._rows[np.arange(count) * len(self._rows) // count]
        if self.cached and not self.whole_side:
            dataset = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
            dataset = self._gathered(dataset, self._evaluation_batch)
        else:
            dataset = self._decoded_batches(rows, batch_size)
            dataset = dataset.map(self._evaluation_batch)
        return dataset.prefetch(tf.data.AUTOTUNE)

    def epochs(
        self,
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        shuffle: bool = True,
        first_step: int = 0,
        replica_slice: ReplicaSlice = WHOLE_BATCH,
        labels: bool = False,
    ) -> tf.data.Dataset:
        """An endless stream of training batches, `steps_per_epoch(batch_size)` for each epoch.

        The order within an epoch depends on (seed, epoch) alone: a stream that starts at
        (`first_epoch`, `first_step`) is the tail of the stream that starts at 0. It is a
        permutation of all examples; of a `tar:GLOB` that is not cached, the shards are shuffled,
        and their examples in a buffer of 10,000, so that files are read almost in sequence. The
        remainder of an epoch is dropped. In a data set that is not cached, an example that turns
        out unreadable is replaced by the next one, so that the number of steps stays the same.

        Args:
          batch_size: examples per batch, of all replicas together.
          seed: of the order.
          first_epoch: epoch to start from.
          shuffle: False keeps the order of the source.
          first_step: step within `first_epoch` to start from.
          replica_slice: the `ReplicaSlice` of each batch to read; a batch of the stream then holds
            `batch_size / replica_slice.replicas` examples, and a step is `replica_slice.count`
            of them.
          labels: whether to yield the labels with the images.

        Returns:
          A dataset of uint8 [B, size, size, 3], the batch dimension static. With a `whole_side` or
          with `labels`, of dicts: "image", uint8 [B, side, side, 3], where side is `whole_side` if
          there is one; "label", int64 [B], with `labels`; "extent", int32 [B, 2], with a
          `whole_side`: the height and width of each image in the upper left corner of its square.
          `RandomView.for_size(source.image_size)` crops views of the right size.

        Raises:
          ArgumentError: fewer examples than `batch_size`, a batch that has no such slice, or
            `labels` of a data set that has none.
        """
        if labels and not self.labelled:
            raise ArgumentError(
                f"labels=True needs a data set with labels; {self.name!r} has none in "
                f"{self.split!r}. Pass labels=False, or load a data set with labels."
            )
        to_batch = functools.partial(self._training_batch, labels=labels)
        steps = self.steps_per_epoch(batch_size)
        replica_slice.check(batch_size)
        reader = None if self.cached else self._reader(bool(self.whole_side))
        shards = None if self.cached else self._shards

        def one_epoch(epoch):
            done = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
            order = pipeline.epoch_order(self._total, seed, epoch, shuffle, shards)
            if self.cached:
                rows = replica_slice.rows(self._readable(order), steps, batch_size)
                return pipeline.index_batches(rows, done)
            rows = replica_slice.rows(order, steps, batch_size)
            remainder = replica_slice.remainder(order, steps, batch_size)
            read = self._checked(self._read_for_training)
            dataset = pipeline.decoded_batches(
                rows, remainder, done, read, self._training_side, reader
            )
            return dataset.map(to_batch)

        dataset = tf.data.Dataset.range(first_epoch, _LAST_EPOCH).flat_map(one_epoch)
        if self.cached:
            dataset = self._gathered(dataset, to_batch)
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
        return dataset.prefetch(tf.data.AUTOTUNE)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """All examples, in the order of the source.

        Returns:
          images, uint8 [n, size, size, 3]; labels, int64 [n], or None; ids, str [n].
        """
        if self.cached and not self.whole_side:
            columns = self._cache.images, self._cache.labels, self._cache.ids
            if self.num_examples < self._total:
                columns = [column[self._rows] for column in columns]
            images, labels, ids = columns
        else:
            batches = list(self.batches(256).as_numpy_iterator())
            images, ids = (np.concatenate([b[key] for b in batches]) for key in ("image", "id"))
            labels = np.concatenate([b["label"] for b in batches]) if self.labelled else None
        return images, labels if self.labelled else None, np.array([i.decode() for i in ids])

    def labels(self) -> np.ndarray | None:
        """The labels of the readable examples, in the order of the source; images are not decoded.

        Returns:
          int64 [n], -1 where an example has none; None where the data set has no labels.
        """
        if not self.labelled:
            return None
        if self._headers:
            return self._headers.label[self._rows]
        return self._cache.labels[self._rows] if self.cached else self._examples.labels(self._rows)

    def targets(self) -> np.ndarray | None:
        """The classes of images that may have several, for the examples that `batches` has read.

        Returns:
          int8 [n, C]: 1 where an image has the class, 0 where it has not, -1 where that is
          unknown ("difficult"); None where `multi_label` is False.
        """
        if not self.multi_label:
            return None
        with self._lock:
            rows = [row for row in self._rows if row not in self._corrupt]
        return self._examples.targets(np.array(rows, np.int64))

    def overlap(self, other: Source) -> int:
        """Returns the number of examples, by their ids, that are in both of two splits."""
        return len(np.intersect1d(self._id_hashes, other._id_hashes))

    @property
    def _training_side(self) -> int:
        return self._side(bool(self.whole_side))

    def _side(self, whole: bool) -> int:
        return self.whole_side if whole else self.image_size

    def _read_for_training(self, index: int) -> Decoded | None:
        return self._read(index, whole=bool(self.whole_side))

    def _read_for_evaluation(self, index: int) -> Decoded | None:
        return self._read(index, whole=False)

    def _read(self, index: int, whole: bool) -> Decoded | None:
        """Reads one example; returns None, and adds to `corrupt`, where it cannot be read.

        Args:
          index: of the example.
          whole: whether to read the whole image in its square; otherwise the centre square.
        """
        example_id = None
        try:
            example_id, image, label = self._examples[index]
            square, extent = self._decode(index, image, whole)
            return Decoded(square, extent, label, example_id.encode())
        except CorruptImageError as error:
            with self._lock:
                self._corrupt[index] = (example_id or self._examples.id(index), str(error))
        return None

    def _decode(self, index: int, image: bytes | np.ndarray, whole: bool):
        """Decodes as the pipelines do, by TensorFlow or by Pillow."""
        side = self._side(whole)
        if self._in_files and self._plan(whole).way[index] != BY_PILLOW:
            way, extent = (column[index] for column in self._plan(whole))
            try:
                with tf.device("CPU:0"):
                    if whole:
                        return decode_file(image, way, extent, side, whole).numpy(), extent
                    image = pixels(image).numpy()
            except tf.errors.InvalidArgumentError as error:
                decode(image, side)  # Pillow's reason is shorter
                raise CorruptImageError("TensorFlow cannot decode it, though Pillow can") from error
        if not whole:
            return decode(image, side), [side] * 2
        square, *extent = decode_whole(image, side)
        return square, extent

    def _plan(self, whole: bool) -> Plan:
        """How the images are decoded for training (whole) or for evaluation."""
        if whole not in self._plans:
            side = self._side(whole)
            plan = plan_whole if whole else plan_centre
            self._plans[whole] = plan(self._headers, side)
        return self._plans[whole]

    def _reader(self, whole: bool) -> GraphReader | None:
        """Reads examples inside tf.data, for training or evaluation; None if they are no files."""
        if not self._in_files:
            return None
        side, plan = self._side(whole), self._plan(whole)

        def by_pillow(index):
            example = self._read(int(index), whole)
            if example is None:
                raise CorruptImageError("reported with the next batch")
            return example.image, np.asarray(example.extent, np.int32)

        at_exit = np.zeros([side, side, 3], np.uint8), np.zeros(2, np.int32)

        def pillow_op(index):
            return pipeline.python_op(by_pillow, at_exit, [index], [tf.uint8, tf.int32])

        def report(indices):
            for index in indices.tolist():
                self._read(index, whole)
            self.check_corrupt()

        with tf.device("CPU:0"):
            columns = [tf.constant(each) for each in (*plan, self._headers.label)]
        memory = self._memory if whole == bool(self.whole_side) else None
        decode = decoder(plan, side, whole, self._examples.contents, pillow_op, memory)
        return GraphReader(self._examples.fetch, decode, *columns, report, memory)

    def _decoded_batches(self, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """Batches of `Decoded` for evaluation, of the examples at `rows`."""
        reader = self._reader(whole=False)
        if reader is None:
            read = self._checked(self._read_for_evaluation)
            dataset = tf.data.Dataset.from_tensor_slices(rows)
            return pipeline.decoded(dataset, read, self.image_size).batch(batch_size)

        def ids(indices):
            return np.array(self._examples.ids(indices), object)

        def with_ids(indices, batch):
            return batch._replace(id=pipeline.python_op(ids, np.array(b""), [indices], tf.string))

        batches = reader.batches(tf.constant(rows), batch_size)
        return batches.map(with_ids)

    def _checked(self, read: Callable[[int], Decoded | None]) -> Callable[[int], Decoded | None]:
        """Returns `read`, which then raises where too many examples are unreadable."""

        def checked(index):
            example = read(index)
            if example is None:
                self.check_corrupt()
            return example

        return checked

    def _readable(self, order: tf.Tensor) -> tf.Tensor:
        """The indices of readable examples among `order`, for a source in memory."""
        if self.num_examples == self._total:
            return order
        readable = np.zeros(self._total, bool)
        readable[self._rows] = True
        return tf.boolean_mask(order, tf.gather(tf.constant(readable), order))

    def _gathered(self, rows: tf.data.Dataset, to_batch: Callable) -> tf.data.Dataset:
        """Batches of the examples in memory at each batch of indices in `rows`."""
        cache = self._cache
        columns = cache.images_tensor, cache.extents_tensor, cache.labels_tensor, cache.ids_tensor

        def gather(indices):
            return to_batch(Decoded(*(tf.gather(column, indices) for column in columns)))

        return rows.map(gather, tf.data.AUTOTUNE, deterministic=True)

    def _training_batch(self, batch: Decoded, labels: bool):
        """An element of `epochs`."""
        columns = {"image": batch.image}
        if labels:
            columns["label"] = batch.label
        if self.whole_side:
            columns["extent"] = batch.extent
        return columns if len(columns) > 1 else batch.image

    def _evaluation_batch(self, batch: Decoded) -> dict[str, tf.Tensor]:
        """An element of `batches`."""
        image = tf.ensure_shape(batch.image, [None, self.image_size, self.image_size, 3])
        columns = {"image": image, "id": tf.ensure_shape(batch.id, [None])}
        if self.labelled:
            columns["label"] = tf.ensure_shape(batch.label, [None])
        return columns


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1; got {batch_size}.")


def _digest(examples: Examples) -> tuple[str, np.ndarray]:
    """Hexadecimal SHA-256 of the ids, and a hash of each that is valid in this process."""
    digest, hashes = hashlib.sha256(), np.zeros(len(examples), np.int64)
    for index in range(len(examples)):
        each = examples.id(index)
        digest.update(each.encode() + b"\n")
        hashes[index] = hash(each)
    return digest.hexdigest(), hashes


def _whole_side(image_size: int, common_size: int | None, source_size: int | None) -> int | None:
    """Side of the squares that training keeps whole images in; None where images fill theirs."""
    if common_size and (source_size is None or common_size <= image_size):
        return None
    wanted = source_size or math.ceil(_WHOLE_SIDE * image_size)
    return min(wanted, common_size or wanted)


def _common_size(examples: Examples, headers: Headers | None) -> int | None:
    """The side of all images if they are squares of one size; a large set is sampled."""
    sizes = set()
    for index in np.unique(np.linspace(0, len(examples) - 1, _SIZE_SAMPLE).astype(int)):
        if headers:
            size = int(headers.width[index]), int(headers.height[index])
        else:
            size = size_of(examples[int(index)].image)
        if 0 not in size:  # unreadable ones are counted when they are decoded
            sizes.add(size)
        if len(sizes) > 1:
            return None
    width, height = sizes.pop() if sizes else (None, 0)
    return width if width == height else None
