"""Evaluation of an encoder: features of labelled images, and classifiers on top of them.

features: h, label and id of every example. feature_variants: averaged over views, whitened.
feature_cache: features on disk. duplicates: images that are in both splits. scores: what
predictions are worth. knn: nearest neighbours. linear: logistic regression. linear_on_views: a
linear layer trained on crops and flips. finetune: the encoder trained with it. multi_label: images
of several classes. transfer: data sets and their metrics, tables of results.
"""

from simclr_tf.evaluate.duplicates import (
    count_near_duplicates,
    near_duplicate_pairs,
    small_grey,
)
from simclr_tf.evaluate.feature_variants import average_over_views, whiten
from simclr_tf.evaluate.features import (
    Features,
    extract_features,
    pixel_features,
    stream_features,
)
from simclr_tf.evaluate.finetune import FineTuned, default_epochs, even_batch_size, finetune
from simclr_tf.evaluate.knn import knn_accuracy, knn_predict
from simclr_tf.evaluate.linear import LinearProbe, linear_probe
from simclr_tf.evaluate.linear_on_views import LinearClassifier, linear_classifier
from simclr_tf.evaluate.multi_label import MultiLabelProbe, multi_label_knn, multi_label_probe
from simclr_tf.evaluate.scores import (
    confidence_interval,
    mean_average_precision,
    mean_per_class_accuracy,
    top_k_accuracy,
)
from simclr_tf.evaluate.whitening import fit_whitening

__all__ = [
    "Features",
    "FineTuned",
    "LinearClassifier",
    "LinearProbe",
    "MultiLabelProbe",
    "average_over_views",
    "confidence_interval",
    "count_near_duplicates",
    "default_epochs",
    "even_batch_size",
    "extract_features",
    "finetune",
    "fit_whitening",
    "knn_accuracy",
    "knn_predict",
    "linear_classifier",
    "linear_probe",
    "mean_average_precision",
    "mean_per_class_accuracy",
    "multi_label_knn",
    "multi_label_probe",
    "near_duplicate_pairs",
    "pixel_features",
    "small_grey",
    "stream_features",
    "top_k_accuracy",
    "whiten",
]
