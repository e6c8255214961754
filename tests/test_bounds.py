"""The discrete bound against its expectation for normal data, and against the true likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import bounds, oracles, processes, schedules

pytestmark = pytest.mark.usefixtures("x64")

MEAN, VARIANCE = np.array([0.4, -0.2]), np.array([0.3, 0.05])


def bound_of_normal_data(schedule: schedules.Schedule, n: int) -> tuple[bounds.Bound, np.ndarray]:
    data = oracles.gaussian(MEAN, VARIANCE, schedule=schedule)
    x0 = data.data.sample(jax.random.key(0), n)
    found = bounds.variational_bound(jax.random.key(1), data, processes.Gaussian(schedule), x0)
    return jax.device_get(found), np.asarray(x0)


def test_every_term_has_its_exact_expectation():
    """E|x_0 − x̂_0|² = Σ v σ²/(α² v + σ²): each term within 4.5 standard errors, of 49 terms."""
    steps, n = 50, 4000
    schedule = schedules.linear(steps, beta_last=20 / steps)
    found, _ = bound_of_normal_data(schedule, n)
    k = np.arange(steps + 1) / steps
    alpha, sigma = (np.asarray(f(jnp.asarray(k)), np.float64) for f in (schedule.alpha, schedule.sigma))
    error = (VARIANCE * sigma[:, None] ** 2 / (alpha[:, None] ** 2 * VARIANCE + sigma[:, None] ** 2)).sum(1)
    snr = alpha[1:] ** 2 / sigma[1:] ** 2
    expected = 0.5 * (snr[:-1] - snr[1:]) * error[2:]
    assert found.steps.shape == (n, steps - 1)
    deviation = (found.steps.mean(0) - expected) / (found.steps.std(0) / np.sqrt(n))
    assert np.abs(deviation).max() < 4.5
    prior = 0.5 * snr[-1] * (MEAN**2 + VARIANCE).sum()
    assert abs(found.prior.mean() - prior) < 4 * found.prior.std() / np.sqrt(n)
    beta = 1 - alpha[1] ** 2
    decoder = np.log(2 * np.pi * beta) + error[1] / (2 * beta)
    assert abs(found.decoder.mean() - decoder) < 4 * found.decoder.std() / np.sqrt(n)


def test_the_bound_lies_above_the_entropy_and_comes_down_to_it():
    """The gap falls like 1/T where T steps share a fixed range of log-SNR (9 to −9). Measured on the same data."""
    law, gaps = stats.multivariate_normal(MEAN, np.diag(VARIANCE)), []
    for steps in (25, 100, 400):
        alpha_bar = 1 / (1 + np.exp(-np.linspace(9, -9, steps)))
        schedule = schedules.discrete(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
        found, x0 = bound_of_normal_data(schedule, 3000)
        excess = np.asarray(jax.device_put(found).total()) + law.logpdf(x0)
        gaps.append(excess.mean())
        assert gaps[-1] > -4 * excess.std() / np.sqrt(len(excess))
    assert gaps[1] < gaps[0] / 2.5
    assert gaps[2] < gaps[1] / 2.5
    assert gaps[2] < 0.3


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0.003, 0.3, 3.0])
def test_the_decoder_shares_the_mass_among_the_levels(levels, std):
    values, half = -1 + 2 * np.arange(levels) / (levels - 1), 1 / (levels - 1)
    for mean in (-1.2, 0.013, 0.9):
        found = bounds.log_decoder(jnp.asarray(values), jnp.full(levels, mean), jnp.asarray(std), levels)
        np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-12)
        edges = np.concatenate([[-np.inf], values[:-1] + half, [np.inf]])
        below, above = stats.norm.cdf(edges, mean, std), stats.norm.sf(edges, mean, std)
        mass = np.where(values > mean, above[:-1] - above[1:], below[1:] - below[:-1])
        near = mass > 1e-200
        np.testing.assert_allclose(np.asarray(found)[near], np.log(mass[near]), rtol=1e-9, atol=1e-12)
        assert np.isfinite(found).all()


def test_the_decoder_of_continuous_data_is_a_density():
    found = bounds.log_decoder(jnp.array([0.3]), jnp.array([0.1]), jnp.asarray(0.5), None)
    np.testing.assert_allclose(found, stats.norm.logpdf([0.3], 0.1, 0.5), rtol=1e-12)


def test_what_has_no_discrete_bound_is_refused():
    data = oracles.gaussian(MEAN, VARIANCE, schedule=schedules.VP())
    with pytest.raises(ValueError, match="has no steps"):
        bounds.variational_bound(jax.random.key(0), data, processes.Gaussian(data.schedule), jnp.zeros((1, 2)))
    linear = processes.Gaussian(schedules.linear(10))
    with pytest.raises(ValueError, match="levels = 1"):
        bounds.variational_bound(jax.random.key(0), data, linear, jnp.zeros((1, 2)), levels=1)
