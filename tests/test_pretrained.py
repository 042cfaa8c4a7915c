"""Official models loaded: names, architecture, errors; and compared with the official code.

Files of the official form are written here from weights of our models, with the object graph of the
official model; a hash of the names in a file of the official code checks that they are the same.
"""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import _keras, export, pretrained
from simclr_tf.encoders import resnet
from simclr_tf.heads import ProjectionHead

BASIC = {"depth": 18, "width": 1 / 16}
BOTTLENECK = {"depth": 50, "width": 1 / 16}
SELECTIVE = {"depth": 50, "width": 1 / 16, "sk_ratio": 0.0625}

# Of the official code at commit 383d414, TensorFlow 2.15: its Model called on images of 32 pixels
# (18 layers) or 64 (50 with sk_ratio 0.0625), saved as tf.train.Checkpoint(model=model). The number
# of names below model/, and the SHA-256 of those names, sorted, a line each.
OFFICIAL_NAMES = {
    18: (121, "b308babbcb82156601b2c4db792faf976e3932f9c2f7a2383b955116aaafd6da"),
    50: (387, "e3bd558a0389f48159a2918cd11f40443c2e14302cbcdae9ddd2cc9f72dee59c"),
}


# ---- files of the official form ------------------------------------------------------------------


def node(**children):
    """An object with named children, as a checkpoint sees a Keras layer."""
    made = tf.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


class Official:
    """The official model as a tree of objects, with the weights of our encoder and heads."""

    def __init__(self, encoder, head=None, linear=None):
        self.ours = {
            layer.name: layer
            for model in (encoder, head, linear)
            if model is not None
            for layer in _keras.all_layers(model)
        }
        self.selective = encoder.sk_ratio > 0
        self.basic = encoder.depth in resnet.BASIC_BLOCKS
        counts = {**resnet.BASIC_BLOCKS, **resnet.BOTTLENECK_BLOCKS}[encoder.depth]
        self.model = node(
            resnet_model=node(
                initial_conv_relu_max_pool=self.stem(),
                block_groups=[
                    node(layers=[self.block(group, index) for index in range(count)])
                    for group, count in enumerate(counts)
                ],
            ),
            _projection_head=node(linear_layers=self.linear_layers(head)),
        )
        if linear is not None:
            dense = self.take("linear_head")
            self.model.supervised_head = node(linear_layer=node(dense=dense))

    def take(self, name):
        weights = self.ours[name].weights
        variables = {_keras.variable_name(w).split("/")[-1]: w for w in weights}
        return node(
            **{
                key: tf.Variable(tf.convert_to_tensor(value), name=key)
                for key, value in variables.items()
            }
        )

    def conv(self, name):
        return node(conv2d=self.take(f"{name}_conv"))

    def norm(self, name):
        return node(bn=self.take(f"{name}_bn"))

    def stem(self):
        identity = max_pool = node()
        if "stem3_conv" in self.ours:
            names = ("stem1", "stem2", "stem3")
            one, two, three = ((self.conv(name), self.norm(name)) for name in names)
            return [*one, *two, three[0], identity, three[1], max_pool, identity]
        return [self.conv("stem"), identity, self.norm("stem"), max_pool, identity]

    def block(self, group, index):
        name = f"group{group + 1}_block{index + 1}"
        shortcut = self.shortcut(f"{name}_shortcut", group) if index == 0 else []
        one = [self.conv(f"{name}_1"), self.norm(f"{name}_1")]
        if self.basic:
            two = [self.conv(f"{name}_2"), self.norm(f"{name}_2")]
            return node(conv2d_bn_layers=[*one, *two], shortcut_layers=shortcut)
        three = [self.conv(f"{name}_3"), self.norm(f"{name}_3")]
        drop_block = node()
        if self.selective:
            two = [self.selective_kernel(f"{name}_2")]
        else:
            two = [self.conv(f"{name}_2"), self.norm(f"{name}_2")]
        layers = [*one, drop_block, *two, drop_block, *three, drop_block]
        return node(conv_relu_dropblock_layers=layers, projection_layers=shortcut)

    def selective_kernel(self, name):
        return node(
            conv2d_fixed_padding=self.conv(f"{name}_streams"),
            batch_norm_relu=self.norm(f"{name}_streams"),
            conv2d_0=self.take(f"{name}_squeeze_conv"),
            batch_norm_relu_1=self.norm(f"{name}_squeeze"),
            conv2d_1=self.take(f"{name}_excite_conv"),
        )

    def shortcut(self, name, group):
        padding = average_pool = node()
        before = [] if not self.selective else [padding, average_pool] if group else [average_pool]
        return [*before, self.conv(name), self.norm(name)]

    def linear_layers(self, head):
        count = head.layers if head is not None else 0
        return [
            node(dense=self.take(f"dense{j}"), bn_relu=node(bn=self.take(f"bn{j}")))
            for j in range(1, count + 1)
        ]

    def save_checkpoint(self, directory):
        """As the official training loop does: with a step's counters and the optimizer's slots."""
        optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
        kernel = self.model.resnet_model.initial_conv_relu_max_pool[0].conv2d.kernel
        optimizer.apply_gradients([(tf.zeros(kernel.shape), kernel)])
        step = tf.Variable(1, dtype=tf.int64)
        checkpoint = tf.train.Checkpoint(model=self.model, global_step=step, optimizer=optimizer)
        return tf.train.CheckpointManager(checkpoint, str(directory), max_to_keep=5).save(7)

    def save_saved_model(self, directory):
        """As its export does: the model, and a list of its trainable variables."""
        module = node(model=self.model)
        module.trainable_variables_list = [v for v in module.variables if "moving" not in v.name]
        tf.saved_model.save(module, str(directory))
        return str(directory)


