"""Google's published weights: SimCLR and SimCLRv2 models as encoder and heads of this package.

Reads the files that the official TensorFlow 2 code (google-research/simclr, tf2/) writes. A layer
of this package (right) is filled from an object of the official model, found by its path there:

```
resnet_model/initial_conv_relu_max_pool/  0/conv2d, 2/bn              stem
  with selective kernels                  0/conv2d, 1/bn              stem1
                                          2/conv2d, 3/bn              stem2
                                          4/conv2d, 6/bn              stem3
resnet_model/block_groups/G/layers/B/                                 group{G+1}_block{B+1}
  basic:      conv2d_bn_layers/           0/conv2d, 1/bn              ..._1
                                          2/conv2d, 3/bn              ..._2
              shortcut_layers/            0/conv2d, 1/bn              ..._shortcut
  bottleneck: conv_relu_dropblock_layers/ 0/conv2d, 1/bn              ..._1
                                          3/conv2d, 4/bn              ..._2
                                          6/conv2d, 7/bn              ..._3
              projection_layers/          0/conv2d, 1/bn              ..._shortcut
  selective:  conv_relu_dropblock_layers/ 0/conv2d, 1/bn              ..._1
              3/conv2d_fixed_padding/conv2d, 3/batch_norm_relu/bn     ..._2_streams
              3/conv2d_0, 3/batch_norm_relu_1/bn                      ..._2_squeeze
              3/conv2d_1                                              ..._2_excite
                                          5/conv2d, 6/bn              ..._3
              projection_layers/, G = 0   1/conv2d, 2/bn              ..._shortcut
              projection_layers/, G > 0   2/conv2d, 3/bn              ..._shortcut
_projection_head/linear_layers/J/         dense, bn_relu/bn           dense{J+1}, bn{J+1}
supervised_head/linear_layer/             dense                       linear_head
```

A variable's key in a file need not contain its path (in a SavedModel it may be
`trainable_variables_list/12`); the object graph in the file leads from the path to the key.
"""

from __future__ import annotations

import os
import re
import typing

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras, heads
from simclr_tf.encoders import resnet
from simclr_tf.errors import ArgumentError

# Entries that are not of the model: object graph, optimizer and its slots, two counters.
_IGNORED = re.compile(
    r"_CHECKPOINTABLE_OBJECT_GRAPH$|.*/\.OPTIMIZER_SLOT/|(optimizer|global_step|save_counter)/"
)
# What TensorFlow raises for a file that is truncated, missing, or of another format.
_READ_ERRORS = (tf.errors.OpError, RuntimeError, ValueError, IndexError)
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_STEM = "resnet_model/initial_conv_relu_max_pool"
_GROUPS = "resnet_model/block_groups"
_HEAD = "_projection_head/linear_layers"
_LINEAR = "supervised_head/linear_layer/dense"
_BASIC = ("conv2d_bn_layers", "shortcut_layers")
_BOTTLENECK = ("conv_relu_dropblock_layers", "projection_layers")
_PUBLISHED_SK_RATIO = 0.0625
_DEFAULT_PIXELS = {"cifar": 32, "imagenet": 224}


class Pretrained(typing.NamedTuple):
    """The models that `from_official` returns.

    Attributes:
        encoder: a built `ResNet` from images, float [batch, H, W, 3] in [0, 1], to h, float32
            [batch, D].
        projection_head: a built `ProjectionHead` from h to z, float32 [batch, output_dim]; None if
            the file has none.
        linear_head: a built `keras.layers.Dense` from float [batch, D] to logits, float32 [batch,
            classes]; None if the file has none.

    Example:

    >>> pretrained = simclr_tf.pretrained.Pretrained(encoder, None, None)
    >>> pretrained.encoder(images / np.float32(255)).shape
    TensorShape([8, 8])
    """

    encoder: resnet.ResNet
    projection_head: heads.ProjectionHead | None
    linear_head: keras.layers.Dense | None


