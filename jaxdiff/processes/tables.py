"""Tables, in float64 NumPy, of standardized distributions of scipy.stats as functions of ε ~ N(0, 1)."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdiff.typing import InputError

REACH = 8.0  # standard deviations of ε that tables and quantile maps cover
NODES = np.linspace(-REACH, REACH, 8193)  # 1/512 apart


def quantiles(distribution: Any) -> Float[np.ndarray, " nodes"]:
    """Return the quantiles of a frozen distribution at the nodes, or raise an InputError if they don't describe it."""
    stats = scipy_stats()
    name = f"distribution = {getattr(distribution.dist, 'name', distribution)!s}"
    if isinstance(distribution.dist, stats.rv_discrete):
        raise InputError(f"{name} is discrete; use Poisson, Bernoulli or a continuous distribution")
    mean, variance = map(float, distribution.stats("mv"))
    if not (math.isfinite(mean) and math.isfinite(variance) and variance > 0):
        raise InputError(
            f"{name} has mean {mean} and variance {variance}; the variance must be finite: use another one, such as "
            "scipy.stats.t(5), or cut off the tails (scipy.stats.truncate)"
        )
    below, above = distribution.ppf(stats.norm.cdf(NODES)), distribution.isf(stats.norm.sf(NODES))
    values = (np.where(NODES < 0, below, above) - mean) / math.sqrt(variance)
    gaps = np.diff(values[np.abs(NODES) <= 3][::51].astype(np.float32))  # between ε that are 0.1 apart
    if not (np.all(np.isfinite(values)) and np.all(np.diff(values) >= 0) and np.all(gaps > 0)):
        raise InputError(
            f"{name} has quantiles that are not finite and increasing, or too close to each other for float32; use a "
            "distribution that is less concentrated"
        )
    if abs((captured := moments(values)[1]) - 1) > 0.01:
        raise InputError(
            f"{name} has {1 - captured:.0%} of its variance beyond the table's {REACH:.0f} standard deviations of ε; "
            "cut off the tails (scipy.stats.truncate)"
        )
    return values


def steps(distribution: Any) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " m"]]:
    """Return thresholds and values of a distribution of integers: values[i] between thresholds[i − 1] and [i] of ε."""
    normal = scipy_stats().norm
    counts = np.arange(int(distribution.ppf(1e-15)), int(distribution.isf(1e-15)) + 1)  # as far as ε = ±8
    below, above = distribution.cdf(counts[:-1]), distribution.sf(counts[:-1])
    thresholds = np.where(below < above, normal.ppf(below), normal.isf(above))  # from the smaller tail
    return thresholds, (counts - distribution.mean()) / distribution.std()


def moments(values: Float[np.ndarray, " nodes"]) -> tuple[float, float]:
    """Return mean and variance of h(ε) from h at the nodes."""
    weights = np.exp(-0.5 * NODES**2) / math.sqrt(2 * math.pi) * (NODES[1] - NODES[0])
    mean = float(weights @ values)
    return mean, float(weights @ (values - mean) ** 2)


def scipy_stats() -> Any:
    """Import scipy.stats where it is used, as that takes half a second."""
    import scipy.stats

    return scipy.stats
