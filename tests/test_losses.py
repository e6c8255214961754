"""The simple loss of every target, and the times at which a batch is trained."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import clip_denoised, denoiser, from_function, losses, schedules, time_sampling
from jaxdiff.losses.time_sampling import time_sampler
from jaxdiff.processes import Gaussian
from jaxdiff.processes.parameterization import KINDS
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, Prediction

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}
TIMES = (0.02, 0.5, 0.97)  # the rates of a discrete schedule at one of its times are the left ones
X0 = np.random.default_rng(0).normal(size=(2, 3))
KEY = jax.random.key(7)

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def wrong_by(error: float, process: Gaussian) -> Any:
    """A denoiser for X0 with x̂_0 off by `error`, and the noise inferred from it."""

    def predict(x_t: jax.Array, t: jax.Array, cond: Any = None, /) -> Prediction:
        x0 = jnp.asarray(X0) + error
        return Prediction(x0, (x_t - process.schedule.alpha(t) * x0) / process.schedule.sigma(t))

    return from_function(predict, process)


@functools.partial(jax.jit, static_argnames="error")
def every_target(schedule: Schedule, t: jax.Array, error: float) -> Any:
    """The losses, α, σ and their rates."""
    denoiser = wrong_by(error, Gaussian(schedule))
    found = {kind: losses.simple(denoiser, jnp.asarray(X0), t, key=KEY, target=kind) for kind in KINDS}
    return found, schedule.alpha(t), schedule.sigma(t), schedules.rates(schedule, t)


@every_schedule
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.quick(name=["linear", "flow", "learned"])
def test_an_error_of_x0_weighs_in_each_target_as_stated(name: str, t: float, x64: None) -> None:
    error = 0.3
    found, alpha, sigma, (d_alpha, d_sigma) = jax.device_get(every_target(SCHEDULES[name], jnp.float64(t), error))
    weights = {
        "x0": 1.0,
        "eps": alpha / sigma,
        "score": alpha / sigma**2,
        "v": (alpha**2 + sigma**2) / sigma,
        "velocity": d_alpha - d_sigma * alpha / sigma,
    }
    for kind in KINDS:
        # Targets of size up to 1/σ² = 1e4 are subtracted: 1e-16·1e4 and twice that in the square.
        assert found[kind] == pytest.approx((weights[kind] * error) ** 2, rel=1e-9), kind


@pytest.mark.parametrize("target", [*KINDS, "epsilon", "sample", "v_prediction"])
def test_the_loss_is_the_mean_squared_error_in_numpy(target: str, x64: None) -> None:
    """With a network unrelated to the data, which predicts v."""
    t = 0.4
    process = Gaussian(SCHEDULES["vp"])
    model = denoiser(lambda params, x, t: params * x + t[:, None, None], 0.7, process, predicts="v_prediction")
    found = jax.jit(lambda: losses.simple(model, jnp.asarray(X0), t, key=KEY, target=target))()

    noise = np.asarray(jax.random.normal(KEY, (2, 3)))
    integral = 0.1 * t + 19.9 * t**2 / 2
    a, s = np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))
    d_a = -(0.1 + 19.9 * t) / 2 * a
    d_s = -a * d_a / s
    x_t = a * X0 + s * noise
    v = 0.7 * x_t + t
    x0_hat, noise_hat = a * x_t - s * v, s * x_t + a * v
    of = {
        "eps": lambda x0, n: n,
        "x0": lambda x0, n: x0,
        "v": lambda x0, n: a * n - s * x0,
        "score": lambda x0, n: -n / s,
        "velocity": lambda x0, n: d_a * x0 + d_s * n,
    }[{"epsilon": "eps", "sample": "x0", "v_prediction": "v"}.get(target, target)]
    assert found == pytest.approx(np.mean((of(X0, noise) - of(x0_hat, noise_hat)) ** 2), rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_the_exact_denoiser_of_gaussian_data_has_the_posterior_variance(name: str) -> None:
    """For x_0 ~ N(m, c) the error of E[x_0|x_t] has variance c σ²/(α² c + σ²)."""
    schedule, m, c, n = SCHEDULES[name], 0.5, 0.25, 200_000

    def exact(x_t: jax.Array, t: jax.Array, cond: Any = None, /) -> Prediction:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = m + alpha * c * (x_t - alpha * m) / (alpha**2 * c + sigma**2)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    denoiser = from_function(exact, Gaussian(schedule))

    @jax.jit
    def loss(t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x0 = m + c**0.5 * jax.random.normal(jax.random.key(1), (n,))  # n coordinates of one sample
        found = losses.simple(denoiser, x0, t, key=jax.random.key(2), target="x0")
        return found, schedule.alpha(t), schedule.sigma(t)

    for t in (0.1, 0.5, 0.9):
        found, alpha, sigma = jax.device_get(loss(t))
        variance = c * sigma**2 / (alpha**2 * c + sigma**2)
        # The mean of n squares of N(0, variance) has the relative standard error √(2/n) = 0.32 %; 4 of them.
        assert found == pytest.approx(variance, rel=4 * np.sqrt(2 / n)), t


@every_schedule
@pytest.mark.quick(name=["linear", "ve", "learned"])
def test_a_loss_has_finite_gradients_at_all_trained_times(name: str) -> None:
    process = Gaussian(SCHEDULES[name])

    @jax.jit
    def gradients(t: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        def loss(params: jax.Array, kind: Any) -> jax.Array:
            model = denoiser(lambda params, x, t: params * x, params, process, predicts=kind)
            return losses.simple(model, jnp.asarray(X0, jnp.float32), t, key=KEY, target=kind)

        return {kind: jax.value_and_grad(loss)(jnp.float32(0.5), kind) for kind in KINDS}

    for t in (2.0**-23, 1e-3, 1.0):  # the first is the smallest that a continuous draw can give
        for kind, found in gradients(jnp.float32(t)).items():
            assert np.all(np.isfinite(found)), (kind, t)


def test_the_condition_reaches_the_network() -> None:
    process = Gaussian(SCHEDULES["flow"])
    model = denoiser(lambda params, x, t, cond: 0 * x + cond["label"][:, None], None, process, predicts="x0")
    cond = {"label": jnp.float32(3)}
    loss = jax.jit(lambda x0: losses.simple(model, x0, 0.5, key=KEY, cond=cond, target="x0"))
    assert loss(jnp.full(3, 5.0)) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("num_timesteps", [1, 3, 1000])
def test_discrete_times_are_those_of_the_schedule_but_0(num_timesteps: int) -> None:
    draw = time_sampler("auto", schedules.Cosine(num_timesteps))
    n = 40 * num_timesteps
    times = np.asarray(draw(jax.random.key(3), n))
    assert times.shape == (n,)
    assert times.dtype == np.float32
    k = np.round(times * num_timesteps).astype(int)
    np.testing.assert_allclose(times, k / num_timesteps, rtol=2e-7)  # XLA may multiply by 1/T, rounded
    # A time is missed with probability e^{−40}. Chi-square at the level of 1e-4: weights wrong by 30 % in half of the
    # times would add 0.09·n to it, 3600 where 1000 ± 45 is expected.
    assert sorted(set(k)) == list(range(1, num_timesteps + 1))
    if num_timesteps > 1:
        assert stats.chisquare(np.bincount(k)[1:]).pvalue > 1e-4


def test_continuous_times_are_uniform() -> None:
    times = np.asarray(time_sampling.continuous(jax.random.key(4), 100_000))
    assert times.min() > 0
    assert times.max() <= 1
    # 20 cells of 5000 at the level of 1e-4, a chi-square of 53; a density 5 % high in half of them and low
    # in the others adds 250.
    counts, _ = np.histogram(times, bins=20, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 1e-4


def test_continuous_times_exclude_0_and_include_1(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = jnp.array([0.0, 1 - 2.0**-23])  # the smallest and the largest float32 draws
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: extremes)
    latest, earliest = time_sampling.continuous(jax.random.key(0), 2)
    assert latest == 1
    assert 0 < earliest < 1e-6


def test_auto_follows_the_schedule() -> None:
    assert time_sampler("auto", SCHEDULES["flow"]) is time_sampling.continuous
    assert time_sampler("continuous", SCHEDULES["linear"]) is time_sampling.continuous
    explicit, auto = (time_sampler(times, schedules.Cosine(10))(KEY, 5) for times in ("discrete", "auto"))
    np.testing.assert_array_equal(explicit, auto)


def test_unknown_or_impossible_times_are_refused(unchecked: None) -> None:
    anything: Any = "uniform"
    with pytest.raises(
        InputError, match="times = 'uniform'; the known ones are auto, discrete, continuous, antithetic"
    ):
        time_sampler(anything, SCHEDULES["flow"])
    with pytest.raises(InputError, match="times = 'discrete', but the schedule is continuous"):
        time_sampler("discrete", SCHEDULES["flow"])


@pytest.mark.parametrize("loss", [losses.simple, functools.partial(losses.weighted, weight=lambda schedule, t: t)])
def test_a_time_beyond_the_path_is_refused(loss: Any) -> None:
    process = Gaussian(SCHEDULES["flow"])
    for t in (-0.1, 1.5):
        with pytest.raises(InputError, match=rf"^t = {t}; must satisfy 0 <= t <= 1"):
            loss(wrong_by(0.1, process), jnp.ones(3), t, key=KEY)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_what_the_network_predicts(kind: str) -> None:
    network = denoiser(lambda params, x, t: params * x, jnp.array(0.3), Gaussian(schedules.VP()), predicts=kind)
    x0 = jnp.asarray(X0, jnp.float32)
    found = {target: float(losses.simple(network, x0, 0.3, key=KEY, target=target)) for target in (*KINDS, None)}
    assert found[None] == found[kind]
    assert sum(found[other] == found[kind] for other in KINDS) == 1
    clipped = clip_denoised(network)
    assert losses.simple(clipped, x0, 0.3, key=KEY) == losses.simple(clipped, x0, 0.3, key=KEY, target=kind)
