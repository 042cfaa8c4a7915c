"""Runs google-research/simclr's TensorFlow 2 code: a model of random weights, and the files of it.

`python tests/official_model.py CODE OUT float32 --resnet_depth=50 ...`, in a process of its own,
since that code reads absl's flags and its modules have names such as `data` and `model`. CODE is
the folder tf2/ of a checkout. In OUT are then `ckpt-1`, as its training loop saves it after a step,
and `saved_model/1`, as its evaluation exports it. None of that code is in this project.
"""

import sys

import numpy as np
import tensorflow as tf


def randomize(variables):
    """Values that hide nothing: no gamma at 0, no statistics or offsets as they start."""
    rng = np.random.default_rng(0)
    for variable in variables:
        name = variable.name.split("/")[-1]
        if name.startswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name.startswith(("beta", "moving_mean", "bias")):
            variable.assign(rng.normal(0, 0.1, variable.shape))


def main(code, out, floatx, *flags):
    """Builds, trains for a step, randomizes and saves."""
    tf.keras.backend.set_floatx(floatx)
    tf.keras.utils.set_random_seed(0)
    sys.path.insert(0, code)
    import run

    run.FLAGS(["run.py", f"--model_dir={out}", "--nouse_blur", "--train_batch_size=2", *flags])
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = run.model_lib.Model(num_classes=10)
        optimizer = run.model_lib.build_optimizer(learning_rate=0.1)
    size = run.FLAGS.image_size

    def step(views):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(y**2) for y in model(views, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    views = tf.random.uniform([1, size, size, 6])
    tf.function(lambda: strategy.run(step, (views,)))()
    randomize(model.variables)
    run.try_restore_from_checkpoint(model, optimizer.iterations, optimizer).save(1)
    run.save(model, global_step=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
