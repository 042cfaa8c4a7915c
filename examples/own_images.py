"""Pretrains an encoder on a folder of your own images and finds images similar to a given one.

    python examples/own_images.py --images=FOLDER [--image_size=96] [--epochs=20] [--like=ID]

FOLDER has JPEG, PNG, WebP or BMP images of any size, in subfolders or not; no labels are used. The
encoder maps each image to a vector, and similar images to vectors of high cosine similarity.
"""

import numpy as np
from absl import app, flags

import simclr_tf
from simclr_tf import data, evaluate, optimizers


def train(source, epochs, batch_size=64, width=0.5, seed=0):
    """Trains a `SimCLR` model on the images of a source."""
    steps = source.steps_per_epoch(batch_size)
    model = simclr_tf.SimCLR(
        encoder=simclr_tf.ResNet(18, width=width),
        augment=simclr_tf.RandomView.for_size(source.image_size),
        temperature=0.2,
        seed=seed,
    )
    rate = optimizers.WarmupCosine(1e-3, epochs * steps, warmup_steps=max(1, epochs * steps // 10))
    model.compile(optimizer=optimizers.by_name("adamw", rate, weight_decay=1e-4))
    model.fit(source.epochs(batch_size, seed), epochs=epochs, steps_per_epoch=steps)
    return model


def most_similar(features, row, count=5):
    """Returns (id, cosine similarity) of the images most similar to the image of a row."""
    h = features.h / np.linalg.norm(features.h, axis=1, keepdims=True)
    similarity = h @ h[row]
    nearest = [i for i in np.argsort(-similarity) if i != row][:count]
    return [(features.ids[i], float(similarity[i])) for i in nearest]


def main(_):
    """Trains, extracts features, prints the neighbours of one image, and exports."""
    options = flags.FLAGS
    source = data.load(f"folder:{options.images}", options.split, image_size=options.image_size)
    model = train(source, options.epochs)
    features = evaluate.extract_features(model.encoder, source.batches(64))
    ids = list(features.ids)
    if options.like and options.like not in ids:
        raise app.UsageError(f"--like must be an id, such as {ids[0]!r}; got {options.like!r}.")
    row = ids.index(options.like) if options.like else 0
    print(f"most similar to {ids[row]}:")
    for name, similarity in most_similar(features, row):
        print(f"  {similarity:.3f}  {name}")
    print("exported encoder:", model.export("own_encoder/1"))


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "Folder of images.", required=True)
    flags.DEFINE_string("split", "train", "Split of the folder, such as train or all.")
    flags.DEFINE_integer("image_size", 96, "Side of the images in pixels.")
    flags.DEFINE_integer("epochs", 20, "Epochs of pretraining.")
    flags.DEFINE_string("like", None, "Id (path below the folder) of the query image.")
    app.run(main)