def scrambled(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def an_encoder(size=32, **config):
    encoder = simclr_tf.ResNet(**config)
    encoder.build((None, size, size, 3))
    return scrambled(encoder)


def a_head(inputs, **config):
    head = ProjectionHead(**config)
    head.build((None, inputs))
    return scrambled(head, seed=1)


def a_linear_head(inputs, classes=5):
    linear = keras.layers.Dense(classes, name="linear_head")
    linear.build((None, inputs))
    return scrambled(linear, seed=2)


def assert_same_weights(model, expected):
    assert len(model.weights) == len(expected.weights) > 0
    for ours, theirs in zip(model.weights, expected.weights):
        np.testing.assert_array_equal(ours, theirs)


def names(prefix):
    ending = "/.ATTRIBUTES/VARIABLE_VALUE"
    keys = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    keys = [key for key in keys if key.startswith("model/") and key.endswith(ending)]
    return sorted(key[: -len(ending)] for key in keys if ".OPTIMIZER_SLOT" not in key)


@pytest.mark.parametrize("config, size", [(BASIC, 32), (SELECTIVE, 96)])
def test_the_files_made_here_have_the_official_names(config, size, tmp_path):
    """The hash of every name equals that of the official code's own file."""
    encoder = an_encoder(size, **config)
    dimension = encoder.feature_dim
    official = Official(encoder, a_head(dimension, layers=3), a_linear_head(dimension))
    found = names(official.save_checkpoint(tmp_path))
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    assert (len(found), digest) == OFFICIAL_NAMES[config["depth"]]


# ---- what is loaded ------------------------------------------------------------------------------


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    "config, size, stem, kind",
    [
        (BASIC, 32, "cifar", "checkpoint"),
        (BASIC, 96, "imagenet", "saved_model"),
        (BOTTLENECK, 32, "cifar", "saved_model"),
        (BOTTLENECK, 96, "imagenet", "checkpoint"),
        (SELECTIVE, 32, "cifar", "checkpoint"),
        (SELECTIVE, 96, "imagenet", "saved_model"),
    ],
)
def test_every_weight_is_loaded(config, size, stem, kind, tmp_path):
    """Encoder and heads have the file's architecture and exactly its weights."""
    encoder = an_encoder(size, **config)
    dimension = encoder.feature_dim
    head, linear = a_head(dimension, layers=3, output_dim=6), a_linear_head(dimension)
    path = getattr(Official(encoder, head, linear), f"save_{kind}")(tmp_path)
    read = pretrained.from_official(path)
    assert read.encoder.get_config().items() >= {**config, "stem": stem}.items()
    assert read.encoder.built_shape == (None, *((32, 32) if stem == "cifar" else (224, 224)), 3)
    assert_same_weights(read.encoder, encoder)
    assert_same_weights(read.projection_head, head)
    assert_same_weights(read.linear_head, linear)


