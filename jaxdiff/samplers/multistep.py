"""DPM-Solver++: exponential integrators that remember the last estimates of x̂_0.

With ℓ = log(α/σ) = λ/2 and h = ℓ_s − ℓ_t, the probability-flow ODE has the exact solution

    x_s = (σ_s/σ_t) x_t + σ_s ∫_{ℓ_t}^{ℓ_s} e^ℓ x̂_0(ℓ) dℓ

in which x̂_0 is replaced by the polynomial in ℓ through its values at the last times. With the divided differences
D¹, D² of x̂_0 there, x̂_0(ℓ) ≈ D + D¹ (ℓ − ℓ_t) + D² (ℓ − ℓ_t)², and the integrals of the powers

    I_0 = α_s (1 − e^{−h}),    I_1 = α_s h − I_0,    I_2 = α_s h² − 2 I_1

    order 1    x_s = (σ_s/σ_t) x_t + I_0 D          DDIM
    order 2    … + ½ h I_0 D¹                       "2M": for I_1, from which it differs by O(h³), as published
    order 3    … + I_1 D¹ + I_2 D²

The stochastic form solves the reverse SDE of which every ℓ adds noise, 2M:

    x_s = (σ_s/σ_t) e^{−h} x_t + α_s (1 − e^{−2h}) (D + ½ h D¹) + σ_s √(1 − e^{−2h}) z

Steps for which h is infinite (α_t = 0, or σ_s = 0) are of order 1, and the first steps of the order that what is
remembered allows. The third order is derived here: the published code has half of I_2, with which it is of order 2.

Source: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (equation 9
and algorithm 2); the stochastic form is that of the code published with it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.processes import Process
from jaxdiff.schedules import check_times
from jaxdiff.typing import Denoiser, Time


class History(NamedTuple):
    """The estimates of x̂_0 at the last times, the newest first, and ℓ at those times."""

    x0: Float[Array, "past *shape"]
    half_log_snr: Float[Array, " past"]
    known: Int[Array, ""]  # how many of them there are


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver:
    """DPM-Solver++ multistep: one network call a step. Make one with `dpmpp`."""

    order: int
    stochastic: bool

    def init(self, x: Float[Array, "*shape"]) -> History:
        """Nothing remembered yet."""
        past = self.order - 1
        return History(jnp.zeros((past, *x.shape), x.dtype), jnp.zeros((past,), x.dtype), jnp.zeros((), jnp.int32))

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: History,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], History]:
        check_times(t, s)
        schedule = process.schedule
        x0 = denoise(x_t, t).x0
        start, end = schedule.log_snr(t) / 2, schedule.log_snr(s) / 2
        finite = jnp.isfinite(start) & jnp.isfinite(end)
        h = jnp.where(finite, end - start, 1.0)
        ratio, alpha_s, sigma_s = schedule.sigma(s) / schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)

        x0s = jnp.concatenate([x0[None], state.x0])
        times = jnp.concatenate([start[None], state.half_log_snr])
        slope, curvature = _differences(x0s, times, jnp.where(finite, state.known, 0))
        if self.stochastic:
            gone = jnp.where(finite, -jnp.expm1(-2 * h), 1.0)
            noise = process.noise(key, x_t.shape)
            x_s = ratio * jnp.where(finite, jnp.exp(-h), 0.0) * x_t
            x_s += alpha_s * gone * (x0 + h / 2 * slope) + sigma_s * jnp.sqrt(gone) * noise
        else:
            # 1 − e^{−h}, the share of the way from x_t to x̂_0; 1 where h is infinite.
            first = jnp.where(finite, -jnp.expm1(-h), 1.0)
            second = h / 2 * first if self.order == 2 else h - first
            x_s = ratio * x_t + alpha_s * (first * x0 + second * slope + (h**2 - 2 * second) * curvature)
        exists = jnp.isfinite(start)  # at α_t = 0 there is no ℓ to remember
        remembered = History(
            x0s[: self.order - 1],
            jnp.where(exists, times, 0)[: self.order - 1],
            jnp.where(exists, jnp.minimum(state.known + 1, self.order - 1), 0),
        )
        return x_s, remembered


def _differences(
    x0s: Float[Array, "known *shape"], times: Float[Array, " known"], past: Int[Array, ""]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Slope and curvature at the newest time of the polynomial through it and the last `past` before."""
    zero = jnp.zeros_like(x0s[0])
    if len(x0s) == 1:
        return zero, zero
    gap = [jnp.where(past > i, times[i] - times[i + 1], 1.0) for i in range(len(x0s) - 1)]
    newest = (x0s[0] - x0s[1]) / gap[0]
    if len(x0s) == 2:
        return jnp.where(past > 0, newest, zero), zero
    older = (x0s[1] - x0s[2]) / gap[1]
    curvature = jnp.where(past > 1, (newest - older) / (gap[0] + gap[1]), zero)
    return jnp.where(past > 0, newest + curvature * gap[0], zero), curvature


def dpmpp(order: int = 2, *, stochastic: bool = False) -> DPMSolver:
    """DPM-Solver++ multistep, one network call a step: second order ("2M") or third ("3M").

    Args:
      order: 1 (DDIM), 2 or 3.
      stochastic: the SDE form, of order 2 at most; a draw for each step.

    Raises:
      ValueError: for any other order.
    """
    orders = (1, 2) if stochastic else (1, 2, 3)
    if order not in orders:
        raise ValueError(f"order = {order}; the rule is one of {orders}{' for the SDE form' if stochastic else ''}")
    return DPMSolver(order=order, stochastic=stochastic)
