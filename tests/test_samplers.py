"""Steps against closed forms, and ODE solvers against exact solutions."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import samplers, schedules
from jaxdiff.processes import Gaussian
from jaxdiff.samplers import Sampler, timesteps
from jaxdiff.schedules import Schedule
from jaxdiff.typing import Prediction, pytree

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}
SAMPLERS = {
    **{name: samplers.SAMPLERS[name]() for name in ("ddim", "ddpm", "renoise", "euler", "midpoint", "heun", "rk4")},
    "ddim:eta=0.5": samplers.DDIM(eta=0.5),
    "ddim:eta=1": samplers.DDIM(eta=1.0),
    "ddpm:variance=large": samplers.DDPM(variance="large"),
    "ddpm:variance=0.3": samplers.DDPM(variance=0.3),
}
# Neighbours on 1000 steps, then far apart, from pure noise, and to the data.
PAIRS = np.array([(1.0, 0.999), (0.5, 0.499), (0.002, 0.001), (0.9, 0.3), (1.0, 0.01), (0.7, 0.0), (0.001, 0.0)])
X0, X_T = 0.7, -0.4  # one coordinate is enough: all is elementwise

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


@pytree(kw_only=False, eq=False)
class FixedNoise(Gaussian):
    """A process whose noise is a given number, so that a step's mean and standard deviation can be read off."""

    value: Any = 0.0

    def sample_noise(self, key: jax.Array, shape: tuple[int, ...], t: Any = 1.0) -> jax.Array:
        return jnp.full(shape, self.value)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, 0))
def steps(schedule: Schedule, t: jax.Array, s: jax.Array, x0: Any, noise: Any, x_t: Any) -> Any:
    """For each sampler x_s with fresh noise 0 and with fresh noise 1, where the denoiser predicts (x0, noise)."""

    def predict(x: jax.Array, t: jax.Array, cond: Any = None, /) -> Prediction:
        return Prediction(jnp.full_like(x, x0), jnp.full_like(x, noise))

    def step(sampler: Sampler, z: jax.Array) -> jax.Array:
        denoiser = jd.from_function(predict, FixedNoise(schedule, z))
        return sampler.step(jax.random.key(0), jnp.asarray(x_t), None, t=t, s=s, denoiser=denoiser)[0]

    z = jnp.array([0.0, 1.0], x_t.dtype)
    return {name: jax.vmap(functools.partial(step, sampler))(z) for name, sampler in SAMPLERS.items()}


@functools.cache
def mean_and_std(name: str, truth: str, dtype: str = "float64") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of x_s for every pair of times, with the true x_0 and x_t = `X_T` ("x_t") or coefficients ("x0", "noise")."""
    schedule = SCHEDULES[name]
    with jax.enable_x64(dtype == "float64"):
        alpha, sigma = (array[:, 0] for array in jax.device_get(alpha_and_sigma(schedule, PAIRS.astype(dtype))))
        x0, noise = {
            "x_t": (np.full_like(alpha, X0), (X_T - alpha * X0) / sigma),
            "x0": (np.ones_like(alpha), np.zeros_like(alpha)),
            "noise": (np.zeros_like(alpha), np.ones_like(alpha)),
        }[truth]
        found = jax.device_get(steps(schedule, *PAIRS.astype(dtype).T, x0, noise, alpha * x0 + sigma * noise))
    return {sampler: (ends[:, 0], ends[:, 1] - ends[:, 0]) for sampler, ends in found.items()}


@jax.jit
def alpha_and_sigma(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return schedule.alpha(t), schedule.sigma(t)


@functools.cache
def coefficients(name: str) -> tuple[np.ndarray, ...]:
    """(α_t, σ_t, α_s, σ_s) of every pair of times, in float64."""
    with jax.enable_x64(True):
        alpha, sigma = jax.device_get(alpha_and_sigma(SCHEDULES[name], PAIRS))
    return alpha[:, 0], sigma[:, 0], alpha[:, 1], sigma[:, 1]


def gaussian_posterior(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of q(x_s|x_t, x_0) by multiplying q(x_t|x_s) and q(x_s|x_0), and the variance of q(x_t|x_s)."""
    alpha_t, sigma_t, alpha_s, sigma_s = coefficients(name)
    ratio = alpha_t / alpha_s
    transition = sigma_t**2 - ratio**2 * sigma_s**2
    # Precisions times σ_s², so that σ_s = 0 needs no exception.
    precision = ratio**2 * sigma_s**2 / transition + 1
    mean = (ratio * X_T * sigma_s**2 / transition + alpha_s * X0) / precision
    return mean, sigma_s**2 / precision, transition


