"""The interface of a transform g of x_t = α_t g_t(x_0) + σ_t n_t, and how to combine and randomize transforms.

g_0 is the identity. A transform is a frozen dataclass and a pytree, written for one sample: a number that decides what
the code does is a static field, an array that belongs to one sample is a leaf.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.typing import InputError, RandomKey, Sample, Shape, Time, pytree, static


@runtime_checkable
class Transform(Protocol):
    """g. Derive from it and write `__call__`, and `inverse` if there is one.

    A transform with random parameters derives from `RandomTransform`.
    """

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        """Return g_t(x), of the shape of x; x itself at t = 0."""

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        """Return g_t⁻¹(y)."""
        raise InputError(f"{type(self).__name__} has no inverse; let the network predict x0, which needs none")

    @property
    def invertible(self) -> bool:
        """Whether g_t has a usable inverse at every t, one that enlarges no error by more than 10³.

        In float32 a round trip is then right to 1e-4. The default is whether the class defines `inverse`.
        """
        return type(self).inverse is not Transform.inverse

    def sample_params(self, key: RandomKey, shape: Shape) -> "Transform":
        """Return the transform of one sample of this shape with its random parameters drawn; itself if it has none."""
        return self


class RandomTransform(Transform):
    """A transform with random parameters: `sample_params` returns the transform of one sample, which can be called."""

    def __call__(self, x: Sample, t: Time, /) -> NoReturn:
        raise InputError(
            f"{type(self).__name__} has random parameters, one set for each sample; call sample_params(key, shape) "
            "and apply the transform that it returns"
        )


@pytree
class Identity(Transform):
    """g_t(x) = x, as in Gaussian diffusion."""

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return x

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return y


IDENTITY = Identity()


@pytree(kw_only=False)
class Compose(Transform):
    """Transforms applied in order, the first one first."""

    parts: Sequence[Transform]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        for part in self.parts:
            x = part(x, t)
        return x

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        for part in reversed(self.parts):
            y = part.inverse(y, t)
        return y

    @property
    def invertible(self) -> bool:
        return all(part.invertible for part in self.parts)

    def sample_params(self, key: RandomKey, shape: Shape) -> "Compose":
        keys = jax.random.split(key, len(self.parts))
        drawn = [part.sample_params(k, shape) for part, k in zip(self.parts, keys, strict=True)]
        return self if all(a is b for a, b in zip(drawn, self.parts, strict=True)) else Compose(drawn)


@pytree(kw_only=False)
class Randomized(RandomTransform):
    """A transform whose parameters are drawn for each sample, uniformly in [low, high].

    Args:
      make: makes the transform from a number, as `Rotation`, `Scale`, `Shear` and `Warp` do, or from a vector, as
        `Translation` does. It is compiled in: define the function once.
      low: the lower end of the number's range, or one for each number.
      high: the upper end, likewise.

    Raises:
      InputError: unless low < high; if `make` rejects an end, or traced values, as `Blur` does.
    """

    make: Callable[..., Transform] = static()
    low: float | Sequence[float] = static()
    high: float | Sequence[float] = static()

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = getattr(self, name)
            object.__setattr__(self, name, float(end) if np.ndim(end) == 0 else tuple(map(float, end)))
        low, high = self.low, self.high
        if np.shape(low) != np.shape(high) or not np.all(np.less(low, high)):
            raise InputError(f"low = {low}, high = {high}; the rule is low < high, two numbers or as many in each")
        for end in (low, high):
            self.make(end)
        try:
            jax.eval_shape(lambda params: (self.make(params), 0)[1], jax.ShapeDtypeStruct(np.shape(low), np.float32))
        except (jax.errors.ConcretizationTypeError, TypeError) as error:
            name = getattr(self.make, "__name__", repr(self.make))
            raise InputError(f"make = {name} needs its number at compile time, so that it can't be random") from error

    @property
    def invertible(self) -> bool:
        return self.make(self.low).invertible and self.make(self.high).invertible

    def sample_params(self, key: RandomKey, shape: Shape) -> Transform:
        low, high = jnp.asarray(self.low, float), jnp.asarray(self.high, float)
        return self.make(jax.random.uniform(key, low.shape, minval=low, maxval=high))
