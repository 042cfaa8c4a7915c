"""How Keras finds the classes of this package when it loads a `.keras` file.

Keras 2 imports the module that the file names; Keras 3 knows registered classes only, that is those
of modules that have been imported. Neither this module nor `import simclr_tf` loads TensorFlow.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import sys

# Files of version 0.1.0 have the names on the left.
FORMER_MODULES = {
    "simclr_tf.model": "simclr_tf.models",
    "simclr_tf.resnet": "simclr_tf.encoders",
    "simclr_tf.projection": "simclr_tf.heads",
    "simclr_tf.augment.operators": "simclr_tf.augment",
    "simclr_tf.augment.views": "simclr_tf.augment",
}


def install():
    """Finds modules by their former names, and registers the classes once Keras 3 is imported."""
    sys.meta_path.append(_FormerModules())
    if "keras" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterKeras())


def register():
    """Imports the modules with classes that files may name, if Keras 3 has been imported.

    Not while a module of this package is being imported, which may need what is not there yet.
    """
    is_keras_3 = getattr(sys.modules.get("keras"), "__version__", "").startswith("3.")
    if is_keras_3 and not any(map(_is_being_imported, list(sys.modules.items()))):
        for name in ("models", "optimizers"):
            importlib.import_module(f"simclr_tf.{name}")


def _is_being_imported(item):
    name, module = item
    # Python has no public name for it.
    unfinished = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return name.startswith("simclr_tf.") and unfinished


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by the name that it had in an earlier version."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in FORMER_MODULES:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def create_module(self, spec):
        return importlib.import_module(FORMER_MODULES[spec.name])

    def exec_module(self, module):
        pass  # it has been loaded under its own name


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers the classes when the import of `keras` ends."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "keras" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)  # so that the others are asked
        spec = importlib.util.find_spec("keras")
        sys.meta_path.insert(0, self)  # this may have been a question whether Keras is there
        if spec is not None:
            spec.loader.exec_module = functools.partial(self._import, spec.loader.exec_module)
        return spec

    def _import(self, exec_module, module):
        sys.meta_path.remove(self)
        exec_module(module)
        register()
