"""Noise distributions against scipy.stats and their inverses, and what they refuse."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats

from jaxdiff.processes.noise import (
    NOISES,
    Bernoulli,
    Blue,
    Colored,
    Exponential,
    Gamma,
    Laplace,
    Mixture,
    NoiseDistribution,
    Normal,
    Pink,
    Poisson,
    Tabulated,
    Uniform,
    _steps,
    check_standardized,
)
from jaxdiff.typing import pytree, static

CONTINUOUS: dict[str, tuple[NoiseDistribution, Any]] = {
    "normal": (Normal(), scipy.stats.norm()),
    "laplace": (Laplace(), scipy.stats.laplace(scale=1 / np.sqrt(2))),
    "uniform": (Uniform(), scipy.stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))),
    "exponential": (Exponential(), scipy.stats.expon(-1)),
    "gamma": (Gamma(2.0), scipy.stats.gamma(2, loc=-np.sqrt(2), scale=1 / np.sqrt(2))),
    "tabulated": (Tabulated(scipy.stats.t(5)), scipy.stats.t(5, scale=np.sqrt(3 / 5))),
}
DISCRETE: dict[str, tuple[NoiseDistribution, Any]] = {
    "poisson": (Poisson(4.0), scipy.stats.poisson(4)),
    "bernoulli": (Bernoulli(), scipy.stats.bernoulli(0.5)),
    "bernoulli:p=0.2": (Bernoulli(0.2), scipy.stats.bernoulli(0.2)),
}
MIXTURE = Mixture(Laplace(), Exponential())
EPS = np.linspace(-5, 5, 41)
TABULATED = ("gamma", "tabulated")


@functools.cache
def mapped(dtype: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """h(ε) of every continuous distribution at `EPS`, and h⁻¹ of that; of the mixture at t = 0.3."""
    noises = {name: noise for name, (noise, _) in CONTINUOUS.items()}
    noises |= {"mixture": MIXTURE} if dtype == "float64" else {}
    with jax.enable_x64(dtype == "float64"):
        eps = jnp.asarray(EPS, dtype)

        @jax.jit
        def both() -> Any:
            n = {name: noise.from_normal(eps, 0.3) for name, noise in noises.items()}
            return {name: (n[name], noise.to_normal(n[name], 0.3)) for name, noise in noises.items()}

        return jax.device_get(both())


@functools.cache
def drawn() -> dict[str, np.ndarray]:
    """200,000 numbers of every distribution."""
    noises = {name: noise for name, (noise, _) in (CONTINUOUS | DISCRETE).items()}
    with jax.enable_x64(True):
        keys = dict(zip(noises, jax.random.split(jax.random.key(0), len(noises)), strict=True))
        return jax.device_get(
            jax.jit(lambda: {name: noise(keys[name], (200_000,)) for name, noise in noises.items()})()
        )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_from_normal_is_the_quantile_function(name: str) -> None:
    """In both dtypes, to the far tails; a table of quantiles to its spacing."""
    truth = CONTINUOUS[name][1]
    expected = np.where(EPS < 0, truth.ppf(scipy.stats.norm.cdf(EPS)), truth.isf(scipy.stats.norm.sf(EPS)))
    exact, rounded = (mapped(dtype)[name][0] for dtype in ("float64", "float32"))
    tolerance = 1e-5 if name in TABULATED else 1e-11
    np.testing.assert_allclose(exact, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(rounded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*CONTINUOUS, "mixture"])
def test_to_normal_inverts_from_normal(name: str) -> None:
    """Uniform noise is within 6e-7 of its end at ε = 5."""
    np.testing.assert_allclose(mapped("float64")[name][1], EPS, rtol=0, atol=1e-8)
    noise, eps = MIXTURE if name == "mixture" else CONTINUOUS[name][0], jnp.asarray(EPS, jnp.float32)
    back = noise.to_normal(noise.from_normal(eps, 0.3), 0.3)
    np.testing.assert_allclose(back, eps, atol=0.04 if name == "mixture" else 0.01)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_noise_has_mean_0_and_variance_1_and_passes_kolmogorov_and_smirnov(name: str) -> None:
    """At the same level the test rejects noise that is 5% too wide or off by 0.05."""
    truth, noise = CONTINUOUS[name][1], drawn()[name]
    mean, variance, excess = (float(moment) for moment in truth.stats("mvk"))
    assert (mean, variance) == pytest.approx((0, 1), abs=1e-12)
    assert abs(noise.mean()) < 4 / np.sqrt(len(noise))
    assert abs(noise.var() - 1) < 4 * np.sqrt((excess + 2) / len(noise))
    assert scipy.stats.kstest(noise, truth.cdf).pvalue > 1e-3
    for wrong in (1.05 * noise, noise + 0.05):
        assert scipy.stats.kstest(wrong, truth.cdf).pvalue < 1e-3


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "exponential"])
def test_log_density_is_that_of_scipy_up_to_a_constant(name: str, x64: None) -> None:
    noise, truth = CONTINUOUS[name]
    n = np.array([-4.0, -1.5, -0.9, 0.0, 0.4, 1.7, 4.0])
    expected = truth.logpdf(n)
    found = np.asarray(noise.log_density(jnp.asarray(n), 0.5))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    inside = np.isfinite(expected)
    np.testing.assert_allclose(np.diff(found[inside]), np.diff(expected[inside]), atol=1e-12)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_noise_has_mean_0_and_variance_1_and_its_own_probabilities(name: str) -> None:
    distribution, truth = DISCRETE[name]
    thresholds, values = _steps(distribution)
    counts = values * truth.std() + truth.mean()
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-12)
    edges = scipy.stats.norm.cdf([-np.inf, *thresholds, np.inf])
    np.testing.assert_allclose(np.diff(edges), truth.pmf(np.round(counts)), rtol=1e-9, atol=1e-14)
    noise = drawn()[name]
    values, seen = np.unique(np.round(noise * truth.std() + truth.mean()), return_counts=True)
    rest = len(noise) - truth.pmf(values) @ np.full(len(values), len(noise))
    assert scipy.stats.chisquare(seen, truth.pmf(values) * len(noise) + rest / len(values)).pvalue > 1e-3
    with pytest.raises(ValueError, match="no inverse"):
        distribution.to_normal(jnp.zeros(1), 0.5)
    with pytest.raises(ValueError, match="Laplace, Uniform"):
        Mixture(Normal(), distribution)


@pytest.mark.thorough
def test_a_mixture_goes_from_one_distribution_to_the_other(x64: None) -> None:
    noise, quantile_map = mapped("float64")["mixture"][0], jax.jit(MIXTURE.quantile_map)
    parts = [CONTINUOUS[name][1].cdf(noise) for name in ("laplace", "exponential")]
    np.testing.assert_allclose(0.7 * parts[0] + 0.3 * parts[1], scipy.stats.norm.cdf(EPS), rtol=1e-9, atol=1e-13)
    for s, name in ((0.0, "laplace"), (1.0, "exponential")):
        np.testing.assert_allclose(quantile_map(jnp.asarray(noise), 0.3, s), mapped("float64")[name][0], atol=1e-6)
    drawn = np.asarray(jax.jit(lambda: MIXTURE(jax.random.key(1), (50_000,), 0.3))())
    fourth = sum(weight * CONTINUOUS[name][1].moment(4) for weight, name in ((0.7, "laplace"), (0.3, "exponential")))
    assert abs(drawn.mean()) < 4 / np.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 4 * np.sqrt((fourth - 1) / len(drawn))

    def cdf(noise: np.ndarray) -> np.ndarray:
        return 0.7 * CONTINUOUS["laplace"][1].cdf(noise) + 0.3 * CONTINUOUS["exponential"][1].cdf(noise)

    assert scipy.stats.kstest(drawn, cdf).pvalue > 1e-3
    assert scipy.stats.kstest(drawn + 0.05, cdf).pvalue < 1e-3


@pytest.mark.parametrize(("noise", "neighbors"), [(Blue(), -1), (Pink(), 1), (Blue(axes=1), -1)])
def test_colored_noise_has_its_spectrum_and_variance_1(noise: Any, neighbors: int, x64: None) -> None:
    """h is linear: its matrix H on 6x4 pixels gives the covariance H Hᵀ, which is diagonal in Fourier space."""
    shape = (6, 4)
    h = np.asarray(jax.vmap(lambda e: noise.from_normal(e.reshape(shape), 0.5).ravel())(jnp.eye(24)))
    covariance = h.T @ h
    np.testing.assert_allclose(np.diag(covariance), 1, rtol=1e-12)
    assert np.sign(covariance[0, shape[1]]) == neighbors  # of the next row
    frequencies = [np.fft.fftfreq(n) if axis < noise.axes else np.zeros(n) for axis, n in enumerate(shape)]
    f = np.maximum(np.hypot(frequencies[0][:, None], frequencies[1][None]), 1 / 6)
    power = f if neighbors < 0 else 1 / f
    fourier = np.kron(*(scipy.fft.fft(np.eye(n), norm="ortho") for n in shape))
    spectrum = fourier @ covariance @ fourier.conj().T
    np.testing.assert_allclose(spectrum, np.diag((power / power.mean()).ravel()), atol=1e-12)
    eps = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    np.testing.assert_allclose(noise.to_normal(noise.from_normal(eps, 0.5), 0.5), eps, atol=1e-12)


@pytree
class Doubled(NoiseDistribution):
    """Of variance 4."""

    elementwise: bool = static(default=True)

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return 2 * eps


@pytree
class Turning(NoiseDistribution):
    """Changes with t, which it does not declare."""

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return jnp.where(t < 0.7, eps, -eps)


@pytree
class Cauchy(NoiseDistribution):
    """Has no variance."""

    def from_normal(self, eps: jax.Array, t: Any, /) -> jax.Array:
        return jnp.tan(jnp.pi * (jax.scipy.special.ndtr(eps) - 0.5))

    def to_normal(self, noise: jax.Array, t: Any, /) -> jax.Array:
        return jax.scipy.special.ndtri(0.5 + jnp.arctan(noise) / jnp.pi)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tabulated(scipy.stats.cauchy()), "cauchy .* variance must be finite"),
        (lambda: Tabulated(scipy.stats.t(2)), r"scipy.stats.t\(5\)"),
        (lambda: Tabulated(scipy.stats.poisson(3)), "poisson is discrete"),
        (lambda: Tabulated(scipy.stats.t(2.1)), "of its variance beyond the table"),
        (lambda: Gamma(0.0), "shape = 0.0; must satisfy shape > 0"),
        (lambda: Gamma(0.05), "too close to each other for float32"),
        (lambda: Poisson(-1.0), "rate = -1.0"),
        (lambda: Poisson(np.inf), "rate = inf"),
        (lambda: Bernoulli(1.0), "p = 1.0; must satisfy 0 < p < 1"),
        (lambda: Colored(jnp.abs, axes=3), "axes = 3"),
        (lambda: Blue(axes=2)(jax.random.key(0), (3,)), r"axes = 2, but a sample has shape \(3,\)"),
        (lambda: Mixture(Normal(), Blue()), "Blue can't be in a Mixture"),
        (lambda: check_standardized(Doubled()), "variance 4 .* divide by"),
        (lambda: check_standardized(Doubled(elementwise=False)), "variance [34]"),
        (lambda: check_standardized(Cauchy()), "finite variance"),
        (lambda: check_standardized(Mixture(Normal(), Cauchy())), "finite variance"),
        (lambda: check_standardized(Turning()), "Turning changes with t, but its time_dependent is False"),
        (lambda: check_standardized(Colored(lambda f: f - 0.3)), "variance nan"),
        (lambda: Tabulated(scipy.stats.t(5)).log_density(jnp.zeros(1), 0.5), "no known density"),
    ],
)
def test_errors_name_the_mistake_and_what_works(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_standardized_noise_passes_the_check_also_under_jit() -> None:
    """Most of the power of the last one is in the mean of a sample, and so are the errors of its moments."""
    for noise in (*(make() for make in NOISES.values()), MIXTURE, Colored(jnp.reciprocal, axes=1), Colored(_cubic)):
        check_standardized(noise)
    jax.jit(lambda x: (check_standardized(Colored(_cubic)), x)[1])(0.0)
    with pytest.raises(ValueError, match="variance 4"):
        jax.jit(lambda x: (check_standardized(Doubled()), x)[1])(0.0)


def _cubic(frequency: jax.Array) -> jax.Array:
    return frequency**-3


def test_every_registered_noise_is_tested() -> None:
    assert set(NOISES) <= {*CONTINUOUS, *DISCRETE, "blue", "pink"}
