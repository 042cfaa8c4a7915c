"""LARS, the warm-up + cosine schedule, and an optimizer by name.

The update rule is the function `lars_update`; `LARS` owns the momentum buffers and calls it.
What a rate means in epochs, and every flag, lives in the command line, not here.
"""

import math
import operator
import re

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError

OPTIMIZERS = ("lars", "lamb", "sgd", "adamw")
SCALINGS = ("linear", "sqrt", "none")

# Biases and the scale and offset of a normalisation layer, for libraries that filter by name.
_BIAS_OR_NORM_NAMES = (r"(^|/)(bias|gamma|beta)\b",)


def lars_update(
    weight,
    gradient,
    momentum_buffer,
    learning_rate,
    momentum,
    weight_decay,
    trust_coefficient,
    exclude,
    nesterov=False,
):
    """One step of layer-wise adaptive rate scaling (LARS) for one variable.

    ```
    g     = gradient + weight_decay * weight
    trust = trust_coefficient * |weight| / |g|      1 where either norm is 0
    v     = momentum * momentum_buffer + learning_rate * trust * g
    w     = weight - v                              Nesterov: w - (momentum * v + rate * trust * g)
    ```

    The rate is inside the buffer, so a change of rate acts on later gradients alone, and the
    decay is coupled: it is added before the norms are taken. You et al. 2017, "Large Batch
    Training of Convolutional Networks" (arXiv:1708.03888), in the form google-research/simclr uses.

    Args:
      weight: floating tensor of any shape, the variable before the step.
      gradient: tensor of the same shape.
      momentum_buffer: tensor of the same shape, v of the step before; zeros at first.
      learning_rate: scalar, the global rate of this step.
      momentum: float in [0, 1).
      weight_decay: float, 0 or more; the coefficient of the L2 term's gradient.
      trust_coefficient: float above 0; None leaves the trust ratio out (plain momentum SGD).
      exclude: bool; True takes neither decay nor trust ratio.
      nesterov: bool; look one momentum step ahead.

    Returns:
      (new_weight, new_buffer), each of the shape and dtype of its predecessor. The arithmetic,
      norms included, is float32, or float64 for float64 weights.
    """
    dtype = tf.float64 if weight.dtype == tf.float64 else tf.float32
    w, g, v = (tf.cast(tensor, dtype) for tensor in (weight, gradient, momentum_buffer))
    # A variable has to be read first: its cast to its own dtype is the variable itself.
    rate = tf.cast(tf.convert_to_tensor(learning_rate), dtype)
    if not exclude:
        g += weight_decay * w
        if trust_coefficient is not None:
            rate *= _trust_ratio(w, g, trust_coefficient)
    v = momentum * v + rate * g
    step = momentum * v + rate * g if nesterov else v
    return tf.cast(w - step, weight.dtype), tf.cast(v, momentum_buffer.dtype)


def _trust_ratio(w, g, trust_coefficient):
    """Scalar trust_coefficient * |w| / |g|, and 1 where either norm is 0."""
    w_norm, g_norm = tf.norm(w), tf.norm(g)
    ratio = trust_coefficient * tf.math.divide_no_nan(w_norm, g_norm)
    return tf.where((w_norm > 0) & (g_norm > 0), ratio, tf.ones_like(ratio))


