"""`simclr-tf pretrain`: trains an encoder in a run directory, or resumes training it."""

from __future__ import annotations

import math

import numpy as np
from tensorflow import keras

from simclr_tf import (
    augment,
    devices,
    distribute,
    encoders,
    errors,
    evaluate,
    optimizers,
    report,
)
from simclr_tf.commands.build import (
    build_encoder,
    build_model,
    chance_loss,
    counted,
    drawn_families,
    load,
    log,
    number_of_negatives,
    prepare_process,
    report_unreadable,
    views_per_image,
)
from simclr_tf.commands.pretrained import initialise, load_pretrained
from simclr_tf.commands.run_page import details_of, head_for_similarities, samples_of
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.evaluate import near_duplicate_pairs, small_grey
from simclr_tf.export import export_encoder
from simclr_tf.training import (
    EmbeddingProjector,
    KNNProbe,
    LinearProbe,
    Milestones,
    ResumableLoop,
    RunDirectory,
    RunFacts,
    RunMonitor,
    SimilarityBoard,
    Steps,
    ViewSizes,
)
from simclr_tf.training.callbacks import check_view_sizes, parse_milestones
from simclr_tf.training.checkpoints import latest_position, numbers
from simclr_tf.training.loop import report_interruptions, report_unwritable
from simclr_tf.training.run_directory import read_flags, read_metrics

_REPORT_EXAMPLES = 500  # images of each split; `simclr-tf report` can show more


def pretrain(options, invocation):
    """Trains an encoder and fills the run directory; the same call again resumes.

    Args:
      options: attributes named as the flags of `simclr-tf pretrain`.
      invocation: `flags`, dict of flag name to its text, for flags.cfg; `resumable`, names of
        flags that may change when a run is resumed; `defaults`, those of all flags; `trained`, the
        options of the run at --init_from, or None.

    Returns:
      The `RunDirectory`.

    Raises:
      errors.Error: with a message for the user.
    """
    directory = RunDirectory(options.run_dir)
    with report_interruptions(directory, log):
        _pretrain(options, invocation, directory)
    print(f"run: {directory.path}\nviews: {directory.views}\nencoder: {directory.export}")
    return directory


def _pretrain(options, invocation, directory):
    flags = invocation.flags
    check_schedules(options)
    resumable = {"free": invocation.resumable, "defaults": invocation.defaults}
    directory.check_resumable(flags, **resumable)
    strategy = prepare_process(options)
    check_batch(options, strategy.num_replicas_in_sync)
    train, test = load_sources(options)
    probe_sets = load_probe_sets(options, train, test)
    steps = steps_of(options, train)
    start = None
    if options.init_from and not numbers(directory.checkpoints):
        start = load_pretrained(options.init_from, "init_from", invocation.trained)
        keras.utils.set_random_seed(options.seed)  # as in a run that resumes
    with strategy.scope():
        model = build_model(options, train.image_size)
        if start:
            initialise(model, start, options.init_from, invocation.trained)
        model.compile(
            optimizer=build_optimizer(options, steps),
            steps_per_execution=options.steps_per_execution
            or devices.steps_per_execution(steps.per_epoch, steps.total),
        )
    if distribute.is_chief(strategy):
        with directory.locked(), report_unwritable(directory):
            directory.check_resumable(flags, **resumable)  # again: now it is locked
            directory.check_same_data(train.num_examples, train.digest)
            with directory.started(flags):
                _train(options, directory, strategy, model, train, probe_sets, steps)
                _write_report(options, directory, strategy, model, train, test)
    else:
        _train(options, directory, strategy, model, train, probe_sets, steps)
    if distribute.is_many_processes(strategy):
        # A worker that exits early looks like a crash to the others: wait for all.
        distribute.any_worker(strategy)(False)


