"""Orders of convergence and limits of the samplers, with the exact denoiser of a mixture, in float64."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import samplers, schedules
from jaxdiff.denoisers import analytic
from jaxdiff.processes import Denoiser
from jaxdiff.samplers.loop import sample_each, sample_keys
from jaxdiff.schedules import Schedule

pytestmark = pytest.mark.usefixtures("x64")

WEIGHTS = np.array([0.3, 0.7])
MEANS, VARIANCES = np.array([[-1.0, 0.5], [1.0, -0.3]]), np.array([[0.1, 0.2], [0.15, 0.1]])
END = 0.01  # the last step, to t = 0, is of first order for every method


def exact_denoiser(schedule: Schedule) -> Denoiser:
    return analytic.mixture(WEIGHTS, MEANS, VARIANCES, schedule)


def uniform_in_log_snr(schedule: Schedule, steps: int) -> np.ndarray:
    ends = schedule.log_snr(jnp.array([1.0, END]))
    times = np.array(schedule.time(jnp.linspace(*ends, steps + 1)))
    times[0] = 1.0
    return times


def uniform_in_t(schedule: Schedule, steps: int) -> np.ndarray:
    return np.linspace(1, END, steps + 1)


@functools.cache
def exact(case: str) -> np.ndarray:
    """What the ODE makes of the starts of `solve` in a case of `CASES`."""
    return solve(CASES[case][0], samplers.Adaptive(1e-10, 1e-10), np.array([1.0, END]))


def solve(schedule: Schedule, sampler: Any, times: np.ndarray, n: int = 16) -> np.ndarray:
    keys = sample_keys(jax.random.key(0), np.arange(n))
    return np.asarray(sample_each(keys, exact_denoiser(schedule), sampler, times=times, shape=(2,)))


def walk(schedule: Schedule, sampler: Any, paths: list[np.ndarray], n: int = 16) -> list[np.ndarray]:
    """What `solve` gives by a deterministic sampler for each list of times, with one compilation for any length."""
    denoiser, key = exact_denoiser(schedule), jax.random.key(0)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None, None))
    def step(x: jax.Array, state: Any, t: jax.Array, s: jax.Array) -> Any:
        return sampler.step(key, x, state, t=t, s=s, denoiser=denoiser)

    prior = jax.vmap(lambda key: denoiser.process.sample_prior(jax.random.split(key)[0], (2,)))
    starts = prior(sample_keys(key, np.arange(n)))
    ends = []
    for times in paths:
        x, state = starts, jax.vmap(sampler.init)(starts)
        for t, s in itertools.pairwise(times):
            x, state = step(x, state, t, s)
        ends.append(np.asarray(x))
    return ends


# The schedule, the timesteps and the numbers of steps where the method is in its asymptotic regime: flow starts at
# α = 0, where the steps in λ of the others would not shrink.
CASES = {
    "vp": (schedules.VP(), uniform_in_log_snr),
    "ve": (schedules.VE(), uniform_in_log_snr),
    "flow": (schedules.Flow(), uniform_in_t),
}
METHODS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "ddim": (samplers.DDIM, 1, 128),
    "heun": (samplers.Heun, 2, 128),
    "midpoint": (samplers.Midpoint, 2, 128),
    "rk4": (samplers.RK4, 4, 128),
    "dpm++2m": (samplers.DPMSolver, 2, 128),
    "dpm++3m": (lambda: samplers.DPMSolver(3), 3, 128),
    "unipc": (samplers.UniPC, 3, 128),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.quick(case=["vp"])
def test_the_error_falls_with_the_order_of_the_method(method, case):
    """The slope of log error against log steps is within 0.2 of the order."""
    schedule, timesteps = CASES[case]
    make, order, steps = METHODS[method]
    counts = (steps, 2 * steps)
    ends = walk(schedule, make(), [timesteps(schedule, n) for n in counts])
    errors = [np.sqrt(((end - exact(case)) ** 2).mean()) for end in ends]
    slope = np.log2(errors[0] / errors[1])
    assert abs(slope - order) < 0.2, f"errors {errors}, slope {slope:.2f}"


@pytest.mark.thorough
def test_the_error_of_an_adaptive_solver_falls_with_the_tolerance():
    errors = [
        np.abs(solve(CASES["vp"][0], samplers.Adaptive(tol, tol), np.array([1.0, END])) - exact("vp")).max()
        for tol in (1e-3, 1e-5, 1e-7, 1e-8)
    ]
    assert errors[0] < 1e-5  # no step is longer than 0.1 rad, whatever the tolerance
    assert errors[2] < errors[1] / 10
    assert errors[3] < errors[2] / 3


@pytest.mark.thorough
def test_solvers_agree_with_the_exact_flow_of_normal_data():
    """For N(m, v) the ODE's solution is x_s = α_s m + √(V_s/V_t) (x_t − α_t m), V = α² v + σ²."""
    schedule = schedules.VP()
    mean, variance = np.array([0.4, -0.2]), np.array([0.3, 0.05])
    denoiser = analytic.gaussian(mean, variance, schedule)
    keys = sample_keys(jax.random.key(0), np.arange(8))
    path = np.asarray(
        sample_each(
            keys,
            denoiser,
            samplers.Adaptive(1e-11, 1e-11),
            times=np.array([1.0, 0.3, END]),
            shape=(2,),
            trajectory=True,
        )
    )
    for index, s in ((1, 0.3), (2, END)):
        (a_t, a_s), (s_t, s_s) = (np.asarray(f(jnp.array([1.0, s]))) for f in (schedule.alpha, schedule.sigma))
        spread = np.sqrt((a_s**2 * variance + s_s**2) / (a_t**2 * variance + s_t**2))
        np.testing.assert_allclose(
            path[:, index], a_s * mean + spread * (path[:, 0] - a_t * mean), rtol=1e-8, atol=1e-9
        )


STOCHASTIC: dict[str, tuple[Any, int]] = {
    "ddpm": (samplers.DDPM(), 400),
    "ddpm:variance=large": (samplers.DDPM("large"), 400),
    "reverse_sde": (samplers.ReverseSDE(), 800),
    "dpm++2m_sde": (samplers.DPMSolver(stochastic=True), 100),
    "edm": (samplers.EDM(gamma=0.2), 60),
    "predictor_corrector": (samplers.PredictorCorrector(), 400),
    "langevin": (samplers.Langevin(corrections=4, snr=0.3), 400),
}


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.quick(name=["ddpm", "edm"])
def test_stochastic_samplers_draw_the_mixture(name):
    """Mean, covariance and weight within 4 standard errors of the truth, or 1.5 % where steps are still felt."""
    sampler, steps = STOCHASTIC[name]
    schedule, n = (schedules.VE() if name == "langevin" else schedules.VP()), 8192
    times = np.concatenate([uniform_in_log_snr(schedule, steps - 1), [0.0]])
    x = solve(schedule, sampler, times, n)
    data = analytic.mixture(WEIGHTS, MEANS, VARIANCES, schedule).data
    mean, covariance = np.asarray(data.mean()), np.asarray(data.covariance())
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    slack = 0.015
    assert np.all(np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(n) + slack), x.mean(0) - mean
    assert np.all(np.abs(products.mean(0) - covariance) < 4 * products.std(0) / np.sqrt(n) + slack)
    weight = (x[:, 0] < 0).mean()
    truth = WEIGHTS @ stats.norm.cdf(0, MEANS[:, 0], np.sqrt(VARIANCES[:, 0]))
    assert abs(weight - truth) < 4 * 0.5 / np.sqrt(n) + slack / 2
