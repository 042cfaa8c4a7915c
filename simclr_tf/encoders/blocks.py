"""What the networks of this package consist of: layers, blocks of them, and an encoder of blocks.

Blocks are called by `call`, not `__call__`, so that a functional model consists of layers of Keras;
`__call__` would make each block one layer, of a class of this package.
"""

import dataclasses

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders import batch_norm, convolution
from simclr_tf.errors import ArgumentError, check_number


class ConvolutionalEncoder(keras.Model):
    """Base class of encoders that are a stem, blocks and global average pooling.

    A subclass has `_default_feature_dim`, the filters of its last block; `_stem_and_blocks(shape)`,
    which returns the list of the stem's layers and the list of blocks for images of a shape; and
    `get_config` with the arguments of its constructor that are not in that of this class.

    Args:
        width: multiplier of every layer's filters, a number above 0.
        bn_momentum: float in [0, 1), the momentum of batch normalisation's moving statistics.
        bn_epsilon: float above 0, added to the variance in batch normalisation.
        feature_dim: int, at least 1, the length of h; None for that of the last block.
        **kwargs: arguments of `keras.Model`.
    """

    def __init__(self, width, bn_momentum, bn_epsilon, feature_dim, **kwargs):
        check_number("bn_momentum", bn_momentum, at_least=0, below=1)
        check_number("bn_epsilon", bn_epsilon, above=0)
        if feature_dim is not None:
            check_number("feature_dim", feature_dim, at_least=1, whole=True)
        super().__init__(**kwargs)
        self.width = width
        self.bn_momentum = bn_momentum
        self.bn_epsilon = bn_epsilon
        self._feature_dim = None if feature_dim is None else int(feature_dim)

    @property
    def feature_dim(self):
        """D, the length of h; known before the model is built."""
        return self._default_feature_dim if self._feature_dim is None else self._feature_dim

    def _filters(self, base):
        return max(1, round(base * self.width))

    def _last_block(self, factory):
        """A list of the block that gives h its `feature_dim`; empty where the others do."""
        if self._feature_dim is None:
            return []
        return [Chain(factory.conv_bn_relu("last", self.feature_dim, 1), name="last")]

    def _layer_factory(self, **settings):
        return LayerFactory(
            dtype=self.dtype_policy,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            # A synchronised layer cannot use the fused kernel, so only if there are replicas.
            synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
            **settings,
        )

    def build(self, input_shape):
        """Creates the layers for images of `input_shape`, (batch, height, width, channels)."""
        if self.built:
            return
        shape = tuple(input_shape)
        if len(shape) != 4 or shape[-1] is None:
            raise ArgumentError(
                f"images must be [batch, height, width, channels]; got the shape {shape}."
            )
        stem, blocks = self._stem_and_blocks(shape)
        self.stem_layers = Chain(stem, name="stem")
        self.blocks = blocks
        # float32, so that h is not rounded under mixed precision
        self.pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")
        for layer in (self.stem_layers, *self.blocks, self.pool):
            shape = build_layer(layer, shape)
        self.built_shape = tuple(input_shape)
        self.built = True

    def call(self, images, training=None):
        """Computes h of images; see the class."""
        dtype = tf.as_dtype(images.dtype)
        if not dtype.is_floating:
            raise ArgumentError(
                f"{type(self).__name__} takes float images in [0, 1]; got {dtype.name}. "
                "Convert them: tf.image.convert_image_dtype(images, tf.float32)."
            )
        x = self.stem_layers.call(images, training=training)
        for block in self.blocks:
            x = block.call(x, training=training)
        return self.pool(x)  # [B, D]

    def to_functional(self, input_shape):
        """Creates a functional model of the same layers, which shares their weights.

        All its layers are Keras's own, so that it loads without this package.

        Args:
            input_shape: (height, width, channels); height and width may be None if the model is
                built.

        Returns:
            A functional `keras.Model` from images, float [batch, *input_shape] in [0, 1], to h,
            float32 [batch, feature_dim].
        """
        images = keras.Input(input_shape)
        self.build((None, *input_shape))
        return keras.Model(images, self.call(images), name=self.name)

    def compute_output_shape(self, input_shape):
        """(batch, feature_dim)."""
        return (input_shape[0], self.feature_dim)

    def get_config(self):
        """The arguments that all encoders of blocks have."""
        return {
            "width": self.width,
            "bn_momentum": self.bn_momentum,
            "bn_epsilon": self.bn_epsilon,
            "feature_dim": self._feature_dim,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": self.dtype_policy.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Creates an encoder from the arguments that `get_config` returned."""
        return cls(**config)

    def get_build_config(self):
        """The shape for which the model was built, on which its layers may depend."""
        return {"input_shape": self.built_shape} if self.built else None

    def build_from_config(self, config):
        """Builds the model for the shape that `get_build_config` returned."""
        if config and config.get("input_shape"):
            self.build(config["input_shape"])


@dataclasses.dataclass(frozen=True)
class LayerFactory:
    """Creates Keras layers with the settings that all layers of a network share."""

    dtype: object
    momentum: float
    epsilon: float
    synchronized: bool
    sk_ratio: float = 0.0
    last_gamma: str = "ones"

    def conv(self, name, filters, kernel_size, strides=1):
        """A convolution whose padding does not depend on the size of the image, in a list."""
        layers = []
        if strides > 1 and kernel_size > 1:
            layers.append(self.pad(f"{name}_pad", kernel_size))
        layers.append(
            keras.layers.Conv2D(
                filters,
                kernel_size,
                strides,
                padding="same" if strides == 1 else "valid",
                use_bias=False,
                kernel_initializer=keras.initializers.VarianceScaling(),
                dtype=self.dtype,
                name=f"{name}_conv",
            )
        )
        return layers

    def pad(self, name, kernel_size):
        """Zeros around the images: as many before as after, or one fewer."""
        before = (kernel_size - 1) // 2
        after = kernel_size - 1 - before
        return keras.layers.ZeroPadding2D(((before, after),) * 2, dtype=self.dtype, name=name)

    def norm(self, name, gamma="ones"):
        """Batch normalisation."""
        return keras.layers.BatchNormalization(
            momentum=self.momentum,
            epsilon=self.epsilon,
            gamma_initializer=gamma,
            synchronized=self.synchronized,
            dtype=self.dtype,
            name=f"{name}_bn",
        )

    def relu(self, name):
        """ReLU."""
        return keras.layers.ReLU(dtype=self.dtype, name=f"{name}_relu")

    def conv_bn(self, name, filters, kernel_size, strides=1, gamma="ones"):
        """A convolution and batch normalisation, in a list."""
        return [*self.conv(name, filters, kernel_size, strides), self.norm(name, gamma)]

    def conv_bn_relu(self, name, filters, kernel_size, strides=1):
        """A convolution, batch normalisation and ReLU, in a list."""
        return [*self.conv_bn(name, filters, kernel_size, strides), self.relu(name)]


def build_layer(layer, shape):
    """Builds a layer and returns its output shape."""
    if isinstance(layer, Block):
        layer.build(shape)
    else:
        _keras.build_named(layer, shape)
    return tuple(layer.compute_output_shape(shape))


def call_layer(layer, x, training):
    """Calls a layer or block on x, with this package's kernels where they differ from Keras's."""
    if isinstance(layer, Block):
        return layer.call(x, training=training)
    if isinstance(layer, keras.layers.BatchNormalization):
        return batch_norm.normalise(layer, x, training)
    if training is True and isinstance(layer, keras.layers.Conv2D):
        function = convolution.for_training(layer, x)
        if function is not None:
            return function(layer, x)
    return layer(x)


class Block(keras.layers.Layer):
    """Base class of layers that combine Keras layers and are called by `call` alone.

    `build` creates the weights and records the output shape in `output_shape_at_build`.
    """

    def compute_output_shape(self, input_shape):
        """The shape of the output for the images that the block was built for."""
        return self.output_shape_at_build


class Chain(Block):
    """Applies layers in sequence."""

    def __init__(self, steps, **kwargs):
        super().__init__(**kwargs)
        self.steps = list(steps)

    def build(self, input_shape):
        """Builds the layers one after the other."""
        shape = input_shape
        for step in self.steps:
            shape = build_layer(step, shape)
        self.output_shape_at_build = shape
        self.built = True

    def call(self, x, training=None):
        """Calls the layers one after the other."""
        for step in self.steps:
            x = call_layer(step, x, training)
        return x


# Keras names the layers of a list by their class in `.keras` and `.weights.h5` files: with another
# name, files of earlier versions would not load.
Chain.__name__ = "_Chain"
