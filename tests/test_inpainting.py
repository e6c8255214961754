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
@pytest.mark.quick(name=["ddpm", "heun"])
def test_the_known_part_is_kept_and_what_is_independent_of_it_is_sampled_as_without_it(name: str) -> None:
    x = draw(name, np.array([0.25, 0.25]), n=8)
    np.testing.assert_allclose(x[:, 0], 0.6, rtol=1e-5)
    denoiser = analytic.gaussian([0.0, 0.0], np.array([0.25, 0.25]), SCHEDULE)
    plain = jd.sample(jax.random.key(0), denoiser, name, shape=(2,), n=8, steps=40)
    np.testing.assert_allclose(x[:, 1], plain[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_repaint_brings_the_rest_to_its_conditional_distribution() -> None:
    """x_2 given x_1 = 0.6 has the mean 0.48 and the standard deviation 0.3; 150 steps are a little too narrow."""
    once = draw(DDPM(), COVARIANCE)[:, 1]
    often = draw(RePaint(DDPM(), times=10), COVARIANCE, steps=150)[:, 1]
    error = 0.3 / np.sqrt(8000)
    assert abs(often.mean() - 0.48) < 4 * error + 0.015
    assert 0.25 < often.std() < 0.31
    assert once.mean() < often.mean() - 10 * error  # too loosely fitted


@pytest.mark.thorough
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


def soft(mask: Any, x0: Any) -> Known:
    return Known(jnp.asarray(x0, jnp.float32), jnp.asarray(mask))


def test_a_soft_mask_blends_by_its_value() -> None:
    inner, x_t = analytic.gaussian([0.0, 0.0], COVARIANCE, SCHEDULE), jnp.array([0.3, -1.2])
    mask, x0 = np.array([0.25, 1e-6], np.float32), np.array([0.6, 0.7], np.float32)
    found = inpainting.inpainting(inner)(x_t, 0.5, soft(mask, x0))
    np.testing.assert_allclose(found.x0, mask * x0 + (1 - mask) * np.asarray(inner(x_t, 0.5).x0), rtol=1e-6)
    alpha, sigma = SCHEDULE.alpha(0.5), SCHEDULE.sigma(0.5)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.noise, x_t, rtol=1e-5)


def test_a_mask_of_0_and_1_gives_the_bits_of_a_boolean_mask() -> None:
    inner, x_t = analytic.gaussian([0.0, 0.0], COVARIANCE, SCHEDULE), jnp.array([0.3, -1.2])
    denoiser, predicted = inpainting.inpainting(inner), inner(x_t, 0.5)
    expected = np.array([0.6, predicted.x0[1]], np.float32)
    for mask in ([True, False], [1, 0], [1.0, 0.0], np.array([1, 0], np.uint8)):
        found = denoiser(x_t, 0.5, soft(mask, [0.6, 7.0]))
        np.testing.assert_array_equal(found.x0, expected)
        np.testing.assert_array_equal(found.noise, inner.process.infer_noise(jnp.asarray(expected), x_t, 0.5))


@pytest.mark.parametrize("mask", [[True, False], [0.5, 0.0]])
def test_what_is_not_known_may_be_nan_and_reaches_no_sample_and_no_gradient(mask: list) -> None:
    denoiser = inpainting.inpainting(analytic.gaussian([0.0, 0.0], COVARIANCE, SCHEDULE))
    known = soft(mask, [0.6, np.nan])

    def total(x_t: Any, known: Known) -> Any:
        prediction = denoiser(x_t, 0.5, known)
        return prediction.x0.sum() + prediction.noise.sum()

    for gradient in jax.tree.leaves(jax.grad(total, argnums=(0, 1), allow_int=True)(jnp.ones(2), known)):
        if gradient.dtype != jax.dtypes.float0:
            assert np.isfinite(gradient).all()
    rows = jax.tree.map(lambda leaf: leaf[None], known)
    options: Any = {"shape": (2,), "n": 1, "steps": 5}
    x = jd.sample(jax.random.key(0), denoiser, DDPM(), cond=rows, **options)
    again = jd.sample(jax.random.key(0), denoiser, DDPM(), cond=soft([mask], [[0.6, 0.1]]), **options)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x, again)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "mask", [[1.5, 0], [-1e-3, 0], [np.nan, 0], [255, 0], np.array([1j, 0]), np.array(["a", "b"]), np.array([None, 1])]
)
def test_a_mask_that_is_not_numbers_in_0_to_1_is_refused(mask: Any) -> None:
    with pytest.raises(InputError, match="mask has"):
        Known(np.zeros(2, np.float32), np.asarray(mask))
    with pytest.raises(InputError, match="mask has"):
        inpainting.fit_mask(np.asarray(mask), (3, 2))


def test_what_is_known_must_be_finite() -> None:
    for mask in ([True, True], [0.0, 1e-3]):
        with pytest.raises(InputError, match=r"x0 .*not finite"):
            soft(mask, [0.6, np.nan])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (2, 4, 5), (2, 4, 5, 1), (2, 4, 5, 3)])
def test_a_mask_may_lack_the_first_and_the_last_axis(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape, np.float32)
    found = inpainting.fit_mask(mask, (2, 4, 5, 3))
    full = mask if shape[:2] == (2, 4) else mask[None]
    np.testing.assert_array_equal(found, np.broadcast_to(full if full.ndim == 4 else full[..., None], (2, 4, 5, 3)))
