"""Laws of the noise, each standardised to mean 0 and variance 1, as transforms of ε ~ N(0, 1).

    normal        n = ε
    laplace       n = −sign(ε) log(2Φ(−|ε|))/√2          density e^{−√2|n|}/√2
    uniform       n = √3 (2Φ(ε) − 1)                     on (−√3, √3)
    exponential   n = −log Φ(−ε) − 1                     Exp(1) − 1
    tabulated     n = (F⁻¹(Φ(ε)) − μ)/s                  any law of scipy.stats, gamma among them
    poisson       n = (F⁻¹(Φ(ε)) − r)/√r                 Poisson(r)
    bernoulli     n = (1[ε > Φ⁻¹(1 − p)] − p)/√(p(1 − p))     ±1 for p = ½
    coloured      n = filter of ε, N(0, 1) in every coordinate, of a given power spectrum
    mixture       F_t = (1 − t) F_first + t F_second     n = F_t⁻¹(Φ(ε))

With F the distribution function of a law, h = F⁻¹ ∘ Φ is the only rising map from the normal law to it (Rosenblatt
1952, "Remarks on a Multivariate Transformation"). Discrete laws have no inverse. Φ is taken on the side where it is
small, so that tails keep their digits; on the bounded side of a law n itself has lost them, and in float32 its h⁻¹ is
right to 0.01 up to 5 standard deviations of ε, and to 0.04 in mixtures.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from jaxdiff.perturbations.base import REACH, Law
from jaxdiff.typing import Time

_NODES = 8193  # of the table of a tabulated law, 1/512 apart


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normal(Law):
    """N(0, 1): h does nothing."""

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return eps

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return noise

    def log_density(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return -0.5 * noise**2


NORMAL = Normal()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Laplace(Law):
    """The two-sided exponential law of variance 1."""

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return -jnp.sign(eps) * (special.log_ndtr(-jnp.abs(eps)) + math.log(2)) / math.sqrt(2)

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return -jnp.sign(noise) * special.ndtri(0.5 * jnp.exp(-math.sqrt(2) * jnp.abs(noise)))

    def log_density(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return -math.sqrt(2) * jnp.abs(noise)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform(Law):
    """Uniform on (−√3, √3)."""

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return math.sqrt(3) * special.erf(eps / math.sqrt(2))

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return math.sqrt(2) * special.erfinv(jnp.clip(noise / math.sqrt(3), -1, 1))

    def log_density(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return jnp.where(jnp.abs(noise) <= math.sqrt(3), 0.0, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exponential(Law):
    """Exp(1) − 1, on (−1, ∞)."""

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return -special.log_ndtr(-eps) - 1

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        y = jnp.maximum(noise + 1, 0)
        above = special.ndtri(jnp.exp(-jnp.maximum(y, 0.5)))  # of the small tail, on either side of the median
        return jnp.where(y > 0.5, -above, special.ndtri(-jnp.expm1(-jnp.minimum(y, 0.5))))

    def log_density(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return jnp.where(noise >= -1, -noise, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tabulated(Law):
    """A continuous law by a table of its quantiles, linear between them. Make one with `tabulated` or `gamma`."""

    values: Float[Array | np.ndarray, " nodes"]

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return jnp.interp(eps, _nodes(eps.dtype), jnp.asarray(self.values, eps.dtype))

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        values = jnp.asarray(self.values, noise.dtype)
        return jnp.interp(noise, values, _nodes(noise.dtype), left=-jnp.inf, right=jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Law):
    """A law of a few values: values[i] between thresholds[i − 1] and thresholds[i] of ε. Has no inverse."""

    thresholds: Float[Array | np.ndarray, " k"]
    values: Float[Array | np.ndarray, " k+1"]

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return jnp.asarray(self.values, eps.dtype)[jnp.searchsorted(jnp.asarray(self.thresholds, eps.dtype), eps)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Coloured(Law):
    """Stationary normal noise on a periodic grid, by a filter in Fourier space. Make one with `coloured`."""

    power: Callable[[Array], Array] = dataclasses.field(metadata={"static": True})
    axes: int = dataclasses.field(metadata={"static": True})

    elementwise: ClassVar[bool] = False

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        return self._filtered(eps, inverse=False)

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        """h⁻¹; infinite for a spectrum that is 0 somewhere."""
        return self._filtered(noise, inverse=True)

    def _filtered(self, x: Float[Array, "*shape"], *, inverse: bool) -> Float[Array, "*shape"]:
        if x.ndim < self.axes:
            raise ValueError(f"noise on {self.axes} axes, but a sample has shape {x.shape}; lower axes")
        grid = x.shape[: self.axes]
        lowest = 1 / max(*grid, 2)
        frequency = jnp.sqrt(sum(f**2 for f in jnp.meshgrid(*map(jnp.fft.fftfreq, grid), indexing="ij")))
        # The mean has the power of the lowest frequency.
        power = jnp.broadcast_to(self.power(jnp.maximum(frequency, lowest)), frequency.shape)
        gain = jnp.sqrt(power / power.mean()).reshape(*grid, *[1] * (x.ndim - self.axes)).astype(x.dtype)
        axes = tuple(range(self.axes))
        spectrum = jnp.fft.fftn(x, axes=axes)
        return jnp.fft.ifftn(spectrum / gain if inverse else spectrum * gain, axes=axes).real.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Law):
    """Each coordinate of the second law with probability t, else of the first. Make one with `mixture`."""

    first: Law
    second: Law

    varies: ClassVar[bool] = True

    def from_normal(self, eps: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        # Between the quantiles of the two laws the distribution function of their mixture takes the value Φ(ε).
        a, b = self.first.from_normal(eps, t), self.second.from_normal(eps, t)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            below = self.to_normal(middle, t) < eps
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        halvings = 30 if eps.dtype == jnp.float32 else 56
        low, high = jax.lax.fori_loop(0, halvings, halve, (jnp.minimum(a, b), jnp.maximum(a, b)))
        return (low + high) / 2

    def to_normal(self, noise: Float[Array, "*shape"], t: Time, /) -> Float[Array, "*shape"]:
        a, b = self.first.to_normal(noise, t), self.second.to_normal(noise, t)
        t = jnp.asarray(t, noise.dtype)
        below = (1 - t) * special.ndtr(a) + t * special.ndtr(b)
        above = (1 - t) * special.ndtr(-a) + t * special.ndtr(-b)
        return jnp.where(below < above, special.ndtri(below), -special.ndtri(above))


def normal() -> Normal:
    """White normal noise."""
    return NORMAL


def laplace() -> Laplace:
    """White noise of Laplace's law: heavier tails than the normal one."""
    return Laplace()


