"""Probes of the encoder as it is trained: kNN and logistic regression on frozen features.

The labelled images may be of another data set than the one that is trained on.
"""

from __future__ import annotations

from tensorflow import keras

from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.errors import check_number
from simclr_tf.evaluate import extract_features, knn_accuracy, linear_probe


class _Probe(keras.callbacks.Callback):
    """Scores frozen h of two labelled sets in some epochs; subclasses have `score`.

    Args:
      train, test, every_epochs, epochs, probe_encoder, probes: as of `KNNProbe`.
    """

    logged = ()

    def __init__(self, train, test, every_epochs, epochs, probe_encoder, probes):
        super().__init__()
        self.train, self.test, self.every_epochs = train, test, every_epochs
        self.epochs, self.probe_encoder, self.probes = epochs, probe_encoder, probes

    def on_epoch_end(self, epoch, logs=None):
        """Probes and writes into the logs."""
        last = epoch + 1 == (self.epochs or self.params["epochs"]) or self.model.stop_training
        if not last and (epoch + 1) % self.every_epochs:
            return
        encoder = getattr(self.model, "inference_encoder", self.model.encoder)
        if self.probe_encoder is not None:
            copy_weights(encoder, self.probe_encoder)
            encoder = self.probe_encoder
        if not self.probes:
            return
        train = extract_features(encoder, self.train)
        test = extract_features(encoder, self.test)
        logs.update(self.score(train, test))

    def score(self, train, test):
        """Returns what is written into the logs, from `evaluate.Features` of both sets."""
        raise NotImplementedError


class KNNProbe(_Probe):
    """Adds `knn_accuracy` to the logs: k nearest neighbours on frozen h (Wu et al., 2018).

    Args:
      train, test: tf.data of labelled dict batches, see `evaluate.extract_features`.
      every_epochs: epochs between two probes; the last epoch is always probed.
      k: neighbours, weighted by exp(cosine / 0.1).
      epochs: epochs of the run; None: those of the call of `fit`.
      probe_encoder: an encoder outside the strategy, which receives the weights of the model's
        encoder and is probed instead; None: the model's own is probed.
      probes: False for a worker that only takes part in reading the weights.

    Example:

    >>> data = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(4)
    >>> probe = simclr_tf.training.KNNProbe(data, data, k=1, epochs=1)
    >>> probe.set_model(simclr_tf.SimCLR(encoder))
    >>> logs = {}
    >>> probe.on_epoch_end(0, logs)
    >>> logs
    {'knn_accuracy': 1.0}
    """

    logged = ("knn_accuracy",)

    def __init__(
        self, train, test, every_epochs=1, k=200, epochs=None, probe_encoder=None, probes=True
    ):
        super().__init__(train, test, every_epochs, epochs, probe_encoder, probes)
        self.k = k

    def score(self, train, test):
        """The accuracy of kNN."""
        accuracy = knn_accuracy(train.h, train.labels, test.h, test.labels, k=self.k)
        return {"knn_accuracy": accuracy}


class LinearProbe(_Probe):
    """Adds `linear_accuracy` to the logs: logistic regression on frozen h.

    It is `evaluate.linear_probe`, which takes longer than kNN and says what a linear classifier
    will reach.

    Args:
      train, test, every_epochs, epochs, probe_encoder, probes: as of `KNNProbe`.
      C: float above 0, inverse strength of the L2 penalty; None chooses it on the training set.
      max_iter: iterations at most.

    Example:

    >>> data = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(4)
    >>> probe = simclr_tf.training.LinearProbe(data, data, C=1.0, epochs=1)
    >>> probe.set_model(simclr_tf.SimCLR(encoder))
    >>> logs = {}
    >>> probe.on_epoch_end(0, logs)
    >>> 0.25 <= logs["linear_accuracy"] <= 1.0
    True
    """

    logged = ("linear_accuracy",)

    def __init__(
        self,
        train,
        test,
        every_epochs=1,
        C=None,  # noqa: N803 - scikit-learn's name for it, and the literature's
        max_iter=300,
        epochs=None,
        probe_encoder=None,
        probes=True,
    ):
        super().__init__(train, test, every_epochs, epochs, probe_encoder, probes)
        if C is not None:
            check_number("C", C, above=0, hint="None chooses it on the training set.")
        check_number("max_iter", max_iter, at_least=1, whole=True, hint="The default is 300.")
        self.C, self.max_iter = C, max_iter

    def score(self, train, test):
        """The accuracy of logistic regression."""
        probe = linear_probe(
            train.h, train.labels, test.h, test.labels, C=self.C, max_iter=self.max_iter
        )
        return {"linear_accuracy": probe.accuracy}
