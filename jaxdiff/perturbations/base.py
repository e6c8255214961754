"""What a perturbation is: a transform g_t of the signal, a law h_t of the noise. Everything is for one sample.

    x_t = α_t g_t(x_0) + σ_t n_t,    n_t = h_t(ε),  ε ~ N(0, I)

g_0 is the identity; n_t has mean 0 and variance 1 in every coordinate. Both are frozen dataclasses that JAX knows as
pytrees: a number that decides what the code does is static, an array that belongs to one sample is a leaf.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdiff.typing import Time

# The inverse is called usable while it makes no error larger by more: in float32 a round trip is then right to 1e-4.
LARGEST_GAIN = 1e3
_TIMES = np.linspace(0, 1, 10_001)  # at which the gain is looked at
REACH = 8.0  # standard deviations of ε, beyond which no noise is tabulated, or carried from one law to another


@runtime_checkable
class Transform(Protocol):
    """g. Derive from it and write `__call__`; with `inverse`, write `gain` as well unless it is small at every t.

    A transform with random parameters has a `draw` that gives the transform of one sample, its parameters in it.
    """

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """g_t(x), of the shape of x; x itself at t = 0."""

    def inverse(self, y: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """g_t⁻¹(y), for t before `singular_from`."""
        raise ValueError(f"{type(self).__name__} has no inverse; let the network predict x0, which needs none")

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        """The most that g_t⁻¹ enlarges an error by, inf where there is none; of parameters that are known."""
        return np.where((t > 0) & (type(self).inverse is Transform.inverse), math.inf, 1.0)

    @property
    def singular_from(self) -> float:
        """The t from which on g_t has no inverse of a gain below 10³: 0 for none at any t > 0, inf for one at every t.

        To 1e-4, downwards.
        """
        bad = np.flatnonzero(~(self.gain(_TIMES) <= LARGEST_GAIN))
        return float(_TIMES[max(bad[0] - 1, 0)]) if len(bad) else math.inf

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Transform":
        """The transform of one sample of this shape; itself where nothing is random."""
        return self


@runtime_checkable
class Law(Protocol):
    """h, and the noise that it makes. Derive from it and write `from_normal`; with an inverse, `to_normal`."""

    varies: ClassVar[bool] = False
    """Whether the law depends on t. One that does is carried from t to s by its inverse."""
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
        return self.from_normal(jnp.clip(self.to_normal(noise, t), -REACH, REACH), s)


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

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        return functools.reduce(np.multiply, [part.gain(t) for part in self.parts])

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Composed":
        keys = jax.random.split(key, len(self.parts))
        return Composed(tuple(part.draw(k, shape) for part, k in zip(self.parts, keys, strict=True)))


def composed(*parts: Transform) -> Transform:
    """Transforms one after the other, the first one first; identities are left out."""
    parts = tuple(part for part in parts if not isinstance(part, Identity))
    return Composed(parts) if len(parts) > 1 else parts[0] if parts else IDENTITY


class Drawn(Transform):
    """A transform with random parameters: `draw` makes that of one sample, and only that can be called."""

    def __call__(self, x: Float[Array, "*shape"], t: Time, /) -> NoReturn:
        raise ValueError(
            f"{type(self).__name__} has parameters that are drawn for each sample: call draw(key, shape), and what "
            "that returns"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Varied(Drawn):
    """A transform with random numbers in it. Make one with `varied`."""

    make: Callable[..., Transform] = dataclasses.field(metadata={"static": True})
    low: float | tuple[float, ...] = dataclasses.field(metadata={"static": True})
    high: float | tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def gain(self, t: Float[np.ndarray, " times"], /) -> Float[np.ndarray, " times"]:
        return np.maximum(self.make(self.low).gain(t), self.make(self.high).gain(t))

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Transform:
        low, high = jnp.asarray(self.low, float), jnp.asarray(self.high, float)
        return self.make(jax.random.uniform(key, low.shape, minval=low, maxval=high))


def varied(make: Callable[..., Transform], low: float | Sequence[float], high: float | Sequence[float]) -> Varied:
    """A transform whose numbers are drawn for each sample, uniformly in [low, high].

    Args:
      make: the transform of a number, such as `rotation`, `scale`, `shear` and `warp`, or of some, such as
        `translation`; a function that is defined once, for it is compiled in.
      low, high: the range of the number, or of each.

    Raises:
      ValueError: where low is not below high, for ends that `make` refuses, and for a `make` that can't take numbers
        that are not known yet, such as `blur`.
    """
    ends = tuple(tuple(map(float, end)) if isinstance(end, Sequence) else float(end) for end in (low, high))
    if not (np.shape(ends[0]) == np.shape(ends[1]) and np.all(np.less(ends[0], ends[1]))):
        raise ValueError(f"low = {low}, high = {high}; the rule is low < high, both a number or as many")
    for end in ends:
        make(end)
    try:
        jax.eval_shape(lambda numbers: (make(numbers), 0)[1], jax.ShapeDtypeStruct(np.shape(ends[0]), np.float32))
    except (jax.errors.ConcretizationTypeError, TypeError) as error:
        name = getattr(make, "__name__", repr(make))
        raise ValueError(f"make = {name} needs its number before samples are drawn; it can't be varied") from error
    return Varied(make=make, low=ends[0], high=ends[1])
