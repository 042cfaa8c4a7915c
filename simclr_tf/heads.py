"""Projection heads: layers from h to z, the embedding that the contrastive loss compares."""

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError, check_number


@_keras.saving.register_keras_serializable(package="simclr_tf")
class ProjectionHead(keras.layers.Layer):
    """The projection head g: dense layers with ReLU between them, z = g(h).

    Source: arXiv:2002.05709, section 4.2 (two layers), and arXiv:2006.10029, section 3 (three).

    Args:
        hidden_dim: int above 0, units of the hidden layers; None for the length of h.
        output_dim: int above 0, length of z.
        layers: number of dense layers, 2 (SimCLR) or 3 (SimCLRv2).
        batch_norm: bool. With True, dense layers have no bias and each is followed by batch
            normalisation, the last without beta (as in google-research/simclr). With False, dense
            layers have biases and there is no normalisation.
        bn_momentum: float in [0, 1), the momentum of batch normalisation's moving statistics.
        bn_epsilon: float above 0, added to the variance in batch normalisation.
        name: name of the layer.
        **kwargs: arguments of `keras.layers.Layer`: `dtype`, `trainable`.

    Call arguments:
        h: float [batch, D].
        training: bool; whether batch normalisation uses the statistics of the batch.

    Returns:
        z: float32 [batch, output_dim], under every precision policy. Not normalised to length 1:
        the losses do that.

    Raises:
        ValueError: for an argument out of range, or if h is not [batch, D].

    Example:

    >>> head = simclr_tf.ProjectionHead(output_dim=128)
    >>> head(h).shape
    TensorShape([8, 128])
    """

    _prefix = ""  # of the names of the layers, which are unique in a functional model

    def __init__(
        self,
        hidden_dim=None,
        output_dim=128,
        layers=2,
        batch_norm=True,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        name=None,
        **kwargs,
    ):
        if layers not in (2, 3):
            raise ArgumentError(
                f"layers must be 2 (SimCLR) or 3 (SimCLRv2); got {layers!r}. For one layer or none "
                "there are LinearHead and NoHead."
            )
        if hidden_dim is not None:
            check_number("hidden_dim", hidden_dim, at_least=1, whole=True)
        check_number("output_dim", output_dim, at_least=1, whole=True)
        check_number("bn_momentum", bn_momentum, at_least=0, below=1)
        check_number("bn_epsilon", bn_epsilon, above=0)
        super().__init__(name=name, **kwargs)
        self.hidden_dim = hidden_dim
        self.output_dim = output_dim
        self.layers = layers
        self.batch_norm = batch_norm
        self.bn_momentum = bn_momentum
        self.bn_epsilon = bn_epsilon

    def build(self, input_shape):
        """Creates the layers for h of `input_shape`, (batch, D)."""
        width = units = _width(input_shape)
        self.dense_layers, self.norm_layers = [], []
        for index in range(self.layers):
            last = index == self.layers - 1
            inputs, units = units, self.output_dim if last else self.hidden_dim or width
            self.dense_layers.append(_dense(self, inputs, units, f"{self._prefix}dense{index + 1}"))
            if self.batch_norm:
                norm = _norm(self, units, f"{self._prefix}bn{index + 1}", center=not last)
                self.norm_layers.append(norm)
        self.relu = keras.layers.ReLU(dtype=self.dtype_policy, name=f"{self._prefix}relu")
        self.to_float32 = _to_float32(self._prefix)
        super().build(input_shape)

    def freeze_after(self, last):
        """Makes the layers after layer `last` (from 1) not trainable, for models without them."""
        for layer in [*self.dense_layers[last:], *self.norm_layers[last:]]:
            layer.trainable = False

    def call(self, h, training=None):
        """Computes z of h; see the class."""
        return self.hidden_outputs(h, training=training)[-1]

    def hidden_outputs(self, h, training=False, last=None):
        """Computes the output of every layer, or of the first ones.

        SimCLRv2 fine-tunes from item 1, the first hidden layer (arXiv:2006.10029, section 3).

        Args:
            h: float [batch, D].
            training: bool; whether batch normalisation uses the statistics of the batch.
            last: int, the last layer to compute; None computes all.

        Returns:
            A list of `layers + 1` tensors, or of `last + 1`: h, every hidden layer's output after
            its ReLU [batch, hidden_dim], and z [batch, output_dim].
        """
        if not self.built:
            self.build(h.shape)
        outputs = [h]
        for index, dense in enumerate(self.dense_layers[:last]):
            x = dense(outputs[-1])
            if self.batch_norm:
                x = self.norm_layers[index](x, training=training)
            outputs.append(self.to_float32(x) if index == self.layers - 1 else self.relu(x))
        return outputs

    def compute_output_shape(self, input_shape):
        """(batch, output_dim)."""
        return (input_shape[0], self.output_dim)

    def get_config(self):
        """Every argument of the constructor."""
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "output_dim": self.output_dim,
            "layers": self.layers,
            "batch_norm": self.batch_norm,
            "bn_momentum": self.bn_momentum,
            "bn_epsilon": self.bn_epsilon,
        }


