"""The paper's family of views by OpenCV, for comparison where it is installed.

Everything is computed on uint8 images, brightness, contrast, saturation and hue by tables of 256
values: the fastest form, which rounds after each operation.
"""

import concurrent.futures
import importlib.util
import os

import numpy as np


def is_available():
    """Returns whether OpenCV can be imported."""
    return importlib.util.find_spec("cv2") is not None


def call(files, size):
    """Returns a call that decodes JPEG strings and computes two views of each, on all cores."""
    import cv2

    cv2.setNumThreads(1)  # a thread for each image instead
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    random = np.random.default_rng(0)

    def two_views(file, rng):
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        return [view(cv2, image, size, rng) for _ in range(2)]

    def all_views():
        return np.stack(list(pool.map(two_views, files, random.spawn(len(files)))))

    return all_views


def view(cv2, image, size, rng):
    """Returns a view [size, size, 3] uint8 of an RGB image [H, W, 3] uint8."""
    image = cv2.resize(_box(image, rng), (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    if rng.random() < 0.8:
        steps = rng.permutation([_brightness, _contrast, _saturation, _hue])
        for step in steps:
            image = step(cv2, image, rng)
    if rng.random() < 0.2:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.5:
        side = size // 20 * 2 + 1
        image = cv2.GaussianBlur(image, (side, side), rng.uniform(0.1, 2.0))
    return image


def _box(image, rng):
    height, width = image.shape[:2]
    area, aspect = rng.uniform(0.08, 1.0) * height * width, np.exp(rng.uniform(-0.2877, 0.2877))
    h = min(height, max(1, round(np.sqrt(area / aspect))))
    w = min(width, max(1, round(np.sqrt(area * aspect))))
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return image[y : y + h, x : x + w]


def _brightness(cv2, image, rng):
    return cv2.convertScaleAbs(image, alpha=rng.uniform(0.2, 1.8))


def _contrast(cv2, image, rng):
    mean, factor = np.array(cv2.mean(image)[:3]), rng.uniform(0.2, 1.8)
    return cv2.LUT(image, _table((np.arange(256)[:, None] - mean) * factor + mean))


def _saturation(cv2, image, rng):
    values = np.tile(np.arange(256.0)[:, None], [1, 3])
    values[:, 1] *= rng.uniform(0.2, 1.8)
    return _in_hsv(cv2, image, values)


def _hue(cv2, image, rng):
    values = np.tile(np.arange(256)[:, None], [1, 3])
    values[:, 0] = (values[:, 0] + rng.integers(-51, 52)) % 256
    return _in_hsv(cv2, image, values)


def _in_hsv(cv2, image, values):
    changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), _table(values))
    return cv2.cvtColor(changed, cv2.COLOR_HSV2RGB_FULL)


def _table(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)[None]
