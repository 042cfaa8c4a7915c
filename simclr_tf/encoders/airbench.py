"""A small network without residual blocks, for images of about 32 pixels."""

import numpy as np
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders.blocks import Chain, ConvolutionalEncoder
from simclr_tf.errors import ArgumentError, check_number

STEM_FILTERS = 32


@_keras.saving.register_keras_serializable(package="simclr_tf")
class Airbench(ConvolutionalEncoder):
    """A network like that of airbench94 for CIFAR-10 (arXiv:2404.00498), for training on a CPU.

    A 2x2 convolution with 32 filters, then three groups of a 3x3 convolution, 2x2 max pooling and
    another 3x3 convolution; each convolution is followed by batch normalisation and ReLU. The paper
    has 64, 256 and 256 filters, a first layer that whitens patches and is not trained, and GELU.
    docs/recipes.md compares this network with ResNets on CIFAR-10 in the same time.

    Args:
        filters: three ints, at least 1, the filters of the groups.
        width: multiplier of every layer's filters, a number above 0.
        bn_momentum: float in [0, 1), the momentum of batch normalisation's moving statistics.
        bn_epsilon: float above 0, added to the variance in batch normalisation.
        feature_dim: int, at least 1, the length of h. By default the filters of the last group; a
            number adds a last 1x1 convolution, as in `ResNet`.
        name: name of the model.
        **kwargs: arguments of `keras.Model`: `dtype`, `trainable`.

    Call arguments:
        images: float [batch, height, width, channels], in [0, 1]. A built model accepts images of
            any height and width.
        training: bool; whether batch normalisation uses the statistics of the batch.

    Returns:
        h: float32 [batch, D], D = `feature_dim`, under every precision policy.

    Raises:
        ValueError: for an argument out of range; if called on integers.

    Example:

    >>> encoder = simclr_tf.encoders.Airbench(width=0.25)
    >>> encoder(images / np.float32(255)).shape
    TensorShape([8, 64])
    """

    def __init__(
        self,
        filters=(64, 128, 256),
        width=1,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        feature_dim=None,
        name="airbench",
        **kwargs,
    ):
        _check_filters(filters)
        check_number("width", width, above=0)
        super().__init__(width, bn_momentum, bn_epsilon, feature_dim, name=name, **kwargs)
        self.filters = tuple(int(each) for each in filters)

    @property
    def _default_feature_dim(self):
        return self._filters(self.filters[-1])

    def _stem_and_blocks(self, input_shape):
        factory = self._layer_factory()
        blocks = [
            block
            for index, filters in enumerate(self.filters)
            for block in _blocks(factory, f"group{index + 1}", self._filters(filters))
        ]
        stem = factory.conv_bn_relu("stem", self._filters(STEM_FILTERS), 2)
        return stem, blocks + self._last_block(factory)

    def get_config(self):
        """Every argument of the constructor."""
        return {**super().get_config(), "filters": list(self.filters)}


def _check_filters(filters):
    if np.ndim(filters) != 1 or len(filters) != 3:
        raise ArgumentError(
            f"filters must be three ints, at least 1, such as (64, 128, 256); got {filters!r}."
        )
    for each in filters:
        check_number("filters", each, at_least=1, whole=True)


def _blocks(factory, group, filters):
    first, second = f"{group}_block1", f"{group}_block2"
    # "same", so that an image of one pixel stays one
    pool = keras.layers.MaxPooling2D(2, padding="same", dtype=factory.dtype, name=f"{first}_pool")
    convolution, rest = factory.conv(first, filters, 3), [factory.norm(first), factory.relu(first)]
    # Pooled before batch normalisation, which then has a fourth of the values.
    yield Chain([*convolution, pool, *rest], name=first)
    yield Chain(factory.conv_bn_relu(second, filters, 3), name=second)
