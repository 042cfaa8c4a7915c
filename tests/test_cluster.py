"""Real worker processes over loopback: their results equal one process's; they survive a kill."""

import importlib.util
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from runs import weights_of
from simclr_tf.training import checkpoints, run_directory

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Small steps on images of noise: a random network of few channels multiplies rounding in every
# large step, and flat areas of a drawn image pass the kink of ReLU all at once.
FLAGS = ["--width=0.0625", "--batch_size=24", "--precision=float32", "--temperature=0.5"]
FLAGS += ["--learning_rate=0.003", "--learning_rate_scaling=none", "--projection_dim=8"]
FLAGS += ["--epochs=2", "--probe_every_epochs=2"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a run on 96 images of noise, 16 pixels."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, [146, 16, 16, 3], np.uint8), np.arange(146) % 5
    path = tmp_path_factory.mktemp("noise") / "set.npz"
    parts = {"x_train": pixels[:96], "y_train": labels[:96]}
    np.savez(path, x_test=pixels[96:], y_test=labels[96:], **parts)
    return [f"--dataset=npz:{path}", *FLAGS]


@pytest.fixture
def cluster(monkeypatch):
    """examples/cluster.py as a module."""
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "examples" / "cluster.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """The run directory of one process."""
    directory = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "simclr_tf", "pretrain", f"--run_dir={directory}", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return directory


def assert_same(ours, theirs):
    """Weights and statistics to 1e-4 of the largest entry; losses; embeddings.

    Momenta are as the last gradients, which jump where rounding moves a unit past the kink of ReLU.
    """
    many, one = weights_of(ours), weights_of(theirs)
    assert set(many) == set(one)
    for name, value in one.items():
        if name.startswith("optimizer/"):
            continue
        scale = max(np.abs(value).max(), 0.05)
        np.testing.assert_allclose(many[name], value, atol=1e-4 * scale, err_msg=name)
    for row, expected in zip(
        *(run_directory.read_metrics(d / "metrics.jsonl") for d in (ours, theirs))
    ):
        for name in ("step", "loss", "learning_rate"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3], np.uint8))
    h = [
        tf.saved_model.load(str(d / "export" / "1")).signatures["serving_default"](images=images)
        for d in (ours, theirs)
    ]
    np.testing.assert_allclose(h[0]["embedding"], h[1]["embedding"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_end_with_the_results_of_one_process(cluster, flags, alone, workers, tmp_path):
    """Weights, moving statistics, optimizer, metrics and the exported encoder."""
    assert cluster.run(workers, [f"--run_dir={tmp_path}", *flags], restarts=0) == 0
    assert_same(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_costs_no_more_than_the_time(
    cluster, flags, alone, victim, tmp_path, monkeypatch
):
    """SIGKILL after the first epoch; the others exit with 75 and a message; all are restarted."""
    attempts, start = [], cluster.start

    def start_and_keep(*arguments):
        attempts.append(start(*arguments))
        return attempts[-1]

    def kill():
        while not checkpoints.numbers(tmp_path / "checkpoints"):
            time.sleep(0.02)
        attempts[0][victim].send_signal(signal.SIGKILL)

    monkeypatch.setattr(cluster, "start", start_and_keep)
    killer = threading.Thread(target=kill)
    killer.start()
    # The other notices in half a minute; where the tests share the machine, later.
    assert cluster.run(2, [f"--run_dir={tmp_path}", *flags], grace_seconds=300) == 0
    killer.join()
    codes = [process.returncode for process in attempts[0]]
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == cluster.TRY_AGAIN
    assert len(attempts) == 2
    assert_same(tmp_path, alone)


def test_a_cluster_without_addresses_is_a_clear_error(monkeypatch, tmp_path):
    """strategy="multi_worker" without TF_CONFIG, and with one that is not JSON."""
    from simclr_tf import distribute

    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        distribute.strategy_by_name("multi_worker")
    monkeypatch.setenv("TF_CONFIG", "{worker}")
    with pytest.raises(ValueError, match="TF_CONFIG must be JSON"):
        distribute.strategy_by_name("multi_worker")