@pytest.mark.parametrize("depth", [34, pytest.param(101, marks=pytest.mark.slow)])
def test_depth_is_inferred_from_the_blocks(depth, tmp_path):
    encoder = an_encoder(8, depth=depth, width=1 / 64)
    path = Official(encoder).save_checkpoint(tmp_path)
    assert pretrained.from_official(path).encoder.depth == depth


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("width, sk_ratio", [(1, 0.0625), (1 / 4, 0.5), (1 / 8, 0.0625)])
def test_width_and_sk_ratio_are_inferred_from_the_shapes(width, sk_ratio, tmp_path):
    encoder = an_encoder(depth=50, width=width, sk_ratio=sk_ratio)
    path = Official(encoder).save_checkpoint(tmp_path)
    read = pretrained.from_official(path).encoder
    assert (read.width, read.sk_ratio) == (width, sk_ratio)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("config", [{"layers": 2}, {"layers": 3, "hidden_dim": 9}])
def test_heads_of_other_forms(config, tmp_path):
    encoder = an_encoder(**BASIC)
    head = a_head(encoder.feature_dim, output_dim=6, **config)
    path = Official(encoder, head).save_saved_model(tmp_path)
    read = pretrained.from_official(path)
    assert_same_weights(read.projection_head, head)
    assert read.projection_head.get_config().items() >= {"output_dim": 6, **config}.items()
    assert read.linear_head is None


@pytest.mark.usefixtures("shallow")
def test_without_heads_there_is_none(tmp_path):
    encoder = an_encoder(**BASIC)
    read = pretrained.from_official(Official(encoder).save_saved_model(tmp_path))
    assert read == (read.encoder, None, None)
    assert_same_weights(read.encoder, encoder)


@pytest.mark.usefixtures("shallow")
def test_a_head_of_any_form_can_be_ignored(tmp_path):
    """A linear projection head is refused, and the message says how to load the rest."""
    encoder = an_encoder(**BASIC)
    official = Official(encoder, a_head(encoder.feature_dim))
    official.model._projection_head.linear_layers = official.linear_layers(a_head(9))[:1]
    path = official.save_saved_model(tmp_path)
    with pytest.raises(ValueError, match=r"must have 2 or 3 layers; .* has 1. projection_head=Fal"):
        pretrained.from_official(path)
    read = pretrained.from_official(path, projection_head=False)
    assert read.projection_head is None
    assert_same_weights(read.encoder, encoder)


@pytest.mark.usefixtures("shallow")
def test_every_way_to_name_the_files(tmp_path):
    """A prefix, its .index file, the directory; the SavedModel, its .pb file; the bare model."""
    encoder = an_encoder(**BASIC)
    official = Official(encoder)
    prefix = official.save_checkpoint(tmp_path / "run")
    saved = official.save_saved_model(tmp_path / "saved")
    bare = tf.train.Checkpoint(official.model).write(str(tmp_path / "bare"))
    index, directory = f"{prefix}.index", tmp_path / "run"
    for path in (prefix, index, directory, f"{saved}/", f"{saved}/saved_model.pb", bare):
        assert_same_weights(pretrained.from_official(path).encoder, encoder)


