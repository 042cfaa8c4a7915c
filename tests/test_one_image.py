"""One file has one embedding, whichever way it goes in: evaluation, `embed`, the signatures."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow import keras

from simclr_tf import cli, data, embeddings, evaluate, export, images

SIZE = 16
SHAPES = {"landscape": (30, 44), "portrait": (50, 27), "same": (16, 16), "square": (40, 40)}


@pytest.fixture(scope="module")
def encoder():
    layers = [keras.layers.Conv2D(6, 3, activation="tanh"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A PNG of each shape: smooth, with noise on top."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, (height, width) in SHAPES.items():
        slope = (
            np.linspace(0, 150, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        )
        pixels = slope + rng.integers(0, 40, [height, width, 3])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    return export.export_encoder(encoder, tmp_path_factory.mktemp("export") / "1")


@pytest.fixture(scope="module")
def evaluated(encoder, folder):
    """{name: embedding} by evaluation, from the folder."""
    source = data.load(f"folder:{folder}", image_size=SIZE)
    features = evaluate.extract_features(encoder, source.batches(3))
    return {name.removesuffix(".png"): h for name, h in zip(features.ids, features.h)}


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_and_every_signature_agree(shape, encoder, folder, exported, evaluated):
    """To 1e-5: centre square, resize and rounding are one definition."""
    file = (folder / f"{shape}.png").read_bytes()
    pixels = np.asarray(Image.open(folder / f"{shape}.png"))[None]
    signatures = tf.saved_model.load(str(exported)).signatures
    results = {
        "serving_bytes": signatures["serving_bytes"](image_bytes=tf.constant([file])),
        "serving_default": signatures["serving_default"](images=tf.constant(pixels)),
        "serving_float": signatures["serving_float"](images=tf.constant(pixels / np.float32(255))),
    }
    results = {name: result["embedding"][0] for name, result in results.items()}
    results["extract_features"] = evaluate.extract_features(encoder, [pixels], SIZE).h[0]
    results["by hand"] = encoder(images.centre_square(pixels, SIZE))[0]
    for name, embedding in results.items():
        np.testing.assert_allclose(embedding, evaluated[shape], atol=1e-5, err_msg=name)


@pytest.mark.end_to_end
def test_embed_writes_the_same_embeddings(folder, exported, evaluated, tmp_path):
    """`simclr-tf embed` from the export."""
    arguments = [f"--saved_model={exported}", f"--dataset=folder:{folder}"]
    assert cli.main(["embed", *arguments, f"--output={tmp_path / 'h.npz'}"]) == 0
    features = embeddings.read(tmp_path / "h.npz")
    assert len(features.ids) == len(SHAPES)
    for name, h in zip(features.ids, features.h):
        np.testing.assert_allclose(h, evaluated[name.removesuffix(".png")], atol=1e-5)
