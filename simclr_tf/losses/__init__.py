"""Losses: functions of z or of logits, and the Keras classes that call them."""

from simclr_tf.losses.distillation import distillation_loss
from simclr_tf.losses.info_nce import info_nce
from simclr_tf.losses.looc import looc_loss, looc_loss_with_top1
from simclr_tf.losses.nt_xent import (
    NTXent,
    check_temperature,
    normalised,
    nt_xent,
    nt_xent_with_top1,
)
from simclr_tf.losses.objectives import Decoupled, DotProduct, Supervised, by_name
from simclr_tf.losses.supervised import supervised_nt_xent

__all__ = [
    "Decoupled",
    "DotProduct",
    "NTXent",
    "Supervised",
    "by_name",
    "check_temperature",
    "distillation_loss",
    "info_nce",
    "looc_loss",
    "looc_loss_with_top1",
    "normalised",
    "nt_xent",
    "nt_xent_with_top1",
    "supervised_nt_xent",
]
