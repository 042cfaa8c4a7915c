"""The encoder leaves the house: an encoder-only SavedModel for TF Serving.

`export_encoder` writes it (`saved_model`); `serving` has its signatures; `load_exported` makes
it a function of images again (`loading`).
"""

from simclr_tf.export.loading import load_exported
from simclr_tf.export.saved_model import export_encoder
from simclr_tf.export.serving import MAX_PIXELS

__all__ = ["MAX_PIXELS", "export_encoder", "load_exported"]
