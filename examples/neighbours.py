"""A search for like images over a file of embeddings, as `simclr-tf embed` writes them.

    simclr-tf embed --run_dir=runs/photos --output=photos.parquet
    python examples/neighbours.py --embeddings=photos.parquet [--like=ID] [--images=photos]

Prints the images nearest to the given ones, or to a few at random, by cosine similarity; where
there are labels, also precision@k: the share of the k nearest that have the label of the query.
`--images` names the folder that was embedded, or its npz, and draws them to `--picture`.

The search is exact, by scikit-learn, and needs the file in memory: right up to some 100,000 images.
Beyond, give `index_of`'s unit vectors to an approximate index; what is below stays.
"""

import pathlib
import sys

import numpy as np
from absl import app, flags
from sklearn.neighbors import NearestNeighbors

from simclr_tf import embeddings


def index_of(h):
    """A search by cosine similarity in h, float [n, D]."""
    # Brute force is a matrix product; trees are slower at this many dimensions.
    return NearestNeighbors(metric="cosine", algorithm="brute").fit(h)


def neighbours(index, h, rows, k):
    """The k nearest of each of the rows of h, without itself.

    Returns:
      (which [q, k], cosine similarity [q, k]), the most alike first.
    """
    rows = np.asarray(rows)
    distance, found = index.kneighbors(h[rows], n_neighbors=k + 1)
    # Itself comes first, unless another image has the same embedding: the last is left out then.
    others = found != rows[:, None]
    others[others.all(axis=1), -1] = False
    return found[others].reshape(-1, k), 1 - distance[others].reshape(-1, k)


def precision_at(index, h, labels, k, most=5000):
    """Fraction of the k nearest that share the query's label, over at most `most` queries."""
    rows = np.unique(np.linspace(0, len(h) - 1, most).astype(int))
    found, _ = neighbours(index, h, rows, k)
    return float(np.mean(labels[found] == labels[rows, None]))


def rows_of(features, like, count, seed=0):
    """Rows of the ids that are asked for; `count` at random where none is."""
    if not like:
        rng = np.random.default_rng(seed)
        return np.sort(rng.choice(len(features.h), min(count, len(features.h)), replace=False))
    place = {name: row for row, name in enumerate(features.ids)}
    unknown = [name for name in like if name not in place]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no id of the file, such as {features.ids[0]!r}.")
    return np.array([place[name] for name in like])


def describe(features, row):
    """Id and label of a row."""
    label = "" if features.labels is None else f"  (label {features.labels[row]})"
    return f"{features.ids[row]}{label}"


def draw(path, features, rows, found, image_of):
    """A picture: in each row a query and its neighbours; a green edge where the label is the same.

    image_of: id -> uint8 or float image [H, W, 3].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * (1 + found.shape[1]), 1.4 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1 + found.shape[1], squeeze=False)
    for query, others, line in zip(rows, found, panels):
        for column, (row, panel) in enumerate(zip([query, *others], line)):
            panel.imshow(image_of(features.ids[row]))
            panel.set(xticks=[], yticks=[])
            panel.set_title("query" if not column else f"{column}", fontsize=8)
            if column and features.labels is not None:
                same = features.labels[row] == features.labels[query]
                for edge in panel.spines.values():
                    edge.set(color="tab:green" if same else "tab:red", linewidth=2)
    figure.savefig(path, dpi=120)


def image_reader(place, split="all"):
    """Id -> image, of a folder or of an npz."""
    if pathlib.Path(place).is_dir():
        from PIL import Image

        return lambda name: Image.open(pathlib.Path(place) / name).convert("RGB")
    from simclr_tf import data

    images, _, ids = data.load(f"npz:{place}", split).arrays()
    row_of = {name: row for row, name in enumerate(ids)}
    return lambda name: images[row_of[name]]


def main(_):
    """Reads, builds the index, prints, and draws."""
    try:
        show(flags.FLAGS)
    except (ValueError, OSError) as error:
        sys.exit(f"neighbours: {error}")


def show(options):
    """The same, given the flags' values."""
    features = embeddings.read(options.embeddings)
    k = min(options.k, len(features.h) - 1)
    index = index_of(features.h)
    rows = rows_of(features, options.like, options.queries)
    found, similarity = neighbours(index, features.h, rows, k)
    for query, others, how in zip(rows, found, similarity):
        print(f"most like {describe(features, query)}:")
        for row, value in zip(others, how):
            print(f"  {value:.3f}  {describe(features, row)}")
    if features.labels is not None:
        precision = precision_at(index, features.h, features.labels, k)
        print(f"precision@{k}: {precision:.4f}")
    if options.images:
        draw(options.picture, features, rows, found, image_reader(options.images, options.split))
        print(f"picture: {options.picture}")


if __name__ == "__main__":
    flags.DEFINE_string("embeddings", None, "The .npz, .parquet or .tfrecord.", required=True)
    flags.DEFINE_multi_string("like", [], "Id to search for, repeatable; else a few at random.")
    flags.DEFINE_integer("queries", 5, "How many at random.", 1)
    flags.DEFINE_integer("k", 8, "Neighbours of each.", 1)
    flags.DEFINE_string("images", None, "The folder that was embedded, or its npz, for a picture.")
    flags.DEFINE_string("split", "train", "Of the npz, as it was embedded.")
    flags.DEFINE_string("picture", "neighbours.png", "Where the picture goes.")
    app.run(main)
