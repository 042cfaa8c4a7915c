"""Pretrains on CIFAR-10 with Keras's compile and fit, then evaluates by kNN and linear probe.

    python examples/cifar10.py --data_dir=DIR [--epochs=10]

DIR is the directory where TensorFlow Datasets has prepared `cifar10`. On the command line:
`simclr-tf pretrain --flagfile=examples/recipes/cifar10_two_cores.cfg --data_dir=DIR --run_dir=...`.
"""

from absl import app, flags

import simclr_tf
from simclr_tf import data, evaluate, optimizers


def train(source, epochs, batch_size=512, width=0.5, seed=0):
    """Trains a `SimCLR` model on the images of a source; labels are not used."""
    steps = source.steps_per_epoch(batch_size)
    model = simclr_tf.SimCLR(
        encoder=simclr_tf.ResNet(18, width=width),
        augment=simclr_tf.RandomView(source.image_size, strength=0.5),
        temperature=0.2,
        seed=seed,
    )
    rate = optimizers.WarmupCosine(1.0, epochs * steps, warmup_steps=max(1, epochs * steps // 10))
    model.compile(optimizer=simclr_tf.LARS(rate, weight_decay=1e-4))
    model.fit(source.epochs(batch_size, seed), epochs=epochs, steps_per_epoch=steps)
    return model


def score(model, train_source, test_source, batch_size=256):
    """Returns the accuracies of a kNN classifier and a linear probe on all test examples."""
    train = evaluate.extract_features(model.encoder, train_source.batches(batch_size))
    test = evaluate.extract_features(model.encoder, test_source.batches(batch_size))
    features = (train.h, train.labels, test.h, test.labels)
    return evaluate.knn_accuracy(*features), evaluate.linear_probe(*features).accuracy


def main(_):
    """Trains, evaluates and exports."""
    options = flags.FLAGS
    train_source = data.load("cifar10", "train", data_dir=options.data_dir)
    test_source = data.load("cifar10", "test", data_dir=options.data_dir)
    model = train(train_source, options.epochs)
    knn, linear = score(model, train_source, test_source)
    print(f"kNN {100 * knn:.2f} %, linear {100 * linear:.2f} %")
    print("exported encoder:", model.export("cifar10_encoder/1"))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Directory of TensorFlow Datasets.")
    flags.DEFINE_integer("epochs", 10, "Epochs of pretraining.")
    app.run(main)
