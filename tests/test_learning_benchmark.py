"""benchmarks/learning.py: its clock, its schedule and its scores."""

import argparse
import csv
import importlib
import pathlib
import sys

import numpy as np
import pytest

from simclr_tf import optimizers

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The modules of the benchmark, from their folder."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    names = ("learning_clock", "learning")
    yield argparse.Namespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name)


def test_the_schedule_is_that_of_the_package(modules):
    """At fractions of the time in place of steps."""
    schedule = optimizers.WarmupCosine(0.6, 100, 10)
    for step in (0, 5, 10, 50, 99):
        got = modules.learning_clock.cosine(0.6, step / 100, 0.1)
        assert got == pytest.approx(float(schedule(step)), abs=1e-6)


def test_features_are_stored_at_each_point_and_do_not_count(modules, tmp_path, monkeypatch):
    """A step takes 4 s and features 100 s; the points at 15 and 30 s come after 16 and 32."""
    now = [0.0]
    monkeypatch.setattr(modules.learning_clock.time, "perf_counter", lambda: now[0])

    def features():
        now[0] += 100.0
        return np.zeros([2, 3]), np.zeros([1, 3])

    options = argparse.Namespace(out=tmp_path, minutes=0.5, points=2)
    clock, steps = modules.learning_clock.Clock(options, features), 0
    while not clock.is_over:
        now[0] += 4.0
        steps += 1
        clock.count(10)
    files = [np.load(tmp_path / f"point{index}.npz") for index in (1, 2)]
    assert [float(file["seconds"]) for file in files] == [16.0, 32.0]
    assert [int(file["images"]) for file in files] == [40, 80]
    assert steps == 8 and clock.progress == 1.0


def test_scores_and_picture(modules, tmp_path):
    """Two classes that are apart in a direction of small variance: whitening finds them."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    h = np.stack([30 * rng.normal(size=60), labels + 0.05 * rng.normal(size=60)], axis=1) + 3
    splits = {"train_h": h[:40].astype("f"), "test_h": h[40:].astype("f")}
    features = {**splits, "seconds": 3.04, "images": 7}
    row = modules.learning.score(features, {"y_train": labels[:40], "y_test": labels[40:]}, True)
    assert row["knn_10"] < 0.9 and row["linear"] == 1.0
    assert (row["seconds"], row["images"]) == (3.0, 7)
    rows = [{"recipe": name, "seed": 0, **row} for name in ("a", "b")]
    modules.learning.write(rows, tmp_path / "learning.csv")
    with (tmp_path / "learning.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [each["recipe"] for each in read] == ["a", "b"]
    modules.learning.plot(read, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").stat().st_size > 1000
