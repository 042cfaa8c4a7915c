"""Writes and reads files of embeddings: npz, Parquet and TFRecord.

`evaluate` computes the embeddings. TensorFlow and pyarrow are imported only by the formats that
need them.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import zipfile

import numpy as np

from simclr_tf import _atomic, errors
from simclr_tf.errors import ArgumentError, storage_errors

# At most, in a row group of Parquet.
_GROUP_BYTES, _GROUP_ROWS = 2**24, 2**15


class Writer:
    """Writes embeddings to a file batch by batch; a context manager.

    Memory holds one batch, or one row group. The write is atomic: an existing file is replaced at
    the end of the block, and if the block raises, nothing is written. The suffix names the format:

    - `.npz`: arrays `embeddings`, float32 [n, D]; `labels`, int64 [n]; `ids`, str [n]. While it is
      written it takes twice its size on the disk.
    - `.parquet`: columns `embedding`, fixed_size_list<float>[D]; `label`, int64; `id`, string.
    - `.tfrecord`, uncompressed: one `tf.train.Example` per image with `embedding`, D floats;
      `label`, int64; `id`, bytes.

    Labels and ids are left out if the features have none; numeric ids become strings.

    Args:
      path: the file; missing parent directories are made.

    Raises:
      UsageError: the suffix is another, or the path is a directory.

    Example:

    >>> features = simclr_tf.evaluate.Features(h, labels)
    >>> with simclr_tf.embeddings.Writer("h.parquet") as file:
    ...     file.write(features)
    >>> simclr_tf.embeddings.read("h.parquet").h.shape
    (8, 16)
    """

    def __init__(self, path):
        check_path(path)
        self._path = pathlib.Path(path)
        self._format, self._file = _format(path)[0], None

    def __enter__(self):
        self._atomic = _atomic.atomic_path(self._path)
        with storage_errors(self._path):
            self._scratch = self._atomic.__enter__()
        return self

    def __exit__(self, kind, error, trace):
        with contextlib.ExitStack() as stack:
            if error is None:
                stack.enter_context(storage_errors(self._path))
            stack.push(self._atomic)
            stack.callback(self._close)
            if error is not None:
                raise error
            if self._file is None:
                raise ArgumentError("a file of embeddings needs at least one row; got none.")
            self._file.finish()

    def _close(self):
        with contextlib.suppress(OSError):  # the disk is full, as an earlier error has reported
            if self._file is not None:
                self._file.close()

    def write(self, features):
        """Appends a batch.

        Args:
          features: `evaluate.Features` of b images, with h [b, D]; labels and ids may be None.

        Raises:
          ArgumentError: the batch has other columns, or another D, than the first.
          StorageError: the disk is full, and the like.
        """
        columns = {"embedding": np.asarray(features.h, "<f4")}  # [b, D]
        if features.labels is not None:
            columns["label"] = np.asarray(features.labels, np.int64)
        if features.ids is not None:
            columns["id"] = np.asarray(features.ids).astype(np.str_)
        layout = [(name, column.shape[1:]) for name, column in columns.items()]
        if self._file is None:
            self._layout = layout
            with storage_errors(self._path):
                self._file = self._format(
                    self._scratch, list(columns), columns["embedding"].shape[1]
                )
        if layout != self._layout:
            raise ArgumentError(
                f"all batches of a file must have the columns of the first, {self._layout}; "
                f"got {layout}."
            )
        with storage_errors(self._path):
            self._file.add(columns)


def check_path(path):
    """Checks the path of a file of embeddings, before there is anything to write.

    Args:
      path: as for `Writer`.

    Raises:
      UsageError: the suffix is not .npz, .parquet or .tfrecord, or the path is a directory.
      ArgumentError: the suffix is .parquet, and pyarrow cannot be imported.

    Example:

    >>> simclr_tf.embeddings.check_path("h.csv")
    Traceback (most recent call last):
    simclr_tf.errors.UsageError: path must end in .npz, .parquet, .tfrecord; got 'h.csv'. ...
    """
    _format(path)
    if os.path.isdir(path):
        raise errors.UsageError(f"path must be a file; {path} is a directory. Add a file name.")


def read(path):
    """Reads a file that `Writer` wrote.

    Args:
      path: the file; all of it is read into memory, 4 n D bytes and the ids.

    Returns:
      `evaluate.Features`: h float32 [n, D], labels int64 [n] or None, ids str [n] or None.

    Raises:
      UsageError: the suffix is another.
      ArgumentError: there is no such file, or it does not hold embeddings.

    Example:

    >>> with simclr_tf.embeddings.Writer("h.npz") as file:
    ...     file.write(simclr_tf.evaluate.Features(h))
    >>> np.array_equal(simclr_tf.embeddings.read("h.npz").h, h)
    True
    """
    read_columns = _format(path)[1]
    if not os.path.isfile(path):
        raise ArgumentError(
            f"path must be a file of embeddings; there is none at {path}. Write one with "
            "`simclr-tf embed`."
        )
    from simclr_tf.evaluate import Features

    try:
        columns = read_columns(str(path))
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            f"{path} must be a file of embeddings as `simclr-tf embed` writes them; got "
            f"{' '.join(str(error).split())}. Write it again."
        ) from error
    return Features(columns["embedding"], columns.get("label"), columns.get("id"))


def _format(path):
    """Returns the class that writes and the function that reads files of this suffix."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise errors.UsageError(
            f"path must end in {', '.join(_FORMATS)}; got {str(path)!r}. Pass another name."
        )
    if suffix == ".parquet":
        with errors.needs_package("pyarrow", f"path={str(path)!r}"):
            import pyarrow.parquet  # noqa: F401  only tried, before there is anything to write
    return _FORMATS[suffix]


