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

With F a cumulative distribution function, h = F⁻¹ ∘ Φ is the only increasing map from the normal distribution to it
(Rosenblatt 1952, "Remarks on a Multivariate Transformation"). Discrete distributions have no inverse. Φ is evaluated
in the smaller tail, so that tails keep their digits. At the end of a bounded support n itself has lost them: in float32
h⁻¹ is right there to 0.01 up to 5 standard deviations of ε, and to 0.04 for mixtures.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from jaxdiff.processes import tables
from jaxdiff.typing import InputError, RandomKey, Sample, Shape, Time, is_traced, pytree, static


@runtime_checkable
class NoiseDistribution(Protocol):
    """h. Derive from it and write `from_normal`, and `to_normal` if there is an inverse. Everything is for one sample.

    Mean 0 and variance 1 in every coordinate are checked by `jaxdiff.Perturbed`.
    """

    time_dependent: ClassVar[bool] = False
    """Whether the distribution depends on t. If so, its inverse maps noise from one time to another."""
    elementwise: ClassVar[bool] = True
    """Whether coordinates are independent, each a function of its own ε."""

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        """Return h_t(ε), standardized noise, from ε ~ N(0, I)."""

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        """Return h_t⁻¹(n), ±inf outside the support."""
        raise InputError(f"{type(self).__name__} has no inverse; use a continuous distribution, such as Laplace")

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        """Return the log-density of each coordinate up to a constant, −inf outside the support; for exact denoisers."""
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
        above = special.ndtri(jnp.exp(-jnp.maximum(y, 0.5)))  # of the smaller tail, on either side of the median
        return jnp.where(y > 0.5, -above, special.ndtri(-jnp.expm1(-jnp.minimum(y, 0.5))))

    def log_density(self, noise: Sample, t: Time, /) -> Sample:
        return jnp.where(noise >= -1, -noise, -jnp.inf)


class _Continuous(NoiseDistribution):
    """The frozen distribution `_scipy()`, standardized, by a table of quantiles that is linear between nodes."""

    def _scipy(self) -> Any: ...

    def __post_init__(self) -> None:
        _quantiles(self)

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return jnp.interp(eps, jnp.asarray(tables.NODES, eps.dtype), jnp.asarray(_quantiles(self), eps.dtype))

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        quantiles = jnp.asarray(_quantiles(self), noise.dtype)
        return jnp.interp(noise, quantiles, jnp.asarray(tables.NODES, noise.dtype), left=-jnp.inf, right=jnp.inf)


@functools.cache
def _quantiles(noise: _Continuous) -> Float[np.ndarray, " nodes"]:
    return tables.quantiles(noise._scipy())


@pytree(kw_only=False)
class Gamma(_Continuous):
    """(Γ(shape) − shape)/√shape: skewed, exponential for shape 1, nearly normal for a large one.

    A shape near 0 is rejected: most of its values are equal in float32.
    """

    shape: float = static(default=2.0)

    def __post_init__(self) -> None:
        if not self.shape > 0:
            raise InputError(f"shape = {self.shape}; the rule is shape > 0")
        super().__post_init__()

    def _scipy(self) -> Any:
        return tables.scipy_stats().gamma(self.shape)


@pytree(kw_only=False)
class Tabulated(_Continuous):
    """Any continuous distribution of `scipy.stats` with finite variance, standardized.

    Its quantiles are tabulated at 8193 points within 8 standard deviations of ε, and linear between them.

    Args:
      distribution: a frozen one, such as `scipy.stats.t(5)`. It is compiled in: make it once.

    Raises:
      InputError: if it is discrete, has no finite variance, has more than 1% of it beyond the table, or has quantiles
        that do not increase.
    """

    distribution: Any = static()

    def _scipy(self) -> Any:
        return self.distribution


class Discrete(NoiseDistribution):
    """The frozen distribution `_scipy()` of integers, standardized. It has no inverse."""

    def _scipy(self) -> Any: ...

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        """Return values[i] for ε between thresholds[i − 1] and thresholds[i]."""
        thresholds, values = (jnp.asarray(x, eps.dtype) for x in _steps(self))
        return values[jnp.searchsorted(thresholds, eps)]


@functools.cache
def _steps(noise: Discrete) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " m"]]:
    return tables.steps(noise._scipy())


@pytree(kw_only=False)
class Poisson(Discrete):
    """(P − rate)/√rate with P of a Poisson distribution: multiples of 1/√rate."""

    rate: float = static(default=4.0)

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise InputError(f"rate = {self.rate}; the rule is 0 < rate < inf")

    def _scipy(self) -> Any:
        return tables.scipy_stats().poisson(self.rate)


@pytree(kw_only=False)
class Bernoulli(Discrete):
    """Two values, the higher one with probability p: ±1 for p = ½."""

    p: float = static(default=0.5)

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise InputError(f"p = {self.p}; the rule is 0 < p < 1")

    def _scipy(self) -> Any:
        return tables.scipy_stats().bernoulli(self.p)


