"""The examples run: the same functions as their `main` calls, at a small size."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from simclr_tf import cli, data, evaluate

pytestmark = pytest.mark.usefixtures("quick_runs")
EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def load(name):
    """The module of examples/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources():
    """Training and test images: 64 and 32 drawn shapes."""
    return data.load("shapes", "train[:64]"), data.load("shapes", "test[:32]")


def test_cifar10_trains_and_scores(sources):
    """One epoch of two steps, then both protocols on every test image."""
    example = load("cifar10")
    model = example.train(sources[0], epochs=1, batch_size=32, width=1 / 16)
    assert all(0.0 <= accuracy <= 1.0 for accuracy in example.score(model, *sources))


def test_own_images_finds_like_ones(sources):
    """The nearest of an image, by falling similarity, without the image itself."""
    example = load("own_images")
    model = example.train(sources[0], epochs=1, batch_size=32, width=1 / 16)
    features = evaluate.extract_features(model.encoder, sources[1].batches(16))
    found = example.most_alike(features, 3, count=4)
    assert len(found) == 4 and features.ids[3] not in [name for name, _ in found]
    assert sorted((s for _, s in found), reverse=True) == [s for _, s in found]
    assert np.isfinite([s for _, s in found]).all()


def test_the_demo_ends_with_the_table(tmp_path, capsys):
    """Pretrain, evaluate with the baselines, say where things lie."""
    small = ["--train_steps=1", "--width=0.0625", "--batch_size=32"]
    small += ["--train_split=train[:200]", "--test_split=test[:50]"]
    assert load("demo").run(tmp_path / "run", *small) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(json.loads(line) for line in lines if line.startswith("{"))
    assert {"raw_pixels", "random_encoder", "knn", "linear"} <= set(row)
    assert lines[-2].startswith("In ") and (tmp_path / "run" / "views.png").exists()


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("recipes/*.cfg")), ids=lambda p: p.stem)
def test_recipes_parse(recipe):
    """Every flag of a recipe exists and is in range."""
    command, values = cli.parse(["pretrain", f"--flagfile={recipe}", "--run_dir=x"])
    assert command == "pretrain" and cli.options_of(values).epochs > 0
