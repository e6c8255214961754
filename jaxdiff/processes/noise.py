"""Noise distributions, each standardized to mean 0 and variance 1, as functions h_t of ε ~ N(0, I).

    Normal              n = ε
    Laplace             n = −sign(ε) log(2Φ(−|ε|))/√2                density e^{−√2|n|}/√2
    Uniform             n = √3 (2Φ(ε) − 1)                           on (−√3, √3)
    Exponential         n = −log Φ(−ε) − 1                           Exp(1) − 1
    Gamma, Tabulated    n = (F⁻¹(Φ(ε)) − μ)/s                        any continuous distribution of scipy.stats
    Poisson             n = (F⁻¹(Φ(ε)) − r)/√r                       Poisson(r)
    Bernoulli           n = (1[ε > Φ⁻¹(1 − p)] − p)/√(p(1 − p))      ±1 for p = ½
    Colored             n = filter of ε, N(0, 1) in every coordinate, with a given power spectrum
    Mixture             F_t = (1 − t) F_first + t F_second           n = F_t⁻¹(Φ(ε))

If F is a cumulative distribution function, h = F⁻¹ ∘ Φ is the only increasing map to it from the normal distribution
(Rosenblatt 1952, "Remarks on a Multivariate Transformation"). Discrete distributions have no inverse. Φ is evaluated
in the smaller tail, which keeps its digits. Near the end of a bounded support n itself has few digits: in float32 h⁻¹
is accurate to 0.01 for |ε| ≤ 5, and to 0.04 for mixtures.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array

from jaxdiff.processes import tables
from jaxdiff.typing import InputError, RandomKey, Sample, Shape, Time, check_between, is_traced, pytree, static


@runtime_checkable
class NoiseDistribution(Protocol):
    """h, of mean 0 and variance 1. Derive from it and write `from_normal`, and `to_normal` if there is an inverse."""

    time_dependent: ClassVar[bool] = False  # whether h depends on t, so that `quantile_map` needs its inverse
    elementwise: ClassVar[bool] = True  # whether coordinates are independent, each a function of its own ε

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        """Return h_t(ε), standardized noise, from ε ~ N(0, I)."""

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        """Return h_t⁻¹(n), ±inf outside the support."""
        raise InputError(f"{type(self).__name__} has no inverse; use a continuous distribution, such as Laplace")

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        """Return the log-density of each coordinate up to a constant, −inf outside the support."""
        raise InputError(f"{type(self).__name__} has no known density; write its log_density")

    def __call__(self, key: RandomKey, shape: Shape, t: Time = 1.0) -> Sample:
        """Draw noise at time t in the default float dtype."""
        return self.from_normal(jax.random.normal(key, shape), t)

    def quantile_map(self, noise: Sample, t: Time, s: Time) -> Sample:
        """Map noise at time t to the same quantile at time s, h_s(h_t⁻¹(n)); the identity if h is constant."""
        if not self.time_dependent:
            return noise
        return self.from_normal(jnp.clip(self.to_normal(noise, t), -tables.REACH, tables.REACH), s)


@pytree
class Normal(NoiseDistribution):
    """N(0, 1)."""

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return eps

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        return noise

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        return -0.5 * noise**2


NORMAL = Normal()


@pytree
class Laplace(NoiseDistribution):
    """Laplace distribution of variance 1: heavier tails than the normal one."""

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return -jnp.sign(eps) * (special.log_ndtr(-jnp.abs(eps)) + math.log(2)) / math.sqrt(2)

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        return -jnp.sign(noise) * special.ndtri(0.5 * jnp.exp(-math.sqrt(2) * jnp.abs(noise)))

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        return -math.sqrt(2) * jnp.abs(noise)


@pytree
class Uniform(NoiseDistribution):
    """Uniform on (−√3, √3)."""

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return math.sqrt(3) * special.erf(eps / math.sqrt(2))

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        return math.sqrt(2) * special.erfinv(jnp.clip(noise / math.sqrt(3), -1, 1))

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        return jnp.where(jnp.abs(noise) <= math.sqrt(3), 0.0, -jnp.inf)


@pytree
class Exponential(NoiseDistribution):
    """Exp(1) − 1: skewed, on (−1, ∞)."""

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return -special.log_ndtr(-eps) - 1

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        y = jnp.maximum(noise + 1, 0)
        above, below = jnp.exp(-jnp.maximum(y, 0.5)), -jnp.expm1(-jnp.minimum(y, 0.5))
        return jnp.where(y > 0.5, -special.ndtri(above), special.ndtri(below))

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        return jnp.where(noise >= -1, -noise, -jnp.inf)


_quantiles = functools.cache(lambda noise: tables.quantiles(noise._scipy()))
_steps = functools.cache(lambda noise: tables.steps(noise._scipy()))


class _Continuous(NoiseDistribution):
    """The frozen continuous distribution `_scipy()`, standardized, by linear interpolation of its quantiles."""

    def _scipy(self) -> Any: ...

    def __post_init__(self) -> None:
        _quantiles(self)

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return jnp.interp(eps, jnp.asarray(tables.NODES, eps.dtype), jnp.asarray(_quantiles(self), eps.dtype))

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        quantiles = jnp.asarray(_quantiles(self), noise.dtype)
        return jnp.interp(noise, quantiles, jnp.asarray(tables.NODES, noise.dtype), left=-jnp.inf, right=jnp.inf)


@pytree(kw_only=False)
class Gamma(_Continuous):
    """(Γ(shape) − shape)/√shape: skewed, nearly normal for a large shape; float32 can't resolve a shape near 0."""

    shape: float = static(default=2.0)

    def __post_init__(self) -> None:
        if not self.shape > 0:
            raise InputError(f"shape = {self.shape}; must satisfy shape > 0")
        try:
            super().__post_init__()
        except InputError as error:
            raise InputError(f"shape = {self.shape}: {error}") from None

    def _scipy(self) -> Any:
        return tables.scipy_stats().gamma(self.shape)


