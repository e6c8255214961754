"""Samples of a known normal distribution, against its mean and covariance within the standard error.

With the exact denoiser of data from N(m, C), x̂_0 = m + α C (α² C + σ² I)⁻¹ (x_t − α m), every sampler is an affine map
plus noise, and what it must give is known to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import schedules
from jaxdiff.samplers import timesteps
from jaxdiff.schedules import Schedule

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}
MEAN = np.array([0.8, -0.5])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])


def distribution_after(sampler: str, name: str, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance that a linear sampler must give from its prior N(0, σ_1² I), in numpy, in C's eigenbasis."""
    eta, v = {"ddim": (0, 0), "ddim:eta=0.5": (0.5, 0), "ddpm": (1, 0), "ddpm:variance=large": (1, 1)}[sampler]
    with jax.enable_x64(True):
        schedule, t = SCHEDULES[name], jnp.asarray(times)
        alphas, sigmas = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
    spectrum, basis = np.linalg.eigh(COVARIANCE)
    m = basis.T @ MEAN
    center, variance = np.zeros(2), np.full(2, sigmas[0] ** 2)
    for i in range(len(times) - 1):
        alpha_t, sigma_t, alpha_s, sigma_s = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
        transition = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        posterior = transition * sigma_s**2 / sigma_t**2
        direction = np.sqrt(max(sigma_s**2 - eta**2 * posterior, 0))
        total = alpha_t**2 * spectrum + sigma_t**2
        gain = (alpha_s * alpha_t * spectrum + direction * sigma_t) / total
        center = alpha_s * m + gain * (center - alpha_t * m)
        added = eta**2 * (transition if v else posterior) if times[i + 1] > 0 else 0
        variance = gain**2 * variance + added
    return basis @ center, basis @ np.diag(variance) @ basis.T


def assert_distribution(x: jax.Array, mean: np.ndarray, covariance: np.ndarray, *, errors: float = 4) -> None:
    """Sample mean and covariance within so many standard errors: √(C_ii/n) and √((C_ii C_jj + C_ij²)/n)."""
    n, variances = len(x), np.diag(covariance)
    np.testing.assert_array_less(np.abs(np.mean(x, axis=0) - mean), errors * np.sqrt(variances / n))
    of_covariance = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    np.testing.assert_array_less(np.abs(np.cov(x, rowvar=False) - covariance), errors * of_covariance)


def gaussian_samples(sampler: str, name: str, steps: int, rule: str, n: int) -> jax.Array:
    denoiser = jd.analytic.gaussian(MEAN, COVARIANCE, SCHEDULES[name])
    return jd.sample(jax.random.key(1), denoiser, sampler, shape=(2,), n=n, steps=steps, timesteps=rule)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("linear", "ddim"),
        ("linear", "ddpm:variance=large"),
        ("ve", "ddim:eta=0.5"),
        ("flow", "ddpm"),
    ],
)
@pytest.mark.quick(name=["ve", "flow"])
def test_few_steps_give_exactly_the_distribution_they_must(sampler: str, name: str) -> None:
    """5 steps, far from the data's distribution; 20000 samples, within 4 standard errors (0.7 % of a variance)."""
    times = timesteps.make("uniform", 5, SCHEDULES[name])
    x = gaussian_samples(sampler, name, 5, "uniform", 20_000)
    assert_distribution(x, *distribution_after(sampler, name, times))


@pytest.mark.thorough
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 400), ("heun", 60), ("ddpm", 400)])
def test_a_known_gaussian_is_sampled(sampler: str, steps: int) -> None:
    """To its mean and covariance within 4 standard errors of 4000 samples; 0.064 of a standard deviation for the mean.

    The cosine schedule's α_1 = 5e-5 neglects no mean worth seeing. So many quadratic timesteps leave a bias of
    less than one standard error: that is asserted first, except for Heun.
    """
    n = 4000
    if sampler != "heun":
        mean, covariance = distribution_after(
            sampler, "cosine", timesteps.make("quadratic", steps, SCHEDULES["cosine"])
        )
        np.testing.assert_allclose(mean, MEAN, atol=np.sqrt(0.4 / n))
        np.testing.assert_allclose(covariance, COVARIANCE, atol=0.4 * np.sqrt(2 / n))
    assert_distribution(gaussian_samples(sampler, "cosine", steps, "quadratic", n), MEAN, COVARIANCE)
