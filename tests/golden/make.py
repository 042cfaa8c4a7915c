"""Writes the golden files of this version: files that users of a later version may still have.

    python tests/golden/make.py

Run it once for each release with each Keras. It writes tests/golden/VERSION.tar.xz with Keras 2 and
VERSION-keras3.tar.xz with Keras 3, and never overwrites one; the archives of earlier versions stay
as they are. `tests/test_golden.py` loads every file in them with the current code and compares the
outputs with those recorded here.
"""

import pathlib
import tarfile
import tempfile

import numpy as np
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import _keras, embeddings, evaluate, export, optimizers

HERE = pathlib.Path(__file__).parent
IMAGE_SHAPE = (16, 16, 3)


def make_model():
    """A trained `SimCLR` with a small ResNet-18: four steps on images of noise."""
    keras.utils.set_random_seed(0)
    model = simclr_tf.SimCLR(
        simclr_tf.ResNet(18, width=1 / 16),
        simclr_tf.ProjectionHead(output_dim=8),
        simclr_tf.RandomView(16, 0.5, jit_compile=False),
        temperature=0.2,
        seed=1,
    )
    model.compile(optimizer=simclr_tf.LARS(simclr_tf.WarmupCosine(0.5, 10, 2), weight_decay=1e-4))
    images = np.random.default_rng(0).integers(0, 256, [32, *IMAGE_SHAPE], np.uint8)
    model.fit(tf.data.Dataset.from_tensor_slices(images).batch(8), epochs=1, verbose=0)
    return model


def write(folder):
    """Writes every kind of file, and the outputs that they gave, into an empty folder."""
    model = make_model()
    images = np.random.default_rng(1).integers(0, 256, [4, *IMAGE_SHAPE], np.uint8)
    model.save(folder / "simclr.keras")
    export.export_encoder(model.encoder, folder / "export", IMAGE_SHAPE)
    h = model.predict(images, verbose=0)
    features = evaluate.Features(h, labels=np.arange(4), ids=np.array(list("äbcd")))
    for suffix in ("npz", "parquet", "tfrecord"):
        with embeddings.Writer(folder / f"embeddings.{suffix}") as file:
            file.write(features)
    np.savez(
        folder / "outputs.npz",
        images=images,
        h=h,
        z=model.project(images),
        views=model.augment(images, seed=3),
        step=optimizers.WarmupCosine(0.5, 10, 2)(5),
    )


def main():
    """Packs the files of this version into an archive of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder))
        name = simclr_tf.__version__ + ("" if _keras.IS_KERAS_2 else "-keras3")
        with tarfile.open(HERE / f"{name}.tar.xz", "x:xz") as archive:
            archive.add(folder, arcname=".")


if __name__ == "__main__":
    main()