def uniform() -> Uniform:
    """White noise, uniform on (−√3, √3)."""
    return Uniform()


def exponential() -> Exponential:
    """White noise Exp(1) − 1: skewed, never below −1."""
    return Exponential()


def gamma(shape: float = 2.0) -> Tabulated:
    """White noise (Γ(shape) − shape)/√shape: skewed, the exponential law for shape 1, near the normal one for large.

    Raises:
      ValueError: for a shape that is not above 0, and one near 0: most of its values are then the same in float32.
    """
    if not shape > 0:
        raise ValueError(f"shape = {shape}; the rule is shape > 0")
    return tabulated(_stats().gamma(shape))


def tabulated(law: Any) -> Tabulated:
    """White noise of any continuous law of `scipy.stats` with a finite variance, standardised.

    Its quantiles are tabulated at 8193 points between 8 standard deviations of ε, and linear between.

    Args:
      law: a frozen one, such as `scipy.stats.t(5)`.

    Raises:
      ValueError: for a discrete law, for one without finite variance or with too much of it beyond the table, and for
        one whose quantiles do not rise.
    """
    if isinstance(law.dist, _stats().rv_discrete):
        raise ValueError(f"law = {_named(law)} is discrete; take poisson or bernoulli, or a continuous law")
    mean, variance = map(float, law.stats("mv"))
    if not (math.isfinite(mean) and math.isfinite(variance) and variance > 0):
        raise ValueError(
            f"law = {_named(law)} has mean {mean} and variance {variance}; noise needs a finite variance, to be "
            "standardised by: take one that has, such as scipy.stats.t(5), or cut its tails off (scipy.stats.truncate)"
        )
    nodes, normal_law = _nodes(np.float64, np), _stats().norm
    quantiles = np.where(nodes < 0, law.ppf(normal_law.cdf(nodes)), law.isf(normal_law.sf(nodes)))
    values = (quantiles - mean) / math.sqrt(variance)
    told_apart = np.diff(values[np.abs(nodes) <= 3][::51].astype(np.float32))  # a tenth of ε from each other
    if not (np.all(np.isfinite(values)) and np.all(np.diff(values) >= 0) and np.all(told_apart > 0)):
        raise ValueError(
            f"law = {_named(law)} has quantiles that are not finite and rising, or too near each other for float32; "
            "take a law that is spread more evenly"
        )
    if abs((found := _moments(values)[1]) - 1) > 0.01:
        raise ValueError(
            f"law = {_named(law)} has {1 - found:.0%} of its variance beyond the table's {REACH:.0f} standard "
            "deviations of ε; cut its tails off (scipy.stats.truncate)"
        )
    return Tabulated(values)


