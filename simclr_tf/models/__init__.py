"""Methods of contrastive learning as Keras models, one file each."""

from simclr_tf.models.loss_scale import LossScale
from simclr_tf.models.simclr import SimCLR

__all__ = ["LossScale", "SimCLR"]
