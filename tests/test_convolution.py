"""Convolutions by matrix products equal TensorFlow's, outputs and gradients."""

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


@pytest.mark.parametrize(
    ("sides", "kernel"),
    [
        ((2, 2), (3, 3)),
        ((1, 1), (3, 3)),
        ((1, 2), (3, 5)),
        ((2, 1), (4, 3)),
        ((2, 2), (7, 7)),
        ((9, 12), (1, 1)),
    ],
)
def test_one_product_is_the_layer(sides, kernel):
    """Output and both gradients, in float32."""
    layer = keras.layers.Conv2D(4, kernel, padding="same", use_bias=False)
    x = tf.random.normal([3, *sides, 5])
    layer.build(x.shape)
    assert convolution.is_one_product(layer, x)
    results = []
    for function in (layer, lambda x: convolution.multiply(layer, x)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            value = tf.reduce_sum(tf.sin(y))
        results.append([y, *tape.gradient(value, [x, *layer.trainable_variables])])
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def gradients_of(policy, images):
    """Gradients of every weight of a ResNet, always the same one; list of arrays."""
    keras.mixed_precision.set_global_policy(policy)
    keras.utils.set_random_seed(0)
    encoder = ResNet(18, width=0.5, feature_dim=256, zero_init_residual=False)
    encoder.build((None, 16, 16, 3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(encoder(images, training=True) - 0.5))
    return [g.numpy() for g in tape.gradient(loss, encoder.trainable_variables)]


def test_a_resnet_has_the_same_gradient_either_way(monkeypatch):
    """For every weight: in float32; in bfloat16 as close to that as with TensorFlow's kernels."""
    images = tf.random.uniform([16, 16, 16, 3])
    used = []
    for name in ("multiply", "convolve"):
        function = getattr(convolution, name)
        monkeypatch.setattr(
            convolution, name, lambda layer, x, f=function: used.append(f.__name__) or f(layer, x)
        )
    ours = gradients_of("float32", images)
    # `multiply`: three 3x3 layers at 2 pixels; 1x1: the first shortcut and the last layer.
    # `convolve`: with stride 2 to 128 and 256 filters; in bfloat16 three of 128 at 4 pixels too.
    assert (used.count("multiply"), used.count("convolve")) == (5, 2)
    used.clear()
    rounded = gradients_of("mixed_bfloat16", images)
    assert (used.count("multiply"), used.count("convolve")) == (5, 5)
    monkeypatch.setattr(convolution, "for_training", lambda layer, x: None)
    exact, theirs = (gradients_of(policy, images) for policy in ("float32", "mixed_bfloat16"))
    for mine, same in zip(ours, exact):
        assert np.linalg.norm(mine - same) <= 1e-4 * np.linalg.norm(same)
    errors = [
        np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(each, exact)])
        for each in (rounded, theirs)
    ]
    assert errors[0].max() < 1.2 * errors[1].max() and errors[0].mean() < 1.1 * errors[1].mean()
    assert (errors[0] < 2 * errors[1]).all()


@pytest.mark.parametrize(
    ("side", "channels", "size", "stride", "bfloat16", "float32"),
    [
        (8, 128, 3, 1, "convolve", None),
        (8, 64, 3, 1, None, None),
        (16, 128, 3, 1, None, None),
        (2, 16, 3, 1, "multiply", "multiply"),
        (1, 16, 3, 1, "multiply", "multiply"),
        (3, 64, 3, 1, None, None),
        (2, 16, 2, 1, None, None),
        (16, 16, 1, 1, "multiply", "multiply"),
        (32, 16, 1, 1, None, None),
        (8, 64, 3, 2, "convolve", "convolve"),
        (32, 64, 3, 2, "convolve", "convolve"),
        (64, 64, 3, 2, None, None),
        (4, 32, 3, 2, None, None),
        (4, 256, 3, 4, None, None),
        (8, 256, 1, 2, None, None),
    ],
)
def test_products_are_used_where_they_were_measured_to_be_faster(
    side, channels, size, stride, bfloat16, float32
):
    """benchmarks/convolution.py; padded as in a ResNet."""
    padding, margin = ("same", 0) if stride == 1 else ("valid", 2 * (size // 2))
    layer = keras.layers.Conv2D(4, size, stride, padding=padding, use_bias=False)
    shape = [2, side + margin, side + margin, channels]
    layer.build(shape)
    for dtype, name in ((tf.bfloat16, bfloat16), (tf.float32, float32), (tf.float64, None)):
        function = convolution.for_training(layer, tf.zeros(shape, dtype))
        assert function is (name and getattr(convolution, name))


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_bias": True},
        {"groups": 2},
        {"dilation_rate": 2},
        {"kernel_size": (2, 3)},
        {"strides": (2, 1), "padding": "valid", "size": 8},
        {"strides": 2, "size": 8},
        {"kernel_size": (3, 5), "strides": 2, "padding": "valid", "size": 8},
    ],
)
def test_what_the_products_do_not_compute_is_left_to_keras(arguments):
    """At sizes where they would be faster."""
    arguments = {"kernel_size": 3, "padding": "same", "use_bias": False, **arguments}
    size = arguments.pop("size", 2)
    layer = keras.layers.Conv2D(4, **arguments)
    images = tf.zeros([2, size, size, 256])
    layer.build(images.shape)
    assert convolution.for_training(layer, images) is None


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
