"""Distillation as a `keras.Model`: a student learns the class probabilities of a teacher.

`train_step` reads top to bottom: view -> teacher and student -> loss -> gradient.
"""

from __future__ import annotations

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.images import unpack
from simclr_tf.losses import check_temperature, distillation_loss
from simclr_tf.metrics import RunningMeans, SkippedSteps
from simclr_tf.models import inputs
from simclr_tf.models.classifier import Classifier, sum_over_replicas
from simclr_tf.models.loss_scale import descend, with_loss_scale


class Distillation(_keras.Model):
    """Trains a student on a teacher's soft labels (SimCLRv2, arXiv:2006.10029, section 3).

    Teacher and student see the same view of each image, a random crop and flip by default. The loss
    is (1 - label_weight) x the mean `distillation_loss` of all images + label_weight x the mean
    cross-entropy of those with a label (equation 3). The images need no labels. `model(images)`,
    `predict` and `evaluate` are the student's; save and export `model.student`.

    Args:
      student: a `Classifier`; it is trained, and its `augment` and `seed` draw the views.
      teacher: a callable from images [B, H, W, 3], float32 in [0, 1], to logits [B, C]. It is not
        trained; call it in inference mode: `lambda x: teacher(x, training=False)`.
      temperature: float above 0, of both probabilities.
      label_weight: float in [0, 1]; 0 ignores labels.

    Raises:
      ArgumentError: an argument out of range; from `fit`, as `Classifier`.

    Example:

    >>> student = simclr_tf.Classifier(encoder, num_classes=3, seed=0)
    >>> teacher = lambda images: tf.reduce_mean(images, axis=[1, 2])  # three logits
    >>> model = simclr_tf.models.Distillation(student, teacher)
    >>> model.compile(optimizer=keras.optimizers.SGD(0.1))
    >>> sorted(model.fit(images, batch_size=4, verbose=0).history)
    ['agreement', 'loss']
    """

    def __init__(self, student, teacher, temperature=1.0, label_weight=0.0, name="distillation"):
        super().__init__(name=name, autocast=False)
        if not isinstance(student, Classifier):
            raise ArgumentError(
                f"student must be a Classifier; got a {type(student).__name__}. Put its encoder "
                "into one."
            )
        if not callable(teacher):
            raise ArgumentError(f"teacher must be a callable images -> logits; got {teacher!r}.")
        check_temperature(temperature)
        check_number("label_weight", label_weight, at_least=0, at_most=1)
        self.student = student
        self.temperature = temperature
        self.label_weight = label_weight
        # Within a function, so that Keras does not save the teacher with the student.
        self._teach = lambda images: tf.cast(teacher(images), tf.float32)
        self._running_means = RunningMeans(["loss", "agreement"])

    def build(self, input_shape):
        """Creates the student's variables for images of `input_shape`, (None, H, W, 3)."""
        if not self.student.built:
            self.student.build(input_shape)
        self._image_shape = self.student.image_shape
        self.built = True

    def call(self, images, training=False):
        """Returns the student's logits, float32 [B, C], of images [B, H, W, 3]."""
        return self.student(images, training=training)

    def train_step(self, data):
        """One update of the student; Keras calls it with a batch."""
        student = self.student
        images = tf.convert_to_tensor(unpack(data).images)
        labels, weights = self._labels(data, images)
        with student.input_checks(images):
            view = student.view(data, student.seed_of_step(self.optimizer.iterations))
        if not self.built:
            self.build(view.shape)
        target = tf.stop_gradient(self._teach(view))  # [B, C]
        with tf.GradientTape() as tape:
            logits = student.logits(view, training=True)  # [B, C]
            taught = distillation_loss(logits, target, self.temperature)  # [B]
            labelled = student.cross_entropy(logits, labels)
            rows = tf.ones_like(taught)
            # The gradients of the replicas are summed.
            losses = (1.0 - self.label_weight) * taught / _total(rows)
            losses += self.label_weight * labelled * weights / _total(weights)
            loss = tf.reduce_sum(losses) + student.penalty()
            total = _keras.scale_loss(self.optimizer, loss)
        variables, skipped = student.trainable_variables, self._running_means.skipped_steps
        descend(self.optimizer, tape.gradient(total, variables), variables, skipped)
        count = tf.reduce_sum(rows)
        agree = tf.cast(tf.argmax(logits, axis=1) == tf.argmax(target, axis=1), tf.float32)
        # The loss of the global batch is the sum of the replicas' shares of it.
        share = tf.math.divide_no_nan(tf.reduce_sum(losses) * _total(rows), count)
        self._running_means.update("loss", share, count)
        self._running_means.update("agreement", tf.math.reduce_mean(agree), count)
        results = self._running_means.results()
        return results if skipped is None else {**results, skipped.name: skipped.result()}

    def _labels(self, data, images):
        """Classes [B] and weights [B]: 0 without a label."""
        if self.label_weight:
            return self.student.labels_and_weights(data)
        count = tf.shape(images)[0]
        return tf.zeros([count], tf.int64), tf.zeros([count])

    def test_step(self, data):
        """The student's loss and accuracy, by labels."""
        return self.student.test_step(data)

    def predict_step(self, data):
        """Returns the student's logits of a batch; labels, if present, are ignored."""
        return self.student.predict_step(data)

    @property
    def metrics(self):
        """Running means of the loss and of how often teacher and student agree; the student's."""
        return self._running_means.metrics + self.student.metrics

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """`keras.Model.compile` without a loss, which the class has."""
        if loss is not None or kwargs.get("metrics"):
            raise ArgumentError(
                "Distillation has its own loss and metrics; got others. Call "
                "compile(optimizer=...) without them."
            )
        super().compile(optimizer=optimizer, **kwargs)
        with self.distribute_strategy.scope():
            scales = _keras.scales_dynamically(self.optimizer)
            self._running_means.skipped_steps = SkippedSteps() if scales else None

    def fit(self, x=None, y=None, *args, callbacks=None, **kwargs):
        """`keras.Model.fit`; the logs are "loss" and "agreement", of teacher and student."""
        inputs.check(x, single=True)
        _keras.build_optimizer(self, self.student)
        with inputs.named_errors(x, self):
            return super().fit(x, y, *args, callbacks=with_loss_scale(callbacks), **kwargs)

    def get_config(self):
        """A teacher is any function, so that there is no config."""
        raise ArgumentError("Distillation cannot be saved; save or export its `student`.")


def _total(weights):
    return tf.maximum(sum_over_replicas(weights), 1.0)
