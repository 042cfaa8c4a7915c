"""Where the time of a training step goes: one step under the profiler, summed by operation.

    python benchmarks/step_profile.py [LOGDIR]

The trace stays in LOGDIR, where TensorBoard's profiler can open it.
"""

import collections
import glob
import sys
import tempfile

import measure
import step

from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

from tensorflow.tsl.profiler.protobuf import xplane_pb2  # noqa: E402 - as above

from simclr_tf import devices  # noqa: E402 - after TensorFlow's start-up lines

# Operations that hold others: their time is that of what they hold.
_CONTAINERS = ("PartitionedCall", "StatefulPartitionedCall", "While", "If", "StatelessIf")


def run(logdir, width=0.5):
    """Rows: operation, milliseconds summed over threads, share, for the operations above 1 %."""
    policy = devices.precision_policy("auto")
    tf.keras.mixed_precision.set_global_policy(policy)
    _, take_step = step.training_step(step.STEP_BATCH, width)
    for _ in range(3):
        take_step().numpy()
    with tf.profiler.experimental.Profile(logdir):
        take_step().numpy()
    taken = collections.Counter()
    (path,) = glob.glob(f"{logdir}/plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                place, colon, kind = name.rpartition(":")
                # An operation is "place:kind"; "Class::Method" is TensorFlow's machinery.
                if (
                    colon
                    and place
                    and "::" not in name
                    and kind not in _CONTAINERS
                    and " " not in kind
                ):
                    taken[kind] += event.duration_ps / 1e9
    total = sum(taken.values())
    rows = [
        {"operation": kind, "milliseconds": time, "share": 100 * time / total}
        for kind, time in taken.most_common()
    ]
    return [row for row in rows if row["share"] >= 1]


COLUMNS = {
    "operation": ("operation", ""),
    "milliseconds": ("ms, both cores", ".0f"),
    "share": ("%", ".0f"),
}

if __name__ == "__main__":
    found = run(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    title = f"A step of {step.STEP_BATCH} images, ResNet-18 of half width"
    measure.show(title, COLUMNS, found)
