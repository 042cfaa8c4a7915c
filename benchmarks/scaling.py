"""Operations and communication of a step per replica, counted in TensorFlow's graphs.

    python benchmarks/scaling.py

Graphs for 1 to 8 replicas are built and not run: the floating-point operations of convolutions and
matrix products, and the bytes that replicas pass to collectives, are exact, whereas times on one
machine do not carry over to many. The table also has the predictions of docs/scaling.md.
"""

import math

import measure
from simclr_tf import _quiet

tf = _quiet.import_tensorflow()

import simclr_tf  # noqa: E402 - after TensorFlow's start-up lines
from simclr_tf.losses import log_sum_exp  # noqa: E402

REPLICAS = (1, 2, 4, 8)
IMAGES, SIDE, DIM = 40, 32, 48  # a replica's images, pixels, length of z


def graph_of(replicas):
    """Returns the graph of a step on that many logical CPUs, and the model."""
    devices = [device.name for device in tf.config.list_logical_devices("CPU")][:replicas]
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        model = simclr_tf.SimCLR(
            simclr_tf.ResNet(18, width=0.25),
            simclr_tf.ProjectionHead(output_dim=DIM),
            augment=tf.identity,
        )
        model.build((None, SIDE, SIDE, 3))
        model.compile(optimizer=simclr_tf.LARS(0.1))
        model.optimizer.build(model.trainable_variables)
    spec = tf.TensorSpec([IMAGES, SIDE, SIDE, 3], tf.uint8)

    @tf.function
    def step(images):
        strategy.run(model.train_step, args=(images,))

    return step.get_concrete_function(spec).graph, model


def products(graph, replicas):
    """Counts floating-point operations of a replica: (encoder and head, NT-Xent or None).

    A single replica computes NT-Xent in a loop over tiles, whose iterations a graph does not count.
    """
    encoder = loss = 0
    for op in graph.get_operations():
        if op.type == "MatMul":
            (rows, inner), columns = _matrix(op), op.outputs[0].shape[1]
            count = 2 * rows * inner * columns
            if {rows, inner, columns} == {2 * IMAGES, 2 * IMAGES * replicas, DIM}:
                loss += count
            else:
                encoder += count
        elif op.type.startswith("Conv2D"):
            encoder += _convolution(op)
    return encoder / replicas, loss / replicas if replicas > 1 else None


def _matrix(op):
    rows, inner = op.inputs[0].shape
    return (inner, rows) if op.get_attr("transpose_a") else (rows, inner)


def _convolution(op):
    """Counts the operations of a convolution or of one of its gradients, which are equal."""
    consts = {"Conv2D": (1, 0), "Conv2DBackpropInput": (1, 2), "Conv2DBackpropFilter": (None, 2)}
    kernel, result = consts[op.type]
    shape = op.outputs[0].shape if kernel is None else op.inputs[kernel].shape
    image = op.outputs[0].shape if result == 0 else op.inputs[result].shape
    return 2 * math.prod(shape) * math.prod(image[:3])


def collectives(graph, replicas):
    """Counts the bytes that a replica passes to collectives: {"gather": ..., "reduce": ...}."""
    sent = {"gather": 0, "reduce": 0}
    for op in graph.get_operations():
        if op.type.startswith(("CollectiveReduce", "CollectiveGather")):
            tensor = op.inputs[0]
            if tensor.dtype == tf.int32:  # the lengths that are gathered first
                continue
            # The gathered tensor, the z of one view, has no static shape.
            count = math.prod(tensor.shape) if tensor.shape.is_fully_defined() else IMAGES * DIM
            kind = "gather" if "Gather" in op.type else "reduce"
            sent[kind] += count * tensor.dtype.size
    return {kind: total / replicas for kind, total in sent.items()}


