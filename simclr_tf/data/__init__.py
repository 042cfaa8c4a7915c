"""Loads data sets by name, as tf.data pipelines of uint8 images.

Views are not drawn here but on the device, by `augment`.
"""

from simclr_tf.data import subsets
from simclr_tf.data.by_name import load
from simclr_tf.data.pipeline import ReplicaSlice
from simclr_tf.data.source import Source

__all__ = ["ReplicaSlice", "Source", "load", "subsets"]
