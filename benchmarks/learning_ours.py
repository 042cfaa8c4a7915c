"""Trains by flags of `simclr-tf pretrain` for a given time; a worker of learning.py.

The flags that give a length (--epochs, --train_steps) are not used: the time does.
"""

import numpy as np

import learning_clock
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from simclr_tf import cli, data, evaluate, optimizers  # noqa: E402 - after TensorFlow's start-up
from simclr_tf.commands import build  # noqa: E402
from simclr_tf.training import ViewSizes  # noqa: E402


def main(options):
    """Trains until the clock is over."""
    words = [f"--dataset=npz:{options.data}", f"--seed={options.seed}", "--run_dir=none"]
    _, values = cli.parse(["pretrain", *options.flags, *words])
    flags = cli.options_of(values)
    build.prepare_process(flags, "one")
    train, test = (data.load(flags.dataset, split) for split in ("train", "test"))
    model = build.build_model(flags, train.image_size)
    peak = optimizers.scale_learning_rate(
        flags.learning_rate, flags.batch_size, flags.learning_rate_scaling
    )
    warmup = min(0.1, (flags.warmup_epochs or 1e9) / flags.epochs)
    optimizer = optimizers.by_name(
        flags.optimizer, 0.0, weight_decay=flags.weight_decay, momentum=flags.momentum
    )
    model.compile(optimizer=optimizer)

    def features():
        return [_features(flags, model, source) for source in (train, test)]

    step = tf.function(model.train_step)
    clock, sizes = learning_clock.Clock(options, features), list(flags.view_sizes or [])
    for batch in train.epochs(flags.batch_size, flags.seed):
        if clock.is_over:
            return
        if sizes and _resize(model, sizes, clock.progress):
            step = tf.function(model.train_step)
        model.optimizer.learning_rate = learning_clock.cosine(peak, clock.progress, warmup)
        np.asarray(step(batch)["loss"])  # waits for the device
        clock.count(flags.batch_size)


def _features(flags, model, source):
    batches = source.batches(512)
    return evaluate.extract_features(model.inference_encoder, batches).h


def _resize(model, sizes, progress):
    """Gives the views the size of this part of the time; returns whether it is another one."""
    size = next((size for size, end in sizes if progress < end), sizes[-1][0])
    view = model.augment
    if view.size == size:
        return False
    model.augment = ViewSizes(sizes, view).view_of(size)
    return True


if __name__ == "__main__":
    main(learning_clock.arguments())
