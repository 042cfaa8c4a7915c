"""Methods of contrastive learning as Keras models, one file each."""

from simclr_tf.models.simclr import SimCLR

__all__ = ["SimCLR"]