@every_schedule
@pytest.mark.quick(name=["linear", "vp", "flow"])
def test_the_ancestral_step_is_the_gaussian_posterior(name: str) -> None:
    mean, variance, transition = gaussian_posterior(name)
    noisy = PAIRS[:, 1] > 0
    expected = {
        "ddpm": variance,
        "ddim:eta=1": variance,
        "ddpm:variance=large": transition,
        "ddpm:variance=0.3": variance**0.7 * transition**0.3,
    }
    for sampler, spread in expected.items():
        found, std = mean_and_std(name, "x_t")[sampler]
        # σ²_{t|s} cancels down to 1e-5 of σ_t² between neighbours: 1e-16/1e-5, doubled by the root of σ_s² − β̃.
        np.testing.assert_allclose(found, mean, rtol=1e-8, atol=1e-9, err_msg=sampler)
        np.testing.assert_allclose(std, np.where(noisy, np.sqrt(spread), 0), rtol=1e-8, atol=1e-12, err_msg=sampler)


@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_steps_in_float32_are_those_in_float64(name: str) -> None:
    largest = coefficients(name)[3].max()
    for sampler, (mean, std) in mean_and_std(name, "noise", "float32").items():
        exact_mean, exact_std = mean_and_std(name, "noise")[sampler]
        # The cancellation above with eps = 6e-8 and the schedule's own rounding.
        np.testing.assert_allclose(mean, exact_mean, rtol=2e-3, atol=2e-3 * largest, err_msg=sampler)
        np.testing.assert_allclose(std, exact_std, rtol=1e-2, atol=1e-7, err_msg=sampler)


@every_schedule
@pytest.mark.quick(name=["linear", "ve"])
def test_steps_keep_the_marginal(name: str) -> None:
    """With the true (x_0, n) every x_s = α_s x_0 + σ_s (unit noise), but for the large variances and the last step."""
    _, _, alpha_s, sigma_s = coefficients(name)
    for sampler in ("ddim", "ddim:eta=0.5", "ddim:eta=1", "ddpm", "renoise", "euler", "midpoint", "heun", "rk4"):
        of_x0, _ = mean_and_std(name, "x0")[sampler]
        of_noise, of_fresh = mean_and_std(name, "noise")[sampler]
        np.testing.assert_allclose(of_x0, alpha_s, rtol=1e-9, err_msg=sampler)
        last = PAIRS[:, 1] == 0
        total = of_noise**2 + of_fresh**2
        np.testing.assert_allclose(total[~last], sigma_s[~last] ** 2, rtol=1e-8, err_msg=sampler)
        np.testing.assert_array_equal(of_fresh[last], 0)
        assert np.all(total[last] <= sigma_s[last] ** 2 * (1 + 1e-12))


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_any_sub_sequence_keeps_the_distribution_of_normal_data(name: str, x64: None) -> None:
    """With the true x_0 ~ N(m, v), mean and covariance of (x_0, x_t) are at every time those of the forward process."""
    schedule, m, v = SCHEDULES[name], 0.8, 0.3
    times = np.array([1.0, 0.999, 0.64, 0.35, 0.349, 0.02, 0.001, 0.0])
    alphas, sigmas = jax.device_get(alpha_and_sigma(schedule, times))
    # Three samples, of x_0, of n and of fresh noise alone: a step of all three gives its coefficients.
    given = Prediction(jnp.eye(3)[0], jnp.eye(3)[1])
    denoiser = jd.from_function(lambda *_: given, FixedNoise(schedule, jnp.eye(3)[2]))

    @jax.jit
    @jax.vmap
    def coefficients_of(t: jax.Array, s: jax.Array) -> dict[str, jax.Array]:
        step = {"t": t, "s": s, "denoiser": denoiser}
        walked = ("ddim", "ddim:eta=0.5", "ddim:eta=1", "renoise")
        return {name: SAMPLERS[name].step(jax.random.key(0), jnp.zeros(3), None, **step)[0] for name in walked}

    for sampler, found in coefficients_of(times[:-1], times[1:]).items():
        mean = np.array([m, alphas[0] * m])
        covariance = np.array([[v, alphas[0] * v], [alphas[0] * v, alphas[0] ** 2 * v + sigmas[0] ** 2]])
        for i, (alpha, sigma) in enumerate(zip(alphas[1:], sigmas[1:], strict=True)):
            of_x0, of_noise, added = np.asarray(found[i])
            gain = np.array([[1, 0], [of_x0 - of_noise * alphas[i] / sigmas[i], of_noise / sigmas[i]]])
            mean = gain @ mean
            covariance = gain @ covariance @ gain.T + np.diag([0, added**2])
            forward = [[v, alpha * v], [alpha * v, alpha**2 * v + sigma**2]]
            np.testing.assert_allclose(mean, [m, alpha * m], rtol=1e-9, err_msg=f"{sampler}, step {i}")
            np.testing.assert_allclose(covariance, forward, rtol=1e-9, err_msg=f"{sampler}, step {i}")


