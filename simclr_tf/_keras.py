"""Where Keras 2 and Keras 3 differ, and the only place that touches private or undocumented TensorFlow and Keras API."""  # noqa: E501

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class LayerCall(NamedTuple):
    """A call of a layer in a functional model.

    Attributes:
      layer: the layer.
      sources: the layers whose outputs it takes, in any argument; once for each time.
      arguments: the values of all its arguments, nested as they are.
      outputs: the symbolic tensors that it returns.
    """

    layer: Any
    sources: list
    arguments: list
    outputs: list


def layer_calls(model):
    """Returns the `LayerCall`s of a functional model.

    Neither Keras documents a way to walk the graph of a model. In both it is in `_nodes_by_depth`;
    a node keeps its layer and its arguments under other names in Keras 3.
    """

    def call_of(node):
        if hasattr(node, "operation"):
            args, kwargs = node.arguments.args, node.arguments.kwargs
        else:
            args, kwargs = node.call_args, node.call_kwargs
        sources = [_layer_of(parent) for parent in node.parent_nodes]
        arguments = [*args, *kwargs.values()]
        return LayerCall(_layer_of(node), sources, arguments, tf.nest.flatten(node.outputs))

    return [call_of(node) for nodes in model._nodes_by_depth.values() for node in nodes]


def _layer_of(node):
    return node.operation if hasattr(node, "operation") else node.layer


def all_layers(layer):
    """Returns a layer and all layers within it, at any depth; each before those within it.

    `model.layers` lists the layers of one depth, and only Keras 2 has `tf.Module.submodules`.
    """
    return list(layer._flatten_layers())
