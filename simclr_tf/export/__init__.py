"""The encoder leaves the house: an encoder-only SavedModel for TF Serving.

`export_encoder` writes it (`saved_model`); `serving` has its signatures.
"""

from simclr_tf.export.saved_model import export_encoder
from simclr_tf.export.serving import MAX_PIXELS

__all__ = ["MAX_PIXELS", "export_encoder"]
