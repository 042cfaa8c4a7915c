"""Evaluation of an encoder: features of labelled images, and classifiers on top of them.

features: h, label and id of every example. scores: what predictions are worth. knn: nearest
neighbours. linear: logistic regression. linear_on_views: a linear layer trained on crops and flips.
"""

from simclr_tf.evaluate.features import (
    Features,
    extract_features,
    pixel_features,
    stream_features,
)
from simclr_tf.evaluate.knn import knn_accuracy, knn_predict
from simclr_tf.evaluate.linear import LinearProbe, linear_probe
from simclr_tf.evaluate.linear_on_views import LinearClassifier, linear_classifier
from simclr_tf.evaluate.scores import (
    confidence_interval,
    mean_average_precision,
    mean_per_class_accuracy,
    top_k_accuracy,
)

__all__ = [
    "Features",
    "LinearClassifier",
    "LinearProbe",
    "confidence_interval",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "linear_classifier",
    "linear_probe",
    "mean_average_precision",
    "mean_per_class_accuracy",
    "pixel_features",
    "stream_features",
    "top_k_accuracy",
]
