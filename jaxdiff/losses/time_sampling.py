"""The times at which a batch is trained.

    discrete     t = k/T, k uniform in {1, …, T}                         (Ho et al. 2020, algorithm 1)
    continuous   t uniform in (0, 1]
    antithetic   t_i = 1 − (u + i/n mod 1), one u uniform in [0, 1)      (Kingma et al. 2021, appendix I.1)
    log_normal   log(σ_t/α_t) ~ N(m, s²)                                 (Karras et al. 2022, table 1)
    secant       λ_t = −2 log tan(a u + b), u uniform in [0, 1]            (Ho & Salimans 2022, section 3)
    LossHistory  bins of (0, 1] with p_j ∝ √E[L_j²], weights 1/(T p_j)   (Nichol & Dhariwal 2021, section 3.3)

The first three estimate E_t[f(t)] for uniform t, as each t_i alone is uniform. So does LossHistory with f multiplied by
its weights. log_normal has the density N(log ς_t; m, s²)·(log ς_t)' in t, ς = σ/α, and no weights: it acts as a
weighting, as its authors intend. Under α = 1 − t, σ = t it is the logit-normal distribution. secant acts as one, too:
λ has the density of a hyperbolic secant, sech(λ/2)/(2π), cut off at λ_max by b = atan e^{−λ_max/2} and at λ_min by
a = atan e^{−λ_min/2} − b. Under a cosine schedule, whose angle atan(σ/α) is linear in t, t is uniform.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.schedules import Schedule, check_times
from jaxdiff.typing import InputError, RandomKey, pytree, shown, static

TimeSampler = Callable[[RandomKey, int], Float[Array, " n"]]
Times = Literal["auto", "discrete", "continuous", "antithetic", "log_normal", "secant", "importance"]


def discrete(key: RandomKey, n: int, *, num_timesteps: int) -> Float[Array, " n"]:
    """Draw n independent times k/T with k uniform in {1, …, T}, T = num_timesteps."""
    return jax.random.randint(key, (n,), 1, num_timesteps + 1) / num_timesteps


def continuous(key: RandomKey, n: int) -> Float[Array, " n"]:
    """Draw n independent times, uniform in (0, 1]; 0, where a target may be infinite, is never drawn."""
    return 1 - jax.random.uniform(key, (n,))


def antithetic(key: RandomKey, n: int) -> Float[Array, " n"]:
    """Draw n times, each uniform in (0, 1], 1/n apart: the mean of a smooth function over them varies far less."""
    return 1 - jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1)


def log_normal(
    key: RandomKey, n: int, *, schedule: Schedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, " n"]:
    """Draw n independent times whose log(σ/α) is normal, clipped to [ε, 1] with the machine epsilon ε."""
    return _log_normal(jax.random.normal(key, (n,)), schedule, mean, std)


def _log_normal(
    normal: Float[Array, " n"], schedule: Schedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, " n"]:
    return _clipped(schedule.time(-2 * (mean + std * normal)))


def secant(
    key: RandomKey, n: int, *, schedule: Schedule, log_snr_min: float = -20.0, log_snr_max: float = 20.0
) -> Float[Array, " n"]:
    """Draw n independent times whose log-SNR has the density of a hyperbolic secant between two ends.

    They are clipped as in `log_normal`. Raises an `InputError` unless log_snr_min < log_snr_max.
    """
    if not log_snr_min < log_snr_max:
        raise InputError(f"log_snr_min = {log_snr_min}, log_snr_max = {log_snr_max}; must satisfy min < max")
    return _secant(jax.random.uniform(key, (n,)), schedule, log_snr_min, log_snr_max)


def _secant(u: Float[Array, " n"], schedule: Schedule, low: float = -20.0, high: float = 20.0) -> Float[Array, " n"]:
    b = math.atan(math.exp(-high / 2))
    a = math.atan(math.exp(-low / 2)) - b
    return _clipped(schedule.time(-2 * jnp.log(jnp.tan(a * u + b))))


def _clipped(t: Float[Array, " n"]) -> Float[Array, " n"]:
    """Clip times to the range of `continuous`, which never gives 0."""
    return jnp.clip(t, jnp.finfo(t.dtype).eps, 1)


@pytree(eq=False)
class LossHistory:
    """The last losses in each of T equal bins of (0, 1], which decide the times to draw once every bin is full.

    t, weights = history.sample(key, n)
    losses = …                               # of each example
    loss = (weights * losses).mean()         # to differentiate
    history = history.update(t, losses)
    """

    losses: Any  # an array of shape (T, length), or its shape or sharding
    counts: Any  # (T,), the number of losses that each bin has seen
    floor: float = static()

    @classmethod
    def init(cls, bins: int, length: int = 10, floor: float = 0.001) -> Self:
        """Return an empty history that keeps `length` losses in each of T bins, such as the timesteps of a schedule.

        `floor` is the share of draws that stay uniform, so that bins without loss are still visited. Raises an
        `InputError` unless bins >= 1, length >= 1 and 0 < floor <= 1.
        """
        for name, value in (("bins", bins), ("length", length)):
            if value < 1:
                raise InputError(f"{name} = {value}; a history needs at least 1")
        if not 0 < floor <= 1:
            raise InputError(f"floor = {floor}; must satisfy 0 < floor <= 1")
        return cls(losses=jnp.zeros((bins, length)), counts=jnp.zeros(bins, int), floor=floor)

    def update(self, t: Float[Array, " n"], losses: Float[Array, " n"]) -> Self:
        """Return the history in which the unweighted losses at the times t replace the oldest of their bins."""
        check_times(t)
        bins, length = self.losses.shape
        # The hundredth makes k/T, however rounded, the upper end of bin k − 1.
        positions = jnp.clip(jnp.ceil(t * bins - 0.01).astype(int) - 1, 0, bins - 1)

        def put(i: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
            kept, counts = state
            j = positions[i]
            return kept.at[j, counts[j] % length].set(losses[i]), counts.at[j].add(1)

        kept, counts = jax.lax.fori_loop(0, len(t), put, (self.losses, self.counts))
        return dataclasses.replace(self, losses=kept, counts=counts)

    def probabilities(self) -> Float[Array, " T"]:
        """Return the probability that a time is drawn from each bin."""
        bins, length = self.losses.shape
        sizes = jnp.sqrt(jnp.mean(self.losses**2, axis=1))
        total = jnp.sum(sizes)
        known = (jnp.min(self.counts) >= length) & (total > 0)
        share = jnp.where(known, sizes / jnp.where(known, total, 1), 1 / bins)
        return (1 - self.floor) * share + self.floor / bins

    def sample(self, key: RandomKey, n: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Draw n independent times in (0, 1], uniform within their bins, and weights that make E[w f(t)] the mean of f.

        Bin j ends at (j + 1)/T: for a discrete schedule with this T, `to_steps` gives its times; the weights stay.
        """
        key_bin, key_time = jax.random.split(key)
        p = self.probabilities()
        chosen = jax.random.categorical(key_bin, jnp.log(p), shape=(n,))
        within = continuous(key_time, n)
        return (chosen.astype(within.dtype) + within) / len(p), 1 / (len(p) * p[chosen])


