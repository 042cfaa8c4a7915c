"""LARS, the schedule of warm-up and cosine decay, and optimizers by name.

The update rule is the function `lars_update`; `LARS` owns the momentum buffers and calls it. Rates
and durations are in optimizer steps here; the command line converts epochs.
"""

import math
import operator
import re

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError, check_number

OPTIMIZERS = ("lars", "lamb", "sgd", "adamw")
SCALINGS = ("linear", "sqrt", "none")

# Biases and the gamma and beta of normalisation layers, for optimizers that exclude by name.
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
    """Computes one step of LARS, layer-wise adaptive rate scaling, for one variable.

    ```
    g     = gradient + weight_decay * weight
    trust = trust_coefficient * |weight| / |g|      1 where either norm is 0
    v     = momentum * momentum_buffer + learning_rate * trust * g
    w     = weight - v                              Nesterov: w - (momentum * v + rate * trust * g)
    ```

    The buffer includes the learning rate, so that a change of the rate affects later gradients
    only. The decay is coupled: it is added before the norms are computed. Source: You et al. 2017,
    "Large Batch Training of Convolutional Networks" (arXiv:1708.03888, algorithm 1), in the form
    google-research/simclr uses.

    Args:
        weight: float tensor of any shape, the variable before the step.
        gradient: float tensor of the same shape.
        momentum_buffer: float tensor of the same shape, v of the previous step; zeros at first.
        learning_rate: scalar, 0 or more, the global rate of this step.
        momentum: float in [0, 1).
        weight_decay: float, 0 or more; the coefficient of the weight in the gradient.
        trust_coefficient: float above 0; None for a trust ratio of 1 (momentum SGD).
        exclude: bool; True applies neither weight decay nor trust ratio.
        nesterov: bool; whether to use Nesterov momentum.

    Returns:
        (new_weight, new_buffer), with the shapes and dtypes of weight and momentum_buffer. They are
        computed in float32, or in float64 for float64 weights.

    Example:

    >>> w, g, v = tf.constant([[3.0, 4.0]]), tf.constant([[6.0, 8.0]]), tf.zeros([1, 2])
    >>> w, v = simclr_tf.optimizers.lars_update(
    ...     w, g, v, learning_rate=2.0, momentum=0.9, weight_decay=0.0, trust_coefficient=0.1,
    ...     exclude=False)
    >>> w.numpy().round(3)  # the trust ratio is 0.1 * 5 / 10
    array([[2.4, 3.2]], dtype=float32)
    """
    if not tf.is_tensor(learning_rate):
        check_number("learning_rate", learning_rate, at_least=0)
    _check_lars(momentum, weight_decay, trust_coefficient)
    dtype = tf.float64 if weight.dtype == tf.float64 else tf.float32
    w, g, v = (tf.cast(tensor, dtype) for tensor in (weight, gradient, momentum_buffer))
    # A variable is read first, because its cast to its own dtype would be the variable itself.
    rate = tf.cast(tf.convert_to_tensor(learning_rate), dtype)
    if not exclude:
        g += weight_decay * w
        if trust_coefficient is not None:
            rate *= _trust_ratio(w, g, trust_coefficient)
    v = momentum * v + rate * g
    step = momentum * v + rate * g if nesterov else v
    return tf.cast(w - step, weight.dtype), tf.cast(v, momentum_buffer.dtype)


def _trust_ratio(w, g, trust_coefficient):
    """Computes trust_coefficient * |w| / |g|, a scalar; 1 if either norm is 0."""
    w_norm, g_norm = tf.norm(w), tf.norm(g)
    ratio = trust_coefficient * tf.math.divide_no_nan(w_norm, g_norm)
    return tf.where((w_norm > 0) & (g_norm > 0), ratio, tf.ones_like(ratio))