def test_ddim_1_is_the_papers_ancestral_sampler_with_the_same_keys(x64: None) -> None:
    """x_{k−1} = (x_k − β_k ε/√(1−ᾱ_k))/√(1−β_k) + √β̃_k z (Ho et al. 2020, algorithm 2), for k = 8 … 1."""
    betas = np.linspace(0.01, 0.4, 8)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    process = Gaussian(schedules.Discrete(betas))
    denoiser = jd.denoiser(lambda _, x, t: jnp.tanh(x) * t[:, None], None, process, predicts="eps")

    @jax.jit
    def both(key: jax.Array, x: jax.Array, t: jax.Array, s: jax.Array) -> list[jax.Array]:
        pair = (samplers.DDIM(eta=1.0), samplers.DDPM("small"))
        return [sampler.step(key, x, None, t=t, s=s, denoiser=denoiser)[0] for sampler in pair]

    x = expected = np.array([0.3, -1.2])
    for k in range(8, 0, -1):
        key, beta = jax.random.key(k), betas[k - 1]
        x, other = both(key, x, k / 8, (k - 1) / 8)
        variance = beta * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
        eps = np.tanh(expected) * k / 8
        expected = (expected - beta / np.sqrt(1 - alpha_bar[k]) * eps) / np.sqrt(1 - beta)
        expected = expected + np.sqrt(variance) * np.asarray(jax.random.normal(key, (2,)))
        np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(x, other)


@every_schedule
@pytest.mark.quick(name=["linear", "ve"])
def test_renoise_forgets_the_old_and_ddim_0_adds_none(name: str) -> None:
    assert np.all(mean_and_std(name, "noise")["renoise"][0] == 0)
    for sampler in ("ddim", "euler", "heun"):
        assert np.all(mean_and_std(name, "noise")[sampler][1] == 0)


@every_schedule
def test_euler_is_ddim_0(name: str) -> None:
    for truth in ("x_t", "x0", "noise"):
        euler, ddim = mean_and_std(name, truth)["euler"][0], mean_and_std(name, truth)["ddim"][0]
        np.testing.assert_allclose(euler, ddim, rtol=1e-14)


def test_the_noise_between_neighbours_is_the_papers() -> None:
    """σ_t = η √((1−ᾱ_{t−1})/(1−ᾱ_t)) √(1−ᾱ_t/ᾱ_{t−1}) for DDIM, β_t for DDPM's large variance."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    found = mean_and_std("linear", "noise")
    for i, k in enumerate((1000, 500, 2)):
        sigma = np.sqrt((1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])) * np.sqrt(1 - alpha_bar[k] / alpha_bar[k - 1])
        # 1 − ᾱ_1 = 1e-4 cancels in this reference: 1e-16/1e-4.
        assert found["ddim:eta=0.5"][1][i] == pytest.approx(0.5 * sigma, rel=1e-10)
        assert found["ddpm"][1][i] == pytest.approx(sigma, rel=1e-10)
        assert found["ddpm:variance=large"][1][i] == pytest.approx(np.sqrt(betas[k - 1]), rel=1e-10)


def exact_denoiser(schedule: Schedule, mean: float, variance: float) -> Any:
    """The denoiser of data from N(mean, variance I)."""

    def predict(x_t: jax.Array, t: jax.Array, cond: Any = None, /) -> Prediction:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        whitened = (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)
        return Prediction(mean + alpha * variance * whitened, sigma * whitened)

    return jd.from_function(predict, Gaussian(schedule))


@functools.cache
def of_normal_data(name: str) -> Any:
    """The denoiser of N(½, ¼)."""
    return exact_denoiser(SCHEDULES[name], 0.5, 0.25)


_compiled: dict[Any, Any] = {}


def walk(sampler: Sampler, denoiser: Any, x: Any, times: np.ndarray) -> jax.Array:
    """The end of a deterministic sampler's path, started at x; each denoiser is compiled once."""

    @jax.jit
    def step(x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
        return sampler.step(jax.random.key(0), x, None, t=t, s=s, denoiser=denoiser)[0]

    _, step = _compiled.setdefault((sampler, id(denoiser)), (denoiser, step))  # kept, or its id may be used again
    for t, s in itertools.pairwise(times):
        x = step(x, t, s)
    return x


def exact_path(schedule: Schedule, m: float, c: float, t: np.ndarray) -> np.ndarray:
    """The solution of the ODE for data N(m, c) on which (x_t − α_t m)/√(α_t² c + σ_t²) is 1.3."""
    alpha, sigma = jax.device_get(alpha_and_sigma(schedule, t))
    return alpha * m + 1.3 * np.sqrt(alpha**2 * c + sigma**2)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("name", ["vp", "ve", "truncated_cosine", "flow"])
def test_ode_solvers_have_their_order(name: str, sampler: str, order: int, x64: None) -> None:
    schedule, m, c = SCHEDULES[name], 0.5, 0.25
    first, last = 1.0, 0.2  # the whole noisy end; at t = 0 the σ of vp and ve is no smooth function of t

    start, exact = exact_path(schedule, m, c, np.array([first, last]))
    denoiser = of_normal_data(name)
    counts = np.array([40, 80, 160])
    errors = [
        abs(float(walk(SAMPLERS[sampler], denoiser, start, np.linspace(first, last, n + 1)) - exact)) for n in counts
    ]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2), errors