def from_official(path, image_size=None, projection_head=True):
    """Loads a model saved by the official TensorFlow 2 code as an encoder plus its heads.

    Depth, width, selective kernels, stem and heads are inferred from the file. The call fails
    unless each variable in the file fills exactly one variable of the returned models and none
    remains unfilled. Ignored are the optimizer (`optimizer/...`, `.OPTIMIZER_SLOT`), `global_step`
    and `save_counter`. The graph in a SavedModel is not executed.

    Args:
        path: directory of a SavedModel (Google's are in gs://simclr-checkpoints-tf2, for example
            simclrv2/pretrained/r50_1x_sk0/saved_model), a checkpoint (`DIR/ckpt-1000`), or a
            directory of checkpoints, of which the latest is read.
        image_size: int, side of the images in pixels for which the encoder is built and exported;
            None for 224, or for 32 if the model has the CIFAR stem. The encoder accepts other
            sizes too.
        projection_head: bool; False ignores the file's projection head, also one of a form that
            this package does not have.

    Returns:
        A `Pretrained`. Its `linear_head` was trained on labels. Its input is h, unless the official
        code ran with another `ft_proj_selector`, which the file does not record; with 1, its input
        is `projection_head.hidden_outputs(h)[1]`.

    Raises:
        ValueError: if there is no model at `path`, or it is not the official code's; for a depth or
            head that this package does not have; for variables that are missing, superfluous or of
            another shape, with their names.

    Example:

    >>> simclr_tf.pretrained.from_official("simclr-checkpoints-tf2/r50_1x_sk0")
    Traceback (most recent call last):
    ...
    simclr_tf.errors.ArgumentError: path must be a SavedModel's directory, a checkpoint ...

    Outputs agree with those of the official code (commit 383d414) on the same weights for ResNet-18
    and ResNet-50, for the latter also with selective kernels and with width 2, from checkpoints
    and SavedModels written with TensorFlow 2.15. Google's own files, which an earlier TensorFlow
    wrote, were not tested. According to its README, the models of SimCLR (v1) have no projection
    head.
    """
    source = _Source(_checkpoint_prefix(path), path)
    encoder, encoder_paths = _encoder(source, image_size)
    head, head_paths = _projection_head(source, projection_head)
    linear, linear_paths = _linear_head(source)
    source.fill(
        [
            *_variables_with_paths(encoder, encoder_paths),
            *_variables_with_paths(head, head_paths),
            *_variables_with_paths(linear, linear_paths),
        ]
    )
    return Pretrained(encoder, head, linear)


# ---- the architecture, inferred from names and shapes


def _encoder(source, image_size):
    """A built ResNet of the file's architecture, and the official path of each of its layers."""
    basic = source.has_node(f"{_block(0, 0)}/conv2d_bn_layers")
    body, shortcut = _BASIC if basic else _BOTTLENECK
    counts = tuple(
        source.count(f"{_GROUPS}/{g}/layers") for g in range(max(4, source.count(_GROUPS)))
    )
    depth = _depth(counts, basic, source)
    # With selective kernels, shortcuts are those of ResNet-D, which pool before the convolution.
    selective = not source.has(f"{_block(0, 0)}/{shortcut}/0/conv2d/kernel")
    filters = source.shape(f"{_block(0, 0)}/{body}/0/conv2d/kernel")[-1]
    width = filters // 64 if filters % 64 == 0 else filters / 64
    if selective:
        stem = "imagenet" if source.has(f"{_STEM}/2/conv2d/kernel") else "cifar"
    else:
        stem = "imagenet" if source.shape(f"{_STEM}/0/conv2d/kernel")[0] == 7 else "cifar"
    sk_ratio = _sk_ratio(source, width, body) if selective else 0.0
    encoder = resnet.ResNet(depth, width, sk_ratio, stem)
    size = _DEFAULT_PIXELS[stem] if image_size is None else image_size
    encoder(keras.Input((size, size, 3)))  # builds it and sets the shape that export uses
    return encoder, _encoder_paths(counts, basic, selective, stem)


def _block(group, index):
    return f"{_GROUPS}/{group}/layers/{index}"


def _depth(counts, basic, source):
    table = resnet.BASIC_BLOCKS if basic else resnet.BOTTLENECK_BLOCKS
    depths = [depth for depth, blocks in table.items() if blocks == counts]
    if not depths:
        known = "; ".join(f"{depth}: {blocks}" for depth, blocks in table.items())
        raise ArgumentError(
            f"blocks per group must be those of a depth that this package has ({known}); "
            f"{source.path} has {counts}."
        )
    return depths[0]


def _sk_ratio(source, width, body):
    """The published ratio if it results in the file's squeezed channels, else one that does."""
    if not source.has(f"{_block(3, 0)}/{body}/3/conv2d_0/kernel"):
        return _PUBLISHED_SK_RATIO
    squeezed = [source.shape(f"{_block(g, 0)}/{body}/3/conv2d_0/kernel")[-1] for g in range(4)]
    filters = [round(64 * 2**g * width) for g in range(4)]
    if squeezed == [max(int(f * _PUBLISHED_SK_RATIO), 32) for f in filters]:
        return _PUBLISHED_SK_RATIO
    return squeezed[-1] / filters[-1]