@_keras.saving.register_keras_serializable(package="simclr_tf")
class LARS(_keras.Optimizer):
    """LARS, layer-wise adaptive rate scaling with momentum (arXiv:1708.03888).

    `lars_update` is the update rule. Neither weight decay nor trust ratio apply to variables of
    rank 1 or less (biases, the gamma and beta of normalisation layers) or to those that match
    `exclude`. Sparse gradients are converted to dense ones, because the norms need every row.

    Args:
        learning_rate: float, or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: float in [0, 1).
        weight_decay: float, 0 or more. Coupled: part of the gradient, and so of the trust ratio.
            The attribute is `coupled_weight_decay`; Keras's decoupled `weight_decay` stays None.
        trust_coefficient: float above 0; None for a trust ratio of 1, which is momentum SGD.
        nesterov: bool; whether to use Nesterov momentum.
        exclude: a regular expression or a list of them. A variable whose name contains a match is
            excluded as if it were a bias. A name is "head/kernel", and in Keras 3 a path,
            "model/head/kernel", so that "^" matches only in Keras 2.
        name: name of the optimizer.
        **kwargs: other arguments of `keras.optimizers.Optimizer`: `clipnorm`, `use_ema`, and so on.

    Raises:
        ValueError: for a value out of its range, or an invalid regular expression.

    Example:

    >>> model = simclr_tf.SimCLR(encoder)
    >>> model.compile(optimizer=simclr_tf.LARS(learning_rate=1.0, weight_decay=1e-6))
    >>> model.optimizer.coupled_weight_decay
    1e-06
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
        _check_rate(learning_rate)
        _check_lars(momentum, weight_decay, trust_coefficient)
        _check_patterns(exclude)
        _check_floats(kwargs)
        super().__init__(learning_rate, name, **kwargs)
        self.momentum = momentum
        self.coupled_weight_decay = weight_decay
        self.trust_coefficient = trust_coefficient
        self.nesterov = nesterov
        self.exclude = exclude

    def build(self, var_list):
        """Creates a momentum buffer for each variable of `var_list`; later calls do nothing."""
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
        """Whether neither weight decay nor trust ratio apply to `variable`."""
        return len(variable.shape) <= 1 or _matches(variable, self.exclude)

    def update_step(self, gradient, variable, learning_rate=None):
        """Updates `variable` and its buffer in place; Keras 3 passes the step's learning rate."""
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
        """Every argument of the constructor; a schedule is serialised."""
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


def _check_rate(learning_rate):
    """Checks a learning rate, unless it is a schedule, which has checked its own arguments."""
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate, at_least=0)


def _check_floats(arguments):
    """Checks that those arguments of Keras's own that are floats are finite."""
    for name, value in arguments.items():
        if isinstance(value, float):
            check_number(name, value)


def _check_lars(momentum, weight_decay, trust_coefficient):
    check_number("momentum", momentum, at_least=0, below=1, hint="The usual value is 0.9.")
    check_number("weight_decay", weight_decay, at_least=0, hint="0 turns it off.")
    if trust_coefficient is not None:
        check_number("trust_coefficient", trust_coefficient, above=0, hint="None turns it off.")


def _check_patterns(exclude):
    for pattern in exclude:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ArgumentError(
                f"exclude must hold regular expressions; got {pattern!r}: {error}. "
                "Escape plain names with re.escape."
            ) from error


