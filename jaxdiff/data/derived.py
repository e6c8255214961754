"""Conditions computed from the examples themselves, for super-resolution, colouring and the like.

A function maps examples, float32 (n, *shape) in [−1, 1], to a mapping of conditions as in `jaxdiff.data.Examples`. A
name is that of a function which takes the options and returns it; yours is `package.module:Name`, as here:

    def inked(threshold=0.0):
        return lambda x: {"vector": (x > threshold).mean((1, 2))}


    reduced     image: means over blocks of `factor` positions in every direction
    grey        image: the luminance 0.299 R + 0.587 G + 0.114 B of pictures with 3 channels
    moments     vector (1 + axes,): of the ink, (x + 1)/2, the mean, and the center of mass on every axis, from −1 at
                one end to 1 at the other; shifted and scaled to about unit variance for 8×8 digits
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from jaxdiff import registry
from jaxdiff.data.base import DataSpec, Examples, Source, as_condition, check_cond, normalize, shapes_of
from jaxdiff.typing import InputError, Width

Pictures = Float[np.ndarray, "n *sizes channels"]
Function = Callable[[Pictures], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduced:
    """The means over blocks, as an image condition; `factor` must divide every size."""

    factor: Width = 2

    def __post_init__(self) -> None:
        registry.check_types(self)
        registry.at_least(self, 2, "factor")

    def __call__(self, x: Pictures) -> dict[str, np.ndarray]:
        n, *sizes, channels = x.shape
        if not sizes or any(size % self.factor for size in sizes):
            raise InputError(
                f"derive = 'reduced:factor={self.factor}', but examples have shape {x.shape[1:]}; choose a factor that "
                "divides every size"
            )
        blocks = x.reshape(n, *(part for size in sizes for part in (size // self.factor, self.factor)), channels)
        return {"image": blocks.mean(axis=tuple(range(2, 2 * len(sizes) + 1, 2)))}


def grey(x: Pictures) -> dict[str, np.ndarray]:
    """Return the luminance of pictures of three channels, as an image condition of one channel."""
    if x.shape[-1] != 3 or x.ndim != 4:
        raise InputError(f"derive = 'grey', but examples have shape {x.shape[1:]}; it needs pictures of 3 channels")
    return {"image": x @ np.array([[0.299], [0.587], [0.114]], np.float32)}


def moments(x: Pictures) -> dict[str, np.ndarray]:
    """Return the mean and the center of mass of the ink, as a vector condition."""
    if x.ndim < 3:
        raise InputError(f"derive = 'moments', but examples have shape {x.shape[1:]}; it needs signals or pictures")
    ink = (x.mean(-1) + 1) / 2
    total = ink.reshape(len(x), -1).mean(1)
    found = [(total - 0.3) / 0.05]
    for axis in range(1, ink.ndim):
        place = np.linspace(-1, 1, ink.shape[axis])
        along = ink.mean(axis=tuple(i for i in range(1, ink.ndim) if i != axis))
        found.append(along @ place / np.maximum(along.sum(1), 1e-6) / 0.1)
    return {"vector": np.stack(found, 1)}


DERIVED: registry.Names = {"reduced": Reduced, "grey": lambda: grey, "moments": lambda: moments}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Derived:
    """A data set whose examples get further conditions from a function of them; `derive` makes it."""

    inner: Source
    function: Function
    spec: DataSpec

    @property
    def name(self) -> str:
        """The name of the data set in messages."""
        return self.inner.name

    @property
    def varies(self) -> bool:
        """Whether examples depend on the seed and the step."""
        return self.inner.varies

    def __len__(self) -> int:
        return len(self.inner)

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices, as step `step` of a run with this seed sees them."""
        found = self.inner.take(indices, seed=seed, step=step)
        return found._replace(cond={**(found.cond or {}), **_conditions(self.function, found.x, self.inner)})

    def fingerprint(self) -> str:
        """Return that of the data set."""
        return self.inner.fingerprint()


def derive(source: Source, function: Any) -> Derived:
    """Return a data set with the further conditions that a function or its name gives, as "reduced:factor=2".

    Raises:
      InputError: if the name is unknown, the function can't take the examples, or what it returns is no condition.
    """
    built = registry.make("derive", function, DERIVED)
    shapes = shapes_of(_conditions(built, source.take(np.arange(1)).x, source))
    spec = dataclasses.replace(source.spec, conditions={**source.spec.conditions, **shapes})
    return Derived(inner=source, function=built, spec=spec)


def _conditions(function: Function, x: Any, source: Source) -> dict[str, Float32[np.ndarray, "n ..."]]:
    found = function(np.asarray(normalize(x, source.spec.levels)))
    if not isinstance(found, Mapping):
        raise InputError(f"derive: the function returned a {type(found).__name__}; it must return a mapping of arrays")
    cond = {kind: as_condition(kind, part) for kind, part in found.items()}
    check_cond("derive: the function", cond, len(x))
    return cond
