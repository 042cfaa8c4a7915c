"""Features on disk, so that the same encoder and data set are computed once.

A file is found by a digest of all that the features depend on. It is written atomically; one that
cannot be read is computed again.
"""

import hashlib
import json
import pathlib
import re
import zipfile
import zlib

import numpy as np
from tensorflow import keras

from simclr_tf import _atomic
from simclr_tf.errors import storage_errors

_FORMAT = 1  # raise it when the computation of features changes
_SAMPLE = 64  # images whose pixels count in the digest of a data set


def digest_of_encoder(encoder):
    """Returns a digest of an encoder's weights and configuration; None for any other callable.

    Args:
      encoder: a built `keras.Model`, or an exported SavedModel (`export.Exported`).

    Example:

    >>> from simclr_tf.evaluate import feature_cache
    >>> len(feature_cache.digest_of_encoder(encoder))
    64
    """
    digest = hashlib.sha256()
    if isinstance(encoder, keras.layers.Layer):
        config = _without_names(encoder.get_config())
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        digest.update(str(encoder.compute_dtype).encode())
        _update(digest, encoder.get_weights())
        return digest.hexdigest()
    path = getattr(encoder, "path", None)
    if path is None:
        return None
    files = [path / "saved_model.pb", *sorted((path / "variables").glob("*"))]
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def digest_of_arrays(*arrays):
    """Returns a digest of the dtypes, the shapes and the values of arrays.

    Example:

    >>> from simclr_tf.evaluate import feature_cache
    >>> len(feature_cache.digest_of_arrays(np.zeros(3), np.eye(3)))
    64
    """
    digest = hashlib.sha256()
    _update(digest, arrays)
    return digest.hexdigest()


def _update(digest, arrays):
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def _without_names(config):
    """A configuration without the names that Keras counts up within a process."""
    if isinstance(config, dict):
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config


def digest_of_source(source):
    """Returns a digest of a `data.Source`: ids, the pixels of a sample, the state of its file."""
    digest = hashlib.sha256(source.digest.encode())
    for batch in source.batches(_SAMPLE, limit=_SAMPLE):
        for key in ("image", "label"):
            if key in batch:
                digest.update(batch[key].numpy().tobytes())
    path = pathlib.Path(source.name.partition(":")[2]).expanduser()
    if path.is_file():  # the ids of arrays are positions
        state = path.stat()
        digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


class FeatureCache:
    """Arrays by the settings that they were computed with, in a directory.

    Args:
      directory: made when it is first needed; None stores nothing.

    Example:

    >>> from simclr_tf.evaluate.feature_cache import FeatureCache
    >>> cache = FeatureCache("features")
    >>> cache.get({"data": "shapes"}, lambda: {"h": h})["h"].shape
    (8, 16)
    """

    def __init__(self, directory):
        self._directory = None if directory is None else pathlib.Path(directory)

    @property
    def stores(self):
        """Whether there is a directory."""
        return self._directory is not None

    def get(self, settings, compute):
        """Reads the arrays for some settings, or computes and stores them.

        Args:
          settings: dict that can be written as JSON; the values of "data" and "split" are also
            part of the file's name.
          compute: called without arguments; returns a dict of arrays, without None.

        Returns:
          The dict of arrays.

        Raises:
          StorageError: the file cannot be written.
        """
        if self._directory is None:
            return compute()
        settings = {**settings, "format": _FORMAT}
        text = json.dumps(settings, sort_keys=True)
        words = re.sub(r"[^\w.-]+", "_", f"{settings.get('data')}-{settings.get('split')}")[-60:]
        name = f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        path = self._directory / name
        arrays = _read(path, text)
        if arrays is None:
            arrays = compute()
            with storage_errors(path), _atomic.atomic_path(path) as scratch:
                with open(scratch, "wb") as file:
                    np.savez(file, settings=np.array(text), **arrays)
        return arrays


def _read(path, text):
    """Returns the arrays of a file, or None if it is missing, damaged or of other settings."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["settings"]) != text:
                return None
            return {name: arrays[name] for name in arrays.files if name != "settings"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