class _Filtered(NoiseDistribution):
    """Stationary normal noise on a periodic grid, by a filter in Fourier space."""

    axes: int
    elementwise: ClassVar[bool] = False

    def power(self, frequency: Array, /) -> Array:
        """The power spectrum, up to a factor."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        if self.axes not in (1, 2):
            raise InputError(f"axes = {self.axes}; the rule is 1 (series) or 2 (images)")

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        return self._filter(eps, inverse=False)

    def to_normal(self, noise: Sample, t: Time, /) -> Sample:
        """Return h⁻¹(n); infinite if the spectrum is 0 somewhere."""
        return self._filter(noise, inverse=True)

    def _filter(self, x: Sample, *, inverse: bool) -> Sample:
        if x.ndim < self.axes:
            raise InputError(f"axes = {self.axes}, but a sample has shape {x.shape}; use fewer axes")
        grid = x.shape[: self.axes]
        lowest = 1 / max(*grid, 2)
        frequency = jnp.sqrt(sum(f**2 for f in jnp.meshgrid(*map(jnp.fft.fftfreq, grid), indexing="ij")))
        # The mean has the power of the lowest frequency.
        power = jnp.broadcast_to(self.power(jnp.maximum(frequency, lowest)), frequency.shape)
        response = jnp.sqrt(power / power.mean()).reshape(*grid, *[1] * (x.ndim - self.axes)).astype(x.dtype)
        axes = tuple(range(self.axes))
        spectrum = jnp.fft.fftn(x, axes=axes)
        return jnp.fft.ifftn(spectrum / response if inverse else spectrum * response, axes=axes).real.astype(x.dtype)


@pytree(kw_only=False)
class Colored(_Filtered):
    """Normal noise with a given power spectrum on a periodic grid, scaled to variance 1.

    Args:
      power: maps frequencies in cycles a sample to power >= 0, up to a factor. It is compiled in: define the function
        once. The mean of a sample is given the power of its lowest frequency.
      axes: how many of a sample's first axes are the grid: 2 for images (height, width, channels), 1 for series.
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
    """Each coordinate is drawn from `second` with probability t, otherwise from `first`.

    Both must be independent in each coordinate and have an inverse, on which that of the mixture is built.
    """

    first: NoiseDistribution
    second: NoiseDistribution

    time_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            if not part.elementwise or type(part).to_normal is NoiseDistribution.to_normal:
                raise InputError(
                    f"{type(part).__name__} can't be in a Mixture; the rule is white noise with an inverse: Normal, "
                    "Laplace, Uniform, Exponential, Gamma, Tabulated"
                )

    def from_normal(self, eps: Sample, t: Time, /) -> Sample:
        # F_t takes the value Φ(ε) between the two quantiles of ε.
        a, b = self.first.from_normal(eps, t), self.second.from_normal(eps, t)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            below = self.to_normal(middle, t) < eps
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

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
    """Check for mean 0 and variance 1 at t = 0, ½ and 1, and that a distribution that depends on t declares it.

    The registered ones pass unchecked, and so do traced ones. The moments of independent coordinates are integrals of
    h_t over 16 standard deviations of ε. Those of others are measured on samples of shape (16, 16, 1), or of fewer axes
    if the distribution has `axes`, to 0.1 and five standard errors.

    Raises:
      InputError: if a check fails.
    """
    if isinstance(distribution, Mixture):  # standardized if its parts are; its bisection at 8193 nodes takes a second
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
        mean, variance, *errors = (*tables.moments(n), 0.01, 0.01) if distribution.elementwise else _sample_moments(n)
        if not (abs(mean) < errors[0] and abs(variance - 1) < errors[1]):
            raise InputError(
                f"noise = {name} has mean {mean:.3g} and variance {variance:.3g} at t = {t}; the rule is mean 0 and "
                "variance 1: subtract the mean and divide by the standard deviation, as Tabulated does for one of "
                "scipy.stats; a distribution without finite variance can't be used"
            )
    if not distribution.time_dependent and not all(np.array_equal(n, found[0.0]) for n in found.values()):
        raise InputError(
            f"noise = {name} changes with t, but its time_dependent is False; set time_dependent = True and write "
            "to_normal, which maps noise from one time to another"
        )


def _sample_moments(noise: Float[np.ndarray, "n *shape"]) -> tuple[float, float, float, float]:
    """Return mean, variance and the error allowed for each. Coordinates may be dependent; samples are not."""
    n = noise.reshape(len(noise), -1)
    means, squares = n.mean(1), (n**2).mean(1)
    of_mean, of_square = (0.1 + 5 * float(each.std()) / math.sqrt(len(n)) for each in (means, squares))
    return float(means.mean()), float(squares.mean() - means.mean() ** 2), of_mean, of_square
