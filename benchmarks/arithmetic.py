"""Parameters and arithmetic of encoders for small images, computed from the shapes of their layers.

    python benchmarks/arithmetic.py [--image_size=32]

The arithmetic is that of a forward pass of one image, in millions of multiply-adds of the
convolutions; a training step takes three times as much for each view.
"""

import numpy as np
from absl import app, flags

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines

# Name, and the options of `encoders.by_name`, which are flags of `simclr-tf pretrain`.
ENCODERS = (
    ("resnet18", {"width": 1, "stem": "cifar"}),
    ("resnet18", {"width": 0.5, "stem": "cifar"}),
    ("resnet18", {"width": 1, "stem": "space_to_depth"}),
    ("resnet18", {"width": 0.5, "stem": "space_to_depth"}),
    ("resnet14", {"width": 1, "stem": "cifar"}),
    ("resnet14", {"width": 1, "stem": "space_to_depth"}),
    ("resnet14", {"width": 1, "stem": "space_to_depth", "feature_dim": 2048}),
    ("resnet14", {"width": 0.5, "stem": "space_to_depth"}),
    ("airbench", {}),
    ("airbench", {"feature_dim": 2048}),
)
COLUMNS = {
    "encoder": ("encoder", ""),
    "h": ("length of h", ""),
    "parameters": ("parameters", ",d"),
    "multiply_adds": ("million multiply-adds", ".1f"),
}


def multiply_adds(encoder, image_size):
    """Returns the multiply-adds of the convolutions for one image."""
    model = encoder.to_functional((image_size, image_size, 3))
    total = 0
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.Conv2D):
            _, rows, columns, _ = layer.output.shape
            total += rows * columns * int(np.prod(layer.kernel.shape))
    return total


def run(image_size):
    """Returns a row for each encoder."""
    rows = []
    for name, options in ENCODERS:
        encoder = simclr_tf.encoders.by_name(name, **options)
        flags_of = [f"--encoder={name}", *(f"--{key}={value}" for key, value in options.items())]
        count = multiply_adds(encoder, image_size)
        parameters = sum(int(np.prod(weight.shape)) for weight in encoder.trainable_weights)
        rows.append(
            {
                "encoder": " ".join(flags_of),
                "h": encoder.feature_dim,
                "parameters": parameters,
                "multiply_adds": count / 1e6,
            }
        )
    return rows


if __name__ == "__main__":
    flags.DEFINE_integer("image_size", 32, "Side of the images in pixels.", 8)
    app.run(lambda _: measure.show("Encoders", COLUMNS, run(flags.FLAGS.image_size)))
