"""Fine-tunes an exported encoder with tensorflow-hub, without simclr_tf.

    pip install 'tensorflow-hub>=0.16.1' 'tf_keras>=2.15.1,<2.16'
    python examples/hub_finetune.py --encoder=runs/cifar10/export/1 --images=cifar10.npz

The npz file has the arrays x_train and x_test, uint8 [n, H, W, 3], and y_train and y_test, int [n].
Prints the test accuracy of a linear layer on the frozen encoder, then of the fine-tuned model.
"""

import argparse
import os

import numpy as np


def classifier(path, trainable, learning_rate, image_shape, classes):
    """Returns a compiled model: the encoder, trainable or frozen, and a linear layer."""
    import tensorflow_hub as hub  # imported on use, so that wrong arguments are reported at once
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
    """Trains a linear layer on the frozen encoder, then fine-tunes both."""
    with np.load(options.images) as arrays:
        x_train = arrays["x_train"][: options.examples] / np.float32(255)
        y_train = arrays["y_train"][: options.examples]
        x_test = arrays["x_test"][: options.tests] / np.float32(255)
        y_test = arrays["y_test"][: options.tests]
    num_classes = y_train.max() + 1
    model = None
    for name, trainable, learning_rate, epochs in (
        ("linear layer", False, 1e-2, options.linear_epochs),
        ("fine-tuning", True, options.learning_rate, options.epochs),
    ):
        previous = model
        shape = x_train.shape[1:]
        model = classifier(options.encoder, trainable, learning_rate, shape, num_classes)
        if previous is not None:
            model.layers[-1].set_weights(previous.layers[-1].get_weights())
        model.fit(x_train, y_train, options.batch_size, epochs, verbose=2)
        _, accuracy = model.evaluate(x_test, y_test, batch_size=256, verbose=0)
        weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        print(f"{name}: {weights:,} weights trained, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="directory of an exported SavedModel")
    parser.add_argument("--images", required=True, help="npz file of labelled images")
    parser.add_argument("--examples", type=int, default=2000, help="training images")
    parser.add_argument("--tests", type=int, default=2000, help="test images")
    parser.add_argument("--linear_epochs", type=int, default=10, help="of the linear layer")
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of fine-tuning")
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()
    if not os.path.isfile(os.path.join(args.encoder, "saved_model.pb")):
        parser.error(f"--encoder must be the directory of a SavedModel; got {args.encoder}")
    if not os.path.isfile(args.images):
        parser.error(f"--images must be an existing npz file; got {args.images}")
    main(args)
