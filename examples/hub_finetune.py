"""Fine-tunes an exported encoder with tensorflow-hub, in a process that needs nothing of simclr_tf.

    pip install 'tensorflow-hub>=0.16.1' 'tf_keras>=2.15.1,<2.16'
    python examples/hub_finetune.py --encoder=runs/cifar10/export/1 --images=cifar10.npz

The file holds x_train, x_test, uint8 [n, H, W, 3], and y_train, y_test, int [n]. Prints the test
accuracy of a linear layer on the frozen encoder, and of both trained on.
"""

import argparse
import os

import numpy as np


def classifier(path, trainable, learning_rate, image_shape, classes):
    """A compiled model: the encoder, trained or not, and a linear layer."""
    import tensorflow_hub as hub  # here, so that a mistake is answered at once
    import tf_keras

    encoder = hub.KerasLayer(path, trainable=trainable)
    head = tf_keras.layers.Dense(classes, kernel_initializer="zeros")
    model = tf_keras.Sequential([encoder, head])
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.build((None, *image_shape))
    return model


def main(options):
    """Trains the linear layer alone, then everything from there on."""
    with np.load(options.images) as arrays:
        x, y = arrays["x_train"][: options.examples], arrays["y_train"][: options.examples]
        test = arrays["x_test"][: options.tests], arrays["y_test"][: options.tests]
    x, test = x / np.float32(255), (test[0] / np.float32(255), test[1])
    model = None
    for name, trainable, learning_rate, epochs in (
        ("linear layer alone", False, 1e-2, options.linear_epochs),
        ("all of it", True, options.learning_rate, options.epochs),
    ):
        before = model
        model = classifier(options.encoder, trainable, learning_rate, x.shape[1:], y.max() + 1)
        if before is not None:
            model.layers[-1].set_weights(before.layers[-1].get_weights())
        model.fit(x, y, options.batch_size, epochs, verbose=2)
        _, accuracy = model.evaluate(*test, batch_size=256, verbose=0)
        weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        print(f"{name}: {weights:,} weights trained, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="an exported SavedModel")
    parser.add_argument("--images", required=True, help="npz of labelled images")
    parser.add_argument("--examples", type=int, default=2000, help="training images")
    parser.add_argument("--tests", type=int, default=2000, help="test images")
    parser.add_argument("--linear_epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of all of it")
    parser.add_argument("--batch_size", type=int, default=64)
    given = parser.parse_args()
    if not os.path.isfile(os.path.join(given.encoder, "saved_model.pb")):
        parser.error(f"--encoder must be an exported SavedModel; {given.encoder} is none")
    if not os.path.isfile(given.images):
        parser.error(f"--images must be an npz file; there is none at {given.images}")
    main(given)
