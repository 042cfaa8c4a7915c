"""The encoder leaves the house: as a SavedModel for servers and other models, or for a phone.

`saved_model` and `tflite` write it, out of the parts `functional` (stock layers, folded
normalisation), `serving` (the signatures), `warmup` and `check` (answers as a server would see
them). `load_exported` makes it a function of images again (`loading`).
"""

from simclr_tf.errors import ExportError
from simclr_tf.export.functional import folded, functional_copy
from simclr_tf.export.loading import load_exported
from simclr_tf.export.saved_model import export_encoder
from simclr_tf.export.serving import MAX_PIXELS
from simclr_tf.export.tflite import export_tflite

__all__ = [
    "MAX_PIXELS",
    "ExportError",
    "export_encoder",
    "export_tflite",
    "folded",
    "functional_copy",
    "load_exported",
]
