"""The words are kept true: README's Python blocks run, and every documented command parses."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "BUILD.md", *sorted(ROOT.glob("docs/**/*.md"))]


def blocks(path, language):
    """Returns (line, text) for each fenced block of `language` in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, fence.start(1)) + 1, fence.group(1)) for fence in fences]


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


@pytest.fixture
def one_short_epoch(monkeypatch):
    """Makes `fit` stop after one epoch of two steps: the blocks are for readers with more time."""
    fit = tf.keras.Model.fit

    def short_fit(self, *args, **kwargs):
        return fit(self, *args, **{**kwargs, "epochs": 1, "steps_per_epoch": 2})

    monkeypatch.setattr(tf.keras.Model, "fit", short_fit)


@pytest.mark.usefixtures("shallow")
def test_python_blocks_run(tmp_path, monkeypatch, one_short_epoch):
    """README's Python blocks run from top to bottom as one program, given a reader's images."""
    images = np.random.default_rng(0).integers(0, 256, [16, 32, 32, 3], dtype=np.uint8)
    names = {"images": images, "dataset": tf.data.Dataset.from_tensor_slices(images).batch(8)}
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert found, "README.md has no Python block"
    for line, text in found:
        # Padded with empty lines, so that a traceback names the line in README.md.
        exec(compile("\n" * (line - 1) + text, str(README), "exec"), names)


def test_commands_parse(monkeypatch):
    """Every `simclr-tf` command in README, BUILD and docs names a command and flags that exist."""
    from simclr_tf import cli

    monkeypatch.chdir(ROOT)  # where flag files are named from
    found = commands()
    assert any(where.startswith("README.md") for where, _ in found), "README.md shows no command"
    for where, words in found:
        try:
            cli.parse(words)
        except ValueError as error:
            pytest.fail(f"{where}: {error}")
