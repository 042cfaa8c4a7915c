"""Whitening as an affine last layer of an encoder: directions of small variance count as others.

How mean and covariance are measured on images is in `evaluate`.
"""

from __future__ import annotations

import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
from tensorflow import keras

from simclr_tf import _atomic, _keras
from simclr_tf.errors import ArgumentError, check_number, storage_errors

FLOOR = 0.05
LAYER = "whitening"  # name of the layer in a model that `whitened` returns
_MIN_VARIANCE = 1e-12  # where all images have the same h


class Whitening(NamedTuple):
    """An affine map of h, [n, D]: (h - mean) @ matrix.

    Attributes:
        mean: float32 [D].
        matrix: float32 [D, D], symmetric.

    Example:

    >>> whitening = simclr_tf.encoders.Whitening(np.ones(2, "f"), 2 * np.eye(2, dtype="f"))
    >>> whitening.apply(np.array([[1.5, 0.0]]))
    array([[ 1., -2.]], dtype=float32)
    """

    mean: np.ndarray
    matrix: np.ndarray

    def apply(self, h):
        """Whitens features.

        Args:
            h: float [n, D].

        Returns:
            float32 [n, D].
        """
        return ((np.asarray(h, np.float64) - self.mean) @ self.matrix).astype(np.float32)

    def save(self, path):
        """Writes mean and matrix to an .npz file, atomically.

        Args:
            path: the file, whose name ends in .npz.

        Raises:
            StorageError: the disk is full, the directory is not writable, and the like.
        """
        with storage_errors(path), _atomic.atomic_path(path) as scratch_path:
            np.savez(scratch_path, mean=self.mean, matrix=self.matrix)

    @classmethod
    def load(cls, path):
        """Reads what `save` has written.

        Args:
            path: the file.

        Raises:
            ArgumentError: it is not such a file.
            StorageError: it is not there or not accessible.
        """
        with storage_errors(path, "read"):
            content = pathlib.Path(path).open("rb")
        try:
            with content, np.load(content) as arrays:
                return cls(arrays["mean"], arrays["matrix"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArgumentError(
                f"path must be a file of Whitening.save; {path} is not. Restore it, or measure it "
                "again."
            ) from error


def zca(mean, covariance, floor=FLOOR):
    """Returns the ZCA whitening of features with a mean and a covariance.

    With the covariance U diag(s) U^T and m the mean of s, h becomes

    ```
    (h - mean) U diag(max(s, floor m))^(-1/2) U^T
    ```

    Of all maps to uncorrelated features of variance 1 it changes the features least (Kessy et al.,
    arXiv:1512.00809); directions with a variance below the floor keep less than 1. Whitening as the
    last layer of an encoder: arXiv:2408.07519.

    Args:
        mean: float [D].
        covariance: float [D, D], symmetric.
        floor: smallest variance that is divided by, as a fraction of the mean variance, above 0. A
            smaller floor raises directions that are mostly noise.

    Returns:
        A `Whitening`.

    Raises:
        ArgumentError: shapes that do not fit, numbers that are not finite, or a floor not above 0.

    Example:

    >>> x = h[:, :3]
    >>> whitening = simclr_tf.encoders.zca(x.mean(0), np.cov(x.T), floor=1e-6)
    >>> np.allclose(np.cov(whitening.apply(x).T), np.eye(3), atol=1e-4)
    True
    """
    check_number("floor", floor, above=0, hint=f"The default is {FLOOR}.")
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ArgumentError(
            "mean must be [D] and covariance [D, D]; got shapes "
            f"{mean.shape} and {covariance.shape}."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ArgumentError(
            "mean and covariance must be finite; got NaN or infinity. Check the encoder: its "
            "training may have diverged."
        )
    variances, directions = np.linalg.eigh(covariance)
    smallest = max(floor * variances.mean(), _MIN_VARIANCE)
    matrix = directions / np.sqrt(np.maximum(variances, smallest)) @ directions.T
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def whitened(encoder, whitening):
    """Returns an encoder whose last layer whitens h.

    Args:
        encoder: a built `ResNet` or `Airbench`, or a functional `keras.Model`.
        whitening: a `Whitening` of its h.

    Returns:
        A functional `keras.Model` from the encoder's images to float32 [batch, D]. It shares the
        encoder's layers; its last layer, "whitening", is a `keras.layers.Dense`. It is exported,
        saved and converted as the encoder is.

    Raises:
        ArgumentError: an encoder without a functional form, or a whitening of another length.

    Example:

    >>> whitening = simclr_tf.evaluate.fit_whitening(encoder, [images])
    >>> model = simclr_tf.encoders.whitened(encoder, whitening)
    >>> np.allclose(model(images / 255), whitening.apply(encoder(images / 255)), atol=1e-3)
    True
    """
    functional = encoder
    if hasattr(encoder, "to_functional"):
        functional = encoder.to_functional((None, None, 3))
    elif not _keras.input_shape(encoder):
        raise ArgumentError(
            "whitening needs a ResNet, an Airbench or a functional encoder; got a "
            f"{type(encoder).__name__}. Whiten its features by Whitening.apply."
        )
    h, dimension = functional.outputs[0], len(whitening.mean)
    if h.shape[-1] != dimension:
        raise ArgumentError(
            f"whitening must be of the encoder's {h.shape[-1]} features; got one of {dimension}. "
            "Measure it with this encoder."
        )
    layer = keras.layers.Dense(dimension, dtype="float32", name=LAYER)
    model = keras.Model(functional.inputs[0], layer(h), name=encoder.name)
    mean, matrix = (np.asarray(each, np.float64) for each in whitening)
    layer.set_weights([whitening.matrix, (-mean @ matrix).astype(np.float32)])
    return model


def without_whitening(encoder):
    """Returns a functional encoder without the last layer that `whitened` has added.

    Args:
        encoder: a functional `keras.Model`; one without such a layer is returned as it is.
    """
    if encoder.layers[-1].name != LAYER:
        return encoder
    return keras.Model(encoder.inputs[0], encoder.layers[-1].input, name=encoder.name)
