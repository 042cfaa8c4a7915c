"""Parameters and arithmetic of ResNets for small images, computed from the shapes of their layers.

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

# Depth, width, stem, feature_dim.
ENCODERS = (
    (18, 1, "cifar", None),
    (18, 0.5, "cifar", None),
    (18, 1, "space_to_depth", None),
    (18, 0.5, "space_to_depth", None),
    (14, 1, "cifar", None),
    (14, 1, "space_to_depth", None),
    (14, 1, "space_to_depth", 2048),
    (14, 0.5, "space_to_depth", None),
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
    for depth, width, stem, feature_dim in ENCODERS:
        encoder = simclr_tf.ResNet(depth, width, stem=stem, feature_dim=feature_dim)
        name = f"--resnet_depth={depth} --width={width:g} --stem={stem}"
        if feature_dim is not None:
            name += f" --feature_dim={feature_dim}"
        count = multiply_adds(encoder, image_size)
        parameters = sum(int(np.prod(weight.shape)) for weight in encoder.trainable_weights)
        rows.append(
            {
                "encoder": name,
                "h": encoder.feature_dim,
                "parameters": parameters,
                "multiply_adds": count / 1e6,
            }
        )
    return rows


if __name__ == "__main__":
    flags.DEFINE_integer("image_size", 32, "Side of the images in pixels.", 8)
    app.run(lambda _: measure.show("Encoders", COLUMNS, run(flags.FLAGS.image_size)))
