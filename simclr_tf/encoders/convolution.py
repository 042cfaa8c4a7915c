"""Convolutions whose weight gradient is a few matrix products: faster on a CPU in bfloat16.

oneDNN takes up to nine times as long for the weight gradient of a deep 3x3 layer as for its forward
pass when the activations are small and wide (4x4x128 or 2x2x256, say). The same sums as one matrix
product for each of the kernel's places keep the matrix units busy. The forward pass and the
gradient of the input are TensorFlow's own.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.devices import on_cpu
from simclr_tf.errors import ArgumentError

# Where the matrix products win (benchmarks/convolution.py): many channels, few pixels.
MIN_CHANNELS = 128
MIN_CHANNELS_PER_PIXEL_OF_SIDE = 16


def has_faster_gradient(layer, x):
    """Whether `convolve` is the faster way to train this `keras.layers.Conv2D` on x, here."""
    return (
        x.dtype == tf.bfloat16
        and x.shape.rank == 4
        and None not in x.shape[1:]
        and is_deep(max(x.shape[1:3]), x.shape[-1])
        and not layer.use_bias
        and layer.groups == 1
        and layer.dilation_rate == (1, 1)
        and layer.data_format == "channels_last"
        and on_cpu()
    )


def is_deep(side, channels):
    """Whether an activation of so many pixels a side has so many channels that products win."""
    return channels >= max(MIN_CHANNELS, MIN_CHANNELS_PER_PIXEL_OF_SIDE * side)


def convolve(layer, x):
    """What `layer(x)` gives, x [B, H, W, C] in the layer's compute dtype; no bias."""
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel), x.dtype)
    return conv2d(x, kernel, layer.strides[0], layer.padding.upper())


def conv2d(x, kernel, stride, padding):
    """`tf.nn.conv2d` with the weight gradient by matrix products.

    Args:
      x: [B, H, W, C] float, H and W static.
      kernel: [k, k, C, F], the same dtype.
      stride: int, in both directions; 1 where padding is "SAME".
      padding: "SAME" or "VALID".

    Returns:
      [B, H', W', F].
    """
    if padding == "SAME" and stride != 1:
        raise ArgumentError(
            f'padding "SAME" needs stride 1 here; got {stride}. Pad before, use VALID.'
        )

    @tf.custom_gradient
    def convolution(x, kernel):
        def gradient(dy):
            dx = tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), stride, padding)
            return dx, weight_gradient(x, dy, kernel.shape[0], stride, padding)

        return tf.nn.conv2d(x, kernel, stride, padding), gradient

    return convolution(x, kernel)


def weight_gradient(x, dy, size, stride, padding):
    """dL/dkernel [k, k, C, F] of `conv2d`, from x [B, H, W, C] and dy [B, H', W', F]; k = size."""
    if padding == "SAME":
        before = (size - 1) // 2
        x = tf.pad(x, [[0, 0], *[[before, size - 1 - before]] * 2, [0, 0]])
    height, width = dy.shape[1], dy.shape[2]
    rows = tf.reshape(dy, [-1, dy.shape[-1]])  # [B H' W', F]
    products = []
    for i in range(size):
        for j in range(size):
            seen = x[
                :,
                i : i + stride * (height - 1) + 1 : stride,
                j : j + stride * (width - 1) + 1 : stride,
            ]
            seen = tf.reshape(seen, [-1, x.shape[-1]])  # [B H' W', C]
            products.append(tf.matmul(seen, rows, transpose_a=True))
    return tf.reshape(tf.stack(products), [size, size, x.shape[-1], dy.shape[-1]])
