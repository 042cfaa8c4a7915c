"""Trains the official code's CIFAR-10 recipe for a given time; a worker of learning.py.

Model, loss, views, optimizer and flags are those of google-research/simclr (tf2/), which the
environment variable SIMCLR_OFFICIAL names; the recipe is that of its README. The loop is that of
its run.py without summaries, checkpoints and the supervised head.
"""

import importlib.util
import os
import pathlib
import sys

import numpy as np
import tensorflow as tf
from absl import flags

import learning_clock
import official

RECIPE = (
    "--train_batch_size=512 --learning_rate=1.0 --weight_decay=1e-4 --temperature=0.5 "
    "--dataset=cifar10 --image_size=32 --eval_split=test --resnet_depth=18 --use_blur=False "
    "--color_jitter_strength=0.5 --lineareval_while_pretraining=False --train_mode=pretrain"
)
WARMUP = 10 / 1000  # epochs of the recipe


def modules():
    """Imports the official code and parses the recipe; returns (flags, model, objective, views)."""
    # Its optimizer is of Keras's former class.
    tf.keras.optimizers.Optimizer = tf.keras.optimizers.legacy.Optimizer
    folder = pathlib.Path(os.environ[official.VARIABLE])
    sys.path.append(str(folder))
    import data_util
    import model
    import objective

    # By its path, since the benchmarks have a run.py too; it defines the flags.
    spec = importlib.util.spec_from_file_location("official_run", folder / "run.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    flags.FLAGS(["run.py", *RECIPE.split()])
    return flags.FLAGS, model, objective, data_util


def stream(images, options, data_util, seed):
    """Returns batches [B, S, S, 6] of two views, as its data.py makes them."""
    size = options.image_size

    def two_views(image):
        views = [
            data_util.preprocess_image(
                image,
                height=size,
                width=size,
                is_training=True,
                color_jitter_strength=options.color_jitter_strength,
                test_crop=False,
            )
            for _ in range(2)
        ]
        return tf.concat(views, -1)

    dataset = tf.data.Dataset.from_tensor_slices(images)
    dataset = dataset.shuffle(50 * options.train_batch_size, seed=seed).repeat()
    dataset = dataset.map(two_views, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(options.train_batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def main(options):
    """Trains until the clock is over."""
    tf.keras.utils.set_random_seed(options.seed)
    recipe, model_lib, objective, data_util = modules()
    with np.load(options.data) as arrays:
        train, test = arrays["x_train"], arrays["x_test"]
    recipe.image_size = train.shape[1]
    recipe.train_batch_size = min(recipe.train_batch_size, len(train))
    model = model_lib.Model(10)
    peak = recipe.learning_rate * recipe.train_batch_size / 256
    optimizer = model_lib.build_optimizer(0.0)

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            z, _ = model(images, training=True)
            loss, _, _ = objective.add_contrastive_loss(
                z, hidden_norm=recipe.hidden_norm, temperature=recipe.temperature
            )
            loss += model_lib.add_weight_decay(model, adjust_per_optimizer=True)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    @tf.function
    def encode(images):
        return model.resnet_model(images, training=False)

    def features():
        return [
            np.concatenate(
                [encode(rows[i : i + 512] / np.float32(255)) for i in range(0, len(rows), 512)]
            )
            for rows in (train, test)
        ]

    clock = learning_clock.Clock(options, features)
    for images in stream(train, recipe, data_util, options.seed):
        if clock.is_over:
            return
        optimizer.learning_rate = learning_clock.cosine(peak, clock.progress, WARMUP)
        step(images).numpy()
        clock.count(recipe.train_batch_size)


if __name__ == "__main__":
    main(learning_clock.arguments())
