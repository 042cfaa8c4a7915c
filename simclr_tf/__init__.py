"""SimCLR for TensorFlow 2 and Keras: images in, an encoder out, no labels needed.

Here live the public names and where each is found; nothing is computed here. A name is imported on
its first use, so that `import simclr_tf` and `simclr-tf --help` answer without loading TensorFlow.
"""

import importlib

from simclr_tf import _loading

__version__ = "0.1.0"

_PUBLIC = {
    "SimCLR": "models",
    "MoCo": "models",
    "LooC": "models",
    "Classifier": "models",
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
    "_loading",
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
    "studies",
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
    _loading.register()
    return value


def __dir__():
    """Lists what is here and what can be loaded."""
    return sorted({*globals(), *_PUBLIC, *_MODULES})


_loading.install()
