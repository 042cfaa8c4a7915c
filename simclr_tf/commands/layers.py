"""The layers of an encoder and its projection head that `simclr-tf evaluate` compares."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from simclr_tf.errors import ArgumentError, UsageError
from simclr_tf.export import functional_copy
from simclr_tf.export.functional import layers_of_head

_OF_HEAD = re.compile(r"z|all|spaces|head\d+")


def needs_head(layer):
    """Whether a value of --layer (None: the default) names a layer of the projection head."""
    return any(_OF_HEAD.fullmatch(name) for name in (layer or "h").split(","))


class OneLayer:
    """An encoder without a choice of layers, such as a baseline; see `Layers`."""

    names = ("h",)

    def __init__(self, encoder):
        self.encoder = encoder

    def only(self, name):
        """The encoder."""
        return self.encoder

    def split(self, features):
        """{"h": features}."""
        return {"h": features}


class Layers:
    """Outputs of one layer or several, computed in one pass and stored side by side.

    Attributes:
      names: list of str, such as ["h", "head1", "z"].
      encoder: maps images [B, H, W, 3], float32 in [0, 1], to the outputs of all layers, [B, D].

    Args:
      loaded: a `LoadedEncoder`, with its projection head where a layer is one of the head's.
      layer: names joined by commas: h, whitened (h of a run with --whitening), head1, ..., z,
        spaces (z of LooC, each space of length 1), or a layer as in `functional_copy`; all: h,
        whitened where there is one, and every layer of the head.

    Raises:
      UsageError: a layer of the head or a whitening, where there is none.
      ArgumentError: there is no such layer.
    """

    def __init__(self, loaded, layer):
        self._loaded, self._head = loaded, loaded.projection_head
        if needs_head(layer) and self._head is None:
            raise UsageError(
                f"--layer={layer} needs the projection head; --{loaded.source} "
                f"({loaded.path}) has none. Pass --layer=h, or the --run_dir that it is from."
            )
        if "whitened" in layer.split(",") and loaded.whitening is None:
            raise UsageError(
                f"--layer={layer} needs the whitening of a run of `simclr-tf pretrain --whitening` "
                f"that has ended; --{loaded.source} ({loaded.path}) has none. Pass --layer=h."
            )
        self.names = self._names(layer)
        self._other = {name: self._copy(name) for name in self.names if self._is_other(name)}
        self.encoder, self._widths = loaded.encoder, None
        if self.names != ["h"]:
            self.encoder = self.only(*self.names)
            blank = tf.zeros([1, loaded.image_size, loaded.image_size, 3])
            self._widths = [output.shape[-1] for output in self._outputs(blank, self.names)]

    def only(self, *names):
        """An encoder to the outputs of some layers, side by side."""
        if names == ("h",):
            return self._loaded.encoder

        @tf.function(reduce_retracing=True)
        def encode(images):
            return tf.concat(self._outputs(images, names), axis=1)

        return lambda images: encode(images)

    def split(self, features):
        """Divides the columns of [n, D] into a dict of [n, D_layer] by layer."""
        if self._widths is None:
            return {"h": features}
        columns = np.split(features, np.cumsum(self._widths)[:-1], axis=1)
        return dict(zip(self.names, columns))

    def _names(self, layer):
        count = self._head.layers if self._head else 0
        of_head = [f"head{index}" for index in range(1, count + 1)]
        names = []
        for name in layer.split(","):
            whitened = [] if self._loaded.whitening is None else ["whitened"]
            names += ["h", *whitened, *of_head[:-1], "z"] if name == "all" else [name]
            if name == "spaces" and not hasattr(self._head, "unit_spaces"):
                raise ArgumentError("layer=spaces needs a run of --method=looc; use z.")
            if self._head and name.startswith("head") and name not in of_head:
                raise ArgumentError(f"layer must be {layers_of_head(self._head)}; got {name!r}.")
        return list(dict.fromkeys(names))

    def _is_other(self, name):
        return name not in ("h", "whitened") and not _OF_HEAD.fullmatch(name)

    def _copy(self, name):
        shape = (self._loaded.image_size, self._loaded.image_size, 3)
        return functional_copy(self._loaded.encoder, shape, name)

    def _outputs(self, images, names):
        h, of_head = None, []
        if not all(name in self._other for name in names):
            h = tf.cast(self._loaded.encoder(images, training=False), tf.float32)
            of_head = self._head.hidden_outputs(h) if self._head is not None else [h]
        found = []
        for name in names:
            if name in self._other:
                output = self._other[name](images, training=False)
            elif name == "whitened":
                whitening = self._loaded.whitening
                output = (h - whitening.mean) @ tf.constant(whitening.matrix)
            elif name == "spaces":
                output = self._head.unit_spaces(h)
            else:
                index = {"h": 0, "z": len(of_head) - 1}.get(name)
                output = of_head[int(name[len("head") :]) if index is None else index]
            found.append(tf.cast(output, tf.float32))
        return found
