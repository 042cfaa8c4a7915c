"""ResNet: parameter counts, layers written out by hand, stems, precision, saving."""

import json

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders import resnet
from simclr_tf.encoders.resnet import ResNet

SMALL = {"depth": 18, "width": 0.125}
SMALL_SK = {"depth": 50, "width": 0.0625, "sk_ratio": 0.0625}

# Trainable parameters of google-research/simclr's tf2/resnet.py, ImageNet stem: its model called on
# a [2, 224, 224, 3] placeholder, the sizes of trainable_weights added up.
OFFICIAL_PARAMETERS = {
    (18, 1, 0.0): 11_180_736,
    (50, 1, 0.0): 23_508_032,
    (50, 1, 0.0625): 35_215_584,
    (50, 2, 0.0): 93_907_072,
    (152, 3, 0.0625): 794_704_160,
}


def rand_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def scramble(model, seed=0):
    """Changes every weight at random; variances and gammas stay positive."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        noise = rng.normal(0, 0.1, weight.shape)
        positive = any(word in weight.name for word in ("gamma", "variance"))
        weight.assign(1 + np.abs(noise) if positive else weight + noise)
    return model


def conv_bn_parameters(kernel_size, inputs, outputs):
    return kernel_size**2 * inputs * outputs + 2 * outputs


def parameters_by_hand(depth, width, sk_ratio):
    """Trainable parameters with the ImageNet stem, added up block by block."""
    basic = depth in resnet.BASIC_BLOCKS
    counts = (resnet.BASIC_BLOCKS if basic else resnet.BOTTLENECK_BLOCKS)[depth]
    channels, half = round(64 * width), round(32 * width)
    total = conv_bn_parameters(7, 3, channels)
    if sk_ratio:
        total = conv_bn_parameters(3, 3, half)
        total += conv_bn_parameters(3, half, half) + conv_bn_parameters(3, half, channels)
    for group, count in enumerate(counts):
        f = round(64 * 2**group * width)
        out = f if basic else 4 * f
        for index in range(count):
            if index == 0:
                total += conv_bn_parameters(1, channels, out)
            if basic:
                total += conv_bn_parameters(3, channels, f) + conv_bn_parameters(3, f, f)
            else:
                total += conv_bn_parameters(1, channels, f) + conv_bn_parameters(1, f, out)
                total += conv_bn_parameters(3, f, 2 * f if sk_ratio else f)
            if sk_ratio:
                middle = max(int(f * sk_ratio), 32)
                total += conv_bn_parameters(1, f, middle) + middle * 2 * f
            channels = out
    return total


def trainable_parameters(model):
    return sum(np.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.parametrize("architecture", OFFICIAL_PARAMETERS)
def test_official_counts_follow_from_the_layers_added_up_by_hand(architecture):
    assert parameters_by_hand(*architecture) == OFFICIAL_PARAMETERS[architecture]


def test_depth_is_the_number_of_layers():
    """The stem's convolution, those of the blocks, and the classifier that is left out."""
    for table, convolutions in ((resnet.BASIC_BLOCKS, 2), (resnet.BOTTLENECK_BLOCKS, 3)):
        for depth, counts in table.items():
            assert 1 + convolutions * sum(counts) + 1 == depth


@pytest.mark.parametrize("depth, width, sk_ratio", [(18, 1, 0.0), (50, 1, 0.0), (50, 1, 0.0625)])
def test_models_have_the_official_parameter_counts(depth, width, sk_ratio):
    model = ResNet(depth, width, sk_ratio)
    model.build((None, 224, 224, 3))
    assert trainable_parameters(model) == OFFICIAL_PARAMETERS[depth, width, sk_ratio]


@pytest.mark.parametrize(
    "depth, width, sk_ratio", [(14, 0.3, 0.0), (34, 0.3, 0.0), (50, 0.3, 0.0), (50, 1 / 16, 0.0625)]
)
def test_any_width_and_depth_has_the_parameters_added_up_by_hand(depth, width, sk_ratio):
    model = ResNet(depth, width, sk_ratio, stem="imagenet")
    model.build((None, None, None, 3))
    assert trainable_parameters(model) == parameters_by_hand(depth, width, sk_ratio)


# ---- layers written out -------------------------------------------------------------------------


