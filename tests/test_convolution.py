"""The weight gradient by matrix products equals TensorFlow's."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import ResNet
from simclr_tf.encoders import convolution


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (1, 1, "SAME"),
        (3, 1, "SAME"),
        (1, 2, "VALID"),
        (3, 2, "VALID"),
        (7, 2, "VALID"),
        (4, 1, "SAME"),
    ],
)
def test_both_gradients_are_tensorflows(size, stride, padding):
    """And so does the output, in float32, on images that are not square."""
    x = tf.random.normal([3, 9, 12, 5])
    kernel = tf.random.normal([size, size, 5, 4])
    results = []
    for conv2d in (convolution.conv2d, tf.nn.conv2d):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = conv2d(x, kernel, stride, padding)
            value = tf.reduce_sum(tf.sin(y))
        results.append([y, *tape.gradient(value, [x, kernel])])
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_resnet_in_bfloat16_has_the_same_gradient_either_way(monkeypatch):
    """For every weight, up to bfloat16's rounding; layers with few channels use TensorFlow's."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    encoder = ResNet(18, width=0.25, zero_init_residual=False)
    images = tf.random.uniform([16, 16, 16, 3])
    encoder.build((None, 16, 16, 3))
    used = []
    weight_gradient = convolution.weight_gradient
    monkeypatch.setattr(
        convolution,
        "weight_gradient",
        lambda x, *rest: used.append(x.shape) or weight_gradient(x, *rest),
    )

    def gradients(least):
        monkeypatch.setattr(convolution, "is_deep", lambda side, channels, _: channels >= least)
        with tf.GradientTape() as tape:
            h = encoder(images, training=True)
            loss = tf.reduce_mean(tf.square(h - 0.5))
        return [g.numpy() for g in tape.gradient(loss, encoder.trainable_variables)]

    stock = gradients(10**6)
    assert not used
    products = gradients(64)
    # 3x3 kernels of the second half: three of 64 channels; 64 to 128 with stride 2; three of 128.
    assert len(used) == 7 and {shape[-1] for shape in used} == {64, 128}
    for ours, theirs in zip(products, stock):
        assert np.linalg.norm(ours - theirs) <= 0.03 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("side", "channels", "size", "stride", "faster"),
    [
        (8, 128, 3, 1, True),
        (8, 64, 3, 1, False),
        (16, 128, 3, 1, False),
        (8, 64, 3, 2, True),
        (16, 128, 3, 2, True),
        (16, 64, 3, 2, False),
        (4, 32, 3, 2, False),
        (4, 256, 3, 4, False),
        (8, 256, 1, 2, False),
    ],
)
def test_products_are_used_where_they_were_measured_to_be_faster(
    side, channels, size, stride, faster
):
    """benchmarks/convolution.py; padded as in a ResNet. In float32 none are."""
    padding, margin = ("same", 0) if stride == 1 else ("valid", 2 * (size // 2))
    layer = keras.layers.Conv2D(4, size, stride, padding=padding, use_bias=False)
    shape = [2, side + margin, side + margin, channels]
    layer.build(shape)
    assert convolution.has_faster_gradient(layer, tf.zeros(shape, tf.bfloat16)) == faster
    assert not convolution.has_faster_gradient(layer, tf.zeros(shape))


def test_same_padding_with_a_stride_is_refused():
    """Because TensorFlow's SAME padding then depends on the size of the image."""
    with pytest.raises(ValueError, match="needs stride 1 here; got 2"):
        convolution.conv2d(tf.zeros([1, 4, 4, 1]), tf.zeros([3, 3, 1, 1]), 2, "SAME")


def strided_convolution(channels, pixels):
    """A 1x1 convolution with stride 2, and images for it."""
    layer = tf.keras.layers.Conv2D(5, 1, 2, use_bias=False)
    images = tf.random.uniform([4, pixels, pixels, channels])
    layer.build(images.shape)
    return layer, images


@pytest.mark.parametrize("pixels", [8, 9])
def test_every_second_pixel_gives_the_strided_convolution(pixels):
    """Output and both gradients, at a size where TensorFlow's own kernel is sound."""
    layer, images = strided_convolution(15, pixels)
    assert convolution.writes_past_its_memory(layer, images)
    results = []
    for function in (layer, lambda x: convolution.subsample_and_convolve(layer, x)):
        with tf.GradientTape() as tape:
            tape.watch(images)
            output = function(images)
            loss = tf.reduce_sum(tf.square(output))
        results.append([output, *tape.gradient(loss, [images, layer.kernel])])
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_other_convolutions_are_left_alone():
    """16 channels and more, stride 1, larger kernels."""
    layer, images = strided_convolution(16, 8)
    assert not convolution.writes_past_its_memory(layer, images)
    assert not convolution.writes_past_its_memory(tf.keras.layers.Conv2D(5, 3, 2), images[..., :4])
    assert not convolution.writes_past_its_memory(tf.keras.layers.Conv2D(5, 1, 1), images[..., :4])


THIN = """
import numpy as np, tensorflow as tf
from simclr_tf import ResNet
encoder = ResNet(18, width={width}, stem={stem!r})
images = tf.constant(np.random.default_rng(0).random([64, {size}, {size}, 3], np.float32))
for _ in range(3):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(encoder(images, training=True))
    tape.gradient(loss, encoder.trainable_variables)
"""


@pytest.mark.parametrize(
    ("width", "size", "stem"),
    [
        (0.125, 48, "cifar"),
        pytest.param(0.0625, 48, "cifar", marks=pytest.mark.slow),
        pytest.param(0.125, 64, "cifar", marks=pytest.mark.slow),
        pytest.param(0.0625, 64, "cifar", marks=pytest.mark.slow),
        pytest.param(0.1875, 96, "cifar", marks=pytest.mark.slow),
        pytest.param(0.125, 224, "imagenet", marks=pytest.mark.slow),
        pytest.param(0.0625, 224, "imagenet", marks=pytest.mark.slow),
    ],
)
def test_a_thin_resnet_does_not_end_the_process(width, size, stem):
    """Each in a process of its own: TensorFlow's kernel corrupted its heap."""
    code = THIN.format(width=width, size=size, stem=stem)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-500:]
