"""Schedules end in noise for any number of timesteps, say so where they do not, and may end in noise alone."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import schedules
from jaxdiff.processes import base
from jaxdiff.schedules import Schedule, log_snr_rate, rates
from jaxdiff.typing import InputError

NOISE = schedules.Discrete([0.1, 0.3, 0.5, 1.0])


@pytest.mark.parametrize("T", [21, 50, 100, 250, 4000])
def test_a_linear_schedule_has_the_betas_of_improved_diffusion(T: int) -> None:
    """Nichol & Dhariwal scale both ends by 1000/T. The tables are those of these β in float64, to the last bit."""
    betas = np.linspace(1000 / T * 1e-4, 1000 / T * 0.02, T)
    t = jnp.linspace(0, 1, 13)
    np.testing.assert_array_equal(schedules.Linear(T).log_alpha(t), schedules.Discrete(betas).log_alpha(t))


def test_a_linear_schedule_of_1000_timesteps_is_that_of_ddpm_to_the_last_bit() -> None:
    t = jnp.arange(1001) / 1000
    expected = schedules.Discrete(np.linspace(1e-4, 0.02, 1000)).log_alpha(t)
    np.testing.assert_array_equal(schedules.Linear(1000).log_alpha(t), expected)


def test_samples_of_few_linear_timesteps_have_the_mean_of_the_data() -> None:
    """Unscaled, 50 timesteps give the mean 0.39 in place of 0.7. Four standard errors of 4,000 samples: 0.032."""
    exact = jd.analytic.gaussian([0.7], 0.25, schedules.Linear(50))
    x = jd.sample(jax.random.key(0), exact, "ddpm", steps=50, shape=(1,), n=4000)
    assert abs(float(x.mean()) - 0.7) < 0.032


@pytest.mark.parametrize(
    ("schedule", "warns"),
    [
        (schedules.Discrete(np.linspace(1e-4, 0.02, 100)), True),
        (schedules.VE(sigma_max=2.0), True),
        (schedules.VP(beta_max=2.0), True),
        (schedules.TruncatedCosine(log_snr_min=-2.0), True),
        *((make(), False) for make in schedules.SCHEDULES.values()),
        (NOISE, False),
    ],
    ids=repr,
)
def test_data_that_show_in_the_prior_are_warned_of_once(schedule: Schedule, warns: bool) -> None:
    base._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for n in (1, 2):
            jd.Gaussian(schedule).sample_prior(jax.random.key(0), (n,))
    assert len(caught) == warns
    assert not warns or "signal-to-noise ratio" in str(caught[0].message)


def test_sampling_warns_of_data_that_show_in_the_prior() -> None:
    base._warn_once.cache_clear()
    exact = jd.analytic.gaussian([0.7], 0.25, schedules.VP(beta_max=2.0))
    with pytest.warns(UserWarning, match="signal-to-noise"):
        jd.sample(jax.random.key(0), exact, "ddim", steps=2, shape=(1,), n=1)


def test_a_perturbed_process_that_hides_the_data_otherwise_is_not_warned_of() -> None:
    base._warn_once.cache_clear()
    process = jd.Perturbed(schedules.VE(sigma_max=0.3), transform=jd.transforms.Scale(1e-3))
    process.sample_prior(jax.random.key(0), (2,))
    with pytest.warns(UserWarning, match="signal-to-noise"):
        jd.Perturbed(schedules.VE(sigma_max=0.3)).sample_prior(jax.random.key(0), (2,))


@pytest.mark.thorough
def test_a_last_beta_of_1_ends_in_noise_alone(x64: None) -> None:
    """α is √ᾱ_k at the timesteps and linear in the last segment; the log-SNR falls to −∞ and has an inverse."""
    k = np.arange(5)
    alphas = np.sqrt(np.concatenate([[1], np.cumprod([0.9, 0.7, 0.5, 0.0])]))
    np.testing.assert_allclose(NOISE.alpha(jnp.asarray(k / 4)), alphas, rtol=1e-14)
    np.testing.assert_allclose(NOISE.alpha(0.95), alphas[3] * 0.2, rtol=1e-13)
    t = jnp.linspace(0, 1, 201)
    np.testing.assert_allclose(NOISE.alpha(t) ** 2 + NOISE.sigma(t) ** 2, 1, rtol=1e-14)
    assert np.all(np.diff(np.asarray(NOISE.log_snr(t))) < 0)
    assert NOISE.log_snr(1.0) == -np.inf
    np.testing.assert_allclose(NOISE.time(NOISE.log_snr(t)), t, atol=1e-12)
    d_alpha, d_sigma = rates(NOISE, 1.0)
    np.testing.assert_allclose([d_alpha, d_sigma], [-4 * alphas[3], 0], atol=1e-12)
    assert log_snr_rate(NOISE, 1.0) == -np.inf


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", ["v", "x0", "velocity"])
def test_a_model_samples_from_noise_alone(predicts: str) -> None:
    """The exact network in each parameterization gives the mean and the deviation of the data."""
    betas = np.append(np.linspace(1e-3, 0.3, 49), 1.0)
    exact = jd.analytic.gaussian([0.7], 0.25, schedules.Discrete(betas))

    def apply(_: None, x: jax.Array, t: jax.Array) -> jax.Array:
        def one(x: jax.Array, t: jax.Array) -> jax.Array:
            return jd.parameterization.from_prediction(predicts, exact(x, t), t=t, process=exact.process)

        return jax.vmap(one)(x, t)

    model = jd.denoiser(apply, None, exact.process, predicts=predicts)
    x = np.asarray(jd.sample(jax.random.key(0), model, "heun", steps=50, shape=(1,), n=4000))
    assert abs(x.mean() - 0.7) < 0.032  # four standard errors
    assert abs(x.std() - 0.5) < 0.03
    gradient = jax.grad(lambda x0: jd.losses.simple(model, x0, 1.0, key=jax.random.key(0), target=predicts))
    assert np.isfinite(gradient(jnp.ones(1))).all()


@pytest.mark.parametrize("predicts", ["eps", "score"])
def test_what_does_not_determine_x0_at_noise_alone_is_refused(predicts: str) -> None:
    with pytest.raises(InputError, match=f"predicts = '{predicts}'"):
        jd.denoiser(lambda _, x, t: x, None, jd.Gaussian(NOISE), predicts=predicts)
