"""Sampling with a part of the sample known, against the exact conditional of normal data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import analytic, inpainting, samplers, schedules
from jaxdiff.denoisers.inpainting import Known
from jaxdiff.samplers import DDPM, RePaint
from jaxdiff.typing import InputError

SCHEDULE = schedules.VP()
RHO = 0.8
COVARIANCE = 0.25 * np.array([[1, RHO], [RHO, 1]])


def draw(sampler: Any, covariance: Any, *, n: int = 8000, steps: int = 40) -> np.ndarray:
    """Samples of normal data whose first coordinate is known to be 0.6."""
    denoiser = inpainting.inpainting(analytic.gaussian([0.0, 0.0], covariance, SCHEDULE))
    known = Known(jnp.tile(jnp.array([0.6, 7.0]), (n, 1)), jnp.tile(jnp.array([True, False]), (n, 1)))
    return np.asarray(jd.sample(jax.random.key(0), denoiser, sampler, shape=(2,), n=n, steps=steps, cond=known))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun"])
def test_the_known_part_is_kept_and_what_is_independent_of_it_is_sampled_as_without_it(name: str) -> None:
    x = draw(name, np.array([0.25, 0.25]), n=8)
    np.testing.assert_allclose(x[:, 0], 0.6, rtol=1e-5)
    denoiser = analytic.gaussian([0.0, 0.0], np.array([0.25, 0.25]), SCHEDULE)
    plain = jd.sample(jax.random.key(0), denoiser, name, shape=(2,), n=8, steps=40)
    np.testing.assert_allclose(x[:, 1], plain[:, 1], rtol=1e-4, atol=1e-5)


def test_repaint_brings_the_rest_to_its_conditional_distribution() -> None:
    """x_2 given x_1 = 0.6 has the mean 0.48 and the standard deviation 0.3; 150 steps are a little too narrow."""
    once = draw(DDPM(), COVARIANCE)[:, 1]
    often = draw(RePaint(DDPM(), times=10), COVARIANCE, steps=150)[:, 1]
    error = 0.3 / np.sqrt(8000)
    assert abs(often.mean() - 0.48) < 4 * error + 0.015
    assert 0.25 < often.std() < 0.31
    assert once.mean() < often.mean() - 10 * error  # too loosely fitted


def test_repaint_leaves_the_distribution_of_samples_unchanged() -> None:
    """Without a mask, going back and forth does not change it, up to the error of 200 steps."""
    denoiser = analytic.gaussian([0.3], [0.25], SCHEDULE)
    x = jd.sample(jax.random.key(0), denoiser, RePaint(DDPM(), times=3), shape=(1,), n=8000, steps=200)
    assert abs(np.mean(x) - 0.3) < 4 * 0.5 / np.sqrt(8000) + 0.01
    assert abs(np.std(x) / 0.5 - 1) < 4 / np.sqrt(16000) + 0.03


def test_bad_input_is_refused() -> None:
    exact = analytic.gaussian([0.0, 0.0], COVARIANCE, SCHEDULE)
    with pytest.raises(InputError, match=r"known.mask \(1,\); a sample here has \(2,\)"):
        inpainting.inpainting(exact)(jnp.zeros(2), 0.5, Known(jnp.zeros(2), jnp.ones(1, bool)))
    with pytest.raises(InputError, match=r"inpainting takes a jaxdiff\.inpainting\.Known"):
        inpainting.inpainting(exact)(jnp.zeros(2), 0.5)
    with pytest.raises(InputError, match="times = 0; it must be"):
        RePaint(DDPM(), times=0)
    with pytest.raises(InputError, match="remembers earlier steps"):
        jd.sample(jax.random.key(0), exact, RePaint(samplers.DPMSolver(order=2), times=3), shape=(2,), n=1, steps=2)
