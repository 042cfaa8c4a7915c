"""Numbers that are no numbers: every float argument of the public library refuses nan and inf."""

import inspect
import math
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import simclr_tf
from simclr_tf import Classifier, errors, optimizers, training
from test_docstrings import public_things

H = np.random.default_rng(0).normal(size=[8, 4])
LABELS = np.arange(8) % 2
TARGETS = np.eye(2, dtype=int)[LABELS]
# What a call needs besides the argument that is tested.
REQUIRED = {
    "simclr_tf.LARS": {"learning_rate": 0.1},
    "simclr_tf.LooC": {"encoder": keras.Sequential()},
    "simclr_tf.MoCo": {"encoder": keras.Sequential()},
    "simclr_tf.RandomView": {"size": 8, "jit_compile": False},
    "simclr_tf.ResNet": {"depth": 50},
    "simclr_tf.SimCLR": {"encoder": keras.Sequential()},
    "simclr_tf.WarmupCosine": {"learning_rate": 0.1, "total_steps": 9},
    "simclr_tf.augment.RandomCropResize": {"size": 8},
    "simclr_tf.augment.by_name": {"names": "flip", "size": 8},
    "simclr_tf.augment.center_crop": {"images": np.zeros([1, 8, 8, 3])},
    "simclr_tf.augment.cutout": {"images": tf.zeros([1, 8, 8, 3]), "boxes": np.zeros([1, 4])},
    "simclr_tf.data.Source": {"examples": [0], "name": "none", "split": "train"},
    "simclr_tf.data.load": {"name": "shapes", "split": "test[:9]"},
    "simclr_tf.encoders.by_name": {"name": "resnet50"},
    "simclr_tf.encoders.zca": {"mean": np.zeros(1), "covariance": np.eye(1)},
    "simclr_tf.evaluate.fit_whitening": {"encoder": None, "dataset": []},
    "simclr_tf.evaluate.confidence_interval": {"values": [0.1, 0.2]},
    "simclr_tf.evaluate.finetune": {
        "encoder": keras.Sequential(), "train": tf.data.Dataset.range(1), "test": []
    },
    "simclr_tf.Classifier": {"encoder": keras.Sequential(), "num_classes": 2},
    "simclr_tf.losses.distillation_loss": {"student_logits": H, "teacher_logits": H},
    "simclr_tf.models.Distillation": {
        "student": Classifier(keras.Sequential(), 2), "teacher": np.mean
    },
    "simclr_tf.evaluate.linear_classifier": {"encoder": None, "train": [], "test": []},
    "simclr_tf.evaluate.multi_label_knn": {
        "train_h": H, "train_targets": TARGETS, "test_h": H, "k": 1
    },
    "simclr_tf.evaluate.multi_label_probe": {
        "train_h": H, "train_targets": TARGETS, "test_h": H, "test_targets": TARGETS
    },
    "simclr_tf.evaluate.whiten": {"train_h": H, "test_h": H},
    "simclr_tf.evaluate.knn_accuracy": {
        "train_h": H, "train_labels": LABELS, "test_h": H, "test_labels": LABELS, "k": 1
    },
    "simclr_tf.evaluate.knn_predict": {"train_h": H, "train_labels": LABELS, "test_h": H, "k": 1},
    "simclr_tf.evaluate.linear_probe": {
        "train_h": H, "train_labels": LABELS, "test_h": H, "test_labels": LABELS
    },
    "simclr_tf.heads.SpaceHeads": {"spaces": 2},
    "simclr_tf.report.RunPage": {"name": "a", "rows": [], "flags": {}, "flagfile": "flags.cfg"},
    "simclr_tf.images.range_assertion": {"images": tf.zeros([1, 8, 8, 3])},
    "simclr_tf.losses.by_name": {"name": "decoupled"},
    "simclr_tf.losses.info_nce": {"queries": H, "keys": H, "queue": H},
    "simclr_tf.losses.looc_loss": {"z": np.zeros([2, 3, 4, 2], np.float32)},
    "simclr_tf.losses.looc_loss_with_top1": {"z": np.zeros([2, 3, 4, 2], np.float32)},
    "simclr_tf.metrics.lidar": {"z": np.stack([H, H + 1])},
    "simclr_tf.training.LinearProbe": {"train": [], "test": []},
    "simclr_tf.losses.nt_xent_with_top1": {"z_a": H, "z_b": H},
    "simclr_tf.losses.supervised_nt_xent": {"z": np.stack([H, H]), "labels": LABELS},
    "simclr_tf.nt_xent": {"z_a": H, "z_b": H},
    "simclr_tf.optimizers.by_name": {"name": "adamw", "learning_rate": 0.1},
    "simclr_tf.optimizers.lars_update": {
        "weight": tf.ones([2]), "gradient": tf.ones([2]), "momentum_buffer": tf.zeros([2]),
        "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0, "trust_coefficient": None,
        "exclude": False,
    },
    "simclr_tf.optimizers.scale_learning_rate": {
        "learning_rate": 0.1, "batch_size": 8, "scaling": "linear"
    },
}  # fmt: skip
# Floats that neither a default nor the first word of the docstring shows.
OTHERS = {
    ("simclr_tf.ResNet", "width"),
    ("simclr_tf.encoders.Airbench", "width"),
    ("simclr_tf.encoders.by_name", "width"),
    ("simclr_tf.augment.by_name", "strength"),
    ("simclr_tf.training.Alarms", "chance_loss"),
    ("simclr_tf.training.Progress", "chance_loss"),
}
RESULTS = {  # what a function returns, no arguments
    f"simclr_tf.evaluate.{name}"
    for name in ("FineTuned", "LinearClassifier", "LinearProbe", "MultiLabelProbe")
}


