"""Convolutions as matrix products, in training on a CPU, where oneDNN's kernels are slower.

- A 1x1 convolution is one product, and so is one of 3x3 or more of images of at most 2x2 pixels,
  whose kernel is mostly on the padding. `multiply` computes it, forward and both gradients, in
  bfloat16 and float32.
- oneDNN takes up to nine times as long for the weight gradient of a deep 3x3 layer as for its
  forward pass when the activations have few pixels and many channels (4x4x128, for example).
  `convolve` computes it by products: one for each position in the kernel with stride 1, in
  bfloat16; one of all patches with a larger stride, where these are few, also in float32. The
  forward pass and the gradient with respect to the input are TensorFlow's own.

benchmarks/convolution.py compares them, and tests/test_convolution.py the numbers.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from simclr_tf.devices import on_cpu
from simclr_tf.errors import ArgumentError

# Where the products of `convolve` are faster (benchmarks/convolution.py): many channels, few
# pixels. For each stride, the least channels of the input, and the least for each pixel of the
# output's side.
MIN_CHANNELS = {1: (128, 16), 2: (64, 4)}
# The longest side of the images of a 1x1 layer for which `multiply` is faster; the same table.
MAX_SIDE = 16
_DTYPES = (tf.bfloat16, tf.float32)


def for_training(layer, x):
    """The function that computes a layer in training, by its shape, its dtype and the device.

    Args:
        layer: a `keras.layers.Conv2D`, built.
        x: float [B, H, W, C], the layer's input in its compute dtype.

    Returns:
        A function of (layer, x), or None where that is the layer itself.
    """
    if layer.use_bias or layer.data_format != "channels_last" or x.shape.rank != 4 or not on_cpu():
        return None
    if is_one_product(layer, x):
        return multiply
    if has_faster_gradient(layer, x):
        return convolve
    return subsample_and_convolve if writes_past_its_memory(layer, x) else None


def is_one_product(layer, x):
    """Whether `multiply` computes a layer without bias, and faster than the layer does on a CPU.

    Args:
        layer: a `keras.layers.Conv2D` without bias, built.
        x: float [B, H, W, C], the layer's input in its compute dtype.
    """
    if x.dtype not in _DTYPES or not _is_plain(layer) or layer.strides != (1, 1):
        return False
    if None in x.shape[1:]:
        return False
    if layer.kernel_size == (1, 1):
        return max(x.shape[1:3]) <= MAX_SIDE
    return max(x.shape[1:3]) <= 2 and layer.padding == "same" and min(layer.kernel_size) > 2


def _is_plain(layer):
    return layer.groups == 1 and layer.dilation_rate == (1, 1)


def multiply(layer, x):
    """Computes `layer(x)` of a layer that `is_one_product`.

    Args:
        layer: a `keras.layers.Conv2D` without bias, built.
        x: float [B, H, W, C] in the layer's compute dtype.

    Returns:
        [B, H, W, F] in the same dtype.
    """
    kernel = tf.cast(tf.convert_to_tensor(layer.kernel), x.dtype)
    if layer.kernel_size == (1, 1):
        return tf.tensordot(x, kernel[0, 0], 1)
    _, height, width, channels = x.shape
    rows = tf.reshape(x, [-1, height * width * channels])
    y = tf.matmul(rows, matrix_of(kernel, height, width))
    return tf.reshape(y, [-1, height, width, kernel.shape[-1]])


def matrix_of(kernel, height, width):
    """The matrix of a convolution with stride 1 and padding "SAME" of images of at most 2x2 pixels.

    Args:
        kernel: float [k, l, C, F], k and l at least 3.
        height, width: 1 or 2, of the images.

    Returns:
        [height * width * C, height * width * F] in the same dtype: the flattened images times it
        are the flattened outputs. Its gradient is summed in float32.
    """
    centre = [(dimension - 1) // 2 for dimension in kernel.shape[:2]]
    pixels = [(i, j) for i in range(height) for j in range(width)]
    channels, filters = kernel.shape[2:]

    def tap(source, target):
        """The position in the kernel that takes a pixel of the image to one of the output."""
        return centre[0] + source[0] - target[0], centre[1] + source[1] - target[1]

    @tf.custom_gradient
    def matrix(kernel):
        def gradient(d_matrix):
            blocks = tf.reshape(d_matrix, [len(pixels), channels, len(pixels), filters])
            terms = {}
            for s, source in enumerate(pixels):
                for t, target in enumerate(pixels):
                    block = tf.cast(blocks[s, :, t], tf.float32)
                    terms.setdefault(tap(source, target), []).append(block)
            zero = tf.zeros([channels, filters])
            positions = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
            sums = tf.stack([tf.add_n(terms.get(position, [zero])) for position in positions])
            return tf.cast(tf.reshape(sums, kernel.shape), d_matrix.dtype)

        rows = [[kernel[tap(source, target)] for target in pixels] for source in pixels]
        return tf.concat([tf.concat(row, 1) for row in rows], 0), gradient

    return matrix(kernel)


def has_faster_gradient(layer, x):
    """Whether `convolve` is faster in training than a layer without bias on a CPU.

    Args:
        layer: a `keras.layers.Conv2D` without bias, built.
        x: float [B, H, W, C], the layer's input in its compute dtype.
    """
    return (
        x.dtype in ((tf.bfloat16,) if layer.strides == (1, 1) else _DTYPES)
        and layer.strides[0] == layer.strides[1]
        and layer.kernel_size[0] == layer.kernel_size[1] > 1
        and (layer.strides == (1, 1) or layer.padding == "valid")
        and None not in x.shape[1:]
        and is_deep(max(layer.compute_output_shape(x.shape)[1:3]), x.shape[-1], layer.strides[0])
        and _is_plain(layer)
    )


def writes_past_its_memory(layer, x):
    """Whether TensorFlow's kernel for this layer's weight gradient corrupts the heap, without bias.

    oneDNN's does, in TensorFlow 2.15.1 on a CPU in float32, for a 1x1 convolution with stride 2 and
    15 input channels or fewer: from 48 pixels on with 8 channels, from 80 pixels on with 9 to 15,
    not with 16 to 31 (batches of 32 and 64, 24 to 224 pixels).
    """
    return (
        tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.strides) == (2, 2)
        and x.shape[-1] is not None
        and x.shape[-1] < 16
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
    height, width = dy.shape[1], dy.shape[2]
    if stride > 1:
        patches = _patches(x, size, stride, height, width)
        return tf.reshape(tf.matmul(patches, rows, transpose_a=True), shape)
    products = []
    for i in range(size):
        for j in range(size):
            window = x[:, i : i + height, j : j + width]
            window = tf.reshape(window, [-1, x.shape[-1]])  # [B H' W', C]
            products.append(tf.matmul(window, rows, transpose_a=True))
    return tf.reshape(tf.stack(products), shape)


def _patches(x, size, stride, height, width):
    """The pixels of x [B, H, W, C] that each of height * width outputs sees, [B H' W', k k C].

    `tf.gather` takes a fourth of the time of `tf.image.extract_patches`.
    """
    i, j, a, b = np.ogrid[:height, :width, :size, :size]
    pixels = (stride * i + a) * x.shape[2] + stride * j + b  # [H', W', k, k], in row-major order
    flat = tf.reshape(x, [-1, x.shape[1] * x.shape[2], x.shape[3]])
    return tf.reshape(tf.gather(flat, pixels.ravel(), axis=1), [-1, size * size * x.shape[3]])
