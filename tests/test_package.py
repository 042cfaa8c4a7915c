"""The package as a whole: what importing it costs, which way its imports go, what it is called."""

import ast
import importlib
import importlib.metadata
import pathlib
import re
import resource
import subprocess
import sys

import pytest

import simclr_tf

PACKAGE = pathlib.Path(simclr_tf.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAYERS = simclr_tf._MODULES
TOP = ("__init__", "__main__")  # above every layer
# SimCLR.export is a convenience for `export.export_encoder`, imported when it is called.
AGAINST_THE_STREAM = {("models", "export")}


def python(code):
    """Runs `code` in a new interpreter and returns the finished process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def layer(path):
    """Returns the layer a source file belongs to: `data` for data.py and for data/folder.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, everywhere=True):
    """Yields (line, dotted name) for each import in a file; or only those run when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` in package a.b is `from a.b import x`.
            package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def layers_imported(path):
    """Yields (line, layer) for each part of this package that the file imports, at any depth."""
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == PACKAGE.name and len(parts) > 1:
            # `from simclr_tf import ResNet` reaches into the module that holds ResNet.
            yield line, simclr_tf._PUBLIC.get(parts[1], parts[1])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    """A module imports only modules below its own; underscore modules are below all."""
    own = layer(path)
    if own in TOP:
        return  # may import anything
    private = own.startswith("_")
    assert private or own in LAYERS, f"{own} has no place in simclr_tf._MODULES"
    below = () if private else LAYERS[: LAYERS.index(own) + 1]
    wrong = [
        f"{path.name}:{line} imports {name}"
        for line, name in layers_imported(path)
        if name not in below
        and not (name.startswith("_") and name not in TOP)
        and (own, name) not in AGAINST_THE_STREAM
    ]
    assert not wrong


def test_the_layering_test_sees_every_way_to_write_an_import(tmp_path, monkeypatch):
    """Absolute, relative, nested, inside a function and through a public name: all are found."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "simclr_tf")
    source = tmp_path / "simclr_tf" / "data" / "folder.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "import simclr_tf.cli\n"
        "from simclr_tf import report\n"
        "from simclr_tf.models.simclr import SimCLR\n"
        "from .. import export\n"
        "from ..losses import nt_xent\n"
        "from . import images\n"
        "def late():\n"
        "    from simclr_tf import ResNet\n"
        "from os import path\n"
    )
    found = {name for _, name in layers_imported(source)}
    assert found == {"cli", "report", "models", "export", "losses", "data", "encoders"}


def test_only_the_command_line_reads_flags():
    """Only `_flags` imports absl's flags or app, and only `cli` imports `_flags`."""

    def readers(*names):
        return {
            layer(path) for path in SOURCES for _, name in imports(path) if name.startswith(names)
        }

    assert readers("absl.flags", "absl.app") == {"_flags"}
    assert readers("simclr_tf._flags") == {"cli"}


def test_optional_stacks_are_imported_where_they_are_used():
    """Addons, KerasCV, TFDS, scikit-learn, matplotlib, pyarrow: inside functions only."""
    heavy = ("tensorflow_addons", "keras_cv", "tensorflow_datasets", "sklearn", "matplotlib")
    heavy += ("pyarrow", "tqdm")
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imports(path, everywhere=False)
        if name.split(".")[0] in heavy
    ]
    assert not wrong


def test_importing_the_package_leaves_tensorflow_alone():
    """`import simclr_tf` and `dir(simclr_tf)` load neither TensorFlow nor NumPy."""
    done = python(
        "import sys, simclr_tf; dir(simclr_tf); simclr_tf.__version__\n"
        "sys.exit(bool({'tensorflow', 'keras', 'numpy'} & {*sys.modules}))"
    )
    assert done.returncode == 0, done.stderr


HELP = """
import runpy, sys
sys.argv = ["simclr-tf", "--help"]
try:
    runpy.run_module("simclr_tf", run_name="__main__")
except SystemExit as stop:
    assert stop.code in (None, 0), stop.code
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""


def test_help_answers_without_tensorflow():
    """`simclr-tf --help` exits 0, names the program and never imports TensorFlow."""
    done = python(HELP)
    assert done.returncode == 0, done.stderr
    assert "simclr-tf" in done.stdout


def test_help_costs_under_half_a_second():
    """`simclr-tf --help` takes under 0.5 s of CPU time (time on a busy machine says less)."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(HELP).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize("name", simclr_tf.__all__)
def test_public_names_are_there_and_described(name):
    """Every public name loads, says in a docstring what it is, and is listed by dir()."""
    value = getattr(simclr_tf, name)
    assert value.__doc__ and value.__doc__.strip()
    assert value.__module__.startswith(f"simclr_tf.{simclr_tf._PUBLIC[name]}")
    assert name in dir(simclr_tf)


@pytest.mark.parametrize("name", simclr_tf._MODULES)
def test_modules_are_attributes(name):
    """`simclr_tf.losses` works without importing `simclr_tf.losses` first, and says what it is."""
    module = getattr(simclr_tf, name)
    assert module is importlib.import_module(f"simclr_tf.{name}")
    assert module.__doc__


def test_star_import_brings_the_public_names_and_no_modules():
    """`from simclr_tf import *` works and does not shadow a user's `data` or `run`."""
    names = {}
    exec("from simclr_tf import *", names)
    assert {*names} - {"__builtins__"} == {*simclr_tf._PUBLIC}


def test_an_unknown_name_is_an_attribute_error():
    """A misspelt name raises AttributeError with the name in it, so that hasattr() is False."""
    with pytest.raises(AttributeError, match="'SimCRL'"):
        simclr_tf.SimCRL  # noqa: B018
    assert not hasattr(simclr_tf, "SimCRL")


def test_version_is_the_metadata_version():
    """`simclr_tf.__version__` is what pip shows."""
    assert simclr_tf.__version__ == importlib.metadata.version("simclr_tf")


# Words that stood for things which have a name in the field, and have no other honest use.
PRIVATE_WORDS = (
    r"twins?",
    r"hits",
    r"best_other",
    r"of_pairs?",
    r"of_rows",
    r"_places",
    r"rows_before",
    r"_Cut",
    r"_Grid",
    r"AT_ONCE",
    r"in_pieces",
    r"in_lockstep",
    r"on_processor",
    r"FREE_FLAGS",
    r"TRY_AGAIN",
    r"_Parts",
    r"_Joint",
    r"Shares?",
    r"weigh_planar",
    r"weigh_rows",
    r"_turned",
    r"write_whole",
    r"beside",
    r"place_kept",
    r"from_place",
    r"keeper",
    r"watchers",
    r"run_parts",
    r"keep_epochs",
    r"list_corrupt",
    r"_one_line",
    r"known_shape",
    r"NOT_TO_COPY",
    r"contenders",
    r"out of the race",
    r"takes? its name",
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_words_stay_out(path):
    """The package calls things by the names that the field has for them."""
    pattern = re.compile(rf"\b({'|'.join(PRIVATE_WORDS)})\b")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"{n}: {line.strip()}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found, "\n".join(found)
