"""CPU or accelerator: what depends on the device, such as precision and steps per execution."""

import functools
import math

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError


def on_cpu():
    """Whether TensorFlow sees neither a GPU nor a TPU. Initialises the devices.

    Example:

    >>> simclr_tf.devices.on_cpu() == (not tf.config.list_logical_devices("GPU"))
    True
    """
    return not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def under_xla():
    """Whether the function being traced is compiled by XLA, or called from one that is.

    Example:

    >>> simclr_tf.devices.under_xla()  # eager execution
    False
    """
    return _keras.under_xla()


@functools.cache
def convolves_nothing():
    """Whether a convolution of no images has the right shape on this device; computed once.

    oneDNN's, which TensorFlow uses on some CPUs, has the shape of its input.

    Example:

    >>> simclr_tf.devices.convolves_nothing() in (True, False)
    True
    """
    with tf.init_scope():
        convolved = tf.nn.conv2d(tf.zeros([0, 4, 4, 1]), tf.zeros([3, 3, 1, 2]), 1, "SAME")
    return tuple(convolved.shape) == (0, 4, 4, 2)


# Steps per Python call, by device: the slower a call from the host, the more steps.
_MAX_STEPS_PER_EXECUTION = (("TPU", 50), ("GPU", 10), ("CPU", 1))


def steps_per_execution(steps_per_epoch, total_steps):
    """Chooses `steps_per_execution` of `keras.Model.compile` for this device.

    Args:
        steps_per_epoch: int above 0.
        total_steps: int above 0, the steps of the run, which may end within an epoch.

    Returns:
        int, the largest common divisor of both that is at most 50 on a TPU, 10 on a GPU and 1 on a
        CPU; with it, an epoch and the run end at their last steps. 1 within the scope of a strategy
        of several GPUs with Keras 3, which cannot take more.

    Example:

    >>> simclr_tf.devices.steps_per_execution(steps_per_epoch=97, total_steps=194)
    1
    """
    devices = tf.config.list_logical_devices
    device, limit = next(entry for entry in _MAX_STEPS_PER_EXECUTION if devices(entry[0]))
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    if several and device != "TPU" and not _keras.repeats_collectives():
        return 1
    stops = math.gcd(steps_per_epoch, total_steps)
    return max(n for n in range(1, limit + 1) if stops % n == 0)


PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


def precision_policy(name="auto"):
    """The Keras dtype policy for a precision.

    Args:
        name: "float32", "bfloat16", "float16" or "auto". "auto" is bfloat16 if the device computes
            in it (a TPU, a GPU of compute capability 8.0 or higher, a CPU with AVX-512 BF16 or AMX)
            and float32 otherwise.

    Returns:
        The policy's name, for `keras.mixed_precision.set_global_policy`.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> simclr_tf.devices.precision_policy("bfloat16")
    'mixed_bfloat16'
    """
    if name == "auto":
        name = "bfloat16" if _computes_bfloat16() else "float32"
    if name not in PRECISIONS:
        choices = ", ".join(["auto", *PRECISIONS])
        raise ArgumentError(f"precision must be one of {choices}; got {name!r}.")
    return PRECISIONS[name]


def _computes_bfloat16():
    if tf.config.list_logical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return details.get("compute_capability", (0, 0)) >= (8, 0)
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:  # not Linux: the CPU's features are unknown
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
