"""SimCLR on CIFAR-10 from Python: the three calls of Keras, then the two protocols.

    python examples/cifar10.py --data_dir=DIR [--epochs=10]

DIR is where TensorFlow Datasets has prepared `cifar10`. The command line does the same with
`simclr-tf pretrain --flagfile=examples/recipes/cifar10_two_cores.cfg --data_dir=DIR --run_dir=...`.
"""

from absl import app, flags

import simclr_tf
from simclr_tf import data, evaluate, optimizers


def train(source, epochs, batch_size=512, width=0.5, seed=0):
    """A `SimCLR` trained on the images of a source; its labels are not looked at."""
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
    """KNN and linear accuracy of h on every last test example."""
    train_h = evaluate.extract_features(model.encoder, train_source.batches(batch_size))
    test_h = evaluate.extract_features(model.encoder, test_source.batches(batch_size))
    pair = (train_h.h, train_h.labels, test_h.h, test_h.labels)
    return evaluate.knn_accuracy(*pair), evaluate.linear_probe(*pair).accuracy


def main(_):
    """Trains, scores, exports."""
    options = flags.FLAGS
    sources = [
        data.load("cifar10", split, data_dir=options.data_dir) for split in ("train", "test")
    ]
    model = train(sources[0], options.epochs)
    knn, linear = score(model, *sources)
    print(f"kNN {100 * knn:.2f} %, linear {100 * linear:.2f} %")
    print("encoder:", model.export("cifar10_encoder/1"))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets has its data sets.")
    flags.DEFINE_integer("epochs", 10, "Passes over the data.")
    app.run(main)