def float_parameters():
    """(dotted name, function or class, parameter, whether it is a pair of floats)."""
    things = public_things()
    things |= {f"simclr_tf.training.{name}": getattr(training, name) for name in training.__all__}
    for name, thing in things.items():
        if name in RESULTS or (inspect.isclass(thing) and issubclass(thing, Exception)):
            continue
        for parameter in inspect.signature(thing).parameters.values():
            kinds = {type(v) for v in np.ravel(parameter.default).tolist()}
            documented = (
                rf"^ +([\w, ]+, )?{parameter.name}(, [\w, ]+)?: (float(?! \[| tensor)|scalar)\b"
            )
            if (
                kinds == {float}
                or "float" in str(parameter.annotation)
                or re.search(documented, inspect.getdoc(thing) or "", re.MULTILINE)
                or (name, parameter.name) in OTHERS
            ):
                yield name, thing, parameter.name, isinstance(parameter.default, tuple)


FLOATS = list(float_parameters())


def test_every_float_is_found():
    """The ones that are hardest to see, and as many as there are at least."""
    found = {(name, parameter) for name, _, parameter, _ in FLOATS}
    assert found > OTHERS | {
        ("simclr_tf.LARS", "learning_rate"),
        ("simclr_tf.optimizers.AdamW", "beta_2"),
        ("simclr_tf.optimizers.lars_update", "momentum"),
        ("simclr_tf.evaluate.linear_probe", "C"),
        ("simclr_tf.data.load", "label_fraction"),
        ("simclr_tf.RandomView", "aspect"),
    }
    assert len(found) > 60 and set(REQUIRED) <= {name for name, _ in found}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "thing", "parameter", "is_pair"), FLOATS, ids=[f"{n}-{p}" for n, _, p, _ in FLOATS]
)
def test_a_float_is_finite(name, thing, parameter, is_pair, value):
    """The error names the argument, the value and the range; in pairs, both are checked."""
    for wrong in [(value, 1.0), (0.5, value)] if is_pair else [value]:
        with pytest.raises(errors.ArgumentError) as caught:
            thing(**{**REQUIRED.get(name, {}), parameter: wrong})
        message = str(caught.value)
        assert message.startswith(f"{parameter} must be "), message
        assert f"got {wrong}" in message
        assert re.search(r" in [\[(]| above \d| of at least \d| <= a <= b", message), message


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_further_arguments_of_optimizers_are_finite(name, value):
    """Those of Keras and of TensorFlow Addons, which check nothing."""
    for argument in ("clipnorm", "global_clipnorm", "epsilon"):
        with pytest.raises(errors.ArgumentError, match=f"{argument} must be a finite number"):
            optimizers.by_name(name, 0.1, **{argument: value})


@pytest.mark.parametrize("sizes", [[(8, math.nan), (16, 1.0)], [(math.inf, 0.5), (16, 1.0)], []])
def test_view_sizes_are_finite(sizes):
    """Sides and fractions."""
    with pytest.raises(errors.ArgumentError, match="view_sizes must be side:end pairs"):
        training.ViewSizes(sizes, simclr_tf.RandomView(16, jit_compile=False))


BOUNDS = [
    ({}, "", [-1e9, 0, 1e9], []),
    ({"above": 0}, " above 0", [1e-9, 1], [0, -1]),
    ({"at_least": 0}, " of at least 0", [0, 1], [-1e-9]),
    ({"below": 1}, " below 1", [-5, 0.99], [1, 2]),
    ({"at_most": 1}, " of at most 1", [1, -5], [1.01]),
    ({"at_least": 0, "below": 1}, r" in \[0, 1\)", [0, 0.99], [1, -0.01]),
    ({"above": 0, "at_most": 1}, r" in \(0, 1\]", [1e-9, 1], [0, 1.01]),
]


@pytest.mark.parametrize(("bounds", "words", "good", "bad"), BOUNDS, ids=[b[1] for b in BOUNDS])
def test_bounds(bounds, words, good, bad):
    """What lies within passes; the message has the bounds, the value and the hint."""
    for value in good:
        errors.check_number("x", value, **bounds)
    for value in bad:
        expected = rf"^x must be a finite number{words}; got {re.escape(repr(value))}\. Try 0\.5\.$"
        with pytest.raises(errors.ArgumentError, match=expected):
            errors.check_number("x", value, hint="Try 0.5.", **bounds)


def test_what_a_number_is():
    """NumPy's and TensorFlow's scalars; no text, no None, nothing that overflows."""
    for value in (1, True, np.float32(1), np.int64(1), np.ones([]), tf.ones([]), tf.Variable(1.0)):
        errors.check_number("x", value, above=0)
    for value in ("1", b"1", None, [1.0], 1j, 10**400, np.ones(2), {}):
        with pytest.raises(errors.ArgumentError, match="x must be a finite number"):
            errors.check_number("x", value)
    for value in (1, np.int64(1), tf.constant(1)):
        errors.check_number("x", value, at_least=1, whole=True)
    for value in (1.0, "1", math.nan, None):
        with pytest.raises(errors.ArgumentError, match="x must be a whole number of at least 1"):
            errors.check_number("x", value, at_least=1, whole=True)


@pytest.mark.parametrize(
    "pair", [(0.1, 0.2, 0.3), 0.5, None, "ab", (0.9, 0.1), (0.5, 1.5), (-1, 0)]
)
def test_what_a_pair_is(pair):
    """Two numbers, the first not above the second."""
    with pytest.raises(errors.ArgumentError, match=r"x must be two .* with 0 <= a <= b <= 1; got "):
        errors.check_pair("x", pair, 0, 1)