def _encoder_paths(counts, basic, selective, stem):
    """Maps the name of each of our layers to the layer's path in the official model."""
    if selective and stem == "imagenet":
        paths = {}
        for name, conv, norm in (("stem1", 0, 1), ("stem2", 2, 3), ("stem3", 4, 6)):
            paths.update(_conv_bn(name, _STEM, conv, norm))
    else:
        paths = _conv_bn("stem", _STEM, 0, 2)
    for group, count in enumerate(counts):
        for index in range(count):
            name = f"group{group + 1}_block{index + 1}"
            paths.update(_block_paths(name, _block(group, index), basic, selective))
            if index == 0:
                # ResNet-D's padding, only with stride 2, and pooling come first in the list.
                first = (2 if group else 1) if selective else 0
                path = f"{_block(group, 0)}/{(_BASIC if basic else _BOTTLENECK)[1]}"
                paths.update(_conv_bn(f"{name}_shortcut", path, first, first + 1))
    return paths


def _block_paths(name, path, basic, selective):
    if basic:
        body = f"{path}/{_BASIC[0]}"
        return {**_conv_bn(f"{name}_1", body, 0, 1), **_conv_bn(f"{name}_2", body, 2, 3)}
    body = f"{path}/{_BOTTLENECK[0]}"  # after each normalisation a drop-block, without variables
    paths = _conv_bn(f"{name}_1", body, 0, 1)
    if selective:
        paths[f"{name}_2_streams_conv"] = f"{body}/3/conv2d_fixed_padding/conv2d"
        paths[f"{name}_2_streams_bn"] = f"{body}/3/batch_norm_relu/bn"
        paths[f"{name}_2_squeeze_conv"] = f"{body}/3/conv2d_0"
        paths[f"{name}_2_squeeze_bn"] = f"{body}/3/batch_norm_relu_1/bn"
        paths[f"{name}_2_excite_conv"] = f"{body}/3/conv2d_1"
        return {**paths, **_conv_bn(f"{name}_3", body, 5, 6)}
    paths.update(_conv_bn(f"{name}_2", body, 3, 4))
    return {**paths, **_conv_bn(f"{name}_3", body, 6, 7)}


def _conv_bn(name, path, conv, norm):
    return {f"{name}_conv": f"{path}/{conv}/conv2d", f"{name}_bn": f"{path}/{norm}/bn"}


def _projection_head(source, wanted):
    """A built ProjectionHead, or None if there is none or it is not wanted; its layers' paths."""
    if not source.has(f"{_HEAD}/0/dense/kernel"):
        return None, {}
    if not wanted:
        source.ignore(_head_variables(source))
        return None, {}
    layers = source.count(_HEAD)
    if layers not in (2, 3):
        raise ArgumentError(
            f"the projection head must have 2 or 3 layers; that of {source.path} has {layers}. "
            "projection_head=False ignores it."
        )
    inputs, hidden = source.shape(f"{_HEAD}/0/dense/kernel")
    head = heads.ProjectionHead(
        hidden_dim=None if hidden == inputs else hidden,
        output_dim=source.shape(f"{_HEAD}/{layers - 1}/dense/kernel")[-1],
        layers=layers,
    )
    head.build((None, inputs))
    paths = {}
    for index in range(layers):
        paths[f"dense{index + 1}"] = f"{_HEAD}/{index}/dense"
        paths[f"bn{index + 1}"] = f"{_HEAD}/{index}/bn_relu/bn"
    return head, paths


def _head_variables(source):
    names = ["dense/kernel", "dense/bias", *(f"bn_relu/bn/{name}" for name in _BATCH_NORM)]
    return [f"{_HEAD}/{index}/{name}" for index in range(source.count(_HEAD)) for name in names]


def _linear_head(source):
    """A built Dense layer in float32, or None if there is none; and its official path."""
    if not source.has(f"{_LINEAR}/kernel"):
        return None, {}
    inputs, classes = source.shape(f"{_LINEAR}/kernel")
    linear = keras.layers.Dense(classes, dtype="float32", name="linear_head")
    linear.build((None, inputs))
    return linear, {"linear_head": _LINEAR}


def _variables_with_paths(model, paths):
    """Yields (variable, official path) for every variable of a built model or layer of ours."""
    for layer in () if model is None else (model, *_keras.sublayers(model)):
        if _keras.sublayers(layer):  # they hold the variables
            continue
        for variable in layer.weights:
            name = _keras.variable_name(variable).split("/")[-1]
            yield variable, f"{paths[layer.name]}/{name}"


# ---- the file


def _checkpoint_prefix(path):
    """The prefix that `tf.train.load_checkpoint` reads, from a path to any of the files."""
    path = os.fspath(path).rstrip("/")
    exists, join = tf.io.gfile.exists, os.path.join
    if os.path.basename(path) == "saved_model.pb":
        path = os.path.dirname(path)
    if exists(join(path, "saved_model.pb")):
        prefix = join(path, "variables", "variables")
    elif exists(f"{path}.index"):
        prefix = path
    elif path.endswith(".index") and exists(path):
        prefix = path[: -len(".index")]
    else:
        prefix = tf.train.latest_checkpoint(path)
    if prefix is None or not exists(f"{prefix}.index"):
        raise ArgumentError(
            "path must be a SavedModel's directory, a checkpoint (DIR/ckpt-1000) or a directory "
            f"of checkpoints; got {path}, which has none. Copy whole directories: saved_model.pb "
            "with variables/, or a checkpoint's .index with its .data files."
        )
    return prefix


