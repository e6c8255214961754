"""Non-uniform times: what they estimate, with what variance, and that they are never 0."""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxdiff import schedules, time_sampling
from jaxdiff.losses.time_sampling import LossHistory, time_sampler
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}
DECAY = 4.0
MEAN = (1 - math.exp(-DECAY)) / DECAY  # of f


def f(t: Any) -> Any:
    return jnp.exp(-DECAY * t)


def batches(draw: Any, *, n: int, of: int, seed: int) -> np.ndarray:
    """`of` independent batches of n times."""
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key, n)))(jax.random.split(jax.random.key(seed), of)))


def test_antithetic_times_are_equally_spaced() -> None:
    times = batches(time_sampling.antithetic, n=16, of=500, seed=0)
    assert times.min() > 0
    assert times.max() <= 1
    np.testing.assert_allclose(np.diff(np.sort(times, axis=1), axis=1), 1 / 16, atol=1e-6)
    assert stats.kstest(times[:, 3], "uniform").pvalue > 1e-4  # any one of them alone is uniform


def test_antithetic_times_estimate_the_same_mean_with_less_variance() -> None:
    n, of = 16, 4000
    means = np.asarray(f(batches(time_sampling.antithetic, n=n, of=of, seed=1)), np.float64).mean(1)
    plain = np.asarray(f(batches(time_sampling.continuous, n=n, of=of, seed=2)), np.float64).mean(1)
    assert abs(means.mean() - MEAN) < 4 * means.std() / math.sqrt(of)
    # f jumps by 1 − e^{−4} where the times wrap around: the variance is (that/n)²/12 = 3.1e-4, against Var f/n = 4e-3.
    assert means.var() < plain.var() / 8


def test_antithetic_times_exclude_0_and_include_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for extreme in (0.0, 1 - 2.0**-23):
        monkeypatch.setattr(jax.random, "uniform", lambda key, value=extreme: jnp.float32(value))
        times = time_sampling.antithetic(jax.random.key(0), 7)
        assert times.min() > 0
        assert times.max() <= 1


def test_antithetic_times_of_a_discrete_schedule_are_its_own() -> None:
    T = 50
    times = batches(time_sampler("antithetic", schedules.Linear(T)), n=20, of=500, seed=3)
    k = np.round(times * T).astype(int)
    np.testing.assert_allclose(times, k / T, rtol=2e-7)
    # Every other or third time in a batch: 200 ± 11 of each in 500 batches (a time's count varies as 500·0.4·0.6).
    counts = np.bincount(k.ravel(), minlength=T + 1)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 200) < 5 * 11)


@pytest.mark.parametrize("name", ["vp", "ve", "flow", "truncated_cosine"])
def test_the_noise_of_log_normal_times_is_log_normal(name: str) -> None:
    schedule = SCHEDULES[name]
    draw = functools.partial(time_sampling.log_normal, schedule=schedule, mean=-0.5, std=0.7)
    times = batches(draw, n=20_000, of=1, seed=4)[0]
    log_ratio = -0.5 * np.asarray(schedule.log_snr(jnp.asarray(times)))
    assert stats.kstest(log_ratio, stats.norm(-0.5, 0.7).cdf).pvalue > 1e-4


def test_log_normal_times_have_the_stated_density(x64: None) -> None:
    """For the flow, where ς = t/(1 − t) and (log ς)' = 1/(t (1 − t)); far from that of uniform times."""
    times = batches(time_sampler("log_normal", SCHEDULES["flow"]), n=40_000, of=1, seed=5)[0]

    def integrand(t: float) -> float:
        return math.exp(-DECAY * t) * stats.norm.pdf(math.log(t / (1 - t)), -1.2, 1.2) / (t * (1 - t))

    expected = integrate.quad(integrand, 0, 1)[0]
    values = np.asarray(f(times))
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * error
    assert abs(expected - MEAN) > 50 * error


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("mean", [-60.0, 60.0])
def test_log_normal_times_beyond_the_schedule_are_at_its_ends_but_not_0(name: str, mean: float) -> None:
    times = time_sampling.log_normal(jax.random.key(6), 5, schedule=SCHEDULES[name], mean=mean)
    np.testing.assert_allclose(times, 2.0**-23 if mean < 0 else 1.0, rtol=1e-6)


def test_log_normal_times_of_a_discrete_schedule_are_its_own() -> None:
    T = 100
    times = batches(time_sampler("log_normal", schedules.Cosine(T)), n=1000, of=1, seed=7)[0]
    k = np.round(times * T)
    np.testing.assert_allclose(times, k / T, rtol=2e-7)
    assert k.min() >= 1
    assert 20 < len(set(k)) < T


def full(bins: int, losses: Any) -> Any:
    """A history of ten times the same loss in each bin."""
    history = LossHistory.init(bins)
    t = jnp.tile((jnp.arange(bins) + 0.5) / bins, 10)
    return history.update(t, jnp.tile(jnp.asarray(losses, jnp.float32), 10))


def test_a_history_keeps_the_last_losses_of_each_bin() -> None:
    bins, length, rng = 4, 3, np.random.default_rng(8)
    history, expected = LossHistory.init(bins, length=length), [collections.deque(maxlen=length) for _ in range(bins)]
    for _ in range(5):
        t, losses = 1 - rng.uniform(size=9).astype(np.float32), rng.normal(size=9).astype(np.float32)
        for at, loss in zip(t, losses, strict=True):
            expected[math.ceil(at * bins) - 1].append(loss)
        history = jax.jit(lambda history, *new: history.update(*new))(history, jnp.asarray(t), jnp.asarray(losses))
    assert min(map(len, expected)) == length
    for kept, last in zip(np.asarray(history.losses), expected, strict=True):
        assert sorted(kept) == sorted(last)
    sizes = np.array([math.sqrt(np.mean(np.square(last))) for last in expected])
    np.testing.assert_allclose(history.probabilities(), 0.999 * sizes / sizes.sum() + 0.001 / bins, rtol=1e-5)


