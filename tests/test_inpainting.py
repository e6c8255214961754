"""Sampling given a part of the sample, against the exact conditional of normal data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import inpainting, oracles, samplers, schedules
from jaxdiff.inpainting import Known

SCHEDULE = schedules.VP()
PROCESS = jd.Gaussian(SCHEDULE)
RHO = 0.8
COVARIANCE = 0.25 * np.array([[1, RHO], [RHO, 1]])


def draw(sampler: samplers.Sampler, covariance: Any, *, n: int = 8000, steps: int = 40) -> np.ndarray:
    """Samples of normal data whose first coordinate is known to be 0.6."""
    denoise = inpainting.inpainting(oracles.gaussian([0.0, 0.0], covariance, schedule=SCHEDULE), PROCESS)
    known = Known(jnp.tile(jnp.array([0.6, 7.0]), (n, 1)), jnp.tile(jnp.array([True, False]), (n, 1)))
    x = jd.sample(jax.random.key(0), denoise, PROCESS, sampler, shape=(2,), n=n, steps=steps, cond=known)
    return np.asarray(x)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun"])
def test_what_is_known_is_kept_and_what_is_independent_of_it_is_sampled_as_ever(name: str) -> None:
    x = draw(samplers.make(name), np.array([0.25, 0.25]), n=8)
    np.testing.assert_allclose(x[:, 0], 0.6, rtol=1e-5)
    denoise = oracles.gaussian([0.0, 0.0], np.array([0.25, 0.25]), schedule=SCHEDULE)
    plain = jd.sample(jax.random.key(0), denoise, PROCESS, samplers.make(name), shape=(2,), n=8, steps=40)
    np.testing.assert_allclose(x[:, 1], plain[:, 1], rtol=1e-4, atol=1e-5)


def test_resampling_brings_the_rest_to_its_conditional_law() -> None:
    """x_2 given x_1 = 0.6 has the mean 0.48 and the standard deviation 0.3; 150 steps are a little too narrow."""
    once = draw(samplers.ddpm(), COVARIANCE)[:, 1]
    often = draw(inpainting.resampled(samplers.ddpm(), 10), COVARIANCE, steps=150)[:, 1]
    error = 0.3 / np.sqrt(8000)
    assert abs(often.mean() - 0.48) < 4 * error + 0.015
    assert 0.25 < often.std() < 0.31
    assert once.mean() < often.mean() - 10 * error  # too loosely fitted


def test_resampling_leaves_the_law_of_exact_data_alone() -> None:
    """Without a mask, jumping there and back does not change what is sampled, up to the error of 200 steps."""
    denoise = oracles.gaussian([0.3], [0.25], schedule=SCHEDULE)
    sampler = inpainting.resampled(samplers.ddpm(), 3)
    x = jd.sample(jax.random.key(0), denoise, PROCESS, sampler, shape=(1,), n=8000, steps=200)
    assert abs(np.mean(x) - 0.3) < 4 * 0.5 / np.sqrt(8000) + 0.01
    assert abs(np.std(x) / 0.5 - 1) < 4 / np.sqrt(16000) + 0.03


def test_bad_input_is_refused() -> None:
    denoise = inpainting.inpainting(oracles.gaussian([0.0, 0.0], COVARIANCE, schedule=SCHEDULE), PROCESS)
    with pytest.raises(ValueError, match=r"known.mask \(1,\); a sample here has \(2,\)"):
        denoise(jnp.zeros(2), 0.5, Known(jnp.zeros(2), jnp.ones(1, bool)))
    with pytest.raises(ValueError, match="times = 0; the rule is 1 or more"):
        inpainting.resampled(samplers.ddpm(), 0)
    with pytest.raises(ValueError, match="remembers earlier steps"):
        jd.sample(
            jax.random.key(0),
            oracles.gaussian([0.0], [0.25], schedule=SCHEDULE),
            PROCESS,
            inpainting.resampled(samplers.dpmpp(2)),
            shape=(1,),
            n=1,
            steps=2,
        )