# -- npz -------------------------------------------------------------------------------------

_PLURALS = {"embedding": "embeddings", "label": "labels", "id": "ids"}


class _Npz:
    """Writes each column to a temporary file, and copies these to the archive at the end.

    The header of an array holds its length and that of its longest string, which are known only at
    the end.
    """

    def __init__(self, path, names, dim):
        self._path, self._num_rows = path, 0
        self._spools = {name: path.with_name(name).open("w+b") for name in names}
        self._row_shapes = {"embedding": (dim,)}
        self._dtypes = {}

    def add(self, columns):
        self._num_rows += len(columns["embedding"])
        for name, column in columns.items():
            np.lib.format.write_array(self._spools[name], column, allow_pickle=False)
            dtype = self._dtypes.get(name, column.dtype)
            self._dtypes[name] = np.promote_types(dtype, column.dtype)

    def finish(self):
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, spool in self._spools.items():
                member = zipfile.ZipInfo(f"{_PLURALS[name]}.npy")
                if name != "embedding":  # compressed: a tenth smaller, ten times slower
                    member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as file:
                    self._copy(name, spool, file)
                spool.truncate(0)  # to free its space on the disk

    def _copy(self, name, spool, file):
        dtype = self._dtypes[name]
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self._num_rows, *self._row_shapes.get(name, ())),
        }
        np.lib.format.write_array_header_1_0(file, header)
        end = spool.tell()
        spool.seek(0)
        while spool.tell() < end:
            batch = np.lib.format.read_array(spool, allow_pickle=False)
            file.write(batch.astype(dtype, copy=False).tobytes())

    def close(self):
        for spool in self._spools.values():
            spool.close()


def _read_npz(path):
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[key] for name, key in _PLURALS.items() if key in arrays}
    if "embedding" not in found:
        raise LookupError("no array `embeddings`")
    return found


# -- Parquet ---------------------------------------------------------------------------------