def first_history(times: Times, schedule: Schedule) -> LossHistory | None:
    """Return an empty history for "importance" times, else None: a bin for each discrete step, or 100 bins."""
    return LossHistory.init(schedule.num_timesteps or 100) if times == "importance" else None


def to_steps(t: Float[Array, " n"], *, num_timesteps: int) -> Float[Array, " n"]:
    """Round times up to k/num_timesteps."""
    check_times(t)
    return jnp.ceil(t * num_timesteps) / num_timesteps


def _rounded(key: RandomKey, n: int, *, draw: TimeSampler, num_timesteps: int) -> Float[Array, " n"]:
    return to_steps(draw(key, n), num_timesteps=num_timesteps)


def time_sampler(times: Times, schedule: Schedule) -> TimeSampler:
    """Return the sampler of training times for a schedule.

    "auto" is discrete if the schedule is, else continuous. On a discrete schedule times are rounded up to its own,
    except "continuous" ones. "importance" is "auto" here; training with it draws from `first_history` instead. Raises
    an `InputError` if `times` is unknown, or "discrete" and the schedule is continuous.
    """
    if times not in get_args(Times):
        raise InputError(f"times = {times!r}; the known ones are {', '.join(get_args(Times))}")
    if not isinstance(schedule, Schedule):
        raise InputError(f"schedule = {shown(schedule)}; give a schedule, such as that of a process: process.schedule")
    last = schedule.num_timesteps
    if times == "discrete" and last is None:
        raise InputError("times = 'discrete', but the schedule is continuous; use 'continuous' or a discrete schedule")
    between: dict[str, TimeSampler] = {
        "antithetic": antithetic,
        "log_normal": functools.partial(log_normal, schedule=schedule),
        "secant": functools.partial(secant, schedule=schedule),
    }
    if draw := between.get(times):
        return draw if last is None else functools.partial(_rounded, draw=draw, num_timesteps=last)
    if last is None or times == "continuous":
        return continuous
    return functools.partial(discrete, num_timesteps=last)


def stratified(times: Times, schedule: Schedule, n: int) -> Float[Array, " n"]:
    """Return n fixed times of the distribution that `time_sampler` draws from: its quantiles at (i + ½)/n.

    The mean of f over them estimates what training minimises, without the variance of drawn times. "importance" has
    the quantiles of "auto", whose mean its weights estimate. Raises as `time_sampler`.
    """
    time_sampler(times, schedule)
    u = (jnp.arange(n) + 0.5) / n
    if times == "log_normal":
        u = _log_normal(jax.scipy.special.ndtri(u), schedule)
    elif times == "secant":
        u = _secant(u, schedule)
    last = schedule.num_timesteps
    return u if last is None or times == "continuous" else to_steps(u, num_timesteps=last)
