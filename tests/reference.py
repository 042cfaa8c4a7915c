"""Slow versions that are plainly right: loops over images, pixels and pairs, in numpy."""

import colorsys
import math

import numpy as np


def nt_xent(z_a, z_b, temperature):
    """The double loop of the paper (arXiv:2002.05709, eq. 1), in float64.

    z_2k-1 and z_2k of the paper are z_a[k] and z_b[k] here.
    """
    z = [np.asarray(row, np.float64) for pair in zip(z_a, z_b) for row in pair]
    count = len(z)

    def sim(u, v):
        return float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))

    def ell(i, j):
        numerator = math.exp(sim(z[i], z[j]) / temperature)
        denominator = sum(math.exp(sim(z[i], z[k]) / temperature) for k in range(count) if k != i)
        return -math.log(numerator / denominator)

    total = sum(ell(k, k + 1) + ell(k + 1, k) for k in range(0, count, 2))
    return total / count


def nt_xent_of_views(z, temperature, decoupled=False, queue=(), normalize=True):
    """The double loop over ordered pairs of views of an image, z [V, N, d], in float64.

    The denominator has the pair itself, unless decoupled, all views of other images, and the queue.
    """
    z = np.asarray(z, np.float64)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True) if normalize else z
    views, images, _ = z.shape
    losses = []
    for i in range(images):
        for a in range(views):
            others = [z[a, i] @ z[v, j] for v in range(views) for j in range(images) if j != i]
            others += [z[a, i] @ np.asarray(n, np.float64) for n in queue]
            negatives = sum(math.exp(s / temperature) for s in others)
            for b in range(views):
                if b != a:
                    positive = math.exp(z[a, i] @ z[b, i] / temperature)
                    own = 0.0 if decoupled else positive
                    losses.append(-math.log(positive / (own + negatives)))
    return sum(losses) / len(losses)


def supervised(z, labels, temperature):
    """The double loop of L_out (arXiv:2004.11362, eq. 2), z [V, N, d], in float64; -1 is alone."""
    z = np.asarray(z, np.float64)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    views = [(v, i) for v in range(z.shape[0]) for i in range(z.shape[1])]
    losses = []
    for a in views:
        total = sum(math.exp(z[a] @ z[b] / temperature) for b in views if b != a)
        known = labels[a[1]] >= 0
        positives = [
            b
            for b in views
            if b != a and (b[1] == a[1] or (known and labels[b[1]] == labels[a[1]]))
        ]
        terms = [math.log(math.exp(z[a] @ z[b] / temperature) / total) for b in positives]
        losses.append(-sum(terms) / len(positives))
    return sum(losses) / len(losses)


def looc(z, temperature):
    """The sums of LooC (arXiv:2008.05659, section 3), z [n + 1, n + 2, N, d], in float64.

    In each space view 0 is the query and view 1 + j is key j; negatives are all views of others.
    """
    z = np.asarray(z, np.float64)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    spaces, views, images, _ = z.shape
    total = 0.0
    for a in range(images):
        for s in range(spaces):
            query = z[s, 0, a]
            e = [math.exp(query @ z[s, 1 + j, a] / temperature) for j in range(spaces)]
            negatives = 0.0
            for b in range(images):
                if b != a:
                    for v in range(views):
                        negatives += math.exp(query @ z[s, v, b] / temperature)
            if s == 0:
                total += sum(-math.log(e[j] / (e[j] + negatives)) for j in range(spaces))
            else:
                total += -math.log(e[s] / (sum(e) + negatives))
    return total / spaces / images


def info_nce(queries, keys, queue, temperature):
    """The loop of MoCo's loss (arXiv:1911.05722, eq. 1) over queries and negatives, in float64."""
    queries, keys = (
        np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=1)[:, None]
        for x in (queries, keys)
    )
    losses = []
    for q, k in zip(queries, keys):
        positive = math.exp(q @ k / temperature)
        negatives = sum(math.exp(q @ n / temperature) for n in np.asarray(queue, np.float64))
        losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


def contrastive_accuracy(z_a, z_b):
    """Fraction of views whose nearest other view is their pair, by a loop; a tie is wrong."""
    z = np.concatenate([z_a, z_b]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    half, right = len(z_a), 0
    for i in range(len(z)):
        pair = (i + half) % len(z)
        others = [z[i] @ z[k] for k in range(len(z)) if k not in (i, pair)]
        right += z[i] @ z[pair] > max(others)
    return right / len(z)


def saturation_hue(image, factor, delta):
    """HSV by colorsys on every pixel of one image [H, W, 3] in [0, 1]."""
    out = np.empty_like(image)
    for row, column in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[row, column])
        out[row, column] = colorsys.hsv_to_rgb((h + delta) % 1.0, min(s * factor, 1.0), v)
    return out


def color_jitter(image, factors, order):
    """The four operations one after the other on one image; order: a permutation of 0..3."""
    steps = (
        lambda x: x * factors[0],
        lambda x: (x - x.mean(axis=(0, 1))) * factors[1] + x.mean(axis=(0, 1)),
        lambda x: saturation_hue(x, factors[2], 0.0),
        lambda x: saturation_hue(x, 1.0, factors[3]),
    )
    for operation in order:
        image = np.clip(steps[operation](image), 0.0, 1.0)
    return image


def crop_boxes(rng, count, side, area, aspect):
    """Random crops of square images, one draw after the other: [count, 4] of y, x, h, w."""
    boxes = []
    while len(boxes) < count:
        target = rng.uniform(*area) * side * side
        ratio = rng.uniform(*aspect)
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if h <= side and w <= side:
            y, x = rng.integers(0, side - h + 1), rng.integers(0, side - w + 1)
            boxes.append((y, x, h, w))
    return np.array(boxes)
