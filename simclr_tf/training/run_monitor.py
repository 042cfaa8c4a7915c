"""`RunMonitor`: measures the embeddings as a run goes on, and says what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.errors import check_number
from simclr_tf.training.callbacks import steps_taken
from simclr_tf.training.findings import RunFacts, find
from simclr_tf.training.measures import ProbeBatch, embedding_measures
from simclr_tf.training.run_directory import read_metrics


class RunMonitor(keras.callbacks.Callback):
    """Adds measures of the embeddings to the logs of an epoch, and logs findings about the run.

    The measures (`embedding_measures`) are those of a fixed batch without labels, embedded in
    inference mode between two epochs, so that a step costs what it did. The one thing that is
    computed within a step is the norm of the gradient, `gradient_norm`.

    A finding is a sentence about what is wrong and what to try (`findings`), logged once in a run.
    It is about what the callbacks before this one have written into the logs too, such as
    `KNNProbe` and `DataWait`.

    Args:
      batch: a batch of images, in any form that the model's `fit` takes, of 2 images or more; None:
        nothing is measured.
      facts: `RunFacts`, what is known of the run; what the monitor finds out itself is added.
      every_epochs: epochs between two measurements; the last epoch is always measured.
      epochs: epochs of the run; None: those of the call of `fit`.
      measured: a model of the same layers outside the strategy, which receives the weights of the
        model's encoder and head and is measured instead; None: the model itself is.
      measures: False for a worker that only takes part in reading the weights.
      rows: list of dicts, the epochs of a run that is resumed, as in metrics.jsonl.
      path: a file to which findings are appended as JSON lines of epoch, name and text; None: none.
      board: a `SimilarityBoard` that draws what is measured; None: nothing is drawn.
      log: called with a line of text.

    Example:

    >>> monitor = simclr_tf.training.RunMonitor(images)
    >>> model = simclr_tf.SimCLR(encoder)
    >>> model.compile("sgd")
    >>> history = model.fit(dataset, verbose=0, callbacks=[monitor]).history
    >>> 1.0 <= history["rankme"][0] <= 16.0, history["gradient_norm"][0] > 0
    (True, True)
    """

    def __init__(
        self,
        batch=None,
        facts=None,
        every_epochs=1,
        epochs=None,
        measured=None,
        measures=True,
        rows=(),
        path=None,
        board=None,
        log=print,
    ):
        super().__init__()
        check_number("every_epochs", every_epochs, at_least=1, whole=True)
        self.facts = facts or RunFacts()
        self.every_epochs, self.epochs, self.measured = every_epochs, epochs, measured
        self.measures, self.path, self.board, self.log = measures, path, board, log
        self._rows, self._found = list(rows), set()
        self._probe = None if batch is None else ProbeBatch(batch)

    @property
    def logged(self):
        """The measures that `Progress` shows in a column."""
        return () if self._probe is None else ("rankme",)

    def set_model(self, model):
        """Has the model track the norm of its gradient, if it is one of this package."""
        super().set_model(model)
        if hasattr(model, "track_gradient_norm"):
            model.track_gradient_norm()

    def on_train_begin(self, logs=None):
        """Logs what is wrong already."""
        if self.path is not None:
            self._found = {row["name"] for row in read_metrics(self.path)}
        if self._probe is None or not self.measures:
            return
        if hasattr(self.model, "embed_views") and self.model.built:
            self._probe.draw(self._model_to_measure())
        self._learn(self._probe)
        self._report(0)

    def _learn(self, probe):
        """Adds what the probe batch tells to the facts."""
        new = {}
        if probe.images.dtype.is_floating:
            largest = float(tf.reduce_max(tf.abs(probe.images)))
            new["largest_pixel"] = largest if math.isfinite(largest) else None
        if probe.views is not None:
            new.update(view_difference=_difference(probe.views), image_side=_side(probe.views))
            new["last_map_side"] = probe.last_map_side()
        self.facts = dataclasses.replace(self.facts, **new)

    def _model_to_measure(self):
        if self.measured is not None:
            self.measured.augment = self.model.augment  # which `ViewSizes` replaces
        return self.measured or self.model

    def on_epoch_end(self, epoch, logs=None):
        """Measures, and writes into the logs that the callbacks after this one read."""
        last = epoch + 1 == (self.epochs or self.params["epochs"]) or self.model.stop_training
        if self._probe is not None and (last or (epoch + 1) % self.every_epochs == 0):
            self._measure(epoch, logs)
        if not self.measures:
            return
        row = {"epoch": epoch + 1, "step": steps_taken(self.model)}
        row.update((name, float(value)) for name, value in logs.items())
        self._rows = [*(r for r in self._rows if r["epoch"] <= epoch), row]
        if "loss" in row:
            self._report(epoch + 1)

    def _measure(self, epoch, logs):
        model = self._model_to_measure()
        if self.measured is not None:  # all workers read the weights
            for name in ("encoder", "projection_head"):
                copy_weights(getattr(self.model, name), getattr(model, name))
        if not self.measures:
            return
        if not hasattr(model, "embed_views"):
            return
        first = self._probe.views is None
        self._probe.draw(model)
        if first:
            self._learn(self._probe)
        h, z = self._probe.embed()
        logs.update(embedding_measures(h, z))
        if self.board is not None:
            self.board.write(steps_taken(self.model), self._probe.views, z)

    def _report(self, epoch):
        for name, sentence in find(self._rows, self.facts).items():
            if name in self._found:
                continue
            self._found.add(name)
            self.log(f"warning: {sentence}")
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"epoch": epoch, "name": name, "text": sentence}) + "\n")


def _side(views):
    return max(int(view.shape[1]) for view in views)


def _difference(views):
    """Mean absolute difference of the first view and each other one of its size; None without."""
    same = [view for view in views[1:] if view.shape == views[0].shape]
    differences = [float(tf.reduce_mean(tf.abs(views[0] - view))) for view in same]
    return float(np.mean(differences)) if differences else None
