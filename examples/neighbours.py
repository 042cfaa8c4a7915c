"""Finds similar images in a file of embeddings written by `simclr-tf embed`.

    simclr-tf embed --run_dir=runs/photos --output=photos.parquet
    python examples/neighbours.py --embeddings=photos.parquet [--like=ID] [--images=photos]

Prints the nearest neighbours of the images given by `--like`, or of a few random images, by cosine
similarity. If the file has labels, also prints precision@k: the fraction of the k nearest
neighbours that have the label of the query. With `--images`, the folder or npz file that was
embedded, the neighbours are drawn to `--picture`.

The search is exact (scikit-learn) and holds the file in memory, which suits up to about 100,000
images. For more, replace `build_index` with an approximate index.
"""

import pathlib
import sys

import numpy as np
from absl import app, flags
from sklearn.neighbors import NearestNeighbors

from simclr_tf import embeddings


def build_index(h):
    """Returns an index of h, float [n, D], that searches by cosine similarity."""
    # Brute force is a matrix product; trees are slower in high dimensions.
    return NearestNeighbors(metric="cosine", algorithm="brute").fit(h)


def nearest_neighbours(index, h, rows, k):
    """Finds the k nearest neighbours of rows of h, without the row itself.

    Returns:
      (rows of the neighbours [q, k], cosine similarities [q, k]), the most similar first.
    """
    rows = np.asarray(rows)
    distance, found = index.kneighbors(h[rows], n_neighbors=k + 1)
    # A row is its own nearest neighbour and is removed. Where enough others have the same embedding
    # it may not be among the k + 1; then the last one is removed.
    others = found != rows[:, None]
    others[others.all(axis=1), -1] = False
    return found[others].reshape(-1, k), 1 - distance[others].reshape(-1, k)


def precision_at_k(index, h, labels, k, max_queries=5000):
    """Returns the fraction of the k nearest neighbours that have the label of the query."""
    rows = np.unique(np.linspace(0, len(h) - 1, max_queries).astype(int))
    found, _ = nearest_neighbours(index, h, rows, k)
    return float(np.mean(labels[found] == labels[rows, None]))


def query_rows(features, ids, count, seed=0):
    """Returns the rows of the given ids, or `count` random rows where no id is given."""
    if not ids:
        rng = np.random.default_rng(seed)
        return np.sort(rng.choice(len(features.h), min(count, len(features.h)), replace=False))
    row_of = {name: row for row, name in enumerate(features.ids)}
    unknown = [name for name in ids if name not in row_of]
    if unknown:
        example = features.ids[0].item()
        raise ValueError(
            f"--like must be an id of the file, such as {example!r}; got {unknown[0]!r}."
        )
    return np.array([row_of[name] for name in ids])


def describe(features, row):
    """Returns the id and label of a row as text."""
    label = "" if features.labels is None else f"  (label {features.labels[row]})"
    return f"{features.ids[row]}{label}"


def draw(path, features, rows, found, image_of):
    """Draws each query and its neighbours in a row, framed green if the label is the query's.

    Args:
      path: picture to write.
      features: `Features` of the file.
      rows: rows of the queries [q].
      found: rows of their neighbours [q, k].
      image_of: function from an id to an image [H, W, 3], uint8 or float in [0, 1].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * (1 + found.shape[1]), 1.4 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1 + found.shape[1], squeeze=False)
    for query, others, panels_of_row in zip(rows, found, panels):
        for column, (row, panel) in enumerate(zip([query, *others], panels_of_row)):
            panel.imshow(image_of(features.ids[row]))
            panel.set(xticks=[], yticks=[])
            panel.set_title("query" if not column else f"{column}", fontsize=8)
            if column and features.labels is not None:
                same = features.labels[row] == features.labels[query]
                for edge in panel.spines.values():
                    edge.set(color="tab:green" if same else "tab:red", linewidth=2)
    figure.savefig(path, dpi=120)


def image_reader(path, split="all"):
    """Returns a function from an id to its image, for a folder or an npz file."""
    if pathlib.Path(path).is_dir():
        from PIL import Image

        return lambda name: Image.open(pathlib.Path(path) / name).convert("RGB")
    from simclr_tf import data

    images, _, ids = data.load(f"npz:{path}", split).arrays()
    row_of = {name: row for row, name in enumerate(ids)}
    return lambda name: images[row_of[name]]


def main(_):
    """Runs the search; errors of the flags and of files are printed as one line."""
    try:
        search(flags.FLAGS)
    except (ValueError, OSError) as error:
        sys.exit(f"neighbours: {error}")


def search(options):
    """Reads the file, prints the neighbours and, on request, draws them."""
    features = embeddings.read(options.embeddings)
    k = min(options.k, len(features.h) - 1)
    index = build_index(features.h)
    rows = query_rows(features, options.like, options.queries)
    found, similarities = nearest_neighbours(index, features.h, rows, k)
    for query, others, values in zip(rows, found, similarities):
        print(f"most similar to {describe(features, query)}:")
        for row, value in zip(others, values):
            print(f"  {value:.3f}  {describe(features, row)}")
    if features.labels is not None:
        precision = precision_at_k(index, features.h, features.labels, k)
        print(f"precision@{k}: {precision:.4f}")
    if options.images:
        draw(options.picture, features, rows, found, image_reader(options.images, options.split))
        print(f"picture: {options.picture}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "embeddings", None, "File of embeddings: .npz, .parquet or .tfrecord.", required=True
    )
    flags.DEFINE_multi_string("like", [], "Id of a query; repeatable. Default: random queries.")
    flags.DEFINE_integer("queries", 5, "Number of random queries.", 1)
    flags.DEFINE_integer("k", 8, "Number of neighbours.", 1)
    flags.DEFINE_string("images", None, "Embedded folder or npz file, to draw.")
    flags.DEFINE_string("split", "train", "Split of the npz file that was embedded.")
    flags.DEFINE_string("picture", "neighbours.png", "Picture to write.")
    app.run(main)
