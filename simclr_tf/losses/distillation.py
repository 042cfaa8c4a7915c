"""Distillation: the cross-entropy between a teacher's and a student's class probabilities."""

from __future__ import annotations

import tensorflow as tf

from simclr_tf.losses.nt_xent import check_temperature


def distillation_loss(student_logits, teacher_logits, temperature=1.0):
    """Returns the distillation loss of each example (SimCLRv2, arXiv:2006.10029, equation 2).

    It is minus the sum over classes of p_teacher log p_student, where both are the softmax of
    logits / temperature. Its minimum is the entropy of the teacher's probabilities. The gradient is
    that of the student's logits alone.

    Args:
      student_logits: [B, C], any float dtype.
      teacher_logits: [B, C], any float dtype.
      temperature: float above 0.

    Returns:
      float32 [B].

    Raises:
      ArgumentError: the temperature is out of range.

    Example:

    >>> logits = tf.constant([[2.0, 0.0], [0.0, 2.0]])
    >>> simclr_tf.losses.distillation_loss(logits, logits, temperature=1.0).shape
    TensorShape([2])
    """
    check_temperature(temperature)
    student = tf.cast(student_logits, tf.float32) / temperature
    teacher = tf.stop_gradient(tf.cast(teacher_logits, tf.float32) / temperature)
    return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher), student)
