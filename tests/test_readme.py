"""The documents are true: Python blocks run, commands parse, links lead to files."""

import contextlib
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow import keras

from conftest import views_without_xla
from simclr_tf import cli, export

pytestmark = pytest.mark.end_to_end

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Documents whose Python blocks need files that cannot be made here, and why.
NEEDS_FILES = {
    "docs/pretrained.md": "reads Google's ResNet-50; test_pretrained.py reads files of this form",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """Returns (line, text) for each fenced block of `language` in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    fences = [fence for fence in FENCE.finditer(text) if fence[1] == language]
    return [(text.count("\n", 0, fence.start(2)) + 1, fence[2]) for fence in fences]


def prose(path):
    """Returns a Markdown file without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def commands():
    """Returns (where, arguments) for each `simclr-tf` command in the documents' bash blocks."""
    found = []
    for path in DOCUMENTS:
        for start, text in blocks(path, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                program, is_command, arguments = line.partition("simclr-tf ")
                words = shlex.split(arguments, comments=True)
                if is_command and "#" not in program and "--help" not in words:
                    found.append((f"{path.name}:{start}", words))
    return found


def mentioned_commands():
    """Returns (document, arguments) for each command in the prose, such as `simclr-tf embed`."""
    found = []
    for path in DOCUMENTS:
        for arguments in re.findall(r"`simclr-tf ([a-z][^`]*)`", prose(path)):
            found.append((name_of(path), shlex.split(arguments)))
    return found


@pytest.fixture
def one_short_epoch(monkeypatch):
    """Makes `fit` stop after one epoch of two steps: the blocks are for readers with more time."""
    fit = keras.Model.fit

    def short_fit(self, *args, **kwargs):
        return fit(self, *args, **{**kwargs, "epochs": 1, "steps_per_epoch": 2})

    monkeypatch.setattr(keras.Model, "fit", short_fit)


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory):
    """A folder with the files that the Python blocks read: exports, images, an npz."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    layers = keras.layers
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()]
    )
    written = export.export_encoder(encoder, folder / "models" / "simclr" / "1")
    shutil.copytree(written, folder / "models" / "photos" / "1")
    shutil.copytree(written, folder / "runs" / "cifar10" / "export" / "1")
    train, test = (rng.integers(0, 256, [n, 8, 8, 3], np.uint8) for n in (250, 50))
    np.savez(
        folder / "cifar10.npz",
        x_train=train,
        y_train=np.arange(250) % 10,
        x_test=test,
        y_test=np.arange(50) % 10,
    )
    export.export_tflite(encoder, folder / "int8.tflite", precision="int8", examples=train)
    (folder / "more_photos").mkdir()
    for number, image in enumerate(test[:4]):
        Image.fromarray(image).save(folder / "more_photos" / f"{number}.png")
    return folder


def documents_with_python():
    """Returns a test parameter for each document with Python blocks."""
    parameters = []
    for path in filter(lambda path: blocks(path, "python"), DOCUMENTS):
        reason = NEEDS_FILES.get(name_of(path))
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        parameters.append(pytest.param(path, id=name_of(path), marks=marks))
    return parameters


@pytest.mark.usefixtures("shallow", "one_short_epoch")
@pytest.mark.parametrize("path", documents_with_python())
def test_python_blocks_run(path, reader_folder, monkeypatch):
    """The Python blocks of a document run from top to bottom as one program."""
    images = np.random.default_rng(0).integers(0, 256, [16, 32, 32, 3], dtype=np.uint8)
    names = {"images": images, "dataset": tf.data.Dataset.from_tensor_slices(images).batch(8)}
    monkeypatch.chdir(reader_folder)
    found = blocks(path, "python")
    if any("tf_keras" in text for _, text in found):
        # Each block in a process of its own: Keras and tf_keras get in each other's way.
        for _, text in found:
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return
    # XLA compiles the views of one document.
    with contextlib.nullcontext() if path == ROOT / "README.md" else views_without_xla():
        for line, text in found:
            # Padded with empty lines, so that a traceback names the line in the document.
            exec(compile("\n" * (line - 1) + text, str(path), "exec"), names)


def test_readme_has_a_python_block_and_a_command():
    """The tests of this file find what they look for."""
    assert blocks(ROOT / "README.md", "python")
    assert any(where.startswith("README.md") for where, _ in commands())
    assert any(document == "README.md" for document, _ in mentioned_commands())
    assert {*NEEDS_FILES} <= {name_of(path) for path in DOCUMENTS}


def test_commands_parse(monkeypatch):
    """Every `simclr-tf` command in a bash block has a command and flags that exist."""
    monkeypatch.chdir(ROOT)  # where flag files are named from
    for where, words in commands():
        try:
            cli.parse(words)
        except ValueError as error:
            pytest.fail(f"{where}: {error}")


def test_commands_in_the_prose_exist(capsys):
    """Every `simclr-tf` command in the prose exists, with the flags named there."""
    for document, (command, *arguments) in mentioned_commands():
        cli.main([command, "--help"])
        text = capsys.readouterr().out
        assert text.startswith(f"simclr-tf {command}"), f"{document}: no command {command}"
        for flag in re.findall(r"--(\w+)", " ".join(arguments)):
            assert re.search(rf"--(\[no\])?{flag}\b", text), f"{document}: {command} --{flag}"


def anchors(path):
    """Returns the anchors of a Markdown file's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(path):
    """Every relative link of a document names a file, or a heading in one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
