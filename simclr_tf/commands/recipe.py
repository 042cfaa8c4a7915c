"""A recipe for a data set, an image size and a machine: a value and a reason for each flag.

What is measured is passed in.
"""

from __future__ import annotations

from typing import NamedTuple

from simclr_tf.augment.random_view import SMALL_SIZE, default_strength

_GIVEN = "as given."
_HOUR = 3600.0
_MIN_EPOCHS, _MAX_EPOCHS = 10, 200
_FEATURE_DIM = "2048"
_MIN_EXAMPLES = 5_000  # for a warm-up of one epoch
_AIRBENCH_SIDES = 28, 40  # pixels; measured with 32
_AS_FOR_CIFAR10 = "as in this package's recipe for CIFAR-10 in an hour."


class Facts(NamedTuple):
    """What a recipe depends on.

    Attributes:
      num_examples: of the training split.
      image_size: side in pixels of the images that the model gets.
      accelerator: whether there is a GPU or a TPU.
      precision: "float32", "bfloat16" or "float16", what the device computes in.
    """

    num_examples: int
    image_size: int
    accelerator: bool
    precision: str


class Setting(NamedTuple):
    """A flag of a recipe.

    Attributes:
      flag: its name.
      value: as text.
      reason: a sentence.
    """

    flag: str
    value: str
    reason: str


def image_size_for(common_size, accelerator):
    """Side of the images of a data set, and the reason.

    Args:
      common_size: side of all images where they are squares of one size; None: photographs.
      accelerator: whether there is a GPU or a TPU.

    Returns:
      (int, str).
    """
    if common_size:
        return common_size, f"all images are squares of {common_size} pixels."
    if accelerator:
        return 224, "the usual size for photographs of different sizes."
    return 96, "photographs, on a CPU: 224 pixels on a side are five times as many."


def recommend(facts, given, left_out=()):
    """The settings of a run, all but its length.

    Args:
      facts: a `Facts`.
      given: dict of flag name to its text, of the flags that the user chose; they are kept.
      left_out: names of the flags that the user gave as none.

    Returns:
      list of `Setting`.
    """
    small = facts.image_size <= SMALL_SIZE
    settings = [
        *_network(facts, small, given),
        *_batch(facts, small, given),
        *_loss(facts, small, given),
        *_views(facts, small, given),
        Setting("precision", *_precision(facts)),
    ]
    if _as_for_cifar10(facts, given):
        settings += _of_an_hour(facts, given, left_out)
    known = {setting.flag for setting in settings}
    kept = [
        Setting(each.flag, given[each.flag], _GIVEN) if each.flag in given else each
        for each in settings
    ]
    others = [
        Setting(name, text, _GIVEN) for name, text in sorted(given.items()) if name not in known
    ]
    return [each for each in [*others, *kept] if each.flag not in left_out]


def _as_for_cifar10(facts, given):
    """Whether the recipe is that of examples/recipes/cifar10_one_hour.cfg, for a CPU."""
    low, high = _AIRBENCH_SIDES
    of_a_resnet = {"resnet_depth", "sk_ratio", "stem"} & {*given}
    return (
        not facts.accelerator
        and low <= facts.image_size <= high
        and given.get("encoder", "resnet" if of_a_resnet else "airbench") == "airbench"
        and given.get("method", "simclr") == "simclr"
        and given.get("loss", "nt_xent") != "supervised"
        and given.get("normalize", "True") == "True"
    )


def _network(facts, small, given):
    if _as_for_cifar10(facts, given):
        reason = "on CIFAR-10, more accurate than ResNets after the same time on a CPU."
        yield Setting("encoder", "airbench", reason)
        yield Setting("feature_dim", _FEATURE_DIM, _AS_FOR_CIFAR10)
        if "projection_hidden_dim" not in given:  # which a linear head has not
            yield Setting("projection_layers", "1", _AS_FOR_CIFAR10)
        return
    if given.get("encoder", "resnet") != "resnet":
        return
    if small or not facts.accelerator:
        yield Setting("resnet_depth", "18", "enough for small images, or for a CPU.")
    else:
        yield Setting("resnet_depth", "50", "the paper's network for photographs.")
    if facts.accelerator:
        yield Setting("width", "1", "the network as published.")
    else:
        yield Setting("width", "0.5", "a quarter of the multiplications, for a CPU.")
    if small:
        reason = (
            f"up to {SMALL_SIZE} pixels; imagenet first reduces images to a quarter of the side."
        )
        yield Setting("stem", "cifar", reason)
    else:
        yield Setting("stem", "imagenet", f"above {SMALL_SIZE} pixels.")


