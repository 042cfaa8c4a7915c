"""Accuracy against seconds of training: ours, lightly's CIFAR-10 recipe and the official code's.

    python benchmarks/learning.py --out=DIR --data_dir=DATA [--minutes=60] [--seeds=2]
        [--recipes=ours,lightly,official] [--ours=examples/recipes/cifar10_two_cores.cfg]

Every recipe trains for the same time, alone on the machine, one after another, with its own batch,
views, network, optimizer and precision; its learning rate follows the fraction of the time. At
`--points` times the features of all training and test images are stored; their computation is not
in the time. Then all are scored alike: weighted kNN (k = 200, T = 0.1), kNN with k = 10, weighted
kNN of whitened features and, at the last point, logistic regression, all on h of one image.

lightly needs the environment variable SIMCLR_LIGHTLY (a Python interpreter that has it), the
official code SIMCLR_OFFICIAL (its directory tf2/). `--ours` takes several flag files, each of which
is a recipe of its name; flags of `pretrain` after a `--` apply to all of them. The fractions of
--view_sizes are of the time here, not of the steps: 16:0.5,24:1 for cifar10_one_hour.cfg.
DIR/learning.csv has a row for each recipe, seed and point, DIR/learning.png the curves. What is
there is not run again.
"""

import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

import official
import torch_lightly
from simclr_tf import _quiet

_quiet.import_tensorflow()

from simclr_tf import data, encoders, evaluate  # noqa: E402 - after TensorFlow's start-up lines

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS = (
    *("recipe", "seed", "seconds", "images"),
    *("knn", "knn_10", "knn_whitened", "linear"),
)


def write_data(options, path):
    """Writes both splits as an npz file that all workers read; does nothing if it is there."""
    if path.exists():
        return
    arrays = {}
    for name, split in (("train", options.train_split), ("test", options.test_split)):
        source = data.load(options.dataset, split, data_dir=options.data_dir)
        batches = list(source.batches(1000))
        arrays[f"x_{name}"] = np.concatenate([batch["image"].numpy() for batch in batches])
        arrays[f"y_{name}"] = np.concatenate([batch["label"].numpy() for batch in batches])
    np.savez(path, **arrays)


def recipes(options, extra):
    """Returns {name: [interpreter, script, flags ...]} of what is asked for and available."""
    found = {}
    for name in options.recipes:
        if name == "ours":
            for file in options.ours:
                flagfile = f"--flagfile={pathlib.Path(file).resolve()}"
                command = [sys.executable, HERE / "learning_ours.py", flagfile, *extra]
                found[pathlib.Path(file).stem] = command
        elif name == "lightly" and torch_lightly.is_available():
            found[name] = [os.environ[torch_lightly.VARIABLE], HERE / "learning_lightly.py"]
        elif name == "official" and official.is_available():
            found[name] = [sys.executable, HERE / "learning_official.py"]
        else:
            print(f"{name} is left out: its environment variable is not set.")
    return found


def train(command, folder, options, seed):
    """Runs a worker, which leaves the features of each point in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    interpreter, script, *rest = map(str, command)
    words = [options.out / "data.npz", folder, options.minutes, options.points, seed]
    subprocess.run([interpreter, script, *map(str, words), *rest], check=True)


def score(features, labels, last):
    """Returns the accuracies of the features of a point."""
    train_h, test_h = features["train_h"], features["test_h"]
    pair = (train_h, labels["y_train"], test_h, labels["y_test"])
    moments = train_h.mean(0, dtype=np.float64), np.cov(train_h.T, bias=True)
    whitening = encoders.zca(*moments)
    white = whitening.apply(train_h), labels["y_train"], whitening.apply(test_h), labels["y_test"]
    predicted = evaluate.knn_predict(*pair[:3], k=10, weighted=False)
    return {
        "seconds": round(float(features["seconds"]), 1),
        "images": int(features["images"]),
        "knn": evaluate.knn_accuracy(*pair),
        "knn_10": float(np.mean(predicted == labels["y_test"])),
        "knn_whitened": evaluate.knn_accuracy(*white),
        "linear": evaluate.linear_probe(*pair).accuracy if last else None,
    }


def run(name, command, options, seed):
    """Returns the rows of a recipe and a seed, from its table where it is there."""
    table = options.out / f"{name}_{seed}.csv"
    if not table.exists():
        folder = options.out / f"{name}_{seed}"
        train(command, folder, options, seed)
        files = sorted(folder.glob("point*.npz"), key=lambda file: int(file.stem[len("point") :]))
        rows = []
        with np.load(options.out / "data.npz") as labels:
            for file in files:
                with np.load(file) as features:
                    scores = score(features, labels, file == files[-1])
                rows.append({"recipe": name, "seed": seed, **scores})
        write(rows, table)
        for file in files:
            file.unlink()
        folder.rmdir()
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows, path):
    """Writes rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def plot(rows, path):
    """Draws weighted kNN accuracy against minutes, a line for each seed, a colour for each recipe.

    The lines of raw h are solid, those of whitened h dashed, with hollow points.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4), layout="constrained")
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    for row_name in names:
        color = f"C{names.index(row_name)}"
        for seed in dict.fromkeys(row["seed"] for row in rows):
            points = [row for row in rows if (row["recipe"], row["seed"]) == (row_name, seed)]
            minutes = [float(row["seconds"]) / 60 for row in points]
            first = seed == rows[0]["seed"]
            lines = ("knn", "-", color, "h"), ("knn_whitened", "--", "white", "whitened h")
            for key, style, fill, text in lines:
                accuracy = [100 * float(row[key]) for row in points]
                label = f"{row_name}, {text}" if first else None
                axes.plot(minutes, accuracy, style, color=color, marker="o", mfc=fill, label=label)
    axes.set(xlabel="minutes of training", ylabel="kNN accuracy (k = 200), %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def main(argv):
    """Runs what is missing, and writes the table and the picture."""
    options = flags.FLAGS
    options.out = pathlib.Path(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    write_data(options, options.out / "data.npz")
    rows = []
    for seed in range(options.seeds):
        for name, command in recipes(options, argv[1:]).items():
            rows += run(name, command, options, seed)
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    write(rows, options.out / "learning.csv")
    plot(rows, options.out / "learning.png")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory of the results.", required=True)
    flags.DEFINE_string("dataset", "cifar10", "As for pretrain; lightly and official fit CIFAR-10.")
    flags.DEFINE_string("data_dir", None, "Directory of the TFDS data sets.")
    flags.DEFINE_string("train_split", "train", "Split to train on.")
    flags.DEFINE_string("test_split", "test", "Split to score.")
    flags.DEFINE_float("minutes", 60.0, "Minutes of training of each recipe and seed.", 0.01)
    flags.DEFINE_integer("points", 6, "Times at which it is scored.", 1)
    flags.DEFINE_integer("seeds", 1, "Seeds 0, 1, ...", 1)
    flags.DEFINE_list("recipes", ["ours", "lightly", "official"], "What to run.")
    flags.DEFINE_list("ours", ["examples/recipes/cifar10_two_cores.cfg"], "Flag files.")
    app.run(main)