def predicted(model, replicas):
    """Returns the bytes and operations of a replica by the formulas of docs/scaling.md."""
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    norms = [m for m in model.submodules if isinstance(m, tf.keras.layers.BatchNormalization)]
    channels = sum(norm.gamma.shape[0] for norm in norms)
    z = 2 * IMAGES * DIM * 4
    distributed = replicas > 1
    return {
        "loss": 6 * (2 * IMAGES) * (2 * IMAGES * replicas) * DIM if distributed else None,
        "gather": distributed * z,
        # Gradients; batch normalisation, forward and backward; the gradient of gathering.
        "reduce": distributed * (4 * parameters + 4 * 5 * channels + z * replicas),
    }


def run():
    """Returns rows: replicas, operations and bytes per replica."""
    limit = log_sum_exp.MAX_DENSE_LOGITS
    log_sum_exp.MAX_DENSE_LOGITS = 2**62  # one product instead of a loop, so that it is counted
    rows = []
    for replicas in REPLICAS:
        graph, model = graph_of(replicas)
        encoder, loss = products(graph, replicas)
        counted = {"encoder": encoder, "loss": loss, **collectives(graph, replicas)}
        counted.update((f"p_{key}", value) for key, value in predicted(model, replicas).items())
        millions = {key: value and value / 1e6 for key, value in counted.items()}
        rows.append({"replicas": replicas, **millions})
    log_sum_exp.MAX_DENSE_LOGITS = limit
    return rows


COLUMNS = {
    "replicas": ("replicas", ",d"),
    "encoder": ("encoder MFLOP", ",.1f"),
    "loss": ("loss MFLOP", ",.1f"),
    "p_loss": ("predicted", ",.1f"),
    "gather": ("gathered MB", ".4f"),
    "p_gather": ("predicted", ".4f"),
    "reduce": ("reduced MB", ".4f"),
    "p_reduce": ("predicted", ".4f"),
}


def plan():
    """Returns rows: ResNet-50 at 224 pixels on many replicas, by the formulas verified above."""
    encoder = simclr_tf.ResNet(50)
    encoder.build((None, 224, 224, 3))
    call = tf.function(lambda images: encoder(images, training=True))
    graph = call.get_concrete_function(tf.TensorSpec([1, 224, 224, 3])).graph
    forward = sum(_convolution(op) for op in graph.get_operations() if op.type == "Conv2D")
    parameters = sum(math.prod(v.shape) for v in encoder.trainable_variables) + 2048 * (2048 + 128)
    norms = (m for m in encoder.submodules if isinstance(m, tf.keras.layers.BatchNormalization))
    channels = sum(norm.gamma.shape[0] for norm in norms) + 2048 + 128
    rows = []
    for replicas, batch in ((32, 4096), (128, 4096), (128, 16384), (512, 32768), (1024, 65536)):
        images, z = batch / replicas, 2 * batch * 128 * 4
        # Encoder: forward and two backward. NT-Xent: value, its recomputation, two gradients.
        work, loss = 3 * 2 * images * forward, 4 * 2 * (2 * images) * (2 * batch) * 128
        rows.append(
            {
                "replicas": replicas,
                "batch": batch,
                "images": int(images),
                "work": work / 1e12,
                "loss": loss / 1e12,
                "percent": 100 * loss / (loss + work),
                "z": z / 1e6,
                "reduced": (4 * parameters + 20 * channels + z) / 1e6,
                "memory": 3 * z / 1e6,
            }
        )
    return rows


PLAN_COLUMNS = {
    "replicas": ("replicas", ",d"),
    "batch": ("batch", ",d"),
    "images": ("images per replica", ",d"),
    "work": ("encoder TFLOP", ".2f"),
    "loss": ("loss TFLOP", ".4f"),
    "percent": ("% of total", ".2f"),
    "z": ("all z, MB", ".1f"),
    "reduced": ("reduced MB", ".0f"),
    "memory": ("loss memory MB", ".0f"),
}

if __name__ == "__main__":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * max(REPLICAS),
    )
    measure.show("A step, per replica", COLUMNS, run())
    measure.show("ResNet-50 at 224 pixels, by the formulas", PLAN_COLUMNS, plan())
