"""A resumable training run: its directory, checkpoints, callbacks and loop."""

from simclr_tf.training.board import EmbeddingProjector, SimilarityBoard
from simclr_tf.training.callbacks import JSONLines, Milestones, StopAtStep, ViewSizes
from simclr_tf.training.checkpoints import Checkpoints
from simclr_tf.training.data_wait import DataWait
from simclr_tf.training.environment import describe_environment
from simclr_tf.training.findings import RunFacts
from simclr_tf.training.loop import ResumableLoop, Steps, train
from simclr_tf.training.measures import embedding_measures
from simclr_tf.training.monitor import Alarms, Throughput
from simclr_tf.training.preemption import StopOnSignal
from simclr_tf.training.probes import KNNProbe, LinearProbe
from simclr_tf.training.progress import Progress
from simclr_tf.training.records import RunRecord, find_runs
from simclr_tf.training.run_directory import RunDirectory
from simclr_tf.training.run_monitor import RunMonitor

__all__ = [
    "Alarms",
    "Checkpoints",
    "DataWait",
    "EmbeddingProjector",
    "JSONLines",
    "KNNProbe",
    "LinearProbe",
    "Milestones",
    "Progress",
    "ResumableLoop",
    "RunDirectory",
    "RunFacts",
    "RunMonitor",
    "RunRecord",
    "SimilarityBoard",
    "Steps",
    "StopAtStep",
    "StopOnSignal",
    "Throughput",
    "ViewSizes",
    "describe_environment",
    "embedding_measures",
    "find_runs",
    "train",
]
