"""Methods as Keras models, one file each: SimCLR, and the classifier of fine-tuning."""

from simclr_tf.models.classifier import Classifier
from simclr_tf.models.loss_scale import LossScale
from simclr_tf.models.simclr import SimCLR

__all__ = ["Classifier", "LossScale", "SimCLR"]
