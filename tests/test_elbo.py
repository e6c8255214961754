"""The bounds against their expectations for normal data, and against true likelihoods."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import schedules
from jaxdiff.denoisers import analytic
from jaxdiff.likelihood import Elbo, continuous_elbo, elbo
from jaxdiff.likelihood.elbo import log_decoder, reconstruction_term
from jaxdiff.processes import Gaussian
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("x64")

MEAN, VARIANCE = np.array([0.4, -0.2]), np.array([0.3, 0.05])


def elbo_of_normal_data(schedule: schedules.Schedule, n: int) -> tuple[Elbo, np.ndarray]:
    data = analytic.gaussian(MEAN, VARIANCE, schedule=schedule)
    x0 = data.data.sample(jax.random.key(0), n)
    return jax.device_get(elbo(jax.random.key(1), data, x0)), np.asarray(x0)


@pytest.mark.thorough
def test_every_term_has_its_exact_expectation():
    """E|x_0 − x̂_0|² = Σ v σ²/(α² v + σ²): each term within 4.5 standard errors, of 49 terms."""
    steps, n = 50, 4000
    schedule = schedules.Linear(steps)
    found, _ = elbo_of_normal_data(schedule, n)
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


@pytest.mark.thorough
def test_the_bound_lies_above_the_entropy_and_comes_down_to_it():
    """The gap falls like 1/T where T steps share a fixed range of log-SNR (9 to −9). Measured on the same data."""
    truth, gaps = stats.multivariate_normal(MEAN, np.diag(VARIANCE)), []
    for steps in (25, 100, 400):
        alpha_bar = 1 / (1 + np.exp(-np.linspace(9, -9, steps)))
        schedule = schedules.Discrete(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
        found, x0 = elbo_of_normal_data(schedule, 3000)
        excess = np.asarray(jax.device_put(found).total()) + truth.logpdf(x0)
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
        found = log_decoder(jnp.asarray(values), jnp.full(levels, mean), jnp.asarray(std), levels)
        np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-12)
        edges = np.concatenate([[-np.inf], values[:-1] + half, [np.inf]])
        below, above = stats.norm.cdf(edges, mean, std), stats.norm.sf(edges, mean, std)
        mass = np.where(values > mean, above[:-1] - above[1:], below[1:] - below[:-1])
        near = mass > 1e-200
        np.testing.assert_allclose(np.asarray(found)[near], np.log(mass[near]), rtol=1e-9, atol=1e-12)
        assert np.isfinite(found).all()


def test_the_decoder_of_continuous_data_is_a_density():
    found = log_decoder(jnp.array([0.3]), jnp.array([0.1]), jnp.asarray(0.5), None)
    np.testing.assert_allclose(found, stats.norm.logpdf([0.3], 0.1, 0.5), rtol=1e-12)


HIGH, LOW = 9.0, -6.0


def bent() -> schedules.Learned:
    """A schedule between the same ends as the others, of another shape: steep in the middle."""
    schedule = schedules.Learned.init(jax.random.key(4), log_snr_max=HIGH, log_snr_min=LOW, hidden=8)
    one = jnp.full(8, 9.0)
    return dataclasses.replace(schedule, slopes=one, offsets=-one / 2, heights=2 * one)


SHAPES = {
    "bent": bent,
    "truncated_cosine": lambda: schedules.TruncatedCosine(log_snr_max=HIGH, log_snr_min=LOW),
}


@pytest.mark.thorough
def test_the_continuous_bound_of_normal_data_is_the_exact_one_whatever_the_shape_of_the_schedule():
    """Each part against its closed form; the shapes' integrands differ by far more than their means."""
    n, integrands = 2000, []
    snr_0, snr_1 = math.exp(HIGH), math.exp(LOW)
    for make in SHAPES.values():
        schedule = make()
        data = analytic.gaussian(MEAN, VARIANCE, schedule=schedule)
        x0 = data.data.sample(jax.random.key(0), n)
        found = continuous_elbo(jax.random.key(1), data, x0, draws=8)
        parts = [np.asarray(part) for part in (*found, found.total())]
        expected = [
            0.5 * snr_1 * (MEAN**2 + VARIANCE).sum(),
            0.5 * np.log((1 + VARIANCE * snr_0) / (1 + VARIANCE * snr_1)).sum(),
            0.5 * 2 * np.log(2 * np.pi * np.e / snr_0),
        ]
        for part, mean in zip(parts, [*expected, sum(expected)], strict=True):
            assert abs(part.mean() - mean) < 4 * part.std() / math.sqrt(n)
        assert parts[1].std() / math.sqrt(n) < 0.05 * expected[1]
        entropy = stats.multivariate_normal(MEAN, np.diag(VARIANCE)).entropy()
        assert 0 < sum(expected) - entropy < 0.1
        integrands.append(float(schedules.log_snr_rate(schedule, 0.5)))
    assert min(integrands) < 2 * max(integrands)


