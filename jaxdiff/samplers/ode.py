"""The probability-flow ODE in the variables in which it is simplest, and explicit Runge–Kutta methods for it.

    d(x/α) = d(σ/α) n̂(x, t)        and, the same ODE,        d(x/σ) = d(α/σ) x̂_0(x, t)

Euler's method on either is deterministic DDIM, x_s = α_s x̂_0 + σ_s n̂; a better solver is a better sampler. A
Runge–Kutta method with nodes c_i, weights b_i and stages a_ij evaluates slopes k_i at times t_i between t and s, where
α/σ (or σ/α) has gone the share c_i of its way. It goes to each t_i and to s from x_t, with an average k̄ of the slopes:

    slope x̂_0    x̄_0 = k̄,                       n̄ = (x_t − α_t x̄_0)/σ_t,    x = α x̄_0 + σ n̄ at t_i or s
    slope n̂      x̄_0 = (x_t − σ_t k̄)/α_t,       n̄ = k̄,                      likewise

The second (Karras et al. 2022, where α = 1) corrects Euler's step by more than the first, by the factor
(σ_t/α_t)/(σ_s/α_s). This is near 1 for timesteps close in σ/α, but 10³ in the first of a few steps uniform in t on a
cosine schedule, which it ruins: the first is the default. Every method takes Euler's step where α_t = 0, since the
second form does not exist there, and to s = 0, where no network was trained.

Sources: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models" (equation 14); Karras et al. 2022, "Elucidating
the Design Space of Diffusion-Based Generative Models" (algorithm 1); Lu et al. 2022, "DPM-Solver++: Fast Solver for
Guided Sampling of Diffusion Probabilistic Models" (why the slope x̂_0); Kutta 1901.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxdiff.processes import Denoiser, require_gaussian
from jaxdiff.samplers.base import Stateless
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, Prediction, RandomKey, Sample, Time, check_fields, shown

Slope = Literal["x0", "noise"]
Row = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RungeKutta(Stateless):
    """An explicit Runge–Kutta method on the probability-flow ODE: one network call per stage, one in the last step.

    A subclass defines a Butcher tableau:

        class Ralston(RungeKutta):
            stages = ((2 / 3,),)
            weights = (1 / 4, 3 / 4)

    Args:
      slope: what is averaged: "x0", which is stable for any timesteps, or "noise", as in Karras et al. 2022.
    """

    stages: ClassVar[tuple[Row, ...]]  # a_ij from the second stage on; the sum of a row is its node c_i
    weights: ClassVar[Row]  # b_i

    slope: Slope = "x0"

    def __init_subclass__(cls, **options: Any) -> None:
        """Raise an InputError if the tableau of the subclass is no explicit and consistent one."""
        super().__init_subclass__(**options)
        stages: Any = getattr(cls, "stages", None)
        weights: Any = getattr(cls, "weights", None)
        try:
            valid = [len(row) for row in (*stages, weights)] == list(range(1, len(weights) + 1))
            valid = valid and abs(sum(weights) - 1) < 1e-6
        except TypeError:
            valid = False
        if not valid:
            raise InputError(
                f"{cls.__name__} has stages = {shown(stages)} and weights = {shown(weights)}; the rows of stages must "
                "have 1, 2, ... numbers, and weights one number more than there are rows, of sum 1"
            )
        jax.tree_util.register_static(cls)

    def __post_init__(self) -> None:
        check_fields(self)

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        process = require_gaussian(denoiser.process)
        schedule, first = process.schedule, denoiser(x_t, t)
        euler = process.corrupt(first.x0, first.noise, s)
        if not self.stages:
            return euler

        def move(slopes: list[Prediction], row: Row, to: Time) -> Sample:
            share = [a / sum(row) for a in row]
            pairs = [(k.x0, k.noise) for k in slopes]
            x0, noise = jax.tree.map(lambda *k: sum(a * k_i for a, k_i in zip(share, k, strict=True)), *pairs)
            if self.slope == "x0":
                noise = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
            else:
                x0 = (x_t - schedule.sigma(t) * noise) / schedule.alpha(t)
            return process.corrupt(x0, noise, to)

        def runge_kutta() -> Sample:
            slopes = [first]
            for row in self.stages:
                to = between(schedule, t, s, sum(row), self.slope)
                slopes.append(denoiser(move(slopes, row, to), to))
            return move(slopes, self.weights, s)

        # The predicate is not vmapped, so that only one branch runs.
        exists = (s > 0) & ((self.slope == "x0") | (schedule.alpha(t) > 0))
        return jax.lax.cond(exists, runge_kutta, lambda: euler)


def between(schedule: Schedule, t: Time, s: Time, share: float, slope: Slope) -> Time:
    """Return the time at which α/σ (slope "x0") or σ/α ("noise") has made this share of its change from t to s."""
    if share == 1:
        return s
    sign = 1 if slope == "x0" else -1
    start, end = (jnp.exp(0.5 * sign * schedule.log_snr(time)) for time in (t, s))
    return schedule.time(2 * sign * jnp.log(start + share * (end - start)))


class Euler(RungeKutta):
    """Euler's method on the probability-flow ODE, first order: the same as `DDIM(eta=0)`."""

    stages = ()
    weights = (1.0,)


class Midpoint(RungeKutta):
    """The midpoint method on the probability-flow ODE: second order, two network calls per step."""

    stages = ((0.5,),)
    weights = (0.0, 1.0)


class Heun(RungeKutta):
    """Heun's method on the probability-flow ODE: second order, two network calls per step."""

    stages = ((1.0,),)
    weights = (0.5, 0.5)


class RK4(RungeKutta):
    """The classical Runge–Kutta method on the probability-flow ODE: fourth order, four network calls per step."""

    stages = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