def _batch(facts, small, given):
    """Batch size, optimizer and rate, which depend on each other."""
    wanted = (512 if small else 256) if facts.accelerator else (256 if small else 128)
    largest = max(2, facts.num_examples // 8)
    batch = min(wanted, 2 ** (largest.bit_length() - 1))
    reason = "negatives for the loss, within the memory of most machines."
    if batch < wanted:
        reason = f"an epoch of the {facts.num_examples:,} images has 8 steps or more."
    yield Setting("batch_size", str(batch), reason)
    batch = int(given.get("batch_size", batch))
    optimizer = given.get("optimizer", "lars" if batch >= 256 else "adamw")
    reason = "the paper's, for large batches." if batch >= 256 else "for batches below 256."
    yield Setting("optimizer", optimizer, reason)
    if optimizer == "lars":
        rate, scaling = ("1.0", "linear") if small else ("0.075", "sqrt")
        reason = "the paper's, for batches below 4,096 (appendix B.1)."
        if small:
            reason = "within the range of the paper's for CIFAR-10 (appendix B.9)."
        if _as_for_cifar10(facts, given):
            # 4.8 for a batch of 256 in either form; above it, the lower one.
            scaling = given.get("learning_rate_scaling", "linear" if batch <= 256 else "sqrt")
            rate = {"linear": "4.8", "sqrt": "0.3"}.get(scaling, f"{4.8 * batch / 256:.3g}")
            reason = f"4.8 for a batch of 256, {_AS_FOR_CIFAR10}"
        yield Setting("learning_rate", rate, reason)
        yield Setting("learning_rate_scaling", scaling, "belongs to that rate.")
    elif optimizer in ("adamw", "lamb"):
        rate = 0.003 * (batch / 128) ** 0.5
        reason = "0.003 for a batch of 128, with the square root of the batch size."
        yield Setting("learning_rate", f"{rate:.3g}", reason)
        yield Setting("learning_rate_scaling", "none", "belongs to that rate.")
    else:
        yield Setting("learning_rate", "0.03", "a usual rate of SGD for a batch of 256.")
        yield Setting("learning_rate_scaling", "linear", "belongs to that rate.")
    yield Setting(
        "weight_decay",
        "1e-4" if small else "1e-6",
        "as in this package's recipes for small images." if small else "the paper's for ImageNet.",
    )


def _of_an_hour(facts, given, left_out):
    """What other recipes leave at its default."""
    long = int(given.get("epochs", _MIN_EPOCHS)) >= _MIN_EPOCHS and "train_steps" not in given
    if long and facts.num_examples >= _MIN_EXAMPLES:
        yield Setting("warmup_epochs", "1", _AS_FOR_CIFAR10)
    if "augmentations" not in given:
        yield Setting("color_drop_probability", "0.1", _AS_FOR_CIFAR10)
        one = given.get("transformed_views", "both") == "one"
        if long and "views" not in given and not one:
            side = facts.image_size
            reason = "small views take less time; the last third of the epochs has larger ones."
            yield Setting("view_sizes", f"{side // 2}:0.68,{3 * side // 4}:1", reason)
    length = 256 if "feature_dim" in left_out else int(given.get("feature_dim", _FEATURE_DIM))
    if min(facts.num_examples, int(given.get("whitening_examples", 50_000))) >= 2 * length:
        yield Setting("whitening", "true", "raised the kNN accuracy of short runs on CIFAR-10.")


def _loss(facts, small, given):
    if _as_for_cifar10(facts, given):
        yield Setting("temperature", "0.1", _AS_FOR_CIFAR10)
    elif small:
        reason = "learns fast on small images; with hundreds of epochs, also try the paper's 0.5."
        yield Setting("temperature", "0.2", reason)
    else:
        yield Setting("temperature", "0.1", "the paper's for ImageNet.")


def _views(facts, small, given):
    side = facts.image_size
    if not small:
        yield Setting("min_crop_area", "0.08", "the paper's.")
    else:
        pixels = round(0.08**0.5 * side)
        reason = f"the paper's 0.08 would enlarge crops of {pixels} x {pixels} pixels."
        least = min(0.2, float(given.get("max_crop_area", 1)))
        yield Setting("min_crop_area", f"{least:g}", reason)
    strength = f"{default_strength(side):g}"
    reason = f"the paper's for {'small' if small else 'large'} images."
    yield Setting("color_jitter_strength", strength, reason)
    if "augmentations" not in given:
        where = "up to" if small else "above"
        reason = f"the paper's for images of {where} {SMALL_SIZE} pixels."
        yield Setting("blur", "no" if small else "yes", reason)


def _precision(facts):
    if facts.precision == "float32":
        return "float32", "the device has no fast arithmetic of 16 bits."
    return facts.precision, "the device computes in it, in less time and memory."


def epochs_for(seconds_per_epoch, accelerator):
    """Epochs of a run, and the reason.

    Args:
      seconds_per_epoch: as measured; None: not measured.
      accelerator: whether there is a GPU or a TPU.

    Returns:
      (int, str).
    """
    if seconds_per_epoch is None:
        return 100, "a usual length; the time was not measured."
    hours = 4 if accelerator else 1
    fitting = int(hours * _HOUR / max(seconds_per_epoch, 1e-9))
    epochs = min(_MAX_EPOCHS, max(_MIN_EPOCHS, fitting))
    if epochs == _MAX_EPOCHS:
        return epochs, "more epochs still help, with less and less gain."
    if epochs == _MIN_EPOCHS:
        return epochs, "the least from which something is learnt; more are better."
    unit = "hours" if hours > 1 else "hour"
    return epochs, f"as many as fit into {hours} {unit} on this machine; more are better."


def flag_file(settings):
    """A flag file of the settings, each below its reason.

    Args:
      settings: list of `Setting`.
    """
    lines = ["# simclr-tf pretrain --flagfile=THIS_FILE --run_dir=runs/new"]
    for each in settings:
        lines += [f"# {each.reason}", f"--{each.flag}={each.value}"]
    return "\n".join(lines) + "\n"