def test_the_continuous_bound_of_levels_comes_down_to_their_entropy():
    """Data of 3 levels: with the exact denoiser nothing is lost but what lies beyond the ends."""
    n, weights, schedule = 4000, np.array([0.2, 0.5, 0.3]), schedules.TruncatedCosine(log_snr_max=9, log_snr_min=-12)
    data = analytic.mixture(weights, [[-1.0], [0.0], [1.0]], [0.0, 0.0, 0.0], schedule=schedule)
    x0 = data.data.sample(jax.random.key(2), n)
    found = continuous_elbo(jax.random.key(3), data, x0, levels=3, draws=16)
    cost = np.asarray(found.total()) + np.log(weights)[np.asarray(x0[:, 0]).astype(int) + 1]
    assert abs(cost.mean()) < 4 * cost.std() / math.sqrt(n)
    assert cost.std() / math.sqrt(n) < 0.02


@pytest.mark.parametrize("log_snr", [9.0, 1.0])
def test_the_reconstruction_is_the_noise_density_normalized_over_the_levels(log_snr):
    """z_0/α_0 ~ N(v_k, 1/SNR_0) for the level v_k."""
    levels, values = 17, -1 + 2 * np.arange(17) / 16
    process = Gaussian(schedules.TruncatedCosine(log_snr_max=log_snr))
    x0, key = jnp.asarray(values[[0, 3, 16]]), jax.random.key(5)
    noisy, std = (
        np.asarray(x0) + math.exp(-log_snr / 2) * np.asarray(process.sample_noise(key, (3,))),
        math.exp(-log_snr / 2),
    )
    densities = stats.norm.pdf(noisy[:, None], values, std)
    truth = -np.log(densities[[0, 1, 2], [0, 3, 16]] / densities.sum(1)).sum()
    found = reconstruction_term(key, process, x0, levels=levels)
    assert float(found) == pytest.approx(truth, rel=1e-9)
    density = reconstruction_term(key, process, x0, levels=None)
    assert float(density) == pytest.approx(-stats.norm.logpdf(np.asarray(x0), noisy, std).sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("bound", "schedule", "options", "message"),
    [
        (continuous_elbo, schedules.VP(), {}, "has no noise at t = 0, where the continuous bound starts"),
        (continuous_elbo, schedules.Linear(25), {}, "has no noise at t = 0, where the continuous bound starts"),
        (continuous_elbo, schedules.EDM(), {"levels": 1}, "levels = 1"),
        (continuous_elbo, schedules.EDM(), {"draws": 0}, "draws = 0"),
        (elbo, schedules.VP(), {}, "is continuous, but this bound is a sum over timesteps"),
        (elbo, schedules.Linear(25), {"levels": 1}, "levels = 1"),
    ],
)
def test_inputs_without_a_bound_are_refused(bound, schedule, options, message):
    data = analytic.gaussian(MEAN, VARIANCE, schedule=schedule)
    with pytest.raises(InputError, match=message):
        bound(jax.random.key(0), data, jnp.zeros((1, 2)), **options)