class ByHand:
    """The network's arithmetic in float64 NumPy, from named weights."""

    def __init__(self, model):
        # "resnet18/group1_block1_1_conv/kernel:0" -> ("group1_block1_1_conv", "kernel")
        self.weights = {
            tuple(_keras.variable_name(weight).split("/")[-2:]): weight.numpy().astype(np.float64)
            for weight in model.weights
        }

    def conv(self, x, name, stride=1):
        kernel = self.weights[f"{name}_conv", "kernel"]
        size = kernel.shape[0]
        before = (size - 1) // 2
        x = np.pad(x, ((0, 0), (before, size - 1 - before), (before, size - 1 - before), (0, 0)))
        rows = (x.shape[1] - size) // stride + 1
        columns = (x.shape[2] - size) // stride + 1
        out = np.empty((len(x), rows, columns, kernel.shape[3]))
        for i in range(rows):
            for j in range(columns):
                patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                out[:, i, j] = np.einsum("bhwc,hwcd->bd", patch, kernel)
        return out

    def norm(self, x, name, training):
        gamma, beta, mean, variance = (
            self.weights[f"{name}_bn", key]
            for key in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        if training:
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def conv_bn(self, x, name, training, stride=1):
        return self.norm(self.conv(x, name, stride), name, training)

    def conv_bn_relu(self, *args, **kwargs):
        return np.maximum(self.conv_bn(*args, **kwargs), 0)

    def basic_block(self, x, name, training, stride):
        y = self.conv_bn_relu(x, f"{name}_1", training, stride=stride)
        y = self.conv_bn(y, f"{name}_2", training)
        if (f"{name}_shortcut_conv", "kernel") in self.weights:
            x = self.conv_bn(x, f"{name}_shortcut", training, stride=stride)
        return np.maximum(x + y, 0)

    def selective_kernel(self, x, name, training, stride):
        both = self.conv_bn_relu(x, f"{name}_streams", training, stride=stride)
        a, b = np.split(both, 2, axis=-1)
        pooled = (a + b).mean(axis=(1, 2), keepdims=True)
        squeezed = self.conv_bn_relu(pooled, f"{name}_squeeze", training)
        logit_a, logit_b = np.split(self.conv(squeezed, f"{name}_excite"), 2, axis=-1)
        weight_a = 1 / (1 + np.exp(logit_b - logit_a))
        return weight_a * a + (1 - weight_a) * b

    def selective_bottleneck_block(self, x, name, training, stride):
        y = self.conv_bn_relu(x, f"{name}_1", training)
        y = self.selective_kernel(y, f"{name}_2", training, stride)
        y = self.conv_bn(y, f"{name}_3", training)
        if (f"{name}_shortcut_conv", "kernel") in self.weights:
            pooled = self.pool_by_two(x, stride)
            x = self.conv_bn(pooled, f"{name}_shortcut", training)
        return np.maximum(x + y, 0)

    def pool_by_two(self, x, stride):
        """2x2 means; beyond the lower right edge: zeros at stride 2, nothing at stride 1."""
        height, width = x.shape[1:3]
        out = np.empty((len(x), -(-height // stride), -(-width // stride), x.shape[3]))
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                window = x[:, i * stride : i * stride + 2, j * stride : j * stride + 2]
                pixels = 4 if stride == 2 else window.shape[1] * window.shape[2]
                out[:, i, j] = window.sum(axis=(1, 2)) / pixels
        return out


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("config, kind", [(SMALL, "basic"), (SMALL_SK, "selective_bottleneck")])
def test_network_equals_its_layers_written_out(config, kind, training):
    # Normalising over three pooled vectors multiplies rounding errors: float64 shows the rest.
    model = ResNet(**config, dtype="float64" if training else "float32")
    images = rand_images(3, 13, 10, 3)
    model(images)
    scramble(model)
    by_hand = ByHand(model)
    x = by_hand.conv_bn_relu(images.astype(np.float64), "stem", training)
    counts = {**resnet.BASIC_BLOCKS, **resnet.BOTTLENECK_BLOCKS}[config["depth"]]
    for group, count in enumerate(counts):
        for index in range(count):
            stride = 2 if group and not index else 1
            name = f"group{group + 1}_block{index + 1}"
            x = getattr(by_hand, f"{kind}_block")(x, name, training, stride)
    expected = x.mean(axis=(1, 2))
    h = model(images, training=training)
    np.testing.assert_allclose(h, expected, rtol=1e-5 if training else 1e-3, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_feature_dim_is_a_last_1x1_convolution_before_the_pooling(training):
    model = ResNet(14, width=0.125, feature_dim=24, dtype="float64" if training else "float32")
    images = rand_images(3, 13, 10, 3)
    model(images)
    by_hand = ByHand(scramble(model))
    x = model.stem_layers.call(tf.constant(images, model.dtype), training=training)
    for block in model.blocks[:-1]:
        x = block.call(x, training=training)
    x = by_hand.conv_bn_relu(x.numpy().astype(np.float64), "last", training)
    h = model(images, training=training)
    assert h.shape == (3, 24)
    np.testing.assert_allclose(h, x.mean(axis=(1, 2)), rtol=1e-5 if training else 1e-3, atol=1e-6)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    "config, names", [(SMALL, ["stem"]), (SMALL_SK, ["stem1", "stem2", "stem3"])]
)
def test_imagenet_stem_equals_its_layers_written_out(config, names):
    model = ResNet(**config, stem="imagenet")
    images = rand_images(2, 17, 22, 3)
    model(images)
    by_hand = ByHand(scramble(model))
    x = images.astype(np.float64)
    for index, name in enumerate(names):
        x = by_hand.conv_bn_relu(x, name, False, stride=1 if index else 2)
    expected = tf.nn.max_pool2d(x, 3, 2, padding="SAME")
    stem = model.stem_layers.call(tf.constant(images), training=False)
    np.testing.assert_allclose(stem, expected, rtol=1e-4, atol=1e-5)


def two_by_two_as_channels(images):
    """[B, H, W, 3] to [B, ceil(H / 2), ceil(W / 2), 12]; zeros fill up an odd side."""
    count, height, width, _ = images.shape
    out = np.zeros((count, -(-height // 2), -(-width // 2), 12))
    for row in range(height):
        for column in range(width):
            first = 3 * (2 * (row % 2) + column % 2)
            out[:, row // 2, column // 2, first : first + 3] = images[:, row, column]
    return out


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(16, 20), (13, 9)])
def test_space_to_depth_is_a_3x3_convolution_of_2x2_pixels_as_channels(size, training):
    model = ResNet(14, width=0.125, stem="space_to_depth")
    images = rand_images(2, *size, 3)
    model(images)
    by_hand = ByHand(scramble(model))
    kernel = by_hand.weights["stem_conv", "kernel"]
    assert kernel.shape == (6, 6, 3, 8)
    as_channels = np.zeros((3, 3, 12, 8))
    for i in range(6):
        for j in range(6):
            first = 3 * (2 * (i % 2) + j % 2)
            as_channels[i // 2, j // 2, first : first + 3] = kernel[i, j]
    by_hand.weights["stem_conv", "kernel"] = as_channels
    x = by_hand.conv_bn_relu(two_by_two_as_channels(images), "stem", training)
    stem = model.stem_layers.call(tf.constant(images), training=training)
    assert stem.shape[1:3] == (-(-size[0] // 2), -(-size[1] // 2))
    np.testing.assert_allclose(stem, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(12, 12), (11, 13)])
def test_space_to_depth_leaves_no_pixel_out(size):
    """Each value of the image changes the output of the stem."""
    model = ResNet(14, width=0.25, stem="space_to_depth")
    images = tf.constant(rand_images(1, *size, 3))
    model(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        y = model.stem_layers.steps[1](model.stem_layers.steps[0](images))  # padding, convolution
        total = tf.reduce_sum(y * tf.random.normal(y.shape, seed=1))
    assert np.all(tape.gradient(total, images).numpy() != 0)


def test_three_groups_start_at_half_the_resolution_and_end_in_256_filters():
    model = ResNet(14, width=0.25, stem="space_to_depth")
    model.build((None, 32, 32, 3))
    shapes = [block.output_shape_at_build[1:] for block in model.blocks[1::2]]
    assert shapes == [(16, 16, 16), (8, 8, 32), (4, 4, 64)]


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("config", [SMALL, SMALL_SK])
def test_every_residual_block_starts_as_its_shortcut(config):
    model = ResNet(**config)
    model.build((None, 16, 16, 3))
    block = model.blocks[1]  # has no projection
    channels = model.blocks[0].output_shape_at_build[-1]
    x = tf.constant(rand_images(2, 8, 8, channels))
    np.testing.assert_array_equal(block.call(x, training=True), x)


def test_gamma_starts_at_one_when_asked():
    model = ResNet(**SMALL, zero_init_residual=False)
    model.build((None, 16, 16, 3))
    gammas = [w for w in model.weights if "gamma" in w.name]
    assert all((gamma.numpy() == 1).all() for gamma in gammas)


# ---- stems and sizes ----------------------------------------------------------------------------


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    "size, stride", [((32, 32), 8), ((64, 64), 8), ((40, 64), 8), ((65, 65), 32), ((64, 96), 32)]
)
def test_auto_stem_is_for_cifar_up_to_64_pixels_on_the_longer_side(size, stride):
    model = ResNet(**SMALL)
    model.build((None, *size, 3))
    last = model.blocks[-1].output_shape_at_build
    assert last[1:3] == (-(-size[0] // stride), -(-size[1] // stride))


def test_a_stem_by_name_is_used_at_any_size():
    model = ResNet(**SMALL, stem="imagenet")
    model.build((None, 32, 32, 3))
    assert model.blocks[-1].output_shape_at_build[1:3] == (1, 1)


@pytest.mark.usefixtures("shallow")
def test_a_built_model_accepts_any_size():
    for config in (SMALL, SMALL_SK):
        model = ResNet(**config)
        for size in ((32, 32), (20, 48), (33, 17)):
            h = model(rand_images(2, *size, 3))
            assert h.shape == (2, model.feature_dim) and h.dtype == tf.float32


@pytest.mark.parametrize(
    "depth, width, expected", [(14, 1, 256), (18, 1, 512), (34, 0.5, 256), (50, 2, 4096)]
)
def test_feature_dim_is_known_before_building(depth, width, expected):
    model = ResNet(depth, width)
    assert model.feature_dim == expected and not model.built
    assert model.compute_output_shape((7, 32, 32, 3)) == (7, expected)


@pytest.mark.parametrize("depth", [14, 50])
def test_feature_dim_is_the_length_of_h(depth):
    model = ResNet(depth, width=1 / 16, feature_dim=np.int64(40))
    assert model.feature_dim == 40 and not model.built
    assert model(rand_images(2, 32, 32, 3)).shape == model.compute_output_shape((2, 32, 32, 3))
    plain = ResNet(depth, width=1 / 16)
    plain.build((None, 32, 32, 3))
    more = trainable_parameters(model) - trainable_parameters(plain)
    assert more == conv_bn_parameters(1, plain.feature_dim, 40)
    assert ResNet.from_config(json.loads(json.dumps(model.get_config()))).feature_dim == 40


def test_a_tiny_width_keeps_one_filter():
    model = ResNet(18, width=1e-4)
    assert model(rand_images(2, 16, 16, 3)).shape == (2, 1)


# ---- Keras --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {**SMALL, "stem": "space_to_depth"},
        {**SMALL_SK, "stem": "imagenet", "bn_momentum": 0.97},
    ],
)
def test_config_round_trip_keeps_everything(config):
    model = ResNet(**config, name="mine", dtype="mixed_bfloat16", trainable=False)
    again = ResNet.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert model.get_config().items() >= {**config, "name": "mine", "trainable": False}.items()
    assert again.dtype_policy.name == "mixed_bfloat16"


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("config", [SMALL, SMALL_SK])
def test_saved_after_its_first_call_and_loaded(config, tmp_path):
    model = ResNet(**config)
    images = rand_images(3, 20, 24, 3)
    model(images)
    scramble(model)
    model.save(tmp_path / "encoder.keras")
    loaded = keras.models.load_model(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("config", [SMALL, SMALL_SK])
def test_functional_copy_shares_weights_and_has_layers_of_keras_only(config):
    model = ResNet(**config)
    images = rand_images(3, 20, 24, 3)
    model(images)
    scramble(model)
    functional = model.to_functional((None, None, 3))
    assert {type(layer).__module__.split(".")[0] for layer in functional.layers} == {"keras"}
    assert {id(weight) for weight in functional.weights} == {id(weight) for weight in model.weights}
    for training in (False, True):
        # With Keras 3, the layers of the copy normalise batches by other kernels than the model.
        tolerance = 1e-3 if training and not _keras.IS_KERAS_2 else 0.0
        results = [each(images, training=training) for each in (functional, model)]
        np.testing.assert_allclose(*results, rtol=tolerance)
    keras.Model.from_config(functional.get_config())  # no layer in it needs this package


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("config", [SMALL, SMALL_SK])
def test_h_is_float32_under_mixed_precision_and_close_to_float32(config, policy):
    images = rand_images(4, 16, 16, 3)
    reference = ResNet(**config)
    expected = reference(images)
    model = ResNet(**config, dtype=policy)
    model.build((None, 16, 16, 3))
    model.set_weights(reference.get_weights())
    h = model(images)
    assert h.dtype == tf.float32 and model.blocks[0].relu.compute_dtype == policy[6:]
    np.testing.assert_allclose(h, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.usefixtures("shallow")
def test_xla_equals_eager_execution():
    for config in (SMALL, SMALL_SK):
        model = ResNet(**config)
        images = rand_images(4, 16, 16, 3)
        expected = model(images)
        compiled = tf.function(model, jit_compile=True)
        np.testing.assert_allclose(compiled(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("shallow")
def test_batch_norm_is_synchronised_between_replicas_only():
    """Two replicas of 2 images equal one of 4; one replica uses the fused kernel."""
    images = rand_images(4, 8, 8, 3)
    alone = ResNet(18, width=1 / 64)
    alone(images)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        shared = ResNet(18, width=1 / 64)
    halves = strategy.experimental_distribute_dataset(
        tf.data.Dataset.from_tensor_slices(images).batch(4)
    )
    run = tf.function(lambda x: strategy.run(shared, args=(x,), kwargs={"training": True}))
    for batch in halves:
        with strategy.scope():
            shared.build((None, 8, 8, 3))
        shared.set_weights(alone.get_weights())
        h = tf.concat(strategy.experimental_local_results(run(batch)), axis=0)
    np.testing.assert_allclose(h, alone(images, training=True), rtol=1e-3, atol=1e-4)
    norms = [
        [layer for layer in model._flatten_layers() if layer.name.endswith("_bn")]
        for model in (alone, shared)
    ]
    if _keras.IS_KERAS_2:
        assert all(layer.fused for layer in norms[0])
    assert not any(layer.synchronized for layer in norms[0])
    assert all(layer.synchronized for layer in norms[1])


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"depth": 20}, "depth must be one of 14, 18, 34, 50, 101, 152, 200; got 20"),
        ({"depth": 18, "width": 0}, "width must be a finite number above 0; got 0"),
        ({"depth": 18, "width": float("nan")}, "width must be a finite number above 0; got nan"),
        ({"depth": 50, "sk_ratio": -1}, "sk_ratio must be a finite number of at least 0; got -1"),
        ({"depth": 34, "sk_ratio": 0.0625}, "sk_ratio above 0 needs bottleneck blocks"),
        (
            {"depth": 14, "feature_dim": 0},
            "feature_dim must be a whole number of at least 1; got 0",
        ),
        ({"depth": 14, "feature_dim": 1.5}, "feature_dim must be a whole number of at least 1"),
        (
            {"depth": 18, "stem": "small"},
            "stem must be one of auto, cifar, imagenet, space_to_depth; got 'small'",
        ),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_auto_stem_without_a_size_asks_for_one():
    with pytest.raises(ValueError, match='stem="auto" needs the height and width'):
        ResNet(18).build((None, None, None, 3))


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match=r"takes float images in \[0, 1\]; got uint8"):
        ResNet(**SMALL)(np.zeros((2, 16, 16, 3), np.uint8))


def test_names_in_files_of_weights_stay(tmp_path):
    """Keras names layers in a list by their class: with another name, older files do not load."""
    model = ResNet(14, width=1 / 16, feature_dim=4)
    model.build((None, 8, 8, 3))
    model.save_weights(tmp_path / "all.weights.h5")
    with h5py.File(tmp_path / "all.weights.h5") as file:
        names = []
        file.visit(names.append)
    assert {"private__chain", "__chain"} & {part for name in names for part in name.split("/")}
