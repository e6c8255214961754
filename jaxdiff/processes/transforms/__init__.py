"""Transforms g of x_t = α_t g_t(x_0) + σ_t n_t, by name in `TRANSFORMS`.

docs/perturbations.md has a table of them and shows how to write your own.
"""

from collections.abc import Callable
from functools import partial

from jaxdiff.processes.transforms.base import IDENTITY, Compose, Identity, Randomized, RandomTransform, Transform
from jaxdiff.processes.transforms.images import (
    Blur,
    ColorMatrix,
    Mask,
    Overlap,
    Pixelate,
    RandomMask,
    RandomOverlap,
    Warp,
)
from jaxdiff.processes.transforms.pixels import Flip, QuarterTurns, Shift
from jaxdiff.processes.transforms.points import Rotation, Scale, Shear, Translation

__all__ = ["IDENTITY", "TRANSFORMS", "Compose", "Identity", "RandomTransform", "Randomized", "Transform"]
__all__ += ["Blur", "ColorMatrix", "Mask", "Overlap", "Pixelate", "RandomMask", "RandomOverlap", "Warp"]
__all__ += ["Flip", "QuarterTurns", "Rotation", "Scale", "Shear", "Shift", "Translation"]

TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "identity": Identity,
    "shift": Shift,
    "flip": Flip,
    "quarter_turns": QuarterTurns,
    "rotation": Rotation,
    "random_rotation": partial(Randomized, Rotation),
    "scale": Scale,
    "shear": Shear,
    "translation": Translation,
    "warp": Warp,
    "random_warp": partial(Randomized, Warp),
    "colors": ColorMatrix,
    "blur": Blur,
    "mask": RandomMask,
    "pixelate": Pixelate,
    "overlap": RandomOverlap,  # needs examples of the data
}
