"""Pretrains on CIFAR-10 with Keras's compile and fit, then evaluates by kNN and linear probe.

    python examples/cifar10.py --data_dir=DIR [--epochs=13]

DIR is the directory where TensorFlow Datasets has prepared `cifar10`. The settings are those of a
recipe for two CPU cores, but for a longer warm-up; on the command line: `simclr-tf pretrain
--flagfile=examples/recipes/cifar10_ten_minutes.cfg --data_dir=DIR --run_dir=...`.
"""

from absl import app, flags
from tensorflow import keras

import simclr_tf
from simclr_tf import data, devices, encoders, evaluate, export, heads, optimizers, training


def train(source, epochs, batch_size=256, feature_dim=2048, seed=0):
    """Trains a `SimCLR` model on the images of a source; labels are not used."""
    steps, size = source.steps_per_epoch(batch_size), source.image_size
    model = simclr_tf.SimCLR(
        encoder=encoders.Airbench(feature_dim=feature_dim),
        projection_head=heads.LinearHead(),
        augment=simclr_tf.RandomView(size, 0.5, area=(0.2, 1.0), drop_probability=0.1),
        temperature=0.1,
        seed=seed,
    )
    total = epochs * steps
    rate = optimizers.WarmupCosine(4.8 * batch_size / 256, total, warmup_steps=total // 13)
    model.compile(optimizer=simclr_tf.LARS(rate, weight_decay=1e-4))
    # Views of half the side need a quarter of the arithmetic.
    sizes = training.ViewSizes([(size // 2, 11 / 13), (3 * size // 4, 1)], model.augment)
    stream = source.epochs(batch_size, seed)
    model.fit(stream, epochs=epochs, steps_per_epoch=steps, callbacks=[sizes])
    return model


def whiten(encoder, source, batch_size=256):
    """Returns the encoder with whitening, measured on the images of a source, as a last layer."""
    whitening = evaluate.fit_whitening(encoder, source.batches(batch_size))
    return encoders.whitened(encoder, whitening)


def score(encoder, train_source, test_source, batch_size=256):
    """Returns the accuracies of a kNN classifier and a linear probe on all test examples."""
    train = evaluate.extract_features(encoder, train_source.batches(batch_size))
    test = evaluate.extract_features(encoder, test_source.batches(batch_size))
    features = (train.h, train.labels, test.h, test.labels)
    return evaluate.knn_accuracy(*features), evaluate.linear_probe(*features).accuracy


def main(_):
    """Trains, evaluates and exports."""
    options = flags.FLAGS
    keras.mixed_precision.set_global_policy(devices.precision_policy("auto"))
    train_source = data.load("cifar10", "train", data_dir=options.data_dir)
    test_source = data.load("cifar10", "test", data_dir=options.data_dir)
    h = train(train_source, options.epochs).encoder
    whitened = whiten(h, train_source)
    for name, encoder in (("h", h), ("whitened h", whitened)):
        knn, linear = score(encoder, train_source, test_source)
        print(f"{name}: kNN {100 * knn:.2f} %, linear {100 * linear:.2f} %")
    shape = (train_source.image_size,) * 2 + (3,)
    print("exported encoder:", export.export_encoder(whitened, "cifar10_encoder/1", shape))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Directory of TensorFlow Datasets.")
    flags.DEFINE_integer("epochs", 13, "Epochs of pretraining.")
    app.run(main)
