"""`Source`: one split of a data set as tf.data pipelines, decoded once or again in every epoch.

Where examples come from is in `folder`, `arrays`, `tfrecord` and `tfds`; how a file becomes pixels
is in `decode`.
"""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf.data.decode import decode, decode_whole
from simclr_tf.data.decode import image_size as size_of
from simclr_tf.data.examples import UNLABELLED, Example, Examples
from simclr_tf.data.python_op import python_op
from simclr_tf.errors import ArgumentError, CorruptImageError

DEFAULT_IMAGE_SIZE = 224
_SIZE_SAMPLE = 2000
_CHUNK = 64  # examples that a thread decodes in one go
_LAST_EPOCH = 2**62
_WHOLE_SIDE = 1.5  # times image_size: a photograph of 3:2 keeps its shorter side


class ReplicaSlice(NamedTuple):
    """The part of every batch that one reader takes: `count` of its equal `pieces`, from `first`.

    Replica r of R trains on piece r of R, so that a step has the same images for any R.
    """

    first: int
    count: int
    pieces: int

    def check(self, batch_size: int) -> None:
        """Raises ValueError where a batch has no such pieces."""
        if batch_size % self.pieces or not 0 <= self.first <= self.pieces - self.count:
            raise ArgumentError(f"a batch of {batch_size} has no {self}.")

    def rows(self, order: tf.Tensor, steps: int, batch_size: int) -> tf.Tensor:
        """Of an epoch's order, [n]: [steps, count, batch_size / pieces]."""
        shape = [steps, self.pieces, batch_size // self.pieces]
        order = tf.reshape(order[: steps * batch_size], shape)
        return order[:, self.first : self.first + self.count]

    def rest(self, order: tf.Tensor, steps: int, batch_size: int) -> tf.Tensor:
        """Its part of what the last full batch leaves over."""
        order = order[steps * batch_size :]
        piece = tf.range(tf.size(order)) % self.pieces
        return order[(piece >= self.first) & (piece < self.first + self.count)]


WHOLE = ReplicaSlice(0, 1, 1)


class Source:
    """One split of a data set.

    Attributes:
      name: as given to `load`.
      split: as given to `load`.
      num_examples: examples that can be read; in a set too large for memory, which is not read
        beforehand, all.
      class_names: names by class index, or None.
      labelled: whether the examples have labels.
      image_size: side of the images, pixels.
      whole_side: None where all images are squares of one size and no `source_size` was asked for.
        Else training reads whole images (proportions kept, longer side at most so many pixels),
        from which views are cropped; evaluation sees centre squares of `image_size` either way.
      cached: whether the images are in memory.
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
    ):
        """See `load`, which is what makes one."""
        if not len(examples):
            raise ArgumentError(
                f"a data set needs at least one example; {name!r} has none in {split!r}."
            )
        self.name, self.split = name, split
        self.class_names, self.labelled = examples.class_names, examples.labelled
        common_size = _common_size(examples)
        self.image_size = image_size or common_size or DEFAULT_IMAGE_SIZE
        self.whole_side = _whole_side(self.image_size, common_size, source_size)
        self._examples, self._total = examples, len(examples)
        self._max_corrupt_share = max_corrupt_share
        self._corrupt: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self.cached = self._total * (self.whole_side or self.image_size) ** 2 * 3 <= cache_bytes
        if self.cached:
            self._fill()
            # What the examples held in memory has been copied.
            self._examples = _Cached(self) if self.whole_side else None
        self._rows = np.array([i for i in range(self._total) if i not in self._corrupt], np.int64)
        self.num_examples = len(self._rows)

    def __repr__(self) -> str:
        return (
            f"Source({self.name!r}, {self.split!r}: {self.num_examples} examples, "
            f"{self.image_size} pixels, labelled={self.labelled})"
        )

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        """(id, reason) of the examples found unreadable so far."""
        with self._lock:
            return [self._corrupt[index] for index in sorted(self._corrupt)]

    def check_corrupt(self) -> None:
        """Raises the `ValueError` of too many unreadable examples, if there are.

        tf.data turns an exception of a pipeline into its own; this gives the plain one.
        """
        corrupt, total = self.corrupt, self._total
        if len(corrupt) <= self._max_corrupt_share * total and len(corrupt) < total:
            return
        example_id, reason = corrupt[0]
        raise ArgumentError(
            f"at most {self._max_corrupt_share:.2%} of the examples may be unreadable; "
            f"{len(corrupt)} of {total} in {self.name!r} are, such as {example_id} ({reason}). "
            "Repair or remove them, or raise --max_corrupt_share."
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch.

        Raises:
          ValueError: there is not one.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1; got {batch_size}.")
        if self.num_examples < batch_size:
            raise ArgumentError(
                f"an epoch needs at least one full batch; {self.name!r} has {self.num_examples} "
                f"examples in {self.split!r} and batch_size is {batch_size}. Lower --batch_size."
            )
        return self.num_examples // batch_size

    def batches(self, batch_size: int, limit: int | None = None) -> tf.data.Dataset:
        """Every example once, in the order of the source; the last batch may be smaller.

        Args:
          batch_size: examples at a time.
          limit: takes at most so many examples, evenly spaced; None takes all.

        Returns:
          dicts of batches: `image`, uint8 `[B, size, size, 3]`; `id`, string `[B]`; and if labelled
          `label`, int64 `[B]`.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1; got {batch_size}.")
        count = min(len(self._rows), limit or len(self._rows))
        rows = self._rows[np.arange(count) * len(self._rows) // count]
        dataset = tf.data.Dataset.from_tensor_slices(rows)
        if not self.cached or self.whole_side:
            dataset = self._decoded(dataset).batch(batch_size)
            dataset = dataset.map(lambda image, _, *names: self._batch(image, *names, rows=[None]))
            return dataset.prefetch(tf.data.AUTOTUNE)
        tensors = self._images_tensor, *self._names_tensors
        dataset = dataset.batch(batch_size).map(
            lambda rows: self._batch(*(tf.gather(part, rows) for part in tensors), rows=[None]),
            tf.data.AUTOTUNE,
            deterministic=True,
        )
        return dataset.prefetch(tf.data.AUTOTUNE)

    def epochs(
        self,
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        shuffle: bool = True,
        first_step: int = 0,
        share: ReplicaSlice = WHOLE,
    ) -> tf.data.Dataset:
        """An endless stream of training batches, `steps_per_epoch(batch_size)` for each epoch.

        The order within an epoch depends on (seed, epoch) alone: a stream that starts at
        (`first_epoch`, `first_step`) is the tail of the stream that starts at 0. The remainder of
        an epoch is dropped. Where images are read anew in each epoch, the place of one that turns
        out unreadable is taken by the next, so that the number of steps stays.

        Args:
          batch_size: of the whole stream.
          seed: of the order.
          first_epoch, first_step: where to begin.
          shuffle: False takes the order of the source.
          share: the pieces of each batch that are read here; a piece is then what is called a batch
            below.

        Returns:
          uint8 `[batch_size, size, size, 3]`, the batch dimension static; with a `whole_side`,
          dicts of `image`, uint8 `[batch_size, whole_side, whole_side, 3]`, and `extent`, int32
          `[batch_size, 2]`: the height and width of each image in the upper left of its square.
          Views of the right size are then `RandomView.for_size(source.image_size)`'s.

        Raises:
          ValueError: fewer examples than `batch_size`, or a batch that has no such pieces.
        """
        steps = self.steps_per_epoch(batch_size)
        share.check(batch_size)
        epoch_of = self._cached_epoch if self.cached else self._streamed_epoch

        def one_epoch(epoch):
            done = tf.where(epoch == first_epoch, tf.constant(first_step, tf.int64), 0)
            return epoch_of(self._order(seed, epoch, shuffle), steps, batch_size, done, share)

        dataset = tf.data.Dataset.range(first_epoch, _LAST_EPOCH).flat_map(one_epoch)
        if self.cached:
            images, extents = self._images_tensor, self._extents
            dataset = dataset.map(
                lambda rows: self._training_batch(
                    tf.gather(images, rows), tf.gather(tf.constant(extents), rows)
                ),
                tf.data.AUTOTUNE,
                deterministic=True,
            )
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
        return dataset.prefetch(tf.data.AUTOTUNE)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """All examples, in the order of the source.

        Returns:
          images, uint8 `[n, size, size, 3]`; labels, int64 `[n]`, or None; ids, str `[n]`.
        """
        if self.cached and not self.whole_side:
            whole = self.num_examples == len(self._images)
            parts = (self._images, self._labels, self._ids)
            images, labels, ids = parts if whole else (part[self._rows] for part in parts)
        else:
            batches = list(self.batches(256).as_numpy_iterator())
            images = np.concatenate([batch["image"] for batch in batches])
            ids = np.concatenate([batch["id"] for batch in batches])
            labels = (
                np.concatenate([batch["label"] for batch in batches]) if self.labelled else None
            )
        return images, labels if self.labelled else None, np.array([i.decode() for i in ids])

    # Reading.

    def _read(self, index: int, whole: bool = False) -> tuple | None:
        """Pixels, extent, label and id; None, and an entry in `corrupt`, where it cannot be read.

        whole: the whole image in its square, for training; else the centre square.
        """
        example_id = None
        try:
            example_id, image, label = self._examples[index]
            extent = [self.image_size] * 2
            if self.whole_side:
                square, *extent = decode_whole(image, self.whole_side)
                if whole:
                    return square, extent, label, example_id.encode()
                image = square[: extent[0], : extent[1]]  # the same, cached or not
            return decode(image, self.image_size), extent, label, example_id.encode()
        except CorruptImageError as error:
            with self._lock:
                self._corrupt[index] = (example_id or self._examples.id(index), str(error))
            return None

    def _fill(self) -> None:
        """Decodes everything into memory; an unreadable example leaves an image never asked for."""
        total, size = self._total, self.whole_side or self.image_size
        self._labels = np.full(total, UNLABELLED, np.int64)
        self._ids = np.full(total, b"", object)
        self._extents = np.zeros([total, 2], np.int32)
        self._images = _aligned_zeros([total, size, size, 3])

        def fill_chunk(start: int) -> None:
            for index in range(start, min(start + _CHUNK, total)):
                example = self._read(index, whole=True)
                if example is not None:
                    self._images[index], self._extents[index] = example[:2]
                    self._labels[index], self._ids[index] = example[2:]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                list(pool.map(fill_chunk, range(0, total, _CHUNK)))
            except BaseException:  # an interrupt must not wait for the whole set
                pool.shutdown(cancel_futures=True)
                raise
        self.check_corrupt()
        # Pipelines capture these tensors: nothing is copied into a graph, which holds 2 GB at most.
        with tf.device("CPU:0"):
            self._images_tensor = tf.experimental.dlpack.from_dlpack(self._images.__dlpack__())
            self._names_tensors = tf.constant(self._labels), tf.constant(self._ids)
        self._images.flags.writeable = False  # the tensor shares its memory

    def _cached_example(self, index: int) -> Example:
        """An example from memory, as it was read."""
        height, width = self._extents[index]
        image = self._images[index, :height, :width]
        return Example(self._ids[index].decode(), image, self._labels[index])

    # Pipelines.

    def _order(self, seed: int, epoch: tf.Tensor, shuffle: bool) -> tf.Tensor:
        """Indices of all examples in the order of an epoch, int64 `[n]`."""
        order = tf.range(self._total, dtype=tf.int64)
        if not shuffle:
            return order
        seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
        return tf.random.experimental.stateless_shuffle(order, seed=seeds, alg="philox")

    def _cached_epoch(self, order, steps, batch_size, done, share) -> tf.data.Dataset:
        if self.num_examples < self._total:
            readable = np.zeros(self._total, bool)
            readable[self._rows] = True
            order = tf.boolean_mask(order, tf.gather(tf.constant(readable), order))
        rows = share.rows(order, steps, batch_size)[done:]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(rows, [-1, rows.shape[-1]]))

    def _streamed_epoch(self, order, steps, batch_size, done, share) -> tf.data.Dataset:
        rows = share.rows(order, steps, batch_size)
        _, count, size = rows.shape
        rows = tf.concat([tf.reshape(rows, [-1]), share.rest(order, steps, batch_size)], axis=0)
        dataset = tf.data.Dataset.from_tensor_slices(rows).repeat().skip(done * count * size)
        dataset = self._decoded(dataset, whole=True).batch(size, True).take((steps - done) * count)
        return dataset.map(lambda image, extent, *_: self._training_batch(image, extent))

    def _training_batch(self, images: tf.Tensor, extents: tf.Tensor):
        """What `epochs` gives."""
        return {"image": images, "extent": extents} if self.whole_side else images

    def _decoded(self, indices: tf.data.Dataset, whole: bool = False) -> tf.data.Dataset:
        """Examples decoded in parallel, in the order of `indices`; unreadable ones are left out.

        Gives pixels, extent, label and id.
        """
        side = self.whole_side if whole and self.whole_side else self.image_size
        nothing = (
            np.zeros([side, side, 3], np.uint8),
            np.zeros(2, np.int32),
            np.int64(UNLABELLED),
            b"",
        )

        def read(index):
            example = self._read(int(index), whole)
            if example is None:
                self.check_corrupt()
            image, extent, label, example_id = nothing if example is None else example
            extent = np.asarray(extent, np.int32)
            return image, extent, np.int64(label), example_id, example is not None

        def read_op(index):
            types = [tf.uint8, tf.int32, tf.int64, tf.string, tf.bool]
            *example, readable = python_op(read, (*nothing, True), [index], types)
            shapes = [side, side, 3], [2], [], []
            example = [tf.ensure_shape(part, shape) for part, shape in zip(example, shapes)]
            return *example, tf.ensure_shape(readable, [])

        # Named: AutoGraph cannot tell two lambdas of one line apart, and says so at length.
        def is_readable(*parts):
            return parts[-1]

        def without_mark(*parts):
            return parts[:-1]

        dataset = indices.map(read_op, tf.data.AUTOTUNE, deterministic=True)
        return dataset.filter(is_readable).map(without_mark)

    def _batch(self, image, label, example_id, rows: list) -> dict[str, tf.Tensor]:
        """The dict of `batches`, with static shapes; `rows` is the leading shape."""
        image = tf.ensure_shape(image, [*rows, self.image_size, self.image_size, 3])
        batch = {"image": image, "id": tf.ensure_shape(example_id, rows)}
        if self.labelled:
            batch["label"] = tf.ensure_shape(label, rows)
        return batch


def _whole_side(image_size: int, common_size: int | None, source_size: int | None) -> int | None:
    """Pixels a side that training keeps of whole images; None where they are their own squares."""
    if common_size and (source_size is None or common_size <= image_size):
        return None
    wanted = source_size or math.ceil(_WHOLE_SIDE * image_size)
    return min(wanted, common_size or wanted)


class _Cached:
    """The examples of a source that is in memory, for its own pipelines."""

    def __init__(self, source: Source):
        self._source = source

    def __getitem__(self, index: int) -> Example:
        return self._source._cached_example(index)


def _common_size(examples: Examples) -> int | None:
    """The side of all images if they are squares of one size; a sample decides for a large set."""
    sizes = set()
    for index in np.unique(np.linspace(0, len(examples) - 1, _SIZE_SAMPLE).astype(int)):
        try:
            sizes.add(size_of(examples[int(index)].image))
        except CorruptImageError:  # counted when it is decoded
            continue
        if len(sizes) > 1:
            return None
    width, height = sizes.pop() if sizes else (None, 0)
    return width if width == height else None


def _aligned_zeros(shape: list[int]) -> np.ndarray:
    """uint8 zeros at a multiple of 64 bytes, which TensorFlow can share."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)
