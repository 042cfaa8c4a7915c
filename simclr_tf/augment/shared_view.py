"""Views that share the parameters of one augmentation with another view, the query (LooC).

A view of a query and a key are both crops, flips and so on of an image, each with its own random
parameters. `SharedView` draws a key with some of the query's; `leave_one_out` returns the families
of a step of LooC (Xiao et al., arXiv:2008.05659, section 3).
"""

from __future__ import annotations

from simclr_tf import _keras
from simclr_tf.augment import transforms
from simclr_tf.augment.base import Operator, call_view, is_repeatable, register
from simclr_tf.augment.random import as_seed, fold_in
from simclr_tf.augment.random_view import RandomView
from simclr_tf.errors import ArgumentError

# The operators of an augmentation by its name, and its parameters in a `RandomView`.
_OPERATORS = {
    "crop": (transforms.RandomCropResize,),
    "flip": (transforms.RandomFlip,),
    "color": (transforms.ColorJitter, transforms.ColorDrop),
    "blur": (transforms.RandomBlur,),
    "rotate90": (transforms.RandomRotation90,),
    "cutout": (transforms.Cutout,),
    "gaussian_noise": (transforms.GaussianNoise,),
    "sobel": (transforms.Sobel,),
    "solarize": (transforms.Solarize,),
}
_OF_RANDOM_VIEW = {
    "crop": ("boxes",),
    "flip": ("flipped",),
    "color": ("factors", "order", "dropped"),
    "blur": ("sigma",),
}


@register
class SharedView(Operator):
    """Draws views of a family with some parameters of another view of it, the query.

    Args:
      family: a `RandomView`, an operator, or a `Compose` of them.
      shared: names of augmentations, a list: "crop", "flip", "color" (jitter and drop), "blur",
        "rotate90", "cutout", "gaussian_noise", "sobel" or "solarize". Their parameters are exactly
        those that `family(images, seed=query_seed)` has; all others are drawn from `seed`.

    Raises:
      ArgumentError: a name that is not an augmentation of the family.

    Example:

    >>> family = simclr_tf.augment.by_name("flip,color_jitter", 32)
    >>> key = simclr_tf.augment.SharedView(family, ["flip", "color"])
    >>> query = family(images, seed=7)
    >>> bool(tf.reduce_all(key(images, seed=8, query_seed=7) == query))
    True
    """

    def __init__(self, family, shared):
        check_shared(shared, family)
        self.family = family
        self.shared = list(shared)

    @property
    def crops(self):
        """Whether the family begins with a crop."""
        return getattr(self.family, "crops", False)

    @property
    def repeatable(self):
        """Whether the family is repeatable."""
        return is_repeatable(self.family)

    def __call__(self, images, seed=None, first_row=0, extent=None, query_seed=None):
        """Returns one view of every image.

        Args:
          images, seed, first_row, extent: as for `Operator`.
          query_seed: the seed of the query, as for `seed`; None where there is no query: then all
            parameters are drawn from `seed`.
        """
        seed = as_seed(seed)
        query_seed = seed if query_seed is None else as_seed(query_seed)
        return self._view(self.family, images, seed, query_seed, first_row, extent)

    def _view(self, operator, images, seed, query_seed, first_row, extent):
        """The view by an operator of the family: see `Compose` for the seeds of its operators."""
        if isinstance(operator, transforms.Compose):
            for index, inner in enumerate(operator.operators):
                seeds = fold_in(seed, index), fold_in(query_seed, index)
                images = self._view(inner, images, *seeds, first_row, extent)
                extent = None  # after the crop all images have the same size
            return images
        if isinstance(operator, RandomView):
            own = operator.parameters(images, seed, first_row, extent)
            query = operator.parameters(images, query_seed, first_row, extent)
            names = [name for a in self.shared for name in _OF_RANDOM_VIEW.get(a, ())]
            return operator.apply(images, {**own, **{n: query[n] for n in names if n in query}})
        is_shared = any(isinstance(operator, _OPERATORS[name]) for name in self.shared)
        return call_view(operator, images, query_seed if is_shared else seed, first_row, extent)

    def output_size(self, size):
        """Returns that of the family."""
        return self.family.output_size(size)

    def get_config(self):
        """Returns the constructor's arguments, the family serialised."""
        family = _keras.saving.serialize_keras_object(self.family)
        return {"family": family, "shared": self.shared}

    @classmethod
    def from_config(cls, config):
        """Creates the operator from the result of `get_config`."""
        family = _keras.saving.deserialize_keras_object(config["family"])
        return cls(family, config["shared"])


