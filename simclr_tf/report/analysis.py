"""What a report says of an encoder, computed from its features of some images.

Functions of arrays; which images they are is decided in `samples`, how they are shown in `page`.
"""

from __future__ import annotations

import numpy as np

_TSNE_EXAMPLES = 100  # with fewer, t-SNE shows groups that are not there


def nearest_indices(index_h, query_h, k, same=False):
    """The k rows of the largest cosine similarity to each query, nearest first.

    Args:
      index_h: float [n, D].
      query_h: float [m, D].
      k: int, at least 1; fewer where there are fewer rows.
      same: whether query i is row i of the index, which is then no neighbour of itself.

    Returns:
      int [m, k].

    Example:

    >>> simclr_tf.report.analysis.nearest_indices(np.eye(3), np.eye(3)[:1], k=1)
    array([[0]])
    """
    cosines = _unit(query_h) @ _unit(index_h).T  # [m, n]
    if same:
        np.fill_diagonal(cosines, -np.inf)
    wanted = min(k, len(index_h) - same)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :wanted]


def _unit(h):
    """Rows scaled to length 1; a row of zeros stays as it is."""
    h = np.asarray(h, np.float32)
    return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)


def map_2d(h, seed=0):
    """Maps images to a plane, such that similar ones are near each other.

    The rows are scaled to length 1, reduced to 50 principal components, and embedded by t-SNE (van
    der Maaten and Hinton, 2008); of fewer than 100 images, the first two principal components are
    taken.

    Args:
      h: float [n, D].
      seed: int.

    Returns:
      (float64 [n, 2] in [0, 1], name of the method: "t-SNE" or "PCA").

    Example:

    >>> points, method = simclr_tf.report.analysis.map_2d(np.eye(4))
    >>> points.shape, method
    ((4, 2), 'PCA')
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    h = _unit(h).astype(np.float64)
    method = "t-SNE" if len(h) >= _TSNE_EXAMPLES else "PCA"
    if np.ptp(h, axis=0).max() < 1e-6:  # all are equal: nothing to map
        return np.zeros([len(h), 2]), "PCA"
    components = min(50 if method == "t-SNE" else 2, *h.shape)
    # The threads of t-SNE wait for each other busily: on a busy machine one is many times faster.
    with threadpool_limits(1):
        points = PCA(components, random_state=seed).fit_transform(h)
        if method == "t-SNE":
            from sklearn.manifold import TSNE

            perplexity = min(30.0, len(h) / 10)
            tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
            points = tsne.fit_transform(points)
    points = np.pad(points, [(0, 0), (0, 2 - points.shape[1])]) if points.shape[1] < 2 else points
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    return (points - low) / np.where(span > 0, span, 1.0), method


def similarities(z_a, z_b):
    """Cosine similarities of the views of one image, and of those of different images.

    Args:
      z_a, z_b: float [n, d], embeddings of two views of the same n images.

    Returns:
      (positive, float32 [n]; negative, float32 [n * (n - 1)]).

    Example:

    >>> positive, negative = simclr_tf.report.analysis.similarities(np.eye(2), np.eye(2))
    >>> positive.tolist(), negative.tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    cosines = _unit(z_a) @ _unit(z_b).T  # [n, n]
    return np.diag(cosines).copy(), cosines[~np.eye(len(cosines), dtype=bool)]


def class_accuracies(labels, predicted):
    """Accuracy within each class, lowest first.

    Args:
      labels, predicted: int [n].

    Returns:
      list of (class, number of its examples that are predicted correctly, number of its examples).

    Example:

    >>> simclr_tf.report.analysis.class_accuracies([0, 0, 7], [0, 1, 7])
    [(0, 1, 2), (7, 1, 1)]
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    rows = []
    for each in np.unique(labels):
        of_class = labels == each
        rows.append((int(each), int((predicted[of_class] == each).sum()), int(of_class.sum())))
    return sorted(rows, key=lambda row: (row[1] / row[2], row[0]))


def confusions(labels, predicted, limit=10):
    """The most frequent wrong predictions.

    Args:
      labels, predicted: int [n].
      limit: maximum number of rows.

    Returns:
      list of (class, predicted class, number of examples), most frequent first.

    Example:

    >>> simclr_tf.report.analysis.confusions([0, 0, 0, 1], [1, 1, 0, 0])
    [(0, 1, 2), (1, 0, 1)]
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    wrong = labels != predicted
    pairs = np.stack([labels[wrong], predicted[wrong]], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [(int(found[i][0]), int(found[i][1]), int(counts[i])) for i in order]


def outliers(h, count=12, k=10):
    """The images least like their nearest neighbours.

    Args:
      h: float [n, D].
      count: how many; fewer where there are fewer images.
      k: neighbours, over whose cosine similarities the mean is taken.

    Returns:
      list of (index, mean similarity), the least similar first.

    Example:

    >>> h = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    >>> simclr_tf.report.analysis.outliers(h, count=1, k=2)[0][0]
    3
    """
    k = min(k, len(h) - 1)
    if k < 1:
        return []
    cosines = _unit(h) @ _unit(h).T
    np.fill_diagonal(cosines, -np.inf)
    mean = -np.sort(-cosines, axis=1)[:, :k].mean(axis=1)
    order = np.argsort(mean, kind="stable")[:count]
    return [(int(i), float(mean[i])) for i in order]
