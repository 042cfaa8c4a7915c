"""Convolutions whose weight gradient is a few matrix products: faster on a CPU in bfloat16.

oneDNN takes up to nine times as long for the weight gradient of a deep 3x3 layer as for its forward
pass when the activations have few pixels and many channels (4x4x128 or 2x2x256, for example).
Matrix products compute the same sums faster: one for each position in the kernel with stride 1, one
of all patches with a larger stride, where slices would take longer than the products. The forward
pass and the gradient with respect to the input are TensorFlow's own.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.devices import on_cpu
from simclr_tf.errors import ArgumentError

# Where the matrix products are faster (benchmarks/convolution.py): many channels, few pixels. For
# each stride, the least channels of the input, and the least for each pixel of the output's side.
MIN_CHANNELS = {1: (128, 16), 2: (64, 16)}


def has_faster_gradient(layer, x):
    """Whether `convolve` is faster than the layer itself in training, on this machine.

    Args:
        layer: a `keras.layers.Conv2D`, built.
        x: float [B, H, W, C], the layer's input in its compute dtype.
    """
    return (
        x.dtype == tf.bfloat16
        and x.shape.rank == 4
        and None not in x.shape[1:]
        and is_deep(max(layer.compute_output_shape(x.shape)[1:3]), x.shape[-1], layer.strides[0])
        and layer.kernel_size[0] > 1
        and not layer.use_bias
        and layer.groups == 1
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
        and on_cpu()
    )


def writes_past_its_memory(layer, x):
    """Whether TensorFlow's kernel for this layer's weight gradient corrupts the heap.

    oneDNN's does, in TensorFlow 2.15.1 on a CPU in float32, for a 1x1 convolution with stride 2 and
    15 input channels or fewer: from 48 pixels on with 8 channels, from 80 pixels on with 9 to 15,
    not with 16 to 31 (batches of 32 and 64, 24 to 224 pixels).
    """
    return (
        tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.strides) == (2, 2)
        and x.shape[-1] is not None
        and x.shape[-1] < 16
        and not layer.use_bias
        and layer.data_format == "channels_last"
        and on_cpu()
    )


def subsample_and_convolve(layer, x):
    """Computes `layer(x)` of a 1x1 convolution with stride 2 on every second pixel, with stride 1.

    Args:
        layer: a `keras.layers.Conv2D` without bias, built.
        x: float [B, H, W, C] in the layer's compute dtype.

    Returns:
        [B, ceil(H / 2), ceil(W / 2), F] in the same dtype.
    """
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel), x.dtype)
    return tf.nn.conv2d(x[:, ::2, ::2], kernel, 1, "VALID")


def is_deep(side, channels, stride=1):
    """Whether matrix products are faster for a 3x3 layer.

    Args:
        side: int, the longer side of the output in pixels.
        channels: int, the channels of the input.
        stride: int.
    """
    if stride not in MIN_CHANNELS:
        return False
    least, per_pixel = MIN_CHANNELS[stride]
    return channels >= max(least, per_pixel * side)


def convolve(layer, x):
    """Computes `layer(x)` with the weight gradient by matrix products.

    Args:
        layer: a `keras.layers.Conv2D` without bias, built.
        x: float [B, H, W, C] in the layer's compute dtype.

    Returns:
        [B, H', W', F] in the same dtype.
    """
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel), x.dtype)
    return conv2d(x, kernel, layer.strides[0], layer.padding.upper())


def conv2d(x, kernel, stride, padding):
    """Computes `tf.nn.conv2d` with the weight gradient by matrix products.

    Args:
        x: float [B, H, W, C], H and W static.
        kernel: [k, k, C, F], the same dtype.
        stride: int, for both directions; must be 1 if padding is "SAME".
        padding: "SAME" or "VALID".

    Returns:
        [B, H', W', F] in the same dtype.

    Raises:
        ValueError: for "SAME" with a stride above 1, whose padding depends on the size of x.
    """
    if padding == "SAME" and stride != 1:
        raise ArgumentError(
            f'padding "SAME" needs stride 1 here; got {stride}. Pad x and use "VALID".'
        )

    @tf.custom_gradient
    def convolution(x, kernel):
        def gradient(dy):
            dx = tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), stride, padding)
            return dx, weight_gradient(x, dy, kernel.shape[0], stride, padding)

        return tf.nn.conv2d(x, kernel, stride, padding), gradient

    return convolution(x, kernel)


def weight_gradient(x, dy, size, stride, padding):
    """The gradient of `conv2d` with respect to its kernel.

    Args:
        x: float [B, H, W, C], the input.
        dy: [B, H', W', F], the gradient with respect to the output.
        size: int, k, the side of the kernel.
        stride: as in `conv2d`.
        padding: as in `conv2d`.

    Returns:
        [k, k, C, F].
    """
    if padding == "SAME":
        before = (size - 1) // 2
        x = tf.pad(x, [[0, 0], *[[before, size - 1 - before]] * 2, [0, 0]])
    shape = [size, size, x.shape[-1], dy.shape[-1]]
    rows = tf.reshape(dy, [-1, dy.shape[-1]])  # [B H' W', F]
    if stride > 1:
        strides, rates = [1, stride, stride, 1], [1, 1, 1, 1]
        patches = tf.image.extract_patches(x, [1, size, size, 1], strides, rates, "VALID")
        patches = tf.reshape(patches, [-1, size * size * x.shape[-1]])  # [B H' W', k k C]
        return tf.reshape(tf.matmul(patches, rows, transpose_a=True), shape)
    height, width = dy.shape[1], dy.shape[2]
    products = []
    for i in range(size):
        for j in range(size):
            window = x[:, i : i + height, j : j + width]
            window = tf.reshape(window, [-1, x.shape[-1]])  # [B H' W', C]
            products.append(tf.matmul(window, rows, transpose_a=True))
    return tf.reshape(tf.stack(products), shape)