def augmentations_of(family):
    """Returns the names of the augmentations of a family that `SharedView` can share, a list.

    Args:
      family: as of `SharedView`.

    Example:

    >>> simclr_tf.augment.augmentations_of(simclr_tf.RandomView(32))
    ['crop', 'flip', 'color']
    """
    if isinstance(family, transforms.Compose):
        found = [name for inner in family.operators for name in augmentations_of(inner)]
    elif isinstance(family, RandomView):
        found = [name for inner in family.chain() for name in augmentations_of(inner)]
    else:
        found = [name for name, kinds in _OPERATORS.items() if isinstance(family, kinds)]
    return list(dict.fromkeys(found))


def family_with(names, size, **arguments):
    """Returns the paper's family of views, with augmentations that it lacks where they are named.

    These are rotations by quarter turns, and blur of views of up to 64 pixels.

    Args:
      names: names of augmentations, as of `SharedView`.
      size: side of the views in pixels, at least 1.
      **arguments: further arguments of `RandomView.for_size`, such as `strength`.

    Returns:
      A `RandomView`, or a `Compose` of one and a `RandomRotation90`.

    Example:

    >>> family = simclr_tf.augment.family_with(["rotate90"], 32)
    >>> simclr_tf.augment.augmentations_of(family)
    ['crop', 'flip', 'color', 'rotate90']
    """
    if "blur" in names:
        arguments = {"blur": True, **arguments}
    view = RandomView.for_size(size, **arguments)
    if "rotate90" not in names:
        return view
    return transforms.Compose([view, transforms.RandomRotation90()])


def leave_one_out(kept, family):
    """Returns the families of the views of LooC (arXiv:2008.05659, section 3).

    With n kept augmentations they are n + 2: the query, a key with other parameters of every
    augmentation, and for each kept augmentation a key that has the query's parameters of that one.

    Args:
      kept: names of augmentations, as of `SharedView`; each once.
      family: of the query: a `RandomView` or a `Compose`.

    Returns:
      A list of n + 2 operators, as `augment` of a model; `models.views.draw` hands the seed of the
      first to the others.

    Raises:
      ArgumentError: no name, a name that is not an augmentation of the family, or one twice.

    Example:

    >>> families = simclr_tf.augment.leave_one_out(["color"], simclr_tf.RandomView(32))
    >>> [type(family).__name__ for family in families]
    ['RandomView', 'RandomView', 'SharedView']
    """
    check_kept(kept)
    check_shared(kept, family, "kept")
    return [family, family, *(SharedView(family, [name]) for name in kept)]


def check_kept(kept):
    """Raises `ArgumentError` unless `kept` is a list of names, one or more, each once."""
    if isinstance(kept, str) or not kept or len(set(kept)) < len(kept):
        raise ArgumentError(
            f"kept must be a list of augmentations, each once, one at least; got {kept!r}."
        )


def check_shared(names, family, argument="shared"):
    """Raises `ArgumentError` unless all augmentations in an argument are in the family."""
    known = augmentations_of(family)
    for name in names:
        if name not in known:
            raise ArgumentError(
                f"{argument} must name augmentations of the family of views, {', '.join(known)}; "
                f"got {name!r}. Add its operator to the family."
            )
