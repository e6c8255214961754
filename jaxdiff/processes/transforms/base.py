"""The interface of a transform g of x_t = α_t g_t(x_0) + σ_t n_t, and how to combine and randomize transforms.

g_0 is the identity. A transform is a frozen dataclass and a pytree, written for one sample. Static fields hold numbers
that decide what the code does; leaves are arrays that belong to one sample.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.typing import InputError, RandomKey, Sample, Shape, Time, pytree, static


@runtime_checkable
class Transform(Protocol):
    """g. Derive from it, or `RandomTransform`, and write `__call__`, and `inverse` if there is one."""

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        """Return g_t(x), of the shape of x; x itself at t = 0."""

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        """Return g_t⁻¹(y)."""
        raise InputError(f"{type(self).__name__} has no inverse; let the network predict x0, which needs none")

    @property
    def invertible(self) -> bool:
        """Whether, at every t, the inverse enlarges no error by more than 10³: a float32 round trip is right to 1e-4.

        The default is whether the class defines `inverse`.
        """
        return type(self).inverse is not Transform.inverse

    def sample_params(self, key: RandomKey, shape: Shape) -> "Transform":
        """Return the transform with the random parameters of one sample of this shape drawn; itself if it has none."""
        return self


class RandomTransform(Transform):
    """A transform with random parameters: only what `sample_params` returns can be called."""

    def __call__(self, x: Sample, t: Time, /) -> NoReturn:
        raise InputError(
            f"{type(self).__name__} has random parameters, one set for each sample; call sample_params(key, shape) "
            "and apply the transform that it returns"
        )


class TwoSided(Transform):
    """A transform whose `__call__` also takes negative times, where g_{−t} is the inverse of g_t."""

    def inverse(self, y: Sample, t: Time, /) -> Sample:
        return self(y, -t)


@pytree
class Identity(TwoSided):
    """g_t(x) = x, as in Gaussian diffusion."""

    def __call__(self, x: Sample, t: Time, /) -> Sample:
        return x


IDENTITY = Identity()


@pytree(kw_only=False)
class Compose(Transform):
    """Transforms applied in order."""

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
      make: makes the transform from a number (`Rotation`, `Scale`, `Shear`, `Warp`) or a vector (`Translation`). It is
        compiled in, so a new function compiles again: define it once.
      low: the lower end for a number, or one for each component of a vector; `high` likewise.

    Raises:
      InputError: unless low < high and `make` accepts both ends and traced values (`Blur` does not).
    """

    make: Callable[..., Transform] = static()
    low: float | Sequence[float] = static()
    high: float | Sequence[float] = static()

    def __post_init__(self) -> None:
        low, high = self.low, self.high
        if np.shape(low) != np.shape(high) or not np.all(np.less(low, high)):
            raise InputError(f"low = {low}, high = {high}; they must have one shape and satisfy low < high")
        for end in (low, high):
            try:
                self.make(end)
            except InputError as error:
                raise InputError(f"low = {low}, high = {high}: {error}") from None
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
