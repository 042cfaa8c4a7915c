"""Encoders: models from images to h. ResNets, KerasCV backbones by name, or any Keras model."""

from simclr_tf.encoders.by_name import by_name, names, validate
from simclr_tf.encoders.resnet import ResNet

__all__ = ["ResNet", "by_name", "names", "validate"]