def _train(options, directory, strategy, model, train, probe_sets, steps):
    """Trains from the latest checkpoint, and exports; only the chief writes."""
    probe_model = None
    if strategy.num_replicas_in_sync > 1:
        # Outside the strategy, where reading weights needs no other replica.
        probe_model = build_model(options, train.image_size)
    stream = _stream(options, train)
    monitor = _monitor(options, strategy, directory, model, train, steps, stream, probe_model)
    probe_encoder = probe_model and probe_model.encoder
    projector = _projector(directory, train, probe_encoder, distribute.is_chief(strategy))
    milestones = _milestones(options, directory)
    loop = ResumableLoop(
        model,
        stream,
        steps,
        directory,
        batch_size=options.batch_size,
        strategy=strategy,
        callbacks=[
            *_callbacks(options, model, steps),
            *_probes(options, strategy, probe_sets, steps, probe_encoder),
            monitor,
            projector,
            *([milestones] if milestones else []),
        ],
        metadata={"image_size": train.image_size},
        checkpoint_every_steps=options.checkpoint_every_steps,
        chance_loss=chance_loss(options, model),
        log=log,
    )
    with report_unreadable(train, *probe_sets, directory=directory if loop.chief else None):
        if loop.chief and not loop.finished:
            _announce(options, train, model, steps)
            draw_views(directory, train, drawn_families(options, model.augment))
        if not (milestones and milestones.check()):
            loop.run()
    if milestones and milestones.missed:
        raise errors.TrainingError(
            f"{milestones.missed} To go on all the same, start the command with other milestones."
        )
    if probe_encoder is not None:
        copy_weights(model.inference_encoder, probe_encoder)
    if loop.chief and not directory.export.exists():
        encoder = probe_encoder or model.inference_encoder
        if options.whitening:
            encoder = _whitened(options, directory, encoder, train)
        export_encoder(encoder, directory.export, model.image_shape)


def _whitened(options, directory, encoder, train):
    """The encoder with the whitening of its h, which is measured and written to the directory."""
    with report_unreadable(train, directory=directory):
        batches = train.batches(options.batch_size, options.whitening_examples)
        whitening = evaluate.fit_whitening(encoder, batches, options.whitening_floor)
    whitening.save(directory.whitening)
    count = min(options.whitening_examples, train.num_examples)
    log(f"h is whitened, by {counted(count, 'training image')}: {directory.whitening}")
    return encoders.whitened(encoder, whitening)


def _write_report(options, directory, strategy, model, train, test):
    """Writes the page of a run that has ended."""
    head = None
    encoder = model.inference_encoder
    if strategy.num_replicas_in_sync == 1:
        head = head_for_similarities(options, model.inference_head)
    else:
        # Outside the strategy, where reading weights needs no other replica.
        encoder = build_encoder(options, train.image_size)
        copy_weights(model.inference_encoder, encoder)
    samples, note = samples_of(
        encoder, train, test, _REPORT_EXAMPLES, augment=model.augment, head=head
    )
    if note:
        log(note)
    details = details_of(directory, options, state="finished")
    rows, flags = read_metrics(directory.metrics), read_flags(directory.flags)
    report.write_report(directory, rows, flags, samples=samples, note=note, **details)


def check_schedules(options):
    """Raises UsageError for what is wrong without the data: milestones, views, the warm-up."""
    if options.milestones:
        parse_milestones(options.milestones)
    if options.view_sizes:
        check_view_sizes(options.view_sizes)
    if not options.train_steps and (options.warmup_epochs or 0) >= options.epochs:
        raise _too_long_a_warm_up(options, options.epochs)


def steps_of(options, train):
    """The `Steps` of a run; raises UsageError for a batch or a warm-up that is too long for it."""
    per_epoch = train.steps_per_epoch(options.batch_size)
    steps = Steps(per_epoch, options.train_steps or per_epoch * options.epochs)
    if warmup_steps(options, steps) >= steps.total:
        raise _too_long_a_warm_up(options, steps.total / per_epoch)
    return steps


def _too_long_a_warm_up(options, epochs):
    return errors.UsageError(
        f"warmup_epochs must be shorter than the run of {epochs:.4g} epochs; got "
        f"{options.warmup_epochs:.4g}. Leave it out to use a tenth of the run."
    )


def check_batch(options, replicas=1):
    """Raises UsageError unless replicas and micro-batches divide the batch."""
    batch_size = options.batch_size
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        raise errors.UsageError(
            f"batch_size must be divisible by the {replicas} replicas; got {batch_size}. "
            f"Try {below or replicas} or {below + replicas}."
        )
    count, micro = views_per_image(options), options.micro_batch_size
    views = count * batch_size // replicas
    if micro and (micro % count or views % micro):
        largest = max(count, min(micro, views))
        below = max(n for n in range(count, largest + 1, count) if views % n == 0)
        multiple = "even" if count == 2 else f"a multiple of {count}"
        raise errors.UsageError(
            f"micro_batch_size must be {multiple} and divide the {views} views of a batch; got "
            f"{micro}. Try {below}."
        )


