"""An encoder from a folder of one's own images, and the images most like a given one.

    python examples/own_images.py --images=FOLDER [--image_size=96] [--epochs=20] [--like=ID]

FOLDER may hold JPEG, PNG, WebP and BMP of any size, nested, with or without class folders; no label
is needed or used. Afterwards each image has a vector, and near vectors mean like images.
"""

import numpy as np
from absl import app, flags

import simclr_tf
from simclr_tf import data, evaluate, optimizers


def train(source, epochs, batch_size=64, width=0.5, seed=0):
    """A `SimCLR` trained on the images of a source."""
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


def most_alike(features, which, count=5):
    """Ids and cosine similarities of the images nearest to image number `which`."""
    h = features.h / np.linalg.norm(features.h, axis=1, keepdims=True)
    similarity = h @ h[which]
    nearest = [i for i in np.argsort(-similarity) if i != which][:count]
    return [(features.ids[i], float(similarity[i])) for i in nearest]


def main(_):
    """Trains, embeds, and shows the neighbours of one image."""
    options = flags.FLAGS
    source = data.load(f"folder:{options.images}", options.split, image_size=options.image_size)
    model = train(source, options.epochs)
    features = evaluate.extract_features(model.encoder, source.batches(64))
    ids = list(features.ids)
    which = ids.index(options.like) if options.like else 0
    print(f"most like {ids[which]}:")
    for name, similarity in most_alike(features, which):
        print(f"  {similarity:.3f}  {name}")
    print("encoder:", model.export("own_encoder/1"))


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "Folder of images.", required=True)
    flags.DEFINE_string("split", "train", "Which part of the folder, such as train or all.")
    flags.DEFINE_integer("image_size", 96, "Side of the images in pixels.")
    flags.DEFINE_integer("epochs", 20, "Passes over the images.")
    flags.DEFINE_string("like", None, "Id (path below the folder) of the image to look for.")
    app.run(main)
