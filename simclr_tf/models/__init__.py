"""Keras models, one file each: contrastive learning, fine-tuning with labels, distillation."""

from simclr_tf.models.classifier import Classifier
from simclr_tf.models.distillation import Distillation
from simclr_tf.models.loss_scale import LossScale
from simclr_tf.models.moco import MoCo
from simclr_tf.models.simclr import SimCLR

__all__ = ["Classifier", "Distillation", "LossScale", "MoCo", "SimCLR"]