@keras.saving.register_keras_serializable(package="simclr_tf")
class LARS(_keras.Optimizer):
    """Layer-wise adaptive rate scaling with momentum: see `lars_update` for the rule.

    Variables of rank 1 or less (biases, the scale and offset of every normalisation layer) take
    neither weight decay nor trust ratio, and so do those that `exclude` names.

    Sparse gradients (of embedding lookups) are made dense, since the norms need all of them.

    Args:
      learning_rate: float, or a `keras.optimizers.schedules.LearningRateSchedule`.
      momentum: float in [0, 1).
      weight_decay: float, 0 or more. Coupled: part of the gradient, under the trust ratio. Held as
        `coupled_weight_decay`; Keras's own decoupled `weight_decay` stays None.
      trust_coefficient: float above 0; None for no trust ratio at all, which is momentum SGD.
      nesterov: bool; look one momentum step ahead.
      exclude: list of regular expressions (or one) searched for in a variable's name
        ("head/kernel"; on Keras 3 its path, "model/head/kernel", so do without a leading "^"); a
        match excludes the variable as if it were a bias.
      name: name of the optimizer.
      **kwargs: what every Keras optimizer takes: `clipnorm`, `global_clipnorm`, `use_ema`, ...

    Raises:
      ValueError: a value out of its range, or a regular expression that does not compile.
    """

    def __init__(
        self,
        learning_rate,
        momentum=0.9,
        weight_decay=1e-6,
        trust_coefficient=1e-3,
        nesterov=False,
        exclude=None,
        name="LARS",
        **kwargs,
    ):
        exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude or ())
        _check_lars(momentum, weight_decay, trust_coefficient, exclude)
        super().__init__(learning_rate, name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay
        self.trust_coefficient = trust_coefficient
        self.nesterov = nesterov
        self.exclude = exclude

    def build(self, var_list):
        """Makes one momentum buffer for each variable of `var_list`; a second call does nothing."""
        if _keras.is_built(self):
            return
        super().build(var_list)
        self.momentum_buffers = [
            self.add_variable_from_reference(variable, "momentum") for variable in var_list
        ]
        self._index = _keras.VariableIndex(var_list)
        # Decided here, because inside a replica a variable's name has a suffix.
        self._excluded = tuple(self.is_excluded(variable) for variable in var_list)

    def is_excluded(self, variable):
        """Whether `variable` takes neither weight decay nor trust ratio."""
        return len(variable.shape) <= 1 or _matches(variable, self.exclude)

    def update_step(self, gradient, variable, learning_rate=None):
        """Updates `variable` and its buffer in place; Keras 3 hands the step's rate in."""
        index = self._index[variable]
        momentum_buffer = self.momentum_buffers[index]
        new_weight, new_buffer = lars_update(
            tf.convert_to_tensor(variable),
            tf.convert_to_tensor(gradient),
            tf.convert_to_tensor(momentum_buffer),
            self.learning_rate if learning_rate is None else learning_rate,
            self.momentum,
            self.coupled_weight_decay,
            self.trust_coefficient,
            self._excluded[index],
            self.nesterov,
        )
        variable.assign(new_weight)
        momentum_buffer.assign(new_buffer)

    def get_config(self):
        """Every argument, the exclusions and a serialised schedule among them."""
        config = super().get_config()
        config.update(
            momentum=self.momentum,
            weight_decay=self.coupled_weight_decay,
            trust_coefficient=self.trust_coefficient,
            nesterov=self.nesterov,
            exclude=list(self.exclude),
        )
        return config


def _matches(variable, patterns):
    name = _keras.variable_name(variable)
    return any(re.search(pattern, name) for pattern in patterns)


def _check_lars(momentum, weight_decay, trust_coefficient, exclude):
    if not 0 <= momentum < 1:
        raise ArgumentError(f"momentum must be in [0, 1); got {momentum}. The usual value is 0.9.")
    if not 0 <= weight_decay < math.inf:
        raise ArgumentError(f"weight_decay must be 0 or more; got {weight_decay}. 0 turns it off.")
    if trust_coefficient is not None and not 0 < trust_coefficient < math.inf:
        raise ArgumentError(
            f"trust_coefficient must be above 0; got {trust_coefficient}. None turns it off."
        )
    for pattern in exclude:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ArgumentError(
                f"exclude must hold regular expressions; got {pattern!r}: {error}. "
                "re.escape(...) makes one of a plain name."
            ) from error


@keras.saving.register_keras_serializable(package="simclr_tf")
class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that leaves biases and normalisation parameters undecayed.

    These are the variables of rank 1 or less. The exclusion is part of the class, so it outlives
    saving and loading, which `exclude_from_weight_decay` called on a plain AdamW does not.
    """

    def build(self, var_list):
        """Excludes the variables of rank 1 or less from the decay, then makes the moments."""
        if not _keras.is_built(self):
            self.exclude_from_weight_decay(var_list=[v for v in var_list if len(v.shape) <= 1])
        super().build(var_list)


@keras.saving.register_keras_serializable(package="simclr_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to `learning_rate`, then half a cosine down to the final rate.

    With p the peak, W warm-up steps of T in all, and f the final rate, step s (counted from 0) has
    `p * s / W` while s < W, then `f + (p - f) * (1 + cos(pi * (s - W) / (T - W))) / 2`, and f from
    step T on. The schedule of SimCLR (Chen et al. 2020, arXiv:2002.05709, section 2.2); the cosine
    is that of SGDR (arXiv:1608.03983) without restarts.

    Args:
      learning_rate: float above 0, the peak.
      total_steps: int above 0, optimizer steps of the whole run, warm-up included.
      warmup_steps: int from 0 to total_steps - 1; 0 starts at the peak.
      final_learning_rate: float from 0 to `learning_rate`.

    Raises:
      ValueError: a value out of its range.
    """

    def __init__(self, learning_rate, total_steps, warmup_steps=0, final_learning_rate=0.0):
        super().__init__()
        self.learning_rate = float(learning_rate)
        self.total_steps = _whole_number("total_steps", total_steps)
        self.warmup_steps = _whole_number("warmup_steps", warmup_steps)
        self.final_learning_rate = float(final_learning_rate)
        self._check()
        self._schedule = self._keras_schedule()

    def _keras_schedule(self):
        decay_steps = self.total_steps - self.warmup_steps
        alpha = self.final_learning_rate / self.learning_rate
        cosine = keras.optimizers.schedules.CosineDecay
        if not self.warmup_steps:
            return cosine(self.learning_rate, decay_steps, alpha)
        return cosine(
            0.0,
            decay_steps,
            alpha,
            warmup_target=self.learning_rate,
            warmup_steps=self.warmup_steps,
        )

    def _check(self):
        if not 0 < self.learning_rate < math.inf:
            raise ArgumentError(f"learning_rate must be above 0; got {self.learning_rate}.")
        if self.total_steps < 1:
            raise ArgumentError(f"total_steps must be 1 or more; got {self.total_steps}.")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ArgumentError(
                f"warmup_steps must be from 0 to total_steps - 1 = {self.total_steps - 1}; "
                f"got {self.warmup_steps}. Train for longer or warm up for less."
            )
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ArgumentError(
                f"final_learning_rate must be from 0 to the peak {self.learning_rate}; "
                f"got {self.final_learning_rate}."
            )

    def __call__(self, step):
        """The rate of `step` (integer scalar, from 0): float32 scalar."""
        return self._schedule(step)

    def get_config(self):
        """Every argument."""
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "final_learning_rate": self.final_learning_rate,
        }


