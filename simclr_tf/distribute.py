"""A `tf.distribute` strategy by name, and the exchange of rows between replicas.

What is trained inside a strategy is in `models` and `losses`.
"""

from __future__ import annotations

import json
import os

import tensorflow as tf

from simclr_tf.errors import ArgumentError

STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")


def strategy_by_name(name="auto", tpu=None):
    """Returns a `tf.distribute.Strategy`.

    Args:
      name: "one" (the first device), "mirrored" (all GPUs of this machine; without a GPU, all its
        logical CPUs), "multi_worker" (the cluster of TF_CONFIG), "tpu" (the TPU at `tpu`), or
        "auto": mirrored with more than one GPU, else one.
      tpu: name or address of the TPU; None reads it from the environment.

    Raises:
      ArgumentError: an unknown name, "tpu" without a TPU, "multi_worker" without TF_CONFIG.

    Example:

    >>> simclr_tf.distribute.strategy_by_name("one").num_replicas_in_sync
    1
    """
    if name not in STRATEGIES:
        raise ArgumentError(f"strategy must be one of {', '.join(STRATEGIES)}; got {name!r}.")
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
    # The default for CPUs, a ring of collectives, needs a thread for each of them.
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _multi_worker_strategy():
    if "cluster" not in _tf_config():
        raise ArgumentError(
            "strategy=multi_worker needs the environment variable TF_CONFIG with the addresses of "
            "all workers and the index of this one, such as "
            """'{"cluster": {"worker": ["host0:2222", "host1:2222"]}, """
            """"task": {"type": "worker", "index": 0}}'. On one machine use strategy=mirrored."""
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tf_config():
    text = os.environ.get("TF_CONFIG", "{}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"TF_CONFIG must be JSON; got {text!r} ({error}).") from error


def _tpu_strategy(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu)
    except (ValueError, OSError, tf.errors.OpError) as error:  # OSError: no such address
        raise ArgumentError(
            f"strategy=tpu needs a TPU; none answers at {tpu or 'the address of this machine'}. "
            "Pass its name as tpu=NAME, or use strategy=auto."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_chief(strategy):
    """Returns whether this process writes the files of a run: the only one, or the first.

    Example:

    >>> simclr_tf.distribute.is_chief(tf.distribute.get_strategy())
    True
    """
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type != "worker" or resolver.task_id == 0


def is_many_processes(strategy):
    """Returns whether the replicas are in several processes, which take every step together.

    Example:

    >>> simclr_tf.distribute.is_many_processes(tf.distribute.get_strategy())
    False
    """
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def any_worker(strategy):
    """Returns a function from a bool of this worker to whether it is true on any worker.

    All workers must call the function together.

    Example:

    >>> any_worker = simclr_tf.distribute.any_worker(tf.distribute.get_strategy())
    >>> any_worker(True)
    True
    """

    @tf.function
    def count(flag):
        def reduce(flag):
            # The identity puts it onto the replica's device.
            return tf.distribute.get_replica_context().all_reduce("sum", tf.identity(flag))

        return strategy.experimental_local_results(strategy.run(reduce, args=(flag,)))[0]

    return lambda flag: bool(count(tf.constant(float(flag))) > 0.0)


def sum_over_replicas(tensors):
    """Returns a list of tensors, each the sum of those of all replicas; a None stays one.

    Outside a replica, and with one replica, they are returned as they are.

    Example:

    >>> simclr_tf.distribute.sum_over_replicas([None, 2.0])
    [None, 2.0]
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    given = [tensor for tensor in tensors if tensor is not None]
    sums = iter(context.all_reduce("sum", given))
    return [None if tensor is None else next(sums) for tensor in tensors]


def replica_offset_and_fraction(x):
    """Returns the number of rows of the replicas before this one, and its fraction of all rows.

    A loss that is a mean over the replica's rows, times the fraction, sums up over the replicas to
    the mean over all rows. Where the number of rows is static, all replicas have as many; else it
    is communicated, since the last batch of a dataset may be divided unevenly.

    Args:
      x: [n, ...].

    Returns:
      (offset, fraction): integers or tensors; (0, 1.0) outside a replica, and with one replica.

    Example:

    >>> simclr_tf.distribute.replica_offset_and_fraction(h)
    (0, 1.0)
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, 1.0
    replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
    if _is_static(x):
        return replica * x.shape[0], 1.0 / replicas
    sizes = context.all_gather(tf.shape(x)[:1], axis=0)  # [R]
    return tf.reduce_sum(sizes[:replica]), tf.cast(
        tf.shape(x)[0] / tf.reduce_sum(sizes), tf.float32
    )


def _is_static(x):
    """Whether all replicas have as many rows: those of a graph do where the number is static."""
    return x.shape[0] is not None and not tf.executing_eagerly()


def gather_rows(x):
    """Returns the rows of all replicas, and the position of this replica's first row.

    The gradient of a row is the sum of the gradients that all replicas have for it.

    Args:
      x: [n, ...] with static trailing dimensions.

    Returns:
      (rows, offset): rows [R n, ...]; x itself and 0 outside a replica, and with one replica.

    Example:

    >>> rows, offset = simclr_tf.distribute.gather_rows(h)
    >>> rows.shape, offset
    ((8, 16), 0)
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x, 0
    rows = context.num_replicas_in_sync * x.shape[0] if _is_static(x) else None
    # Between processes, `all_gather` loses the static shape.
    gathered = tf.ensure_shape(context.all_gather(x, axis=0), [rows, *x.shape[1:]])
    return gathered, replica_offset_and_fraction(x)[0]


def update_variables(function, variables, sources):
    """Assigns function(variable, source) to each variable, on every replica to its own copy.

    Args:
      function: of two tensors; returns one.
      variables, sources: lists of `tf.Variable` of the same length.

    Example:

    >>> average, value = tf.Variable(1.0), tf.Variable(3.0)
    >>> simclr_tf.distribute.update_variables(lambda a, b: (a + b) / 2, [average], [value])
    >>> float(average)
    2.0
    """

    def assign(variable, source):
        variable.assign(function(variable, source))

    def update(strategy):
        for variable, source in zip(variables, sources):
            strategy.extended.update(variable, assign, args=(source,), group=False)

    context = tf.distribute.get_replica_context()
    if context is None:  # outside of a replica
        update(tf.distribute.get_strategy())
    else:
        context.merge_call(update)
