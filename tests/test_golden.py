"""Files written by earlier versions load and give the same outputs; see `golden/make.py`."""

import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import _keras, embeddings, export

ARCHIVES = sorted(pathlib.Path(__file__).parent.glob("golden/*.tar.xz"))
TOLERANCE = 1e-4  # other CPUs and later kernels round differently


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name)
def golden(request, tmp_path_factory):
    """The unpacked files of one version."""
    folder = tmp_path_factory.mktemp(request.param.name) / "files"
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


def of_this_keras(golden):
    """Whether the Keras of this process wrote the files: `.keras` files load in that one alone."""
    return ("-keras3" in golden.parent.name) != _keras.IS_KERAS_2


@pytest.fixture
def own(golden):
    """The unpacked files of a version, if this Keras wrote them."""
    if not of_this_keras(golden):
        pytest.skip("a .keras file of the other Keras: see test_a_model_of_the_other_keras_...")
    return golden


@pytest.fixture(scope="module")
def outputs(golden):
    """Images, and what the version that wrote the files gave for them."""
    with np.load(golden / "outputs.npz") as arrays:
        return dict(arrays)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_there_are_golden_files():
    """Without an archive the tests below would check nothing."""
    assert ARCHIVES


def test_a_saved_model_gives_the_same_h_and_z(own, outputs):
    """`simclr.keras`: encoder and projection head, with their weights and statistics."""
    model = keras.models.load_model(own / "simclr.keras")
    close(model.predict(outputs["images"], verbose=0), outputs["h"])
    close(model.project(outputs["images"]), outputs["z"])
    assert model.temperature == pytest.approx(0.2)


def test_a_saved_model_goes_on_training(own, outputs):
    """`simclr.keras`: the optimizer, its schedule and its state come back too."""
    model = keras.models.load_model(own / "simclr.keras")
    steps = int(model.optimizer.iterations.numpy())
    rate = model.optimizer.get_config()["learning_rate"]["config"]
    assert (steps, rate["warmup_steps"]) == (4, 2)
    dataset = tf.data.Dataset.from_tensor_slices(outputs["images"]).batch(4)
    history = model.fit(dataset, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert int(model.optimizer.iterations.numpy()) == steps + 1


def test_a_saved_model_loads_where_no_class_was_imported(own):
    """Keras 2 finds the classes by the module names in the file, which may be those of that time.

    Keras 3 looks for registered classes only: `import simclr_tf` is enough.
    """
    load = f"keras.models.load_model({str(own / 'simclr.keras')!r})"
    imported = "" if _keras.IS_KERAS_2 else "import simclr_tf; "
    code = f"{imported}from tensorflow import keras; {load}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_model_of_the_other_keras_is_one_clear_error(golden):
    if of_this_keras(golden):
        pytest.skip("it loads")
    with pytest.raises(ValueError, match=r"\.keras file loads in the Keras that wrote it"):
        keras.models.load_model(golden / "simclr.keras")


def test_an_exported_keras_encoder_gives_the_same_h(own, outputs):
    """`export/encoder.keras`, in plain Keras: float images in [0, 1]."""
    encoder = keras.models.load_model(own / "export" / "encoder.keras")
    close(encoder.predict(outputs["images"] / np.float32(255), verbose=0), outputs["h"])


def test_an_exported_saved_model_gives_the_same_embeddings(golden, outputs):
    """`export/`, by its signature and by `load_exported`."""
    loaded = tf.saved_model.load(str(golden / "export"))
    signature = loaded.signatures["serving_default"]
    close(signature(images=tf.constant(outputs["images"]))["embedding"], outputs["h"])
    encoder = export.load_exported(golden / "export")
    assert encoder.image_size == 16
    close(encoder(outputs["images"]), outputs["h"])


@pytest.mark.parametrize("suffix", ["npz", "parquet", "tfrecord"])
def test_files_of_embeddings_are_read_back(golden, outputs, suffix):
    """h, labels and ids, in each format."""
    features = embeddings.read(golden / f"embeddings.{suffix}")
    close(features.h, outputs["h"])
    assert features.labels.tolist() == [0, 1, 2, 3]
    assert features.ids.tolist() == ["ä", "b", "c", "d"]


def test_a_seed_gives_the_views_that_it_gave(outputs):
    """`RandomView` with a seed: the same views as that version drew."""
    view = simclr_tf.RandomView(16, 0.5, jit_compile=False)
    close(view(outputs["images"], seed=3), outputs["views"])


def test_the_schedule_gives_the_rate_that_it_gave(outputs):
    """`WarmupCosine` at a step after the warm-up."""
    close(simclr_tf.WarmupCosine(0.5, 10, 2)(5), outputs["step"])
