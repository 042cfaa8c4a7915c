"""Evaluation of an encoder: features of labelled images, and classifiers on top of them.

features: h, label and id of every example. knn: nearest neighbours. linear: logistic regression.
"""

from simclr_tf.evaluate.features import (
    Features,
    extract_features,
    pixel_features,
    stream_features,
)
from simclr_tf.evaluate.knn import knn_accuracy, knn_predict
from simclr_tf.evaluate.linear import LinearProbe, linear_probe

__all__ = [
    "Features",
    "LinearProbe",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "pixel_features",
    "stream_features",
]