@pytest.mark.parametrize("bins", [1, 7, 1000, 4000])
def test_a_discrete_time_is_in_the_bin_that_it_ends(bins: int) -> None:
    t = jnp.arange(1, bins + 1) / bins
    history = LossHistory.init(bins, length=1).update(t, jnp.arange(bins, dtype=float))
    np.testing.assert_array_equal(history.losses[:, 0], np.arange(bins))


def test_a_history_is_uniform_until_every_bin_is_full() -> None:
    bins = 3
    history = LossHistory.init(bins, length=2).update(jnp.array([0.1, 0.1, 0.5, 0.5, 0.9]), jnp.arange(1.0, 6))
    np.testing.assert_allclose(history.probabilities(), 1 / 3, rtol=1e-6)
    t, weights = history.sample(jax.random.key(9), 2000)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
    assert stats.kstest(np.asarray(t), "uniform").pvalue > 1e-4
    filled = history.update(jnp.array([0.9]), jnp.array([5.0]))
    sizes = np.sqrt([2.5, 12.5, 25])  # of (1, 2), (3, 4), (5, 5)
    np.testing.assert_allclose(filled.probabilities(), 0.999 * sizes / sizes.sum() + 0.001 / 3, rtol=1e-5)


def test_a_history_without_any_loss_is_uniform() -> None:
    np.testing.assert_allclose(full(4, np.zeros(4)).probabilities(), 0.25, rtol=1e-6)


def test_times_drawn_from_a_history_are_unbiased_and_vary_less() -> None:
    """With the losses of f, and with unrelated ones."""
    bins, n, at = 20, 40_000, (np.arange(20) + 0.5) / 20
    uniform = np.var(np.exp(-DECAY * np.linspace(0, 1, 10_001)))
    for losses in (np.exp(-DECAY * at), np.where(at < 0.3, 0.0, at)):
        history = full(bins, losses)
        t, weights = jax.jit(lambda history: history.sample(jax.random.key(10), n))(history)
        assert t.min() > 0
        assert t.max() <= 1
        values = np.asarray(weights * f(t), np.float64)
        assert abs(values.mean() - MEAN) < 4 * values.std() / math.sqrt(n)
        if losses[0] > 0:
            assert values.var() < uniform / 10
        p = np.asarray(history.probabilities(), np.float64)
        counts = np.bincount(np.ceil(np.asarray(t) * bins).astype(int) - 1, minlength=bins)
        assert stats.chisquare(counts, n * p / p.sum()).pvalue > 1e-4


def test_a_history_gives_the_times_of_a_discrete_schedule() -> None:
    T = 10
    t, weights = full(T, np.arange(1, 11)).sample(jax.random.key(11), 500)
    k = np.round(np.asarray(time_sampling.to_steps(t, num_timesteps=T)) * T).astype(int)
    assert set(k) <= set(range(1, T + 1))
    p = 0.999 * k / 55 + 0.001 / T
    np.testing.assert_allclose(weights, 1 / (T * p), rtol=1e-5)


def test_a_history_passes_through_scan() -> None:
    def step(history: Any, key: Any) -> tuple[Any, Any]:
        t, weights = history.sample(key, 8)
        return history.update(t, f(t)), weights

    history, weights = jax.lax.scan(step, LossHistory.init(2), jax.random.split(jax.random.key(12), 20))
    assert history.counts.sum() == 160
    assert not np.allclose(weights[-1], 1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "bins = 0; a history needs at least 1"),
        ({"bins": 2, "length": 0}, "length = 0; a history needs at least 1"),
        ({"bins": 2, "floor": 0.0}, "floor = 0.0; must satisfy 0 < floor <= 1"),
        ({"bins": 2, "floor": 1.5}, "floor = 1.5; must satisfy 0 < floor <= 1"),
    ],
)
def test_an_invalid_history_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        LossHistory.init(**options)


def test_secant_times_have_the_log_snr_of_a_hyperbolic_secant(x64: None) -> None:
    """P(λ <= l) = (atan e^{−λ_min/2} − atan e^{−l/2})/a, by the Kolmogorov-Smirnov test of 20,000 draws at 1e-4."""
    schedule, low, high = schedules.VP(), -8.0, 6.0
    t = time_sampling.secant(jax.random.key(3), 20_000, schedule=schedule, log_snr_min=low, log_snr_max=high)
    log_snr = np.asarray(jax.vmap(schedule.log_snr)(t))
    first, last = (np.arctan(np.exp(-end / 2)) for end in (low, high))

    def cdf(value: np.ndarray) -> np.ndarray:
        return np.clip((first - np.arctan(np.exp(-value / 2))) / (first - last), 0, 1)

    assert stats.kstest(log_snr, cdf).pvalue > 1e-4
    assert low - 1e-6 <= log_snr.min() < log_snr.max() <= high + 1e-6
    cosine = schedules.TruncatedCosine(log_snr_max=high, log_snr_min=low)
    even = time_sampling.secant(jax.random.key(3), 20_000, schedule=cosine, log_snr_min=low, log_snr_max=high)
    assert stats.kstest(np.asarray(even), "uniform").pvalue > 1e-4
    with pytest.raises(InputError, match=r"log_snr_min = 6.0, log_snr_max = -8.0; must satisfy min < max"):
        time_sampling.secant(jax.random.key(0), 1, schedule=schedule, log_snr_min=high, log_snr_max=low)
