"""Reads what a run has written, for tests that compare runs, and writes a run without training."""

import tensorflow as tf

from simclr_tf import cli
from simclr_tf.commands import build
from simclr_tf.training import Checkpoints, checkpoints, run_directory


def weights_of(directory):
    """Every variable of the latest checkpoint, by name."""
    number = checkpoints.numbers(directory / "checkpoints")[-1]
    reader = tf.train.load_checkpoint(str(directory / "checkpoints" / f"ckpt-{number}"))
    names = reader.get_variable_to_shape_map()
    return {
        n: reader.get_tensor(n)
        for n in names
        if "OBJECT_GRAPH" not in n and "save_counter" not in n
    }


def untrained_run(path, images, size):
    """Writes the flags and a checkpoint of a run on an .npz file; returns the model."""
    directory = run_directory.RunDirectory(path)
    flags = ["--width=0.0625", "--precision=float32", f"--run_dir={path}"]
    _, values = cli.parse(["pretrain", f"--dataset=npz:{images}", *flags])
    model = build.build_model(cli.options_of(values), size)
    model.compile(optimizer="sgd")
    directory.path.mkdir()
    directory.write_flags(cli.flag_texts(values))
    saver = Checkpoints(directory.checkpoints, model, 1, metadata={"image_size": size})
    saver.set_model(model)
    saver.on_epoch_end(0)
    return model