@_keras.saving.register_keras_serializable(package="simclr_tf")
class LinearHead(keras.layers.Layer):
    """A linear projection head, z = W h: a dense layer without ReLU.

    Source: arXiv:2002.05709, section 4.2 and figure 8, which compare it with `ProjectionHead`. With
    `batch_norm` the dense layer has no bias and batch normalisation without beta follows, as in
    google-research/simclr.

    Args:
        output_dim, batch_norm, bn_momentum, bn_epsilon, name, **kwargs: as of `ProjectionHead`.

    Attributes:
        layers: 1, the number of dense layers.

    Call arguments:
        h: float [batch, D].
        training: bool; whether batch normalisation uses the statistics of the batch.

    Returns:
        z: float32 [batch, output_dim], not normalised to length 1.

    Raises:
        ValueError: for an argument out of range, or if h is not [batch, D].

    Example:

    >>> simclr_tf.heads.LinearHead(output_dim=64)(h).shape
    TensorShape([8, 64])
    """

    def __init__(
        self,
        output_dim=128,
        batch_norm=True,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        name=None,
        **kwargs,
    ):
        check_number("output_dim", output_dim, at_least=1, whole=True)
        check_number("bn_momentum", bn_momentum, at_least=0, below=1)
        check_number("bn_epsilon", bn_epsilon, above=0)
        super().__init__(name=name, **kwargs)
        self.layers = 1
        self.output_dim = output_dim
        self.batch_norm = batch_norm
        self.bn_momentum = bn_momentum
        self.bn_epsilon = bn_epsilon

    def build(self, input_shape):
        """Creates the layers for h of `input_shape`, (batch, D)."""
        self.dense = _dense(self, _width(input_shape), self.output_dim, "dense1")
        self.norm = None
        if self.batch_norm:
            self.norm = _norm(self, self.output_dim, "bn1", center=False)
        self.to_float32 = _to_float32()
        super().build(input_shape)

    def call(self, h, training=None):
        """Computes z of h; see the class."""
        if not self.built:
            self.build(h.shape)
        z = self.dense(h)
        return self.to_float32(z if self.norm is None else self.norm(z, training=training))

    def hidden_outputs(self, h, training=False):
        """Returns [h, z], as `ProjectionHead.hidden_outputs` does."""
        return [h, self(h, training=training)]

    def compute_output_shape(self, input_shape):
        """(batch, output_dim)."""
        return (input_shape[0], self.output_dim)

    def get_config(self):
        """Every argument of the constructor."""
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "batch_norm": self.batch_norm,
            "bn_momentum": self.bn_momentum,
            "bn_epsilon": self.bn_epsilon,
        }


@_keras.saving.register_keras_serializable(package="simclr_tf")
class NoHead(keras.layers.Layer):
    """In the place of a projection head: z is h (arXiv:2002.05709, section 4.2, "None").

    Args:
        name: name of the layer.
        **kwargs: arguments of `keras.layers.Layer`: `dtype`, `trainable`.

    Attributes:
        layers: 0, the number of dense layers.

    Call arguments:
        h: float [batch, D].

    Returns:
        z: float32 [batch, D], equal to h.

    Example:

    >>> bool(np.all(simclr_tf.heads.NoHead()(h) == h))
    True
    """

    def __init__(self, name=None, **kwargs):
        super().__init__(name=name, **{"dtype": "float32", **kwargs})  # z is h to the last bit
        self.layers = 0

    def build(self, input_shape):
        """Checks that h is [batch, D]; there are no weights."""
        _width(input_shape)
        super().build(input_shape)

    def call(self, h, training=None):
        """Returns h in float32."""
        return tf.cast(h, tf.float32)

    def hidden_outputs(self, h, training=False):
        """Returns [h], whose only item is both h and z."""
        return [tf.cast(h, tf.float32)]

    def compute_output_shape(self, input_shape):
        """The shape of h."""
        return tuple(input_shape)