@pytest.mark.usefixtures("shallow")
def test_a_loaded_model_works_like_any_other(tmp_path):
    """SimCLR takes encoder and head; the encoder is exported at the size that was asked for."""
    encoder = an_encoder(**BASIC)
    path = Official(encoder, a_head(encoder.feature_dim)).save_saved_model(tmp_path / "official")
    read = pretrained.from_official(path, image_size=24)
    images = np.random.default_rng(0).random((2, 24, 24, 3), dtype=np.float32)
    model = simclr_tf.SimCLR(read.encoder, read.projection_head)
    assert model.project(images).shape == (2, 128)
    served = tf.saved_model.load(export.export_encoder(read.encoder, tmp_path / "1"))
    pixels = np.zeros((1, 24, 24, 3), np.uint8)
    embedding = served.signatures["serving_default"](tf.constant(pixels))["embedding"]
    expected = encoder(pixels.astype(np.float32))
    np.testing.assert_allclose(embedding, expected, rtol=1e-4)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def official(shallow):
    encoder = an_encoder(**BASIC)
    return Official(encoder, a_head(encoder.feature_dim), a_linear_head(encoder.feature_dim))


@pytest.mark.parametrize("kind", ["checkpoint", "saved_model"])
def test_a_superfluous_variable_is_named(official, kind, tmp_path):
    block = official.model.resnet_model.block_groups[1].layers[0]
    block.se_layer = node(se_reduce=node(kernel=tf.Variable([1.0], name="se_reduce_kernel")))
    path = getattr(official, f"save_{kind}")(tmp_path)
    message = r"has variables that this package has no layer for: \S+ \(se_reduce_kernel\)\. Is"
    with pytest.raises(ValueError, match=message):
        pretrained.from_official(path)


def test_a_variable_outside_the_model_is_superfluous_unless_its_name_is_known(official, tmp_path):
    checkpoint = tf.train.Checkpoint(model=official.model, ema=tf.Variable(1.0))
    with pytest.raises(ValueError, match=r"that this package has no layer for: ema \(\w+\)\."):
        pretrained.from_official(checkpoint.write(str(tmp_path / "it")))


def test_a_missing_variable_is_named(official, tmp_path):
    del official.model.resnet_model.block_groups[0].layers[1].conv2d_bn_layers[3].bn.moving_mean
    path = "resnet_model/block_groups/0/layers/1/conv2d_bn_layers/3/bn/moving_mean"
    with pytest.raises(ValueError, match=f"lacks {path}. Is"):
        pretrained.from_official(official.save_checkpoint(tmp_path))


def test_many_missing_variables_are_counted(official, tmp_path):
    official.model.resnet_model.block_groups[3].layers[0].conv2d_bn_layers = []
    with pytest.raises(ValueError, match=r"lacks resnet_model/block_groups/3\S+, .* and 6 more\."):
        pretrained.from_official(official.save_checkpoint(tmp_path))


def test_a_variable_of_another_shape_is_named(official, tmp_path):
    norm = official.model.resnet_model.block_groups[0].layers[0].conv2d_bn_layers[1].bn
    norm.gamma = tf.Variable([1.0])
    message = r"other shapes: resnet_model/\S+/conv2d_bn_layers/1/bn/gamma \(1,\) for \(4,\)\."
    with pytest.raises(ValueError, match=message):
        pretrained.from_official(official.save_checkpoint(tmp_path))


def test_an_unknown_number_of_blocks_is_refused(official, tmp_path):
    official.model.resnet_model.block_groups[2].layers.append(node())
    with pytest.raises(ValueError, match=r"blocks per group must be .* has \(2, 1, 2, 1\)\."):
        pretrained.from_official(official.save_checkpoint(tmp_path))


def test_a_path_with_nothing_to_read_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "no", tmp_path / "ckpt-1.index"):
        with pytest.raises(ValueError, match=f"path must be .*; got {path}, which has none"):
            pretrained.from_official(path)


def test_a_file_of_other_code_is_refused(tmp_path):
    prefix = tf.train.Checkpoint(net=tf.Variable(1.0)).write(str(tmp_path / "it"))
    with pytest.raises(ValueError, match=f"{prefix} has no resnet_model"):
        pretrained.from_official(prefix)


