"""The probability-flow ODE in the variables in which it is simplest.

    d(x/α) = d(σ/α) n̂(x, t)        and, the same ODE,        d(x/σ) = d(α/σ) x̂_0(x, t)

Euler's method on either is deterministic DDIM, x_s = α_s x̂_0 + σ_s n̂; a better solver is a better sampler. Heun's
method, the trapezoid rule, averages the slope at t and at Euler's x'_s; the other half follows from x_t:

    slope n̂      n̄ = ½ (n̂(x_t, t) + n̂(x'_s, s)),        x̄_0 = (x_t − σ_t n̄)/α_t,    x_s = α_s x̄_0 + σ_s n̄
    slope x̂_0    x̄_0 = ½ (x̂_0(x_t, t) + x̂_0(x'_s, s)),  n̄ = (x_t − α_t x̄_0)/σ_t,    x_s likewise

The first (Karras et al. 2022, where α = 1) corrects Euler's step by more, by the factor (σ_t/α_t)/(σ_s/α_s). That is
near 1 on a grid of many σ/α; on one of few t it is 10³ in the first step of a cosine schedule, which it ruins. So the
second is the default. Where α_t = 0 the first does not exist, and at s = 0 no network was trained: both are Euler's
step there.

Sources: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models" (equation 14); Karras et al. 2022, "Elucidating
the Design Space of Diffusion-Based Generative Models" (algorithm 1); Lu et al. 2022, "DPM-Solver++: Fast Solver for
Guided Sampling of Diffusion Probabilistic Models" (why the second form).
"""

import dataclasses
from typing import Literal, get_args

import jax
from jaxtyping import Array, Float, Key

from jaxdiff.processes import Process
from jaxdiff.typing import Denoiser, Time

Slope = Literal["x0", "noise"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """Euler's method: one network call a step, first order."""

    def init(self, x: Float[Array, "*shape"]) -> None:
        """It carries no state."""

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: None,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], None]:
        x0, noise = denoise(x_t, t)
        return process.corrupt(x0, noise, s), None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """Heun's method: two network calls a step (one in the last), second order."""

    slope: Slope

    def init(self, x: Float[Array, "*shape"]) -> None:
        """It carries no state."""

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: None,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], None]:
        schedule = process.schedule
        first = denoise(x_t, t)
        euler = process.corrupt(first.x0, first.noise, s)

        def heun() -> Float[Array, "*shape"]:
            x0, noise = jax.tree.map(lambda a, b: (a + b) / 2, first, denoise(euler, s))
            if self.slope == "x0":
                noise = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
            else:
                x0 = (x_t - schedule.sigma(t) * noise) / schedule.alpha(t)
            return process.corrupt(x0, noise, s)

        # A branch on scalars that no vmap maps: only the one that holds is run.
        exists = (s > 0) & ((self.slope == "x0") | (schedule.alpha(t) > 0))
        return jax.lax.cond(exists, heun, lambda: euler), None


def euler() -> Euler:
    """Euler's method on the probability-flow ODE: the same as `ddim(eta=0)`."""
    return Euler()


def heun(slope: Slope = "x0") -> Heun:
    """Heun's method on the probability-flow ODE, second order.

    Args:
      slope: "x0" averages x̂_0, which is stable on any grid; "noise" averages n̂, as Karras et al. 2022 do on theirs.

    Raises:
      ValueError: for any other slope.
    """
    if slope not in get_args(Slope):
        raise ValueError(f"slope = {slope!r}; the known ones are {', '.join(get_args(Slope))}")
    return Heun(slope=slope)