@_keras.saving.register_keras_serializable(package="simclr_tf")
class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` without weight decay on biases and normalisation parameters.

    These are the variables of rank 1 or less. Because the exclusion belongs to the class, it is
    kept when a model is saved and loaded; `exclude_from_weight_decay` on Keras's AdamW is not.
    `keras.optimizers.AdamW` implements arXiv:1711.05101.

    Args:
        learning_rate: float, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: float, 0 or more. Decoupled.
        beta_1, beta_2: float in [0, 1), the decay of the first and the second moment.
        epsilon: float above 0.
        **kwargs: other arguments of `keras.optimizers.AdamW`.

    Raises:
        ArgumentError: for a value out of its range.

    Example:

    >>> kernel, bias = tf.Variable([[1.0]]), tf.Variable([1.0])
    >>> adamw = simclr_tf.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    >>> _ = adamw.apply_gradients([(tf.zeros([1, 1]), kernel), (tf.zeros([1]), bias)])
    >>> kernel.numpy(), bias.numpy()
    (array([[0.95]], dtype=float32), array([1.], dtype=float32))
    """

    def __init__(
        self,
        learning_rate=1e-3,
        weight_decay=4e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        **kwargs,
    ):
        _check_rate(learning_rate)
        check_number("weight_decay", weight_decay, at_least=0, hint="0 turns it off.")
        check_number("beta_1", beta_1, at_least=0, below=1)
        check_number("beta_2", beta_2, at_least=0, below=1)
        check_number("epsilon", epsilon, above=0)
        _check_floats(kwargs)
        super().__init__(learning_rate, weight_decay, beta_1, beta_2, epsilon, **kwargs)

    def build(self, var_list):
        """Excludes variables of rank 1 or less from weight decay and creates the moments."""
        if not _keras.is_built(self):
            self.exclude_from_weight_decay(var_list=[v for v in var_list if len(v.shape) <= 1])
        super().build(var_list)


@_keras.saving.register_keras_serializable(package="simclr_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to `learning_rate`, then cosine decay to `final_learning_rate`.

    With p the peak rate, W the warm-up steps, T the total steps and f the final rate, the rate of
    step s, counted from 0, is

    ```
    p * s / W                                               s < W
    f + (p - f) * (1 + cos(pi * (s - W) / (T - W))) / 2     W <= s < T
    f                                                       s >= T
    ```

    The schedule of SimCLR (arXiv:2002.05709, section 2.2), computed by
    `keras.optimizers.schedules.CosineDecay` (arXiv:1608.03983, without restarts).

    Args:
        learning_rate: float above 0, the peak rate.
        total_steps: int above 0, optimizer steps of the whole run, including the warm-up.
        warmup_steps: int from 0 to total_steps - 1; with 0 the first rate is the peak.
        final_learning_rate: float from 0 to `learning_rate`.

    Call arguments:
        step: integer scalar, from 0.

    Returns:
        The learning rate: float32 scalar.

    Raises:
        ValueError: for a value out of its range.

    Example:

    >>> schedule = simclr_tf.WarmupCosine(0.8, total_steps=110, warmup_steps=10)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.4, 0.8, 0.4, 0.0]
    """

    def __init__(self, learning_rate, total_steps, warmup_steps=0, final_learning_rate=0.0):
        super().__init__()
        check_number("learning_rate", learning_rate, above=0)
        check_number("total_steps", total_steps, at_least=1, whole=True)
        check_number(
            "warmup_steps",
            warmup_steps,
            at_least=0,
            below=total_steps,
            whole=True,
            hint="Train for longer or warm up for less.",
        )
        check_number("final_learning_rate", final_learning_rate, at_least=0, at_most=learning_rate)
        self.learning_rate = float(learning_rate)
        self.total_steps = operator.index(total_steps)
        self.warmup_steps = operator.index(warmup_steps)
        self.final_learning_rate = float(final_learning_rate)
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

    def __call__(self, step):
        """Computes the learning rate of a step; see the class."""
        return self._schedule(step)

    def get_config(self):
        """Every argument of the constructor."""
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "final_learning_rate": self.final_learning_rate,
        }


def scale_learning_rate(learning_rate, batch_size, scaling):
    """Scales a base learning rate to a batch size (arXiv:2002.05709, section 2.2, appendix B.1).

    Args:
        learning_rate: float, the base rate.
        batch_size: int above 0, the number of images (not views) of the global batch.
        scaling: "linear" for learning_rate * batch_size / 256, "sqrt" for learning_rate *
            sqrt(batch_size) (the paper's base rate is then 0.075), "none" for learning_rate.

    Returns:
        float, the peak rate.

    Raises:
        ValueError: for an unknown scaling or a batch size below 1.

    Example:

    >>> simclr_tf.optimizers.scale_learning_rate(0.075, batch_size=4096, scaling="sqrt")
    4.8
    """
    check_number("learning_rate", learning_rate, at_least=0)
    check_number("batch_size", batch_size, at_least=1, whole=True)
    if scaling == "linear":
        return learning_rate * batch_size / 256
    if scaling == "sqrt":
        return learning_rate * math.sqrt(batch_size)
    if scaling == "none":
        return learning_rate
    raise ArgumentError(f"scaling must be one of {', '.join(SCALINGS)}; got {scaling!r}.")


def by_name(name, learning_rate, weight_decay=1e-6, momentum=0.9, **kwargs):
    """Creates an optimizer that applies no weight decay to biases and normalisation parameters.

    - "lars": `LARS`.
    - "lamb": LAMB (arXiv:1904.00962), of TensorFlow Addons with Keras 2 and of Keras itself with
      Keras 3. Biases and normalisation parameters are also excluded from layer adaptation.
    - "sgd": SGD with momentum and coupled weight decay, which is part of the gradient and so of the
      momentum. (The `weight_decay` of Keras's SGD is decoupled.) It is `LARS` without trust ratio.
    - "adamw": `AdamW`, with decoupled weight decay.

    Args:
        name: "lars", "lamb", "sgd" or "adamw".
        learning_rate: float, or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: float, 0 or more.
        momentum: float in [0, 1), for "lars" and "sgd"; for the others pass `beta_1`.
        **kwargs: further arguments of the optimizer.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: for an unknown name, or for "lamb" with Keras 2 if TensorFlow Addons is missing.

    Example:

    >>> schedule = simclr_tf.WarmupCosine(0.1, total_steps=1000, warmup_steps=100)
    >>> optimizer = simclr_tf.optimizers.by_name("sgd", schedule, weight_decay=5e-4)
    >>> optimizer.name
    'SGD'
    """
    _check_rate(learning_rate)
    _check_lars(momentum, weight_decay, trust_coefficient=None)
    _check_floats(kwargs)
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
        return _keras.lamb(learning_rate, weight_decay, list(_BIAS_OR_NORM_NAMES), **kwargs)
    except ImportError as error:
        raise ArgumentError(
            "optimizer 'lamb' needs TensorFlow Addons with Keras 2, or Keras 3, which has its own; "
            f"got {error}. Run pip install 'simclr_tf[keras2]', or use 'lars' or 'adamw'."
        ) from error
