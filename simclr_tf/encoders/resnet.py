"""The encoders of the SimCLR papers: ResNets, with selective kernels as an option.

Sources: arXiv:1512.03385 (ResNet), arXiv:1812.01187 (ResNet-D), arXiv:1903.06586 (selective
kernels), arXiv:2002.05709 and arXiv:2006.10029 (SimCLR and SimCLRv2). Layers, paddings and initial
values are those of google-research/simclr, so that its weights can be loaded.
"""

from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders.blocks import Block, Chain, ConvolutionalEncoder, build_layer
from simclr_tf.errors import ArgumentError, check_number

BASIC_BLOCKS = {14: (2, 2, 2), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
DEPTHS = (*BASIC_BLOCKS, *BOTTLENECK_BLOCKS)
STEMS = ("auto", "cifar", "imagenet", "space_to_depth")
MAX_CIFAR_STEM_PIXELS = 64


@_keras.saving.register_keras_serializable(package="simclr_tf")
class ResNet(ConvolutionalEncoder):
    """A post-activation ResNet with global average pooling (arXiv:1512.03385).

    Args:
        depth: 18 or 34 (basic residual blocks); 50, 101, 152 or 200 (bottleneck residual blocks);
            14, three groups of basic blocks instead of four, in which the layers for small images
            of arXiv:1512.03385, section 4.2 (n = 2), have four times the filters.
        width: multiplier of every layer's filters, a number above 0.
        sk_ratio: 0 for plain convolutions. Above 0, selective kernels (arXiv:1903.06586) whose
            squeezed channels are this fraction of their filters, at least 32, with the stem and
            shortcuts of ResNet-D; for depth 50 or more. SimCLRv2 uses 0.0625 (arXiv:2006.10029,
            section 3).
        stem: "cifar" (3x3 convolution, stride 1, no pooling; arXiv:2002.05709, appendix B.9),
            "imagenet" (stride 2 and max pooling), "space_to_depth" (every 2x2 pixels become one of
            12 channels, then a 3x3 convolution with stride 1: a fourth of the positions and no
            pixel left out; computed as one 6x6 convolution with stride 2, which is the same), or
            "auto": "cifar" if the longer side of the images for which the model is first built is
            at most 64 pixels, "imagenet" otherwise.
        bn_momentum: float in [0, 1), the momentum of batch normalisation's moving statistics.
        bn_epsilon: float above 0, added to the variance in batch normalisation.
        zero_init_residual: bool; initialize the last gamma of every residual block to 0
            (arXiv:1706.02677, section 5.1).
        feature_dim: int, at least 1, the length of h. By default the filters of the last group
            (times 4 for bottleneck blocks). A number adds a last 1x1 convolution with this many
            filters, batch normalisation and ReLU before the pooling, as MobileNetV2 has
            (arXiv:1801.04381, table 2). docs/results.md has what it gave on CIFAR-10.
        name: name of the model.
        **kwargs: arguments of `keras.Model`: `dtype`, `trainable`.

    Call arguments:
        images: float [batch, height, width, channels], in [0, 1]. A built model accepts images of
            any height and width.
        training: bool; whether batch normalisation uses the statistics of the batch.

    Returns:
        h: float32 [batch, D], D = `feature_dim`, under every precision policy.

    Raises:
        ValueError: for an argument out of range; if built with `stem="auto"`
            and unknown height or width; if called on integers.

    Example:

    >>> encoder = simclr_tf.ResNet(18, width=0.25)
    >>> encoder(images / np.float32(255)).shape
    TensorShape([8, 128])
    """

    def __init__(
        self,
        depth,
        width=1,
        sk_ratio=0.0,
        stem="auto",
        bn_momentum=0.9,
        bn_epsilon=1e-5,
        zero_init_residual=True,
        feature_dim=None,
        name=None,
        **kwargs,
    ):
        _check_arguments(depth, width, sk_ratio, stem)
        name = name or f"resnet{depth}"
        super().__init__(width, bn_momentum, bn_epsilon, feature_dim, name=name, **kwargs)
        self.depth = depth
        self.sk_ratio = sk_ratio
        self.stem = stem
        self.zero_init_residual = zero_init_residual

    @property
    def _default_feature_dim(self):
        filters = self._filters(64 * 2 ** (len(self._block_counts()) - 1))
        return filters * (1 if self.depth in BASIC_BLOCKS else 4)

    def _block_counts(self):
        """Residual blocks of each group."""
        return {**BASIC_BLOCKS, **BOTTLENECK_BLOCKS}[self.depth]

    def _stem_and_blocks(self, input_shape):
        factory = self._layer_factory(
            sk_ratio=self.sk_ratio, last_gamma="zeros" if self.zero_init_residual else "ones"
        )
        stem = _stem(factory, _resolve_stem(self.stem, input_shape), self._filters)
        return stem, self._make_blocks(factory)

    def _make_blocks(self, factory):
        make = _basic_block if self.depth in BASIC_BLOCKS else _bottleneck_block
        blocks = []
        for group, count in enumerate(self._block_counts()):
            for index in range(count):
                strides = 2 if group > 0 and index == 0 else 1
                name = f"group{group + 1}_block{index + 1}"
                blocks.append(
                    make(factory, name, self._filters(64 * 2**group), strides, index == 0)
                )
        return blocks + self._last_block(factory)

    def get_config(self):
        """Every argument of the constructor."""
        return {
            **super().get_config(),
            "depth": self.depth,
            "sk_ratio": self.sk_ratio,
            "stem": self.stem,
            "zero_init_residual": self.zero_init_residual,
        }


def _check_arguments(depth, width, sk_ratio, stem):
    if depth not in DEPTHS:
        raise ArgumentError(f"depth must be one of {', '.join(map(str, DEPTHS))}; got {depth!r}.")
    check_number("width", width, above=0, hint="The papers use 1 to 4.")
    check_number("sk_ratio", sk_ratio, at_least=0, hint="SimCLRv2 uses 0.0625.")
    if sk_ratio > 0 and depth in BASIC_BLOCKS:
        raise ArgumentError(
            f"sk_ratio above 0 needs bottleneck blocks: depth 50 or more; got depth {depth}. "
            "Use a deeper ResNet, or sk_ratio=0."
        )
    if stem not in STEMS:
        raise ArgumentError(f"stem must be one of {', '.join(STEMS)}; got {stem!r}.")


def _resolve_stem(stem, shape):
    if stem != "auto":
        return stem
    if shape[1] is None or shape[2] is None:
        raise ArgumentError(
            f'stem="auto" needs the height and width of the images; got the shape {shape}. '
            'Pass stem="cifar", "space_to_depth" or "imagenet", or images of a known size.'
        )
    return "cifar" if max(shape[1:3]) <= MAX_CIFAR_STEM_PIXELS else "imagenet"


# ---- lists of Keras layers


def _stem(factory, kind, filters):
    if kind == "cifar":
        return factory.conv_bn_relu("stem", filters(64), 3)
    if kind == "space_to_depth":
        # A kernel [3, 3, 12, F] on 2x2 pixels as channels is a kernel [6, 6, 3, F] on the pixels. A
        # last row or column of an odd number of them is paired with zeros.
        return factory.conv_bn_relu("stem", filters(64), 6, 2)
    if factory.sk_ratio > 0:  # ResNet-D: three 3x3 in place of one 7x7
        layers = [
            *factory.conv_bn_relu("stem1", filters(32), 3, 2),
            *factory.conv_bn_relu("stem2", filters(32), 3),
            *factory.conv_bn_relu("stem3", filters(64), 3),
        ]
    else:
        layers = factory.conv_bn_relu("stem", filters(64), 7, 2)
    pool = keras.layers.MaxPooling2D(3, 2, padding="same", dtype=factory.dtype, name="stem_pool")
    return [*layers, pool]


def _basic_block(factory, name, filters, strides, project):
    residual = [
        *factory.conv_bn_relu(f"{name}_1", filters, 3, strides),
        # gamma starts at 0 so that each residual block starts as its shortcut (arXiv:1706.02677)
        *factory.conv_bn(f"{name}_2", filters, 3, gamma=factory.last_gamma),
    ]
    shortcut = _shortcut(factory, name, filters, strides) if project else []
    return _ResidualBlock(residual, shortcut, factory, name)


def _bottleneck_block(factory, name, filters, strides, project):
    if factory.sk_ratio > 0:
        spatial = [_SelectiveKernel(factory, f"{name}_2", filters, strides)]
    else:
        spatial = factory.conv_bn_relu(f"{name}_2", filters, 3, strides)
    residual = [
        *factory.conv_bn_relu(f"{name}_1", filters, 1),
        *spatial,
        *factory.conv_bn(f"{name}_3", 4 * filters, 1, gamma=factory.last_gamma),
    ]
    shortcut = _shortcut(factory, name, 4 * filters, strides) if project else []
    return _ResidualBlock(residual, shortcut, factory, name)


def _shortcut(factory, name, filters, strides):
    name = f"{name}_shortcut"
    if factory.sk_ratio == 0:
        return factory.conv_bn(name, filters, 1, strides)
    # ResNet-D averages first, because a 1x1 convolution with stride 2 ignores 3 of 4 pixels
    pad = [factory.pad(f"{name}_pad", 2)] if strides > 1 else []
    pool = keras.layers.AveragePooling2D(
        2,
        strides,
        padding="same" if strides == 1 else "valid",
        dtype=factory.dtype,
        name=f"{name}_pool",
    )
    return [*pad, pool, *factory.conv_bn(name, filters, 1)]


# ---- blocks of layers


class _ResidualBlock(Block):
    """A residual block: relu(shortcut(x) + residual(x)); an empty shortcut is the identity."""

    def __init__(self, residual, shortcut, factory, name):
        super().__init__(name=name, dtype=factory.dtype)
        self.shortcut = Chain(shortcut, name=f"{name}_shortcut")
        self.residual = Chain(residual, name=f"{name}_residual")
        self.add = keras.layers.Add(dtype=factory.dtype, name=f"{name}_add")
        self.relu = factory.relu(name)

    def build(self, input_shape):
        shape = build_layer(self.shortcut, input_shape)
        self.output_shape_at_build = build_layer(self.residual, input_shape)
        build_layer(self.add, [shape, self.output_shape_at_build])
        build_layer(self.relu, self.output_shape_at_build)
        self.built = True

    def call(self, x, training=None):
        shortcut = self.shortcut.call(x, training=training)
        return self.relu(self.add([self.residual.call(x, training=training), shortcut]))


class _SelectiveKernel(Block):
    """A selective kernel: two 3x3 streams, weighted per channel by a softmax over the two.

    The streams are the two halves of one convolution's channels (arXiv:1903.06586, section 3.1, in
    the form google-research/simclr uses).
    """

    def __init__(self, factory, name, filters, strides, min_dim=32):
        super().__init__(name=name, dtype=factory.dtype)
        mid_dim = max(int(filters * factory.sk_ratio), min_dim)
        named = {"dtype": factory.dtype}
        layers = keras.layers
        self.streams = Chain(
            factory.conv_bn_relu(f"{name}_streams", 2 * filters, 3, strides), name=f"{name}_streams"
        )
        self.mean = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean", **named)
        self.sum_means = _SumHalves(factory, f"{name}_sum_means", filters)
        self.mixing = Chain(
            [
                *factory.conv_bn_relu(f"{name}_squeeze", mid_dim, 1),
                *factory.conv(f"{name}_excite", 2 * filters, 1),
                layers.Reshape((2, filters), name=f"{name}_pairs", **named),
                layers.Softmax(axis=1, name=f"{name}_softmax", **named),
                layers.Reshape((1, 1, 2 * filters), name=f"{name}_weights", **named),
            ],
            name=f"{name}_mixing",
        )
        self.multiply = layers.Multiply(name=f"{name}_multiply", **named)
        self.sum_streams = _SumHalves(factory, f"{name}_sum_streams", filters)

    def build(self, input_shape):
        shape = build_layer(self.streams, input_shape)  # [B, H, W, 2F]
        mean = build_layer(self.mean, shape)  # [B, 1, 1, 2F]
        mixing = build_layer(self.mixing, build_layer(self.sum_means, mean))  # [B, 1, 1, 2F]
        build_layer(self.multiply, [shape, mixing])
        self.output_shape_at_build = build_layer(self.sum_streams, shape)  # [B, H, W, F]
        self.built = True

    def call(self, x, training=None):
        streams = self.streams.call(x, training=training)
        means = self.sum_means.call(self.mean(streams))
        mixing = self.mixing.call(means, training=training)
        return self.sum_streams.call(self.multiply([streams, mixing]))


class _SumHalves(Block):
    """Adds the two halves of the channels: [B, H, W, 2F] to [B, H, W, F].

    No Keras layer slices channels. Cropping2D does so with "channels_first", where it crops the
    last axis as a spatial one.
    """

    def __init__(self, factory, name, filters):
        super().__init__(name=name, dtype=factory.dtype)
        crop = keras.layers.Cropping2D
        first, last = ((0, 0), (0, filters)), ((0, 0), (filters, 0))
        axes = {"data_format": "channels_first", "dtype": factory.dtype}
        self.first = crop(first, name=f"{name}_first", **axes)
        self.last = crop(last, name=f"{name}_last", **axes)
        self.add = keras.layers.Add(dtype=factory.dtype, name=f"{name}_add")

    def build(self, input_shape):
        halves = [build_layer(self.first, input_shape), build_layer(self.last, input_shape)]
        build_layer(self.add, halves)
        self.output_shape_at_build = halves[0]
        self.built = True

    def call(self, x, training=None):
        return self.add([self.first(x), self.last(x)])