@pytree(kw_only=False)
class Tabulated(_Continuous):
    """A continuous distribution of `scipy.stats` with finite variance, standardized, such as `scipy.stats.t(5)`.

    Quantiles are interpolated linearly between 8193 points, ε from −8 to 8. They are compiled in: make it once.

    Raises:
      InputError: if it is discrete, more than 1% of its variance is beyond the table, or its quantiles don't increase.
    """

    distribution: Any = static()

    def _scipy(self) -> Any:
        return self.distribution


class _Discrete(NoiseDistribution):
    """The frozen distribution `_scipy()` of integers, standardized. It has no inverse."""

    def _scipy(self) -> Any: ...

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        thresholds, values = (jnp.asarray(x, eps.dtype) for x in _steps(self))
        return values[jnp.searchsorted(thresholds, eps)]


@pytree(kw_only=False)
class Poisson(_Discrete):
    """(P − rate)/√rate with P ~ Poisson(rate)."""

    rate: float = static(default=4.0)

    def __post_init__(self) -> None:
        check_between(self, 1e-6, 1e9, "rate")

    def _scipy(self) -> Any:
        return tables.scipy_stats().poisson(self.rate)


@pytree(kw_only=False)
class Bernoulli(_Discrete):
    """Two values, the higher one with probability p: ±1 for p = ½."""

    p: float = static(default=0.5)

    def __post_init__(self) -> None:
        if not 1e-6 <= self.p <= 1 - 1e-6:
            raise InputError(f"p = {self.p}; must satisfy 0 < p < 1, with 1e-6 to either end")

    def _scipy(self) -> Any:
        return tables.scipy_stats().bernoulli(self.p)


class _Filtered(NoiseDistribution):
    """Stationary normal noise with the spectrum `power` on a periodic grid, by a filter in Fourier space."""

    power: Any
    axes: int
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.axes not in (1, 2):
            raise InputError(f"axes = {self.axes}; it must be 1 (series) or 2 (images)")

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return self._filter(eps, inverse=False)

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        """Return h⁻¹(n), which is infinite if the spectrum is 0 somewhere."""
        return self._filter(noise, inverse=True)

    def _filter(self, x: Sample, *, inverse: bool) -> Sample:
        if x.ndim < self.axes:
            raise InputError(f"axes = {self.axes}, but a sample has shape {x.shape}; use fewer axes")
        grid, axes = x.shape[: self.axes], tuple(range(self.axes))
        frequency = jnp.sqrt(sum(f**2 for f in jnp.meshgrid(*map(jnp.fft.fftfreq, grid), indexing="ij")))
        lowest = 1 / max(*grid, 2)  # the mean gets its power
        power = jnp.broadcast_to(self.power(jnp.maximum(frequency, lowest)), frequency.shape)
        response = jnp.sqrt(power / power.mean()).reshape(*grid, *[1] * (x.ndim - self.axes)).astype(x.dtype)
        spectrum = jnp.fft.fftn(x, axes=axes)
        response = response.astype(spectrum.dtype)
        return jnp.fft.ifftn(spectrum / response if inverse else spectrum * response, axes=axes).real.astype(x.dtype)


@pytree(kw_only=False)
class Colored(_Filtered):
    """Normal noise with a given power spectrum on a periodic grid, scaled to variance 1.

    Args:
      power: maps frequencies, in cycles per pixel, to power >= 0, up to a factor; the mean of a sample has the power of
        the lowest one. A new function compiles again: define it once.
      axes: how many of a sample's first axes are the grid: 2 for images (height, width, ...), 1 for series.
    """

    power: Callable[[Array], Array] = static()
    axes: int = static(default=2)


