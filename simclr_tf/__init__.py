"""SimCLR for TensorFlow 2 and Keras: images in, an encoder out, no labels needed.

Here live the public names and where each is found; nothing is computed here. A name is imported on
its first use, so that `import simclr_tf` and `simclr-tf --help` answer without loading TensorFlow.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"

_PUBLIC = {
    "SimCLR": "models",
    "ResNet": "encoders",
    "ProjectionHead": "heads",
    "nt_xent": "losses",
    "NTXent": "losses",
    "ContrastiveAccuracy": "metrics",
    "LARS": "optimizers",
    "WarmupCosine": "optimizers",
    "RandomView": "augment",
    "Compose": "augment",
}

# From the bottom up: each may import only those before it.
_MODULES = (
    "_quiet",
    "_keras",
    "_atomic",
    "errors",
    "images",
    "devices",
    "distribute",
    "data",
    "augment",
    "encoders",
    "heads",
    "pretrained",
    "losses",
    "metrics",
    "optimizers",
    "models",
    "evaluate",
    "export",
    "embeddings",
    "training",
    "report",
    "commands",
    "cli",
)

# Modules are attributes too, but `from simclr_tf import *` leaves a user's `data` and `run` alone.
__all__ = [*_PUBLIC]


def __getattr__(name):
    """Imports a public name or a module when it is first asked for (PEP 562)."""
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"simclr_tf.{_PUBLIC[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"simclr_tf.{name}")
    else:
        raise AttributeError(f"module 'simclr_tf' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    """Lists what is here and what can be loaded."""
    return sorted({*globals(), *_PUBLIC, *_MODULES})


# `.keras` files name the module of each class. Those of version 0.1.0 have the names on the left.
_FORMER_MODULES = {
    "simclr_tf.model": "simclr_tf.models",
    "simclr_tf.resnet": "simclr_tf.encoders",
    "simclr_tf.projection": "simclr_tf.heads",
    "simclr_tf.augment.operators": "simclr_tf.augment",
    "simclr_tf.augment.views": "simclr_tf.augment",
}


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by the name that it had in an earlier version."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in _FORMER_MODULES:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def create_module(self, spec):
        return importlib.import_module(_FORMER_MODULES[spec.name])

    def exec_module(self, module):
        pass  # it has been loaded under its own name


sys.meta_path.append(_FormerModules())
