"""What a perturbation is: a transform g_t of the signal, a law h_t of the noise. Everything is for one sample.

    x_t = α_t g_t(x_0) + σ_t n_t,    n_t = h_t(ε),  ε ~ N(0, I)

g_0 is the identity; n_t has mean 0 and variance 1 in every coordinate. Both are frozen dataclasses that JAX knows as
pytrees: a number that decides what the code does is static, an array that belongs to one sample is a leaf.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.typing import Time

# The inverse is called usable while it makes no error larger by more: in float32 a round trip is then right to 1e-4.
LARGEST_GAIN = 1e3
_FARTHEST = 8.0  # standard deviations of ε, beyond which no noise is carried from one law to another


@runtime_checkable
class Transform(Protocol):
    """g. Derive from it and write `__call__`; with `inverse`, write `singular_from` as well unless there is always one.

    A transform with random parameters has a `draw` that gives the transform of one sample, its parameters in it.
    """

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """g_t(x), of the shape of x; x itself at t = 0."""

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """g_t⁻¹(y), for t before `singular_from`."""
        raise ValueError(f"{type(self).__name__} has no inverse; let the network predict x0, which needs none")

    @property
    def singular_from(self) -> float:
        """The t from which on g_t has no usable inverse: 0 for none at any t > 0, inf for one at every t."""
        return math.inf if type(self).inverse is not Transform.inverse else 0.0

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Transform":
        """The transform of one sample of this shape; itself where nothing is random."""
        return self


@runtime_checkable
class Law(Protocol):
    """h, and the noise that it makes. Derive from it and write `from_normal`; with an inverse, `to_normal`."""

    varies: ClassVar[bool] = False
    """Whether the law depends on t."""
    elementwise: ClassVar[bool] = True
    """Whether coordinates are independent, each the transform of its own ε."""

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """h_t(ε): standardised noise from N(0, I)."""

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """h_t⁻¹, ±inf outside the law's support."""
        raise ValueError(f"{type(self).__name__} has no inverse: different normal numbers make the same noise")

    def log_density(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """Of each coordinate's law, up to a constant; −inf outside the support. For exact denoisers."""
        raise ValueError(f"{type(self).__name__} has no density that is known here; write its log_density")

    def __call__(self, key: Key[Array, ""], shape: tuple[int, ...], t: Time = 1.0) -> Float[Array, "*shape"]:
        """Noise of time t, in the default float dtype."""
        return self.from_normal(jax.random.normal(key, shape), t)

    def transport(self, noise: Float[Array, "*shape"], t: Time, s: Time) -> Float[Array, "*shape"]:
        """h_s(h_t⁻¹(n)): the noise of time s that stands where n stands at time t."""
        if not self.varies:
            return noise
        return self.from_normal(jnp.clip(self.to_normal(noise, t), -_FARTHEST, _FARTHEST), s)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """g does nothing: the signal of Gaussian diffusion."""

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return x

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return y


IDENTITY = Identity()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Composed(Transform):
    """Make one with `composed`."""

    parts: tuple[Transform, ...]

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        for part in self.parts:
            x = part(x, t)
        return x

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        for part in reversed(self.parts):
            y = part.inverse(y, t)
        return y

    @property
    def singular_from(self) -> float:
        return min((part.singular_from for part in self.parts), default=math.inf)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Composed":
        keys = jax.random.split(key, max(len(self.parts), 1))
        return Composed(tuple(part.draw(k, shape) for part, k in zip(self.parts, keys, strict=False)))


def composed(*parts: Transform) -> Composed:
    """Transforms one after the other, the first one first."""
    return Composed(parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Varied(Transform):
    """A transform with a random number in it. Make one with `varied`."""

    make: Callable[..., Transform] = dataclasses.field(metadata={"static": True})
    low: float = dataclasses.field(metadata={"static": True})
    high: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        raise ValueError("this transform is drawn for each sample: call draw(key, shape), and what that returns")

    @property
    def singular_from(self) -> float:
        return min(self.make(self.low).singular_from, self.make(self.high).singular_from)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Transform:
        return self.make(jax.random.uniform(key, (), minval=self.low, maxval=self.high))


def varied(make: Callable[..., Transform], low: float, high: float) -> Varied:
    """A transform whose number is drawn for each sample, uniformly in [low, high].

    Args:
      make: the transform of a number, such as `rotation`; a function that is defined once, for it is compiled in.
      low, high: the range of the number.

    Raises:
      ValueError: where low is not below high.
    """
    if not low < high:
        raise ValueError(f"low = {low}, high = {high}; the rule is low < high")
    return Varied(make=make, low=float(low), high=float(high))
