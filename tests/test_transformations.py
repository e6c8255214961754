"""Every public function of arrays runs under jit, vmap and grad, with every rule for timesteps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import losses
from jaxdiff.typing import InputError, Prediction

KEY = jax.random.key(0)
SCHEDULES = {
    "cosine": jd.schedules.Cosine(20),
    "learned": jd.schedules.Learned.init(hidden=8, log_snr_min=-9.0),
}


def exact(schedule: Any, scale: Any = 1.0) -> Any:
    """The exact denoiser of N(0, scale²) in two dimensions, as a network whose parameter is the scale."""

    def apply(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return params**2 * alpha * x / (params**2 * alpha**2 + sigma**2)

    return jd.denoiser(apply, jnp.asarray(scale), jd.Gaussian(schedule), predicts="x0")


def mixture(schedule: Any) -> Any:
    return jd.analytic.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1], schedule)


# Functions of one number, the scale of the data, with a schedule that may be traced.
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "simple": lambda schedule, a: losses.simple(exact(schedule, a), jnp.ones(2), 0.5, key=KEY),
    "weighted": lambda schedule, a: losses.weighted(
        exact(schedule, a), jnp.ones(2), 0.5, key=KEY, weight=losses.weightings.sigmoid(), target="v"
    ),
    "encode": lambda schedule, a: jd.encode(exact(schedule, a), jnp.ones((2, 2))),
    "decode": lambda schedule, a: jd.decode(exact(schedule, a), jnp.ones((2, 2))),
    "slerp": lambda schedule, a: jd.slerp(a * jnp.ones(2), jnp.array([1.0, 0.0]), 0.3),
    "log_likelihood": lambda schedule, a: jd.log_likelihood(exact(schedule, a), jnp.ones((2, 2))).log_density,
    "clipped": lambda schedule, a: jd.clip_denoised(exact(schedule, a))(jnp.ones(2), 0.5).x0,
    "guided": lambda schedule, a: jd.guidance.classifier_free(mixture(schedule), a)(jnp.ones(2), 0.5, jnp.array(0)).x0,
    "inpainting": lambda schedule, a: (
        jd.inpainting.inpainting(exact(schedule, a))(
            jnp.ones(2), 0.5, jd.inpainting.Known(jnp.ones(2), jnp.array([True, False]))
        ).x0
    ),
    "elbo": lambda schedule, a: (
        jd.elbo(KEY, exact(schedule, a), jnp.ones((2, 2)))
        if schedule.num_timesteps
        else jd.continuous_elbo(KEY, exact(schedule, a), jnp.ones((2, 2)), draws=2)
    ).total(),
    **{
        f"sample:{rule}": (
            lambda schedule, a, rule=rule: jd.sample(
                KEY, exact(schedule, a), "heun", steps=4, timesteps=rule, shape=(2,), n=3
            )
        )
        for rule in jd.timesteps.TIMESTEPS
    },
    "sample:given": lambda schedule, a: jd.sample(
        KEY, exact(schedule, a), "unipc", timesteps=[1.0, 0.4, 0.1, 0.0], shape=(2,), n=3
    ),
}


# A learned schedule has arrays that are traced; a discrete one has rules of its own for timesteps and the bound.
CASES = [(name, schedule) for name in FUNCTIONS for schedule in SCHEDULES]
CASES = [(name, schedule) for name, schedule in CASES if schedule == "learned" or name.startswith(("sample", "elbo"))]


@pytest.mark.parametrize(("name", "schedule"), CASES)
@pytest.mark.quick(schedule=["learned"])
@pytest.mark.quick(name=["elbo", "sample:uniform"])
def test_a_function_of_arrays_runs_under_every_transformation(name: str, schedule: str) -> None:
    """Traced by jit, with the arrays of a learned schedule; its gradient is the slope between three mapped calls."""

    def total(schedule: Any, a: Any) -> Any:
        return jnp.sum(FUNCTIONS[name](schedule, a))

    a, h = 0.8, 1e-2
    value, gradient = jax.jit(jax.value_and_grad(total, argnums=1))(SCHEDULES[schedule], a)
    low, middle, high = jax.jit(jax.vmap(total, (None, 0)))(SCHEDULES[schedule], jnp.array([a - h, a, a + h]))
    assert np.isfinite([value, gradient]).all()
    np.testing.assert_allclose(middle, value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradient, (high - low) / (2 * h), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("n", [2.5, "2", 0, None, True - 1])
def test_a_number_of_samples_that_is_no_whole_number_is_named(n: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match="n = "):
        jd.sample(KEY, exact(SCHEDULES["cosine"]), "ddim", steps=2, shape=(2,), n=n)


@pytest.mark.parametrize(("steps", "shape"), [(2.5, (2,)), ("2", (2,)), (0, (2,)), (None, (2,)), (2, 2), (2, (2.5,))])
def test_other_wrong_sizes_are_named(steps: Any, shape: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"(steps = |steps is missing|shape = )"):
        jd.sample(KEY, exact(SCHEDULES["cosine"]), "ddim", steps=steps, shape=shape, n=2)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_a_start_may_have_any_float_dtype(dtype: Any, unchecked: None) -> None:
    options: dict[str, Any] = {"timesteps": [0.5, 0.2, 0.0], "shape": (2,), "n": 3}
    start = np.array([[0.5, 0.25], [-1.0, 0.0], [2.0, 1.0]])
    found = jd.sample(KEY, exact(SCHEDULES["cosine"]), "ddim", start=start.astype(dtype), **options)
    assert found.dtype == jnp.float32
    expected = jd.sample(KEY, exact(SCHEDULES["cosine"]), "ddim", start=start.tolist(), **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, complex])
def test_a_start_of_other_numbers_is_refused(dtype: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match="start has dtype"):
        jd.sample(
            KEY, exact(SCHEDULES["cosine"]), "ddim", timesteps=[0.5, 0.0], shape=(2,), n=1, start=np.ones((1, 2), dtype)
        )


def test_traced_times_and_a_classifier_without_a_process_are_named(unchecked: None) -> None:
    with pytest.raises(InputError, match="timesteps is traced"):
        jax.jit(lambda t: jd.sample(KEY, exact(SCHEDULES["cosine"]), "ddim", timesteps=t, shape=(2,), n=1))(
            jnp.array([1.0, 0.0])
        )
    with pytest.raises(InputError, match="has no process"):
        losses.cross_entropy(lambda x, t, label: 0.0, jnp.ones(2), jnp.array(0), 0.5, key=KEY)
    plain: Any = lambda x, t, cond: Prediction(x, x)  # noqa: E731
    with pytest.raises(InputError, match="has no process"):
        jd.sample(KEY, plain, "ddim", steps=2, shape=(2,), n=1)
