"""A tf.distribute strategy by name. What runs inside one lives in `model.py` and `losses.py`."""

from __future__ import annotations

import json
import math
import os

import tensorflow as tf

STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")


def strategy_by_name(name="auto", tpu=None):
    """A `tf.distribute.Strategy`.

    Args:
      name: "one" (the first device), "mirrored" (all GPUs of this machine; without one, all its
        logical processors), "multi_worker" (the cluster of TF_CONFIG), "tpu" (the TPU at `tpu`), or
        "auto": mirrored with more than one GPU, else one.
      tpu: name or address of the TPU; None asks the environment.

    Raises:
      ValueError: an unknown name, "tpu" where there is none, "multi_worker" without TF_CONFIG.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {name!r}.")
    if name == "auto":
        name = "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one"
    if name == "mirrored":
        return _mirrored_strategy()
    if name == "multi_worker":
        return _multi_worker_strategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    return tf.distribute.get_strategy()  # the default strategy: one device, no wrapping


def _mirrored_strategy():
    if tf.config.list_logical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    # The default for processors, a ring of collectives, needs a thread for each of them.
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _multi_worker_strategy():
    if "cluster" not in _tf_config():
        raise ValueError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG with the workers and "
            "the place of this one among them, such as "
            """'{"cluster": {"worker": ["host0:2222", "host1:2222"]}, """
            """"task": {"type": "worker", "index": 0}}'. On one machine take --strategy=mirrored."""
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tf_config():
    text = os.environ.get("TF_CONFIG", "{}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG must be JSON; got {text!r} ({error}).") from error


def _tpu_strategy(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"--strategy=tpu needs a TPU; none answers at {tpu or 'the address of this machine'}. "
            "Give its name with --tpu, or take --strategy=auto."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_chief(strategy):
    """Whether this process writes what a run leaves: the only one, or the first of several."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type != "worker" or resolver.task_id == 0


def is_many_processes(strategy):
    """Whether the replicas are spread over processes, which must then take every step together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def any_worker(strategy):
    """A function: bool of this worker -> whether it is true on any. All must call it together."""

    @tf.function
    def count(flag):
        def reduce(flag):
            # The identity puts it onto the replica's device.
            return tf.distribute.get_replica_context().all_reduce("sum", tf.identity(flag))

        return strategy.experimental_local_results(strategy.run(reduce, args=(flag,)))[0]

    return lambda flag: bool(count(tf.constant(float(flag))) > 0.0)


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
        raise ValueError(f"precision must be one of {choices}; got {name!r}.")
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
