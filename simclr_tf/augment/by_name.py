"""A chain of operators by their names, as for an ablation of the augmentations."""

from __future__ import annotations

import difflib

from simclr_tf.augment import transforms
from simclr_tf.augment.random_view import default_strength
from simclr_tf.errors import ArgumentError, check_number

# Arguments that neither depend on the size nor come from the caller are the defaults of the class.
_OPERATORS = {
    "crop": transforms.RandomCropResize,
    "flip": transforms.RandomFlip,
    "color_jitter": transforms.ColorJitter,
    "color_drop": transforms.ColorDrop,
    "blur": transforms.RandomBlur,
    "cutout": transforms.Cutout,
    "gaussian_noise": transforms.GaussianNoise,
    "rotate90": transforms.RandomRotation90,
    "sobel": transforms.Sobel,
    "solarize": transforms.Solarize,
}
_ALWAYS = ("crop", "rotate90")


def by_name(names, size, strength=None, **crop):
    """Builds a chain of operators from their names (the ablations of SimCLR, section 3.1).

    The operators are applied in the order of the names, each with the paper's default arguments for
    views of that size. "crop,flip,color_jitter,color_drop,blur" is the paper's family; `RandomView`
    computes that family faster.

    Args:
      names: a comma-separated list of "crop", "flip", "color_jitter", "color_drop", "blur",
        "cutout", "gaussian_noise", "rotate90", "sobel" and "solarize". "sobel:0.5" is applied to an
        image with a probability of 0.5; "crop" and "rotate90" have none.
      size: side of the views in pixels. Only "crop" resizes: without it, images keep their size.
      strength: of the colour jitter, 0 or more; None is 0.5 up to 64 pixels and 1.0 above.
      **crop: further arguments of `RandomCropResize`: `area`, `aspect` and `method`.

    Returns:
      A `Compose`.

    Raises:
      ArgumentError: an unknown name, a size below 1, a probability that is not in [0, 1] or of an
        operator without one, or arguments of a crop without "crop".

    Example:

    >>> augment = simclr_tf.augment.by_name("crop,color_jitter,blur", 24)
    >>> augment(images, seed=0).shape
    TensorShape([8, 24, 24, 3])
    """
    check_number("size", size, at_least=1, whole=True)
    pairs = [_name_and_probability(each.strip()) for each in names.split(",")]
    listed = [name for name, _ in pairs]
    if crop and "crop" not in listed:
        raise ArgumentError(
            f'arguments of the crop ({", ".join(crop)}) need the name "crop"; got {names!r}. '
            'Add "crop" to the names.'
        )
    strength = default_strength(size) if strength is None else strength
    check_number("strength", strength, at_least=0)
    arguments = {"crop": {"size": size, **crop}, "color_jitter": {"strength": strength}}
    return transforms.Compose(
        [_OPERATORS[name](**arguments.get(name, {}), **given) for name, given in pairs]
    )


def name_of(operator):
    """The name of an operator, as `by_name` takes it; that of its class where it has none.

    Example:

    >>> simclr_tf.augment.name_of(simclr_tf.augment.RandomFlip())
    'flip'
    """
    names = {each: name for name, each in _OPERATORS.items()}
    return names.get(type(operator), type(operator).__name__)


def _name_and_probability(text):
    """The parts of "sobel:0.5": the name, and {"probability": 0.5} or {}."""
    name, colon, number = text.partition(":")
    if name not in _OPERATORS:
        raise ArgumentError(_unknown(name))
    if not colon:
        return name, {}
    if name in _ALWAYS:
        raise ArgumentError(
            f"{' and '.join(_ALWAYS)} are applied to every image; got {text!r}. Write {name}."
        )
    try:
        number = float(number)
    except ValueError:
        pass  # refused below
    hint = f"Write {name}:0.5, or {name} alone."
    check_number(f"the probability of {name}", number, at_least=0, at_most=1, hint=hint)
    return name, {"probability": number}


def _unknown(name):
    near = difflib.get_close_matches(name, _OPERATORS, n=3, cutoff=0.5)
    hint = f" Close matches: {', '.join(near)}." if near else ""
    return f"an augmentation must be one of {', '.join(_OPERATORS)}; got {name!r}.{hint}"
