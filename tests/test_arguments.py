"""Samples, starts, conditions, keys and lists of times that can't be right are named; right ones of any dtype agree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import losses, schedules
from jaxdiff.samplers import timesteps
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("unchecked")

KEY, X0 = jax.random.key(0), jnp.array([[1.0, 0.0], [1.0, -1.0]])


def exact(schedule: Any) -> Any:
    return jd.analytic.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.3]], [0.1, 0.2], schedule)


VP, FEW, SMOOTH = exact(schedules.VP()), exact(schedules.Linear(25)), exact(schedules.TruncatedCosine())
OF_SAMPLES = {
    "encode": lambda x, **options: jd.encode(VP, x, **options),
    "log_likelihood": lambda x, **options: jd.log_likelihood(VP, x, **options).log_density,
    "elbo": lambda x, **options: jd.elbo(KEY, FEW, x, **options).total(),
    "continuous_elbo": lambda x, **options: jd.continuous_elbo(KEY, SMOOTH, x, draws=4, **options).total(),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_samples_of_every_real_dtype_give_the_same(name: str) -> None:
    """The numbers 0 and ±1 are exact in all of them, so that only the dtype of what is computed could differ."""
    expected = OF_SAMPLES[name](X0)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.int32, np.uint8):
        x0 = jnp.abs(X0) if dtype is np.uint8 else X0
        found = OF_SAMPLES[name](x0.astype(dtype))
        np.testing.assert_allclose(found[:1], expected[:1], rtol=1e-6, err_msg=str(dtype))
    np.testing.assert_allclose(OF_SAMPLES[name](X0.tolist()), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (X0 > 0, "dtype bool"),
        (X0 + 1j, "dtype complex64"),
        (jnp.zeros(()), r"shape \(\)"),
        (X0[:0], r"shape \(0, 2\)"),
        (X0.at[0, 0].set(jnp.nan), "not finite"),
        (np.full((2, 2), 1e300), "not finite"),
        (np.array([["a", "b"]]), "an array of numbers"),
        ([[1.0, 2.0], [3.0]], "an array of numbers"),
        ("images", "an array of numbers"),
        (None, "an array of numbers"),
    ],
)
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_what_is_no_batch_of_samples_is_named(name: str, x0: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^x0 .*{message}"):
        OF_SAMPLES[name](x0)


@pytest.mark.parametrize("cond", [jnp.zeros(5, int), np.array(["a", "b"]), jnp.zeros(())])
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_conditions_are_one_for_each_sample(name: str, cond: Any) -> None:
    with pytest.raises(InputError, match=r"^cond"):
        OF_SAMPLES[name](X0, cond=cond)


@pytest.mark.parametrize("bound", [OF_SAMPLES["elbo"], OF_SAMPLES["continuous_elbo"]])
def test_images_of_levels_lie_in_their_range(bound: Any) -> None:
    with pytest.raises(InputError, match=r"^x0 has values beyond \[-1, 1\], where 256 levels lie"):
        bound(jnp.array([[255.0, 3.0]]), levels=256)


@pytest.mark.parametrize(
    "start",
    [0.5, "noise", {"x": 1}, [[1, 2], [3]], np.full((2, 2), np.nan), np.full((2, 2), 1e300), np.ones((2, 2), int)],
)
def test_a_wrong_start_is_named(start: Any) -> None:
    with pytest.raises(InputError, match=r"^start"):
        jd.sample(KEY, VP, "ddim", n=2, shape=(2,), steps=2, start=start)


@pytest.mark.parametrize("times", [{0, 1}, ["1", "0"], [1 + 0j, 0], [1, 1e-60, 0], [1, 0.5, 0.5 - 1e-12], [None, 0]])
def test_times_that_are_no_falling_numbers_of_float32_are_named(times: Any) -> None:
    with pytest.raises(InputError, match=r"^timesteps"):
        jd.sample(KEY, VP, "ddim", n=2, shape=(2,), timesteps=times)


@pytest.mark.thorough
@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_times_near_the_ends_are_sampled_or_refused(name: str) -> None:
    """A discrete schedule moves times within a rounding of k/T to k/T, where 1e-7 is 0, and two of them may be one."""
    denoiser = exact(schedules.SCHEDULES[name]())
    for times in ([1, 0.5, 1e-6, 0], [1, 0.5, 1e-7, 0], [1, 0.5, 1e-30, 0], [1, 1 - 6e-8, 0.5, 0]):
        for sampler in ("ddim", "ddpm", "dpm++2m", "unipc"):
            try:
                x0 = jd.sample(KEY, denoiser, sampler, n=2, shape=(2,), timesteps=times)
            except InputError as error:
                assert "have the same noise" in str(error)  # noqa: PT017
            else:
                assert np.isfinite(x0).all(), (times, sampler)


@pytest.mark.parametrize("rule", timesteps.TIMESTEPS)
@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.quick(name=["linear", "vp"])
def test_rules_give_times_that_float32_tells_apart(name: str, rule: str) -> None:
    schedule = schedules.SCHEDULES[name]()
    for steps in (1, 2, 10, 50, 1000):
        times = timesteps.make(rule, steps, schedule).astype(np.float32)
        assert len(times) == steps + 1
        assert (np.diff(times) < 0).all()


@pytest.mark.thorough
def test_the_log_snr_rule_samples_under_a_schedule_that_is_steep_at_noise() -> None:
    """Under `Sigmoid`, λ falls by most of its range within the last millionths of the path."""
    denoiser = exact(schedules.Sigmoid())
    for sampler in ("dpm++2m", "dpm++3m", "unipc"):
        x0 = jd.sample(KEY, denoiser, sampler, n=4000, shape=(2,), steps=50, timesteps="log_snr")
        np.testing.assert_allclose(x0.mean(0), denoiser.data.mean(), atol=0.08)  # five standard errors
        np.testing.assert_allclose(np.cov(x0.T), denoiser.data.covariance(), atol=0.08)


@pytest.mark.parametrize("key", [0, None, "key", jax.random.split(KEY, 3), np.zeros(2, np.uint32)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jd.sample(key, VP, "ddim", n=2, shape=(2,), steps=2),
        lambda key: losses.simple(VP, X0[0], 0.5, key=key),
        lambda key: VP.process.sample_prior(key, (2,)),
        lambda key: VP.process.sample_noise(key, (2,)),
        lambda key: VP.data.sample(key, 2),
        lambda key: jd.elbo(key, FEW, X0),
    ],
)
def test_what_is_no_key_is_named(draw: Any, key: Any) -> None:
    with pytest.raises(InputError, match=r"^key = .*a single typed key"):
        draw(key)


@pytest.mark.parametrize("wrong", [True, 2.5, "2", None, -1])
def test_counts_are_whole_numbers(wrong: Any) -> None:
    for use, name in (
        (lambda: jd.sample(KEY, VP, "ddim", n=wrong, shape=(2,), steps=2), "n"),
        (lambda: jd.sample(KEY, VP, "ddim", n=2, shape=(2,), steps=wrong), "steps"),
        (lambda: jd.log_likelihood(VP, X0, key=KEY, probes=wrong), "probes"),
        (lambda: jd.continuous_elbo(KEY, SMOOTH, X0, draws=wrong), "draws"),
    ):
        with pytest.raises(InputError, match=f"^{name} (= |is missing)"):
            use()


def test_a_solver_is_no_name() -> None:
    with pytest.raises(InputError, match=r"^solver = 'heun'"):
        jd.encode(VP, X0, solver="heun")  # type: ignore[arg-type]
