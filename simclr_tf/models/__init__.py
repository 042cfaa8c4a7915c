"""Keras models, one file each: contrastive learning, and fine-tuning with labels."""

from simclr_tf.models.classifier import Classifier
from simclr_tf.models.loss_scale import LossScale
from simclr_tf.models.simclr import SimCLR

__all__ = ["Classifier", "LossScale", "SimCLR"]
