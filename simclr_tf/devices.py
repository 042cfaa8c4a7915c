"""What this process computes on, for code that has one form for a processor and one for others."""

import math

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.errors import ArgumentError


def on_cpu():
    """Whether TensorFlow sees no GPU and no TPU. Initialises the devices."""
    return not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def under_xla():
    """Whether what is being traced is part of a function that XLA compiles as a whole."""
    return _keras.under_xla()


# Steps taken without Python in between: a TPU is far from its host, a GPU near, a processor is it.
_STEPS_AT_A_TIME = (("TPU", 50), ("GPU", 10), ("CPU", 1))


def steps_per_execution(steps_per_epoch, total_steps):
    """How many steps to take before callbacks are called, so that the device never waits for them.

    A number that divides the steps of an epoch and, where a run ends within one, those of the run:
    the run then ends at its last step.
    """
    limit = next(n for kind, n in _STEPS_AT_A_TIME if tf.config.list_logical_devices(kind))
    stops = math.gcd(steps_per_epoch, total_steps)
    return max(n for n in range(1, limit + 1) if stops % n == 0)


PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


def precision_policy(name="auto"):
    """The name of the Keras policy for a precision: "auto", "float32", "bfloat16", "float16".

    "auto" is bfloat16 where the device computes in it (TPU, a GPU of compute capability 8 or
    more, a processor with AVX-512 BF16 or AMX) and float32 elsewhere.

    Raises:
      ValueError: an unknown name.
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
    except OSError:  # not Linux: nothing is known of the processor
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