@every_schedule
@pytest.mark.parametrize("rule", ["uniform", "quadratic"])
def test_heun_beats_euler_from_pure_noise_to_data(name: str, rule: str, x64: None) -> None:
    """On few steps: the first ones of a cosine schedule, where σ/α falls by 10³, must not spoil it."""
    schedule, m, c = SCHEDULES[name], 0.5, 0.25
    start, exact = exact_path(schedule, m, c, np.array([1.0, 0.0]))
    denoiser, times = of_normal_data(name), timesteps.make(rule, 20, schedule)
    euler, heun = (abs(float(walk(SAMPLERS[solver], denoiser, start, times) - exact)) for solver in ("euler", "heun"))
    assert heun < 0.7 * euler
    assert heun < 0.1


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_heun_with_the_slope_of_the_noise_is_heun_in_x_over_alpha(name: str, x64: None) -> None:
    """One step of the textbook's method on dy/dς = n̂(αy, ς), y = x/α, ς = σ/α; order 2 follows from it."""
    schedule, t, s, x = SCHEDULES[name], 0.6, 0.5, 0.7
    denoiser = of_normal_data(name)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = jax.device_get(alpha_and_sigma(schedule, np.array([t, s])))
    step = sigma_s / alpha_s - sigma_t / alpha_t
    first = float(denoiser(jnp.array(x), jnp.array(t)).noise)
    predicted = x / alpha_t + step * first
    second = float(denoiser(jnp.array(alpha_s * predicted), jnp.array(s)).noise)
    textbook = alpha_s * (x / alpha_t + step * (first + second) / 2)
    assert float(walk(samplers.Heun("noise"), denoiser, x, np.array([t, s]))) == pytest.approx(textbook, 1e-12)


def test_heun_with_the_slope_of_the_noise_starts_at_pure_noise(x64: None) -> None:
    denoiser = of_normal_data("flow")
    ends = [float(walk(samplers.Heun(slope), denoiser, 0.7, np.linspace(1, 0, 101))) for slope in ("noise", "x0")]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_heun_does_not_call_the_network_at_the_data() -> None:
    calls = []

    def predict(x_t: jax.Array, t: jax.Array, cond: Any = None, /) -> Prediction:
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return Prediction(x_t * 0.5, x_t)

    denoiser = jd.from_function(predict, Gaussian(SCHEDULES["vp"]))
    jd.sample(jax.random.key(0), denoiser, "heun", shape=(), n=1, steps=4)
    jax.effects_barrier()
    assert sorted(calls) == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]


def test_a_flow_starts_at_pure_noise(x64: None) -> None:
    """There α = 0; with the exact velocity of Gaussian data nothing is lost."""
    schedule, m, c = SCHEDULES["flow"], 0.5, 0.25
    exact = exact_denoiser(schedule, m, c)

    def velocity(_: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        pair = jax.vmap(exact)(x, t)
        return pair.noise - pair.x0

    model = jd.denoiser(velocity, None, Gaussian(schedule), predicts="velocity")
    start, end = exact_path(schedule, m, c, np.array([1.0, 0.0]))
    for sampler in ("euler", "heun"):
        x = walk(SAMPLERS[sampler], model, jnp.array([start]), np.linspace(1, 0, 101))
        assert float(x[0]) == pytest.approx(end, abs=0.02)  # 100 steps of order 1, and a last one of order 1
