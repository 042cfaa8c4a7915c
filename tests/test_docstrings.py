"""Every public name's docstring has an example, and every example in a docstring runs."""

import doctest
import importlib
import inspect

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from conftest import views_without_xla

pytestmark = pytest.mark.end_to_end

# Where public names live, besides those of `simclr_tf` itself.
PUBLIC_MODULES = (
    "augment",
    "data",
    "distribute",
    "embeddings",
    "encoders",
    "evaluate",
    "export",
    "heads",
    "images",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "pretrained",
    "report",
    "studies",
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_things():
    """{dotted name: function or class} of everything public, each once."""
    found = {f"simclr_tf.{name}": getattr(simclr_tf, name) for name in simclr_tf._PUBLIC}
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(f"simclr_tf.{module_name}")
        names = getattr(module, "__all__", None) or [
            name
            for name, thing in vars(module).items()
            if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
        ]
        for name in names:
            thing = getattr(module, name)
            is_new = not any(thing is other for other in found.values())
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and is_new:
                found[f"{module.__name__}.{name}"] = thing
    return found


THINGS = public_things()
PARSER = doctest.DocTestParser()


@pytest.fixture(scope="module")
def namespace():
    """The names that examples use without defining them; views are not compiled by XLA."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [8, 32, 32, 3], np.uint8)
    layers = keras.layers
    names = {
        "np": np,
        "tf": tf,
        "keras": keras,
        "simclr_tf": simclr_tf,
        "images": images,
        "labels": np.arange(8) % 4,
        "dataset": tf.data.Dataset.from_tensor_slices(images).batch(4, drop_remainder=True),
        "encoder": keras.Sequential(
            [keras.Input((32, 32, 3)), layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()]
        ),
        **{name: rng.normal(size=[8, 16]).astype(np.float32) for name in ("h", "z_a", "z_b")},
    }
    with views_without_xla():
        yield names


@pytest.mark.parametrize("name", THINGS)
def test_a_public_name_has_an_example_that_runs(name, namespace, tmp_path, monkeypatch):
    """Two to six lines under "Example:", in the docstring of the function or the class."""
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(THINGS[name]) or ""
    assert "Example:" in text, f"{name} has no example"
    test = PARSER.get_doctest(text[text.index("Example:") :], dict(namespace), name, name, 0)
    assert test.examples, f"{name} has no example that runs"
    lines = sum(len(e.source.splitlines()) + len(e.want.splitlines()) for e in test.examples)
    assert lines <= 8, f"the example of {name} has {lines} lines"
    output = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=output.append)
    assert not runner.failures, "".join(output)