def poisson(rate: float = 4.0) -> Discrete:
    """White noise (P − rate)/√rate, P of Poisson's law: whole steps of 1/√rate.

    Raises:
      ValueError: for a rate that is not above 0.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate = {rate}; the rule is 0 < rate < inf")
    law = _stats().poisson(rate)
    first, last = int(law.ppf(1e-15)), int(law.isf(1e-15))  # as far as ε = ±8
    counts = np.arange(first, last + 1)
    return Discrete(_thresholds(law, counts[:-1]), (counts - rate) / math.sqrt(rate))


def bernoulli(p: float = 0.5) -> Discrete:
    """White noise of two values, the higher one with probability p: ±1 for p = ½.

    Raises:
      ValueError: for p outside (0, 1).
    """
    if not 0 < p < 1:
        raise ValueError(f"p = {p}; the rule is 0 < p < 1")
    law = _stats().bernoulli(p)
    return Discrete(_thresholds(law, np.array([0])), (np.arange(2) - p) / math.sqrt(p * (1 - p)))


def coloured(power: Callable[[Array], Array], *, axes: int = 2) -> Coloured:
    """Normal noise whose power depends on the frequency, on a periodic grid; 1 in the mean, so that its variance is 1.

    Args:
      power: of the frequency in cycles a sample, an array of positive values, any power >= 0; a function that is
        defined once, for it is compiled in. The mean of a sample is given the power of its lowest frequency.
      axes: how many of a sample's first axes are the grid: 2 for images (height, width, channels), 1 for series.

    Raises:
      ValueError: for axes other than 1 and 2.
    """
    if axes not in (1, 2):
        raise ValueError(f"axes = {axes}; the rule is 1 (series) or 2 (images)")
    return Coloured(power=power, axes=axes)


def blue(axes: int = 2) -> Coloured:
    """Normal noise whose power rises with the frequency."""
    return coloured(_identity, axes=axes)


def pink(axes: int = 2) -> Coloured:
    """Normal noise whose power falls with the frequency, as 1/f."""
    return coloured(jnp.reciprocal, axes=axes)


def mixture(first: Law, second: Law) -> Mixture:
    """A law that changes with t: each coordinate of the second law with probability t, else of the first.

    Raises:
      ValueError: for a law that has no inverse, on which the mixture's is built, or that is coloured.
    """
    for law in (first, second):
        if not law.elementwise or type(law).to_normal is Law.to_normal:
            raise ValueError(
                f"{type(law).__name__} can't be mixed: mixture takes white noise of continuous laws, which have an "
                "inverse: normal, laplace, uniform, exponential, gamma, tabulated"
            )
    return Mixture(first=first, second=second)


def check_law(law: Law, shape: tuple[int, ...]) -> None:
    """Raises a ValueError for a law that is not of mean 0 and variance 1, or changes with t and does not say so.

    At t = 0, ½ and 1. The moments of independent coordinates are integrals of h_t over 16 standard deviations of ε; of
    others they are those of 64 samples at least, to 0.1 and five standard errors.
    """
    if not isinstance(law, Law):
        name = getattr(law, "__name__", repr(law))
        raise ValueError(f"noise = {name} is no law; give one of jaxdiff.perturbations, such as laplace(), called")
    if isinstance(law, Mixture):  # of standardised laws; its own quantiles are found by bisection, 8193 take a second
        check_law(law.first, shape)
        return check_law(law.second, shape)
    measure: Callable[..., tuple[float, float, float, float]]
    if law.elementwise:
        eps, draw, measure = jnp.asarray(_nodes(np.float64, np), float), law.from_normal, _moments
    else:
        samples = max(64, 2**16 // math.prod(shape))
        eps = jax.random.normal(jax.random.key(0), (samples, *shape))
        draw, measure = jax.vmap(law.from_normal, in_axes=(0, None)), _moments_of_samples
    found = []
    for t in (0.0, 0.5, 1.0):
        n = draw(eps, t)
        mean, variance, *errors = measure(n)
        if not (abs(mean) < errors[0] and abs(variance - 1) < errors[1]):
            raise ValueError(
                f"noise = {type(law).__name__} has mean {mean:.3g} and variance {variance:.3g} at t = {t}; the rule is "
                "mean 0 and variance 1: subtract the mean and divide by the standard deviation, or let "
                "tabulated(law of scipy.stats) do it; a law without finite variance can't be used"
            )
        found.append(n)
    if not law.varies and not all(jnp.array_equal(n, found[0]) for n in found[1:]):
        raise ValueError(
            f"noise = {type(law).__name__} changes with t, but its varies is False; set varies = True, and write "
            "to_normal, by which noise of time t becomes that of time s"
        )


def _moments(values: Float[Array | np.ndarray, " nodes"]) -> tuple[float, float, float, float]:
    """Mean and variance of a law from its values at the nodes, and how far each may be off."""
    eps, n = _nodes(np.float64, np), np.asarray(values, np.float64)
    weights = np.exp(-0.5 * eps**2) / math.sqrt(2 * math.pi) * (eps[1] - eps[0])
    mean = float(weights @ n)
    return mean, float(weights @ (n - mean) ** 2), 0.01, 0.01


def _moments_of_samples(noise: Float[Array | np.ndarray, "n *shape"]) -> tuple[float, float, float, float]:
    """Likewise of samples; their coordinates may depend on each other, so that each sample is one draw of a moment."""
    n = np.asarray(noise, np.float64).reshape(len(noise), -1)
    means, squares = n.mean(1), (n**2).mean(1)
    of_mean, of_square = (0.1 + 5 * float(each.std()) / math.sqrt(len(n)) for each in (means, squares))
    return float(means.mean()), float(squares.mean() - means.mean() ** 2), of_mean, of_square


def _stats() -> Any:
    """Imported where it is used: that takes half a second."""
    import scipy.stats

    return scipy.stats


def _nodes(dtype: Any, xp: Any = jnp) -> Any:
    return xp.linspace(-REACH, REACH, _NODES, dtype=dtype)


def _thresholds(law: Any, counts: np.ndarray) -> np.ndarray:
    """The ε at which Φ(ε) = F(count), from the smaller tail."""
    below, above = law.cdf(counts), law.sf(counts)
    return np.where(below < above, _stats().norm.ppf(below), _stats().norm.isf(above))


def _named(law: Any) -> str:
    return getattr(getattr(law, "dist", None), "name", repr(law))


def _identity(frequency: Array) -> Array:
    return frequency
