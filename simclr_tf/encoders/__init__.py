"""Encoders: models from images to h: ResNets, networks of Keras and KerasCV, or your own."""

from simclr_tf.encoders.airbench import Airbench
from simclr_tf.encoders.by_name import by_name, names, validate
from simclr_tf.encoders.resnet import ResNet
from simclr_tf.encoders.whitening import Whitening, whitened, zca

__all__ = ["Airbench", "ResNet", "Whitening", "by_name", "names", "validate", "whitened", "zca"]