def warmup_steps(options, steps):
    """Steps of warm-up: by default a tenth of the run, at most 10 epochs."""
    if options.warmup_epochs is None:
        return min(10 * steps.per_epoch, steps.total // 10)
    return round(options.warmup_epochs * steps.per_epoch)


def load_sources(options):
    """The training split, and the test split for the probe (None without labels)."""
    train = load(options, options.train_split, "--train_split")
    if options.loss == "supervised" and not train.labelled:
        raise errors.UsageError(
            f"--loss=supervised needs labels; {train.name} ({train.split}) has none. Use nt_xent."
        )
    test = None
    if train.labelled and options.probe_every_epochs >= 0:
        try:
            test = load(options, options.test_split, "--test_split", train.image_size)
        except (errors.ArgumentError, errors.StorageError) as error:
            log(f"no kNN probe during training, since --test_split cannot be read: {error}")
    if test is not None and not test.labelled:
        log("no kNN probe during training, since --test_split has no labels.")
        test = None
    return train, test


def load_probe_sets(options, train, test):
    """The two labelled splits of the probes, those of --probe_dataset if given; () without."""
    if options.probe_every_epochs < 0 or not options.probe_dataset:
        return () if test is None else (train, test)
    of_probe = options.replace(dataset=options.probe_dataset)
    sets = []
    for flag, default in (("probe_train_split", "train"), ("probe_test_split", "test")):
        split = getattr(options, flag) or default
        sets.append(load(of_probe, split, f"--{flag}", train.image_size, "--probe_dataset"))
        if not sets[-1].labelled:
            raise errors.UsageError(
                f"--probe_dataset needs labels; {options.probe_dataset} has none in {split}. Pass "
                f"--{flag}, or another data set."
            )
    return tuple(sets)


def build_optimizer(options, steps):
    """The optimizer with its schedule."""
    peak = optimizers.scale_learning_rate(
        options.learning_rate, options.batch_size, options.learning_rate_scaling
    )
    schedule = optimizers.WarmupCosine(peak, steps.total, warmup_steps(options, steps))
    return optimizers.by_name(
        options.optimizer, schedule, weight_decay=options.weight_decay, momentum=options.momentum
    )


def _announce(options, train, model, steps):
    log(train.description)
    if train.skipped_suffixes:
        skipped = ", ".join(f"{count} {end}" for end, count in train.skipped_suffixes.items())
        log(f"left out, since their suffix is not that of an image: {skipped}.")
    policy = keras.mixed_precision.global_policy().name
    parameters = sum(int(np.prod(w.shape)) for w in model.encoder.trainable_weights)
    log(
        f"{counted(train.num_examples, 'image')} of {counted(train.image_size, 'pixel')} from "
        f"{options.dataset} ({options.train_split}), {len(train.corrupt)} unreadable; "
        f"{model.encoder.name} with {counted(parameters, 'parameter')}; {policy}; "
        f"{_length(steps)} of {counted(options.batch_size, 'image')}."
    )
    if options.whitening:
        _check_whitening(options, train, model.encoder)


def _check_whitening(options, train, encoder):
    """Warns of a covariance of h that too few images are there to measure."""
    width = encoder.compute_output_shape((None, train.image_size, train.image_size, 3))[-1]
    count = min(options.whitening_examples, train.num_examples)
    if count < 2 * width:
        log(
            f"warning: --whitening needs at least twice as many images as h has numbers; it is "
            f"measured on {count:,} images, and h has {width:,}. Pass a smaller --feature_dim, "
            "more images (also by --whitening_examples), or --nowhitening."
        )


def _length(steps):
    """The length of a run, such as "8 epochs of 156 steps" or "3 steps (0.01923 epochs)"."""
    if steps.total % steps.per_epoch == 0:
        return f"{counted(steps.epochs, 'epoch')} of {counted(steps.per_epoch, 'step')}"
    return f"{counted(steps.total, 'step')} ({steps.total / steps.per_epoch:.4g} epochs)"


def draw_views(directory, train, families, rows=6, columns=8):
    """Writes RUN_DIR/views.png: images of the training set and views of each.

    Where the views of a step or of some epochs are drawn differently (`families`, a list), one of
    each kind after the other.
    """
    batch = next(iter(train.epochs(min(rows, train.num_examples), seed=0)))
    images, extent = (batch["image"], batch["extent"]) if train.whole_side else (batch, None)
    # Views that share parameters have them from one seed; of others, each has its own.
    shared = any(isinstance(family, augment.SharedView) for family in families)
    views = [
        families[column % len(families)](
            images, seed=column // (len(families) if shared else 1), extent=extent
        ).numpy()
        for column in range(max(columns, len(families)))
    ]
    report.draw_views(images.numpy(), views, directory.views, extents=extent)


def _stream(options, train):
    """Training batches from a step of an epoch on, as `ResumableLoop` asks for them."""

    def stream(epoch, step, replica_slice):
        given = {} if replica_slice is None else {"replica_slice": replica_slice}
        if options.loss == "supervised":
            given["labels"] = True
        return train.epochs(options.batch_size, options.seed, epoch, True, step, **given)

    return stream


def _callbacks(options, model, steps):
    if not options.view_sizes:
        return []
    return [ViewSizes(options.view_sizes, model.augment, steps.epochs)]


# Measuring a batch costs a third of a step or less: in every 30th, 1 % of the time.
_STEPS_BETWEEN_MEASUREMENTS = 30


def _monitor(options, strategy, directory, model, train, steps, stream, measured):
    """The `RunMonitor` of a run; findings about its data are looked for now."""
    chief, begun = distribute.is_chief(strategy), numbers(directory.checkpoints)
    facts = RunFacts(
        steps_per_epoch=steps.per_epoch,
        chance_loss=chance_loss(options, model),
        warm_up_epochs=max(1, math.ceil(warmup_steps(options, steps) / steps.per_epoch)),
        negatives=number_of_negatives(options, model),
        duplicates=_share_of_duplicates(train) if chief and not begun else None,
        supervised=options.loss == "supervised",
    )
    return RunMonitor(
        next(iter(stream(0, 0, None))),
        facts,
        math.ceil(_STEPS_BETWEEN_MEASUREMENTS / steps.per_epoch),
        steps.epochs,
        measured,
        measures=chief,
        rows=read_metrics(directory.metrics),
        path=directory.findings,
        board=SimilarityBoard(directory.logs / "monitor"),
        log=log if chief else lambda text: None,
    )


def _share_of_duplicates(train, limit=2048):
    """The share of the training images, of `limit` at most, that nearly equal an earlier one."""
    small = [small_grey(batch["image"]) for batch in train.batches(256, limit)]
    small = np.concatenate(small)
    pairs = near_duplicate_pairs(small, limit=100 * limit)
    return len({later for _, later in pairs}) / len(small)


def _probes(options, strategy, probe_sets, steps, probe_encoder):
    if not probe_sets:
        return []
    kinds = {"knn": KNNProbe, "linear": LinearProbe}
    every = options.probe_every_epochs or max(1, math.ceil(steps.epochs / 10))
    return [
        kinds[name](
            *(source.batches(options.batch_size, options.probe_examples) for source in probe_sets),
            every_epochs=every,
            epochs=steps.epochs,
            probe_encoder=probe_encoder,
            probes=distribute.is_chief(strategy),
        )
        for name in dict.fromkeys(options.probe_protocols.split(","))
    ]


_PROJECTED_IMAGES = 500


def _projector(directory, train, encoder, chief):
    return EmbeddingProjector(
        directory.logs / "monitor",
        train.batches(100, _PROJECTED_IMAGES),
        _PROJECTED_IMAGES,
        class_names=train.class_names,
        encoder=encoder,
        writes=chief,
    )


def _milestones(options, directory):
    """The `Milestones` of a run with its epochs so far, or None."""
    if not options.milestones:
        return None
    done, _ = latest_position(directory.checkpoints)
    rows = [row for row in read_metrics(directory.metrics) if row["epoch"] <= done]
    return Milestones(options.milestones, rows, log=lambda line: None)