@_keras.saving.register_keras_serializable(package="simclr_tf")
class SpaceHeads(keras.layers.Layer):
    """One projection head per embedding space, all on the same h (LooC, arXiv:2008.05659).

    Args:
        spaces: int, the number of spaces, 2 or more.
        hidden_dim, output_dim, layers, batch_norm, bn_momentum, bn_epsilon: of each head, as for
            `ProjectionHead`.
        name: name of the layer.
        **kwargs: arguments of `keras.layers.Layer`: `dtype`, `trainable`.

    Call arguments:
        h: float [batch, D].
        training: bool; whether batch normalisation uses the statistics of the batch.

    Returns:
        z: float32 [batch, spaces * output_dim], that of space 0 first. Not normalised: the losses
        do that, and `unit_spaces`.

    Raises:
        ValueError: for an argument out of range, or if h is not [batch, D].

    Example:

    >>> head = simclr_tf.heads.SpaceHeads(2, output_dim=64)
    >>> head(h).shape
    TensorShape([8, 128])
    """

    def __init__(
        self,
        spaces,
        hidden_dim=None,
        output_dim=128,
        layers=2,
        batch_norm=True,
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        name=None,
        **kwargs,
    ):
        check_number("spaces", spaces, at_least=2, whole=True)
        super().__init__(name=name, **kwargs)
        self.spaces = spaces
        self.heads = []
        for space in range(spaces):
            arguments = hidden_dim, output_dim, layers, batch_norm, bn_momentum, bn_epsilon
            head = ProjectionHead(*arguments, name=f"space{space}", dtype=self.dtype_policy)
            head._prefix = f"space{space}_"
            self.heads.append(head)
        self.layers = layers

    def build(self, input_shape):
        """Creates the heads for h of `input_shape`, (batch, D)."""
        for head in self.heads:
            _keras.build_named(head, tuple(input_shape))
        layers = keras.layers
        self.join_hidden = layers.Concatenate(dtype=self.dtype_policy, name="hidden_of_spaces")
        self.join_z = layers.Concatenate(dtype="float32", name="z_of_spaces")
        self.split = layers.Reshape([self.spaces, -1], dtype="float32", name="split_spaces")
        self.to_unit = layers.UnitNormalization(axis=-1, dtype="float32", name="unit_spaces")
        self.flatten = layers.Flatten(dtype="float32", name="join_spaces")
        super().build(input_shape)

    def call(self, h, training=None):
        """Computes z of h; see the class."""
        return self.hidden_outputs(h, training=training)[-1]

    def unit_spaces(self, h, training=False):
        """Computes z of h with the part of each space scaled to length 1.

        Args:
            h, training: as of the call.

        Returns:
            float32 [batch, spaces * output_dim], of length sqrt(spaces).
        """
        z = self.hidden_outputs(h, training=training)[-1]
        return self.flatten(self.to_unit(self.split(z)))

    def hidden_outputs(self, h, training=False, last=None):
        """Computes the outputs of every layer, as `ProjectionHead` does, joined over the spaces.

        Returns:
            A list of `layers + 1` tensors, or of `last + 1`: h, every hidden layer's outputs
            [batch, spaces * hidden_dim], and z [batch, spaces * output_dim].
        """
        if not self.built:
            self.build(h.shape)
        of_heads = [head.hidden_outputs(h, training=training, last=last) for head in self.heads]
        outputs = [h]
        for index, parts in enumerate(list(zip(*of_heads))[1:], start=1):
            join = self.join_z if index == self.layers else self.join_hidden
            outputs.append(join(list(parts)))
        return outputs

    def compute_output_shape(self, input_shape):
        """(batch, spaces * output_dim)."""
        return (input_shape[0], self.spaces * self.heads[0].output_dim)

    def get_config(self):
        """Every argument of the constructor."""
        of_head = self.heads[0].get_config()
        names = ("hidden_dim", "output_dim", "layers", "batch_norm", "bn_momentum", "bn_epsilon")
        return {
            **super().get_config(),
            "spaces": self.spaces,
            **{name: of_head[name] for name in names},
        }


# -- what the heads are made of ------------------------------------------------------------------


def _width(input_shape):
    """D of h [batch, D]."""
    shape = tuple(input_shape)
    if len(shape) != 2 or shape[1] is None:
        raise ArgumentError(
            f"h must be [batch, D] with a known D; got the shape {shape}. "
            "End the encoder with global pooling."
        )
    return shape[1]


def _dense(head, inputs, units, name):
    """A built dense layer of a head."""
    # The published initializer; without normalisation it would make z very small.
    normal = keras.initializers.RandomNormal(stddev=0.01)
    dense = keras.layers.Dense(
        units,
        use_bias=not head.batch_norm,
        kernel_initializer=normal if head.batch_norm else "glorot_uniform",
        dtype=head.dtype_policy,
        name=name,
    )
    _keras.build_named(dense, (None, inputs))
    return dense


def _norm(head, units, name, center):
    """Built batch normalisation of a head."""
    norm = keras.layers.BatchNormalization(
        momentum=head.bn_momentum,
        epsilon=head.bn_epsilon,
        center=center,
        synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
        dtype=head.dtype_policy,
        name=name,
    )
    _keras.build_named(norm, (None, units))
    return norm


def _to_float32(prefix=""):
    """A layer to float32, so that z is not rounded under mixed precision."""
    return keras.layers.Activation("linear", dtype="float32", name=f"{prefix}z")
