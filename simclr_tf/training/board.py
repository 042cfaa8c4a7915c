"""What TensorBoard shows besides the scalars: views, similarities, the embedding projector."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _atomic
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.errors import check_number
from simclr_tf.evaluate import extract_features
from simclr_tf.images import as_float, unpack
from simclr_tf.metrics import similarities

_MAX_SPRITE = 8192  # pixels on a side, as the projector allows


class SimilarityBoard:
    """Writes the views as trained, and histograms of similarities, for TensorBoard.

    Args:
      log_dir: directory of the event files; not one that another writer uses.
      max_images: images whose views are shown.

    Example:

    >>> board = simclr_tf.training.SimilarityBoard("logs/monitor")
    >>> board.write(0, [images / 255, images[:, :, ::-1] / 255], np.stack([z_a, z_b]))
    """

    def __init__(self, log_dir, max_images=8):
        check_number("max_images", max_images, at_least=1, whole=True)
        self.log_dir, self.max_images = pathlib.Path(log_dir), max_images
        self._writer = None

    def write(self, step, views, z):
        """Writes what a step has.

        Args:
          step: int.
          views: list of V tensors [N, S, S, 3], float in [0, 1]; a row of pictures each.
          z: [V, N, d], their projections.
        """
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        positive, negative = similarities(z)
        with self._writer.as_default(step=step):
            for number, view in enumerate(views, 1):
                view = tf.clip_by_value(tf.cast(view[: self.max_images], tf.float32), 0.0, 1.0)
                tf.summary.image(f"views/{number}", view, max_outputs=self.max_images)
            tf.summary.histogram("similarity/positive", positive)
            tf.summary.histogram("similarity/negative", negative)
        self._writer.flush()


class EmbeddingProjector(keras.callbacks.Callback):
    r"""Writes h of some images for TensorBoard's embedding projector, with a picture of each.

    The files are `embeddings.tsv`, `metadata.tsv`, `sprite.png` and `projector_config.pbtxt`, which
    TensorBoard finds in the directory that it is started with, and in those of event files in it.
    They are replaced at each writing.

    Args:
      log_dir: directory of the files.
      dataset: batches as for `evaluate.extract_features`, with labels or without.
      max_images: images at most.
      every_epochs: epochs between two writings; None: after the last epoch alone.
      class_names: names by label, or None.
      image_size: side in pixels of the pictures.
      encoder: that is used in place of the model's, see `probe_encoder` of `KNNProbe`.
      writes: False for a worker that only takes part in reading the weights.

    Example:

    >>> projector = simclr_tf.training.EmbeddingProjector("logs", [(images, labels)])
    >>> projector.set_model(simclr_tf.SimCLR(encoder))
    >>> projector.on_train_end()
    >>> print(open("logs/metadata.tsv").read().splitlines()[:2])
    ['index\tlabel', '0\t0']
    """

    def __init__(
        self,
        log_dir,
        dataset,
        max_images=1000,
        every_epochs=None,
        class_names=None,
        image_size=32,
        encoder=None,
        writes=True,
    ):
        super().__init__()
        for name, value in (("max_images", max_images), ("image_size", image_size)):
            check_number(name, value, at_least=1, whole=True)
        if every_epochs is not None:
            check_number("every_epochs", every_epochs, at_least=1, whole=True)
        self.log_dir, self.dataset, self.max_images = pathlib.Path(log_dir), dataset, max_images
        self.every_epochs, self.class_names, self.image_size = every_epochs, class_names, image_size
        self.encoder, self.writes = encoder, writes

    def on_epoch_end(self, epoch, logs=None):
        """Writes the files where it is time."""
        if self.every_epochs and (epoch + 1) % self.every_epochs == 0:
            self._write()

    def on_train_end(self, logs=None):
        """Writes the files."""
        self._write()

    def _write(self):
        encoder = getattr(self.model, "inference_encoder", self.model.encoder)
        if self.encoder is not None:
            copy_weights(encoder, self.encoder)
            encoder = self.encoder
        if not self.writes:
            return
        batches, count = [], 0
        for batch in self.dataset:
            batches.append(batch)
            count += len(unpack(batch).images)
            if count >= self.max_images:
                break
        features = extract_features(encoder, batches)
        images = [as_float(unpack(batch).images) for batch in batches]
        pictures = [tf.image.resize(each, [self.image_size] * 2, antialias=True) for each in images]
        labels = None if features.labels is None else features.labels[: self.max_images]
        write_projector(
            self.log_dir,
            features.h[: self.max_images],
            np.concatenate(pictures)[: self.max_images],
            labels,
            self.class_names,
        )


def write_projector(log_dir, embeddings, pictures, labels=None, class_names=None):
    """Writes the files of TensorBoard's embedding projector, see `EmbeddingProjector`.

    Args:
      log_dir: directory, made if needed.
      embeddings: float [n, D].
      pictures: [n, S, S, 3], float in [0, 1]. Where their sheet would exceed 8192 pixels on a side,
        they are made smaller.
      labels: int [n], or None.
      class_names: names by label, or None.

    Example:

    >>> simclr_tf.training.board.write_projector("logs", h, images / 255)
    >>> "sprite.png" in open("logs/projector_config.pbtxt").read()
    True
    """
    log_dir = pathlib.Path(log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    columns = math.ceil(math.sqrt(len(embeddings)))
    side = min(pictures.shape[1], _MAX_SPRITE // columns)
    if side < pictures.shape[1]:
        pictures = tf.image.resize(pictures, [side, side], antialias=True).numpy()
    texts = {
        "embeddings.tsv": "".join("\t".join(f"{x:.6g}" for x in row) + "\n" for row in embeddings),
        "metadata.tsv": _metadata(len(embeddings), labels, class_names),
        "projector_config.pbtxt": (
            'embeddings {\n  tensor_name: "h"\n  tensor_path: "embeddings.tsv"\n'
            '  metadata_path: "metadata.tsv"\n  sprite {\n    image_path: "sprite.png"\n'
            f"    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n}}\n"
        ),
    }
    for name, text in texts.items():
        with _atomic.atomic_path(log_dir / name, parents=False) as path:
            path.write_text(text, encoding="utf-8")
    _write_sprite(log_dir / "sprite.png", pictures, columns)


def _metadata(count, labels, class_names):
    """Lines of index and label; a single column has no header, as the projector wants it."""
    if labels is None:
        return "".join(f"{index}\n" for index in range(count))
    named = class_names is not None
    names = [class_names[label] if named and label >= 0 else label for label in labels]
    clean = [str(name).replace("\t", " ").replace("\n", " ") for name in names]
    rows = "".join(f"{index}\t{name}\n" for index, name in enumerate(clean))
    return f"index\tlabel\n{rows}"


def _write_sprite(path, pictures, columns):
    """A square sheet of pictures, row by row, as the projector cuts it."""
    from matplotlib import image

    count, side = len(pictures), pictures.shape[1]
    sheet = np.ones([columns * columns, side, side, 3], np.float32)
    sheet[:count] = np.clip(pictures, 0.0, 1.0)
    sheet = sheet.reshape(columns, columns, side, side, 3).swapaxes(1, 2)
    with _atomic.atomic_path(path, parents=False) as temporary:
        image.imsave(temporary, sheet.reshape(columns * side, columns * side, 3))