class _Source:
    """A checkpoint of the official model: its variables by their path in that model.

    Attributes:
        path: as the caller passed it, for messages.
    """

    def __init__(self, prefix, path):
        self.path = path
        try:
            self._reader = tf.train.load_checkpoint(prefix)
            self._shapes = self._reader.get_variable_to_shape_map()
            graph = self._reader.get_tensor(_GRAPH_KEY) if _GRAPH_KEY in self._shapes else None
        except _READ_ERRORS as error:
            raise _unreadable(path, error) from error
        if graph is None:
            raise ArgumentError(
                f"path must be a model that the official TensorFlow 2 code saved; {path} has "
                "variables without objects, as TensorFlow 1 saves them. Use Google's files for "
                "TensorFlow 2: gs://simclr-checkpoints-tf2."
            )
        self._nodes = _keras.parse_object_graph(graph)
        self._model = self._find_model()
        self._used = set()

    def _find_model(self):
        """The number of the node with the ResNet: the root's `model`, or the root."""
        for number, node in enumerate(self._nodes):  # breadth first, from the root
            if any(child.local_name == "resnet_model" for child in node.children):
                return number
        raise ArgumentError(
            f"path must be a model that the official TensorFlow 2 code saved; {self.path} has no "
            "resnet_model. Google's are at gs://simclr-checkpoints-tf2."
        )

    def _node(self, path):
        """The node at a path from the model, such as `resnet_model/block_groups/0`, or None."""
        number = self._model
        for name in path.split("/"):
            children = {child.local_name: child.node_id for child in self._nodes[number].children}
            if name not in children:
                return None
            number = children[name]
        return self._nodes[number]

    def _key(self, path):
        node = self._node(path)
        for attribute in node.attributes if node else ():
            if attribute.checkpoint_key in self._shapes:
                return attribute.checkpoint_key
        return None

    def has_node(self, path):
        """Whether the official model has an object at a path, with or without variables."""
        return self._node(path) is not None

    def has(self, path):
        """Whether the official model has a variable at a path."""
        return self._key(path) is not None

    def count(self, path):
        """The number of items of the list at a path; 0 if there is none."""
        node = self._node(path)
        return sum(child.local_name.isdigit() for child in node.children) if node else 0

    def shape(self, path):
        """The shape of the variable at a path, a list of int."""
        if not self.has(path):
            self._refuse("lacks", [path])
        return self._shapes[self._key(path)]

    def ignore(self, paths):
        """Marks the variables at these paths as used, if they exist."""
        self._used.update(key for key in map(self._key, paths) if key)

    def fill(self, targets):
        """Assigns the file's variables, unless one is missing, superfluous or of another shape.

        Args:
            targets: list of (variable, path).

        Raises:
            ValueError: with the names of those that are missing, of another shape, or superfluous.
        """
        keys = [self._key(path) for _, path in targets]
        found = {path: self._shapes.get(key) for key, (_, path) in zip(keys, targets)}
        self._refuse("lacks", [path for path, shape in found.items() if shape is None])
        wrong = [
            f"{path} {tuple(found[path])} for {tuple(variable.shape)}"
            for variable, path in targets
            if tuple(found[path]) != tuple(variable.shape)
        ]
        self._refuse("has other shapes:", wrong)
        left = sorted(self._shapes.keys() - self._used - {*keys})
        left = [self._described(key) for key in left if not _IGNORED.match(key)]
        self._refuse("has variables that this package has no layer for:", left)
        try:
            for key, (variable, _) in zip(keys, targets):
                variable.assign(self._reader.get_tensor(key))
        except _READ_ERRORS as error:
            raise _unreadable(self.path, error) from error

    def _refuse(self, what, names):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ArgumentError(
                "every variable must correspond to one of the encoder or a head; "
                f"{self.path} {what} {', '.join(names[:4])}{more}. "
                "Is it another model? The docstring of simclr_tf.pretrained lists the names."
            )

    def _described(self, key):
        """A key followed by the variable's name, for keys that are only the index in a list."""
        attributes = [item for node in self._nodes for item in node.attributes]
        names = {item.full_name for item in attributes if item.checkpoint_key == key}
        return f"{key.replace('/.ATTRIBUTES/VARIABLE_VALUE', '')} ({', '.join(names)})"


def _unreadable(path, error):
    reason = " ".join(str(error).split())[:200]
    return ArgumentError(
        f"path must be readable; {path} is not: {reason}. Are all its .index and .data files there?"
    )