class _Parquet:
    """Collects batches into row groups, since small row groups are slow to read."""

    def __init__(self, path, names, dim):
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {
            "embedding": pa.list_(pa.float32(), dim),
            "label": pa.int64(),
            "id": pa.string(),
        }
        self._schema = pa.schema([(name, kinds[name]) for name in names])
        # Floats compress well only where their first bytes are stored together, then the second.
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=["embedding.list.element"],
        )
        self._group_rows = min(_GROUP_ROWS, max(1, _GROUP_BYTES // (4 * dim)))
        self._batches, self._num_rows = [], 0

    def add(self, columns):
        self._batches.append(columns)
        self._num_rows += len(columns["embedding"])
        if self._num_rows >= self._group_rows:
            self._write_group()

    def _write_group(self):
        import pyarrow as pa

        if not self._batches:
            return
        arrays = []
        for field in self._schema:
            column = np.concatenate([batch[field.name] for batch in self._batches])
            if field.name == "embedding":
                flat = pa.array(column.reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, column.shape[1]))
            else:
                arrays.append(pa.array(column, field.type))
        self._batches, self._num_rows = [], 0
        self._file.write_table(pa.table(arrays, schema=self._schema), self._group_rows)

    def finish(self):
        self._write_group()
        self._file.close()

    def close(self):
        self._file.close()


def _read_parquet(path):
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        dim = getattr(file.schema_arrow.field("embedding").type, "list_size", None)
        if dim is None:
            raise LookupError("no column `embedding` of lists of one length")
        h, start = np.empty([file.metadata.num_rows, dim], np.float32), 0
        for batch in file.iter_batches(4096, columns=["embedding"]):
            h[start : start + len(batch)] = batch["embedding"].flatten().to_numpy().reshape(-1, dim)
            start += len(batch)
        found = {"embedding": h}
        if "label" in names:
            found["label"] = file.read(["label"])["label"].to_numpy()
        if "id" in names:
            found["id"] = np.array(file.read(["id"])["id"].to_pylist(), np.str_)
    return found


# -- TFRecord --------------------------------------------------------------------------------


class _TFRecord:
    """Writes an uncompressed file, which `--dataset=tfrecord:` reads too."""

    def __init__(self, path, names, dim):
        import tensorflow as tf

        self._example, self._error = tf.train.Example, tf.errors.OpError
        # A packed list of D floats is serialised as a constant head and the bytes of the floats.
        # Joining these takes a thirtieth of the time of appending float by float.
        whole = tf.train.FloatList(value=[0.0] * dim).SerializeToString()
        self._head = whole[: len(whole) - 4 * dim]
        with self._plain_errors():
            self._file = tf.io.TFRecordWriter(str(path))

    def add(self, columns):
        with self._plain_errors():
            for row, h in enumerate(columns["embedding"]):
                example = self._example()
                feature = example.features.feature
                feature["embedding"].float_list.MergeFromString(self._head + h.tobytes())
                if "label" in columns:
                    feature["label"].int64_list.value.append(int(columns["label"][row]))
                if "id" in columns:
                    feature["id"].bytes_list.value.append(columns["id"][row].encode())
                self._file.write(example.SerializeToString())

    def finish(self):
        with self._plain_errors():
            self._file.close()

    def close(self):
        with self._plain_errors():
            self._file.close()

    @contextlib.contextmanager
    def _plain_errors(self):
        try:
            yield
        except self._error as error:
            raise OSError(error.message) from error


def _read_tfrecord(path):
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    records = tf.data.TFRecordDataset(path)
    try:
        first = tf.train.Example.FromString(next(iter(records)).numpy()).features.feature
        dim = len(first["embedding"].float_list.value)
        if not dim:
            raise LookupError("no floats under `embedding`")
        spec = {"embedding": tf.io.FixedLenFeature([dim], tf.float32)}
        if first["label"].int64_list.value:
            spec["label"] = tf.io.FixedLenFeature([], tf.int64)
        if first["id"].bytes_list.value:
            spec["id"] = tf.io.FixedLenFeature([], tf.string)
        batches = records.batch(1024).map(lambda batch: tf.io.parse_example(batch, spec))
        columns = list(batches.as_numpy_iterator())
    except (tf.errors.OpError, StopIteration, DecodeError) as error:
        raise LookupError(getattr(error, "message", "") or "no tf.train.Example") from error
    found = {name: np.concatenate([batch[name] for batch in columns]) for name in spec}
    if "id" in found:
        found["id"] = np.array([each.decode() for each in found["id"]], np.str_)
    return found


_FORMATS = {
    ".npz": (_Npz, _read_npz),
    ".parquet": (_Parquet, _read_parquet),
    ".tfrecord": (_TFRecord, _read_tfrecord),
}
