"""Trains SimCLR and LooC on drawn shapes and compares what their encoders know.

    python examples/keep_color.py [--epochs=8] [--looc_epochs=8] [--start=simclr] [--kept=color]

SimCLR is trained to ignore colour, as its views are jittered, though it takes long until h does.
LooC is trained to keep it: one of its keys has the colours of the query. It starts from SimCLR's
encoder; `--start=random` trains it from random weights. The table has the accuracies of a linear
classifier on the class of the shapes, their colour and their orientation, from h of either and from
all spaces of LooC. Accuracies are in percent.
"""

import argparse

import tensorflow as tf

import simclr_tf
from simclr_tf import augment, data, devices, evaluate, models, optimizers

ATTRIBUTES = ("class", "color", "orientation")


def build(method, family, kept, width=0.25, **arguments):
    """Returns an untrained `SimCLR` or `LooC` whose views are of one family."""
    encoder = simclr_tf.ResNet(18, width=width)
    if method == "simclr":
        return simclr_tf.SimCLR(encoder, augment=family, **arguments)
    return models.LooC(encoder, kept, augment=family, **arguments)


def train(model, source, epochs, batch_size=128, learning_rate=0.003, seed=0):
    """Trains a model on the images of a source; labels are not used."""
    steps = source.steps_per_epoch(batch_size)
    rate = optimizers.WarmupCosine(learning_rate, epochs * steps, warmup_steps=max(1, steps // 2))
    model.compile(optimizer=optimizers.AdamW(rate, weight_decay=1e-4))
    model.fit(source.epochs(batch_size, seed), epochs=epochs, steps_per_epoch=steps, verbose=2)
    return model


def score(encoder, train_split, test_split):
    """Returns the accuracies of linear classifiers of each attribute, a dict."""
    found = {}
    for attribute in ATTRIBUTES:
        sources = [data.load(f"shapes_by_{attribute}", s) for s in (train_split, test_split)]
        if not found:  # the images of all three are the same
            features = [evaluate.extract_features(encoder, s.batches(250)).h for s in sources]
        labels = [source.labels() for source in sources]
        probe = evaluate.linear_probe(features[0], labels[0], features[1], labels[1])
        found[attribute] = probe.accuracy
    return found


def compare(options, show=print):
    """Trains both and returns {name of a row: accuracies}; shows each row as soon as it is known.

    The first row is of an encoder with random weights.
    """
    family = augment.family_with(options.kept, 32, strength=options.strength)
    source = data.load("shapes_by_class", options.train_split)
    rows = {}

    def add(name, encoder):
        rows[name] = score(encoder, options.train_split, options.test_split)
        show(f"{name:15}" + "".join(f"{100 * rows[name][each]:13.1f}" for each in ATTRIBUTES))

    show(f"{'':15}" + "".join(f"{name:>13}" for name in ATTRIBUTES))
    arguments = {"temperature": options.temperature, "seed": options.seed}
    settings = options.batch_size, options.learning_rate, options.seed
    simclr, looc = (
        build(method, family, options.kept, options.width, **arguments)
        for method in ("simclr", "looc")
    )
    for model in (simclr, looc):
        model.build((None, 32, 32, 3))
    add("random", simclr.encoder)
    train(simclr, source, options.epochs, *settings)
    add("simclr, h", simclr.encoder)
    if options.start == "simclr":
        looc.encoder.set_weights(simclr.encoder.get_weights())
    train(looc, source, options.looc_epochs or options.epochs, *settings)
    add("looc, h", looc.encoder)
    looc.representation = "spaces"
    add("looc, spaces", looc)
    return rows


def parse(arguments=None):
    """Returns the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--looc_epochs", type=int, help="of LooC; by default those of --epochs")
    parser.add_argument("--start", choices=["simclr", "random"], default="simclr", help="of LooC")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--kept", type=lambda names: names.split(","), default=["color"])
    parser.add_argument("--strength", type=float, default=1.0, help="of the colour jitter")
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet-18")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=0.003, help="of AdamW, at its peak")
    parser.add_argument("--temperature", type=float, default=0.2, help="of both losses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parse()
    tf.keras.mixed_precision.set_global_policy(devices.precision_policy(chosen.precision))
    compare(chosen)