def test_a_file_of_tensorflow_1_is_refused_with_the_address_of_the_converted_files(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("base_model/conv2d/kernel", [2])
        session.run(variable.initializer)
        prefix = tf.compat.v1.train.Saver([variable]).save(session, str(tmp_path / "model.ckpt-1"))
    with pytest.raises(ValueError, match=r"as TensorFlow 1 saves .*gs://simclr-checkpoints-tf2"):
        pretrained.from_official(prefix)


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_download_is_refused(official, damage, tmp_path):
    prefix = official.save_checkpoint(tmp_path)
    data = pathlib.Path(f"{prefix}.data-00000-of-00001")
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:1000])
    else:
        data.unlink()
    with pytest.raises(ValueError, match=r"path must be readable; .* is not: .* Are all its"):
        pretrained.from_official(prefix)


# ---- compared with the official code -------------------------------------------------------------

CODE = os.environ.get("SIMCLR_OFFICIAL")

# In float32 as Google's files are; the deep ones in float64, for normalising by the statistics of a
# few images multiplies rounding errors.
COMPARED = {
    "R18": ("float32", ["--resnet_depth=18", "--image_size=32"]),
    "R50": ("float64", ["--resnet_depth=50", "--image_size=64"]),
    "R50+SK": ("float64", ["--resnet_depth=50", "--image_size=64", "--sk_ratio=0.0625"]),
    "R50 2x": ("float64", ["--resnet_depth=50", "--image_size=64", "--width_multiplier=2"]),
}


def outputs(read, images, training):
    """The outputs of the official SavedModel, by name, computed by our models."""
    x = read.encoder.stem_layers.call(images, training=training)
    found = {"initial_max_pool": x}
    blocks = iter(read.encoder.blocks)
    counts = {**resnet.BASIC_BLOCKS, **resnet.BOTTLENECK_BLOCKS}[read.encoder.depth]
    for group, count in enumerate(counts, start=1):
        for _ in range(count):
            x = next(blocks).call(x, training=training)
        found[f"block_group{group}"] = x
    h = found["final_avg_pool"] = read.encoder.pool(x)
    found["proj_head_output"] = read.projection_head(h, training=training)
    found["logits_sup"] = read.linear_head(h)
    return found


@pytest.mark.skipif(not CODE, reason="SIMCLR_OFFICIAL names no folder tf2/ of the official code")
@pytest.mark.parametrize("name", COMPARED)
def test_outputs_are_those_of_the_official_code(name, tmp_path, capsys):
    """Groups of blocks, pooled output and heads agree to 1e-4, in inference and in training."""
    dtype, flags = COMPARED[name]
    flags = flags if dtype == "float32" else [*flags, "--optimizer=momentum"]  # LARS is float32
    script = pathlib.Path(__file__).with_name("official_model.py")
    command = [sys.executable, script, CODE, tmp_path, dtype, *flags]
    subprocess.run(command, check=True, capture_output=True, timeout=1200)
    keras.mixed_precision.set_global_policy(dtype)
    size = int(flags[1].split("=")[1])
    images = np.random.default_rng(1).random((32, size, size, 3), dtype=np.float32)
    for files in ("ckpt-1", "saved_model/1"):
        official = tf.saved_model.load(str(tmp_path / "saved_model" / "1"))
        read = pretrained.from_official(tmp_path / files)
        for training in (False, True):
            theirs = official(images, trainable=training)
            ours = outputs(read, tf.constant(images), training)
            assert {*theirs} - {*ours} == {"initial_conv", "proj_head_input"}
            apart = {key: relative_distance(ours[key], theirs[key]) for key in ours}
            with capsys.disabled():
                row = "  ".join(f"{key} {value:.0e}" for key, value in apart.items())
                print(f"\n{name} {dtype} {files} training={training}: {row}", end="")
            assert max(apart.values()) < 1e-4


def relative_distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()
