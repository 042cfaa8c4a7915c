"""Encoders: models from images to h: ResNets, networks of Keras and KerasCV, or your own."""

from simclr_tf.encoders.by_name import by_name, names, validate
from simclr_tf.encoders.resnet import ResNet

__all__ = ["ResNet", "by_name", "names", "validate"]
