"""At which times a batch is trained.

    discrete     t = k/T, k uniform in {1, …, T}                         (Ho et al. 2020, algorithm 1)
    continuous   t uniform in (0, 1]
    antithetic   t_i = 1 − (u + i/n mod 1), one u uniform in [0, 1)      (Kingma et al. 2021, appendix I.1)
    log_normal   log(σ_t/α_t) ~ N(m, s²)                                 (Karras et al. 2022, table 1)
    secant       λ_t = −2 log tan(a u + b), u uniform in [0, 1]            (Ho & Salimans 2022, section 3)
    LossHistory  bins of (0, 1] with p_j ∝ √E[L_j²], weights 1/(T p_j)   (Nichol & Dhariwal 2021, section 3.3)

The first three estimate the same E_t[f(t)], t uniform; each t_i alone is uniform. LossHistory estimates it too, of
f times its weights. log_normal returns no weights and does not: it has the density N(log ς_t; m, s²)·(log ς_t)' in t,
ς = σ/α, and is thus a weighting of its own, as its authors mean it. Under α = 1 − t, σ = t it is the logit-normal law.
secant is one, too: λ has the density of a hyperbolic secant, sech(λ/2)/(2π), cut off at λ_max by b = atan e^{−λ_max/2}
and at λ_min by a = atan e^{−λ_min/2} − b. Under a cosine schedule, whose angle atan(σ/α) runs evenly, t is uniform.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.schedules import Schedule

TimeSampler = Callable[[Key[Array, ""], int], Float[Array, " n"]]
Times = Literal["auto", "discrete", "continuous", "antithetic", "log_normal", "secant", "importance"]


def discrete(key: Key[Array, ""], n: int, *, steps: int) -> Float[Array, " n"]:
    """n independent times k/`steps` with k uniform in {1, …, steps}."""
    return jax.random.randint(key, (n,), 1, steps + 1) / steps


def continuous(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """n independent times uniform in (0, 1]; 0, where a target may be infinite, is never drawn."""
    return 1 - jax.random.uniform(key, (n,))


def antithetic(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """n times, each uniform in (0, 1], 1/n apart: their mean of a smooth function varies far less."""
    return 1 - jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1)


def log_normal(
    key: Key[Array, ""], n: int, *, schedule: Schedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, " n"]:
    """n independent times whose log(σ/α) is normal; those beyond the schedule's range are put at its ends.

    The early end is the smallest time that `continuous` can give, not 0.
    """
    log_ratio = mean + std * jax.random.normal(key, (n,))
    t = schedule.time(-2 * log_ratio)
    return jnp.clip(t, jnp.finfo(t.dtype).eps, 1)


def secant(
    key: Key[Array, ""], n: int, *, schedule: Schedule, log_snr_min: float = -20.0, log_snr_max: float = 20.0
) -> Float[Array, " n"]:
    """n independent times whose log-SNR has the law of a hyperbolic secant between two ends; as `log_normal` beyond
    the schedule's range.

    Raises:
      ValueError: where log_snr_min is not below log_snr_max.
    """
    if not log_snr_min < log_snr_max:
        raise ValueError(f"log_snr_min = {log_snr_min}, log_snr_max = {log_snr_max}; the rule is min < max")
    b = math.atan(math.exp(-log_snr_max / 2))
    a = math.atan(math.exp(-log_snr_min / 2)) - b
    t = schedule.time(-2 * jnp.log(jnp.tan(a * jax.random.uniform(key, (n,)) + b)))
    return jnp.clip(t, jnp.finfo(t.dtype).eps, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no hash, which `jax.jit` asks for
class LossHistory:
    """The last losses in each of T equal bins of (0, 1], and the times to draw from them. Make one with `loss_history`.

        t, weights = history.sample(key, n)
        losses = …                               # of each example
        loss = (weights * losses).mean()         # to differentiate
        history = history.update(t, losses)

    Times are uniform until every bin is full.
    """

    losses: Any  # an array of shape (T, length), and whatever JAX puts in its place (shapes, shardings)
    counts: Any  # (T,), of losses that each bin has seen
    floor: float = dataclasses.field(metadata={"static": True})

    def update(self, t: Float[Array, " n"], losses: Float[Array, " n"]) -> Self:
        """The history with the unweighted losses at the times t in the place of their bins' oldest."""
        bins, length = self.losses.shape
        # k/T is the upper end of bin k − 1, whatever its rounding: hence the hundredth.
        positions = jnp.clip(jnp.ceil(t * bins - 0.01).astype(int) - 1, 0, bins - 1)

        def put(i: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
            kept, counts = state
            j = positions[i]
            return kept.at[j, counts[j] % length].set(losses[i]), counts.at[j].add(1)

        kept, counts = jax.lax.fori_loop(0, len(t), put, (self.losses, self.counts))
        return dataclasses.replace(self, losses=kept, counts=counts)

    def probabilities(self) -> Float[Array, " T"]:
        """Of each bin."""
        bins, length = self.losses.shape
        sizes = jnp.sqrt(jnp.mean(self.losses**2, axis=1))
        total = jnp.sum(sizes)
        known = (jnp.min(self.counts) >= length) & (total > 0)
        share = jnp.where(known, sizes / jnp.where(known, total, 1), 1 / bins)
        return (1 - self.floor) * share + self.floor / bins

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n independent times in (0, 1], uniform within their bins, and the weights that make E[w f(t)] the mean of f.

        Bin j ends at (j + 1)/T: with T that of a discrete schedule, `to_steps` gives its steps, with the same weights.
        """
        key_bin, key_time = jax.random.split(key)
        p = self.probabilities()
        chosen = jax.random.categorical(key_bin, jnp.log(p), shape=(n,))
        return (chosen + continuous(key_time, n)) / len(p), 1 / (len(p) * p[chosen])


def loss_history(bins: int, *, length: int = 10, floor: float = 0.001) -> LossHistory:
    """An empty `LossHistory`.

    Args:
      bins: T, the number of bins; the steps of a discrete schedule, say.
      length: the losses kept in each.
      floor: the share of draws that are uniform all the same, so that a bin without loss is not given up.

    Raises:
      ValueError: for less than one bin or loss, and for a floor that is not in (0, 1].
    """
    for name, value in (("bins", bins), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} = {value}; a history needs at least 1")
    if not 0 < floor <= 1:
        raise ValueError(f"floor = {floor}; the rule is 0 < floor <= 1")
    return LossHistory(losses=jnp.zeros((bins, length)), counts=jnp.zeros(bins, int), floor=floor)


def first_history(times: Times, schedule: Schedule) -> LossHistory | None:
    """The history that training at "importance" times starts with: a bin for each step of a discrete schedule, 100 on
    a continuous one. None for other times, which need none.
    """
    return loss_history(schedule.steps or 100) if times == "importance" else None


def to_steps(t: Float[Array, " n"], *, steps: int) -> Float[Array, " n"]:
    """The first of the times k/`steps` that are not before t."""
    return jnp.ceil(t * steps) / steps


def time_sampler(times: Times, schedule: Schedule) -> TimeSampler:
    """The sampler of training times for a schedule.

    Args:
      times: "discrete", "continuous", "antithetic", "log_normal", "secant", or "auto": discrete where the schedule is,
        else continuous. On a discrete schedule those in between are moved up to its steps. "importance" is "auto"
        here: who trains so draws from a `LossHistory` instead (see `first_history`).
      schedule: the noise schedule.

    Raises:
      ValueError: for an unknown name, and for "discrete" with a continuous schedule.
    """
    if times not in get_args(Times):
        raise ValueError(f"times = {times!r}; the known ones are {', '.join(get_args(Times))}")
    steps = schedule.steps
    if times == "discrete" and steps is None:
        raise ValueError("times = 'discrete', but the schedule is continuous; use 'continuous' or a discrete schedule")
    between: dict[str, TimeSampler] = {
        "antithetic": antithetic,
        "log_normal": functools.partial(log_normal, schedule=schedule),
        "secant": functools.partial(secant, schedule=schedule),
    }
    if draw := between.get(times):
        return draw if steps is None else lambda key, n: to_steps(draw(key, n), steps=steps)
    if steps is None or times == "continuous":
        return continuous
    return lambda key, n: discrete(key, n, steps=steps)
