"""Exports the encoder: SavedModel and TensorFlow Lite.

`saved_model`, `classifier` and `tflite` write the files. They use `functional` (the encoder as a
functional model of stock layers, batch normalisation folded), `serving` (the signatures),
`image_files` (decoding in them), `warmup` (warm-up requests for TF Serving) and `check` (runs the
signatures in a separate process, by `c_api` or `python_api`).
`loading` loads an export as a function of images.
"""

from simclr_tf.errors import ExportError
from simclr_tf.export.classifier import export_classifier
from simclr_tf.export.functional import folded, functional_copy
from simclr_tf.export.image_files import MAX_PIXELS
from simclr_tf.export.loading import load_exported, load_trainable
from simclr_tf.export.saved_model import export_encoder
from simclr_tf.export.tflite import export_tflite

__all__ = [
    "MAX_PIXELS",
    "ExportError",
    "export_classifier",
    "export_encoder",
    "export_tflite",
    "folded",
    "functional_copy",
    "load_exported",
    "load_trainable",
]