@pytree(kw_only=False)
class Blue(_Filtered):
    """Normal noise whose power rises in proportion to the frequency."""

    axes: int = static(default=2)

    def power(self, frequency: Array, /) -> Array:
        return frequency


@pytree(kw_only=False)
class Pink(_Filtered):
    """Normal noise whose power falls as 1/f."""

    axes: int = static(default=2)

    def power(self, frequency: Array, /) -> Array:
        return 1 / frequency


@pytree(kw_only=False)
class Mixture(NoiseDistribution):
    """Each coordinate is from `second` with probability t, else `first`. Both must be elementwise, with an inverse."""

    first: NoiseDistribution
    second: NoiseDistribution
    time_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            if not part.elementwise or type(part).to_normal is NoiseDistribution.to_normal:
                raise InputError(
                    f"{type(part).__name__} can't be in a Mixture; use white noise with an inverse: Normal, "
                    "Laplace, Uniform, Exponential, Gamma, Tabulated"
                )

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            below = self.to_normal(middle, t) < eps
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        a, b = self.first.from_normal(eps, t), self.second.from_normal(eps, t)  # the quantile of the mixture is between
        halvings = 30 if eps.dtype == jnp.float32 else 56
        low, high = jax.lax.fori_loop(0, halvings, halve, (jnp.minimum(a, b), jnp.maximum(a, b)))
        return (low + high) / 2

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        a, b = self.first.to_normal(noise, t), self.second.to_normal(noise, t)
        t = jnp.asarray(t, noise.dtype)
        below = (1 - t) * special.ndtr(a) + t * special.ndtr(b)
        above = (1 - t) * special.ndtr(-a) + t * special.ndtr(-b)
        return jnp.where(below < above, special.ndtri(below), -special.ndtri(above))


NOISES: dict[str, Callable[..., NoiseDistribution]] = {
    "normal": Normal,
    "laplace": Laplace,
    "uniform": Uniform,
    "exponential": Exponential,
    "gamma": Gamma,
    "poisson": Poisson,
    "bernoulli": Bernoulli,
    "blue": Blue,
    "pink": Pink,
}


def check_standardized(distribution: NoiseDistribution) -> None:
    """Raise an InputError unless mean and variance are 0 and 1 at t = 0, ½ and 1, and any change with t is declared.

    Registered, tabulated and traced distributions pass unchecked. If coordinates are independent, h is integrated over
    ε from −8 to 8. Otherwise samples of shape (16, 16, 1)[:axes] are measured, to 0.1 and 5 standard errors.
    """
    if isinstance(distribution, Mixture):  # standardized if its parts are; its own check would take a second
        check_standardized(distribution.first)
        return check_standardized(distribution.second)
    if type(distribution) in (Tabulated, *NOISES.values()) or is_traced(distribution):
        return
    name = type(distribution).__name__
    with jax.ensure_compile_time_eval():
        if distribution.elementwise:
            eps, draw = jnp.asarray(tables.NODES, float), distribution.from_normal
        else:
            shape = (16, 16, 1)[: getattr(distribution, "axes", 3)]
            eps = jax.random.normal(jax.random.key(0), (2**16 // math.prod(shape), *shape))
            draw = jax.vmap(distribution.from_normal, in_axes=(0, None))
        found = {t: np.asarray(draw(eps, t)) for t in (0.0, 0.5, 1.0)}
    for t, n in found.items():
        n = n.astype(np.float64)
        if distribution.elementwise:
            mean, variance, *errors = *tables.moments(n), 0.01, 0.01
        else:  # coordinates may be dependent; samples are not
            n = n.reshape(len(n), -1)
            means, squares = n.mean(1), (n**2).mean(1)
            mean, variance = means.mean(), squares.mean() - means.mean() ** 2
            errors = [0.1 + 5 * each.std() / math.sqrt(len(n)) for each in (means, squares)]
        if not (abs(mean) < errors[0] and abs(variance - 1) < errors[1]):
            raise InputError(
                f"noise = {name} has mean {mean:.3g} and variance {variance:.3g} at t = {t}; it must have mean 0 and "
                "variance 1: subtract the mean and divide by the standard deviation, as Tabulated does for one of "
                "scipy.stats; a distribution without finite variance can't be used"
            )
    if not distribution.time_dependent and not all(np.array_equal(n, found[0.0]) for n in found.values()):
        raise InputError(
            f"noise = {name} changes with t, but its time_dependent is False; set time_dependent = True and write "
            "to_normal, which maps noise from one time to another"
        )
