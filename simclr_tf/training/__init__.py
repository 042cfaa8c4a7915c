"""A resumable training run: its directory, checkpoints, callbacks and loop."""

from simclr_tf.training.callbacks import JSONLines, KNNProbe, StopAtStep, ViewSizes
from simclr_tf.training.checkpoints import Checkpoints
from simclr_tf.training.environment import describe_environment
from simclr_tf.training.loop import ResumableLoop, Steps, train
from simclr_tf.training.monitor import Alarms, Throughput
from simclr_tf.training.preemption import StopOnSignal
from simclr_tf.training.records import RunRecord, find_runs
from simclr_tf.training.run_directory import RunDirectory

__all__ = [
    "Alarms",
    "Checkpoints",
    "JSONLines",
    "KNNProbe",
    "ResumableLoop",
    "RunDirectory",
    "RunRecord",
    "Steps",
    "StopAtStep",
    "StopOnSignal",
    "Throughput",
    "ViewSizes",
    "describe_environment",
    "find_runs",
    "train",
]
