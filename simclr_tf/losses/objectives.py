"""Objectives of `SimCLR` by name: functions (z, batch) -> (loss, logs) with a config."""

from __future__ import annotations

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError
from simclr_tf.losses.nt_xent import check_temperature, nt_xent_with_top1
from simclr_tf.losses.supervised import supervised_nt_xent


class _Objective:
    """A loss with a temperature, as an argument `objective` of `SimCLR`."""

    def __init__(self, temperature=0.1):
        check_temperature(temperature)
        self.temperature = temperature

    def get_config(self):
        """Returns the constructor's arguments."""
        return {"temperature": self.temperature}

    @classmethod
    def from_config(cls, config):
        """Creates an objective from the result of `get_config`."""
        return cls(**config)


@_keras.saving.register_keras_serializable(package="simclr_tf")
class Decoupled(_Objective):
    """`nt_xent` with `decoupled=True` as an objective (Yeh et al., arXiv:2110.06848).

    Args:
      temperature: T, above 0.

    Example:

    >>> objective = simclr_tf.losses.Decoupled(temperature=0.2)
    >>> model = simclr_tf.SimCLR(encoder, objective=objective)
    """

    def __call__(self, z, batch):
        """Returns the loss and "contrastive_accuracy" for z [V, B, d]."""
        loss, correct = nt_xent_with_top1(z, temperature=self.temperature, decoupled=True)
        return loss, {"contrastive_accuracy": correct}


@_keras.saving.register_keras_serializable(package="simclr_tf")
class DotProduct(_Objective):
    """`nt_xent` with `normalize=False` as an objective (SimCLR, arXiv:2002.05709, table 5).

    Args:
      temperature: T, above 0; the paper has 10 and 100.

    Example:

    >>> objective = simclr_tf.losses.DotProduct(temperature=10.0)
    >>> model = simclr_tf.SimCLR(encoder, objective=objective)
    """

    def __call__(self, z, batch):
        """Returns the loss and "contrastive_accuracy" for z [V, B, d]."""
        loss, correct = nt_xent_with_top1(z, temperature=self.temperature, normalize=False)
        return loss, {"contrastive_accuracy": correct}


@_keras.saving.register_keras_serializable(package="simclr_tf")
class Supervised(_Objective):
    """`supervised_nt_xent` as an objective (Khosla et al., arXiv:2004.11362).

    The dataset yields (images, labels); label -1 is an image without a label. Where the loss stays
    at that of chance, ln(V N - 1) for V views of N images, raise the temperature: 0.5 learns faster
    than 0.1 in a short training (docs/results.md).

    Args:
      temperature: T, above 0.

    Raises:
      ArgumentError: from `fit`, a dataset without labels.

    Example:

    >>> objective = simclr_tf.losses.Supervised(temperature=0.2)
    >>> model = simclr_tf.SimCLR(encoder, objective=objective)
    >>> model.compile("sgd")
    >>> sorted(model.fit(images, labels, verbose=0).history)
    ['contrastive_accuracy', 'loss']
    """

    def __call__(self, z, batch):
        """Returns the loss and "contrastive_accuracy" for z [V, B, d]."""
        if batch.labels is None:
            raise ArgumentError(
                "the supervised loss needs labels; got a batch without. Pass (images, labels), or "
                "use NT-Xent."
            )
        # Of the image's own views, as without labels.
        correct = nt_xent_with_top1(z, temperature=self.temperature)[1]
        loss = supervised_nt_xent(z, batch.labels, self.temperature)
        return loss, {"contrastive_accuracy": correct}


def by_name(name, temperature=0.1, normalize=True):
    """Returns an objective of `SimCLR` by the name of its loss.

    Args:
      name: "nt_xent" (None: `SimCLR` has it), "decoupled" or "supervised".
      temperature: T, above 0.
      normalize: False is for "nt_xent" alone, with dot products in place of cosines.

    Raises:
      ArgumentError: another name.

    Example:

    >>> simclr_tf.losses.by_name("supervised", temperature=0.2).temperature
    0.2
    """
    objectives = {"nt_xent": None, "decoupled": Decoupled, "supervised": Supervised}
    if name not in objectives:
        raise ArgumentError(f"loss must be one of {', '.join(objectives)}; got {name!r}.")
    if not normalize:
        if name != "nt_xent":
            raise ArgumentError(
                f"loss=nt_xent is the only one without normalization; got loss={name} and "
                "normalize=False. Leave out one of the two."
            )
        return DotProduct(temperature)
    return objectives[name] and objectives[name](temperature)