def _whole_number(name, value):
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be a whole number; got {value!r}. Round it.") from None


def scale_learning_rate(learning_rate, batch_size, scaling):
    """The rate for a batch size (arXiv:2002.05709, section 2.2 and appendix B.1).

    Args:
      learning_rate: float, the base rate.
      batch_size: int above 0, images of the global batch, before they become two views.
      scaling: "linear" for rate * batch_size / 256, "sqrt" for rate * sqrt(batch_size) (base rates
        are then near 0.075), "none" for the rate as it is.

    Returns:
      float, the peak rate.

    Raises:
      ValueError: an unknown scaling or a batch size below 1.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be 1 or more; got {batch_size}.")
    if scaling == "linear":
        return learning_rate * batch_size / 256
    if scaling == "sqrt":
        return learning_rate * math.sqrt(batch_size)
    if scaling == "none":
        return learning_rate
    raise ArgumentError(f"scaling must be one of {', '.join(SCALINGS)}; got {scaling!r}.")


def by_name(name, learning_rate, weight_decay=1e-6, momentum=0.9, **kwargs):
    """An optimizer by name; each leaves biases and normalisation parameters undecayed.

    - "lars": `LARS`.
    - "lamb": LAMB of TensorFlow Addons (You et al., arXiv:1904.00962); biases and normalisation
      parameters, found by name, also take no layer adaptation.
    - "sgd": SGD with momentum and coupled L2 decay (the decay is part of the gradient and so of the
      momentum), which is the field's "SGD with weight decay"; the `weight_decay` of Keras's own
      SGD is decoupled instead. It is `LARS` without the trust ratio.
    - "adamw": `AdamW`, Keras's own, with decoupled decay.

    Args:
      name: "lars", "lamb", "sgd" or "adamw".
      learning_rate: float, or a `keras.optimizers.schedules.LearningRateSchedule`.
      weight_decay: float, 0 or more.
      momentum: float in [0, 1), for "lars" and "sgd"; the Adam family takes beta_1 in `kwargs`.
      **kwargs: further arguments of the optimizer in question.

    Returns:
      an optimizer for `compile`.

    Raises:
      ValueError: an unknown name, or "lamb" where TensorFlow Addons cannot be imported.
    """
    if name == "lars":
        return LARS(learning_rate, momentum, weight_decay, **kwargs)
    if name == "sgd":
        kwargs = {"name": "SGD", **kwargs, "trust_coefficient": None}
        return LARS(learning_rate, momentum, weight_decay, **kwargs)
    if name == "adamw":
        return AdamW(learning_rate, weight_decay=weight_decay, **kwargs)
    if name == "lamb":
        return _lamb(learning_rate, weight_decay, **kwargs)
    raise ArgumentError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {name!r}.")


def _lamb(learning_rate, weight_decay, **kwargs):
    try:
        from tensorflow_addons.optimizers import LAMB  # its import warns, and fails on Keras 3
    except ImportError as error:
        raise ArgumentError(
            "optimizer 'lamb' needs TensorFlow Addons, which works with TensorFlow 2.15 and "
            f"before; got {error}. Install tensorflow-addons there, or take 'lars' or 'adamw'."
        ) from error
    excluded = list(_BIAS_OR_NORM_NAMES)
    return LAMB(
        learning_rate,
        weight_decay=weight_decay,
        exclude_from_weight_decay=excluded,
        exclude_from_layer_adaptation=excluded,
        **kwargs,
    )
