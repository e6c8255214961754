"""DPM-Solver++ and UniPC: exponential integrators that keep the last estimates of x̂_0.

With ℓ = log(α/σ) = λ/2 and h = ℓ_s − ℓ_t, the probability-flow ODE has the exact solution

    x_s = (σ_s/σ_t) x_t + σ_s ∫_{ℓ_t}^{ℓ_s} e^ℓ x̂_0(ℓ) dℓ

in which x̂_0 is replaced by the polynomial in ℓ through its values at the last times. With the divided differences
D¹, D² of x̂_0 there, x̂_0(ℓ) ≈ D + D¹ (ℓ − ℓ_t) + D² (ℓ − ℓ_t)², and the powers integrate to

    I_0 = α_s (1 − e^{−h}),    I_1 = α_s h − I_0,    I_2 = α_s h² − 2 I_1

    order 1    x_s = (σ_s/σ_t) x_t + I_0 D          DDIM
    order 2    … + ½ h I_0 D¹                       "2M": for I_1, from which it differs by O(h³), as published
    order 3    … + I_1 D¹ + I_2 D²

The stochastic form solves the reverse SDE instead, for 2M:

    x_s = (σ_s/σ_t) e^{−h} x_t + α_s (1 − e^{−2h}) (D + ½ h D¹) + σ_s √(1 − e^{−2h}) z

UniPC of second order, with B_2(h) of its paper, predicts x_s as 2M does. The network call of the next step, at that
prediction, gives an estimate of x̂_0 there. With it the step is repeated from its start as I_0 D + I_1 D¹ + I_2 D², for
the polynomial through both its ends and the start of the step before; the next step begins at the corrected x_s. This
is of third order with one call per step. The last x_s, and every x_s of a trajectory, is a prediction.

A step for which h is infinite (α_t = 0, or σ_s = 0) is of order 1, any other step to s = 0 of order 2 at most. The
first steps have the order that their number of estimates allows. The third order is derived here: the published code
has half of I_2, which makes it of order 2.

Sources: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (equation 9
and algorithm 2); the stochastic form is in the code published with it. Zhao et al. 2023, "UniPC: A Unified
Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (algorithms 1 and 2; the first correction, for
which there are two estimates, has their ρ = ½).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.processes import Denoiser, require_gaussian
from jaxdiff.samplers.base import static_dataclass
from jaxdiff.schedules import Schedule, check_times
from jaxdiff.typing import InputError, RandomKey, Sample, Samples, Scalar, Time


class History(NamedTuple):
    """The last estimates of x̂_0, the newest first, and ℓ at their times."""

    x0: Float[Array, "past *shape"]
    half_log_snr: Float[Array, " past"]
    known: Int[Array, ""]  # how many of them are set

    @classmethod
    def empty(cls, past: int, x: Sample) -> "History":
        return cls(jnp.zeros((past, *x.shape), x.dtype), jnp.zeros((past,), x.dtype), jnp.zeros((), jnp.int32))

    def with_newest(self, x0: Sample, log_snr: Scalar) -> tuple[Float[Array, "more *shape"], Float[Array, " more"]]:
        """Return the estimates of x̂_0 and their ℓ with a new one in front."""
        return jnp.concatenate([x0[None], self.x0]), jnp.concatenate([log_snr[None] / 2, self.half_log_snr])


@static_dataclass
class DPMSolver:
    """DPM-Solver++ multistep, one network call per step: order 1 (DDIM), 2 ("2M") or 3 ("3M").

    The `stochastic` form solves the SDE, with noise in each step; its order is at most 2.
    """

    order: int = 2
    stochastic: bool = False

    def __post_init__(self) -> None:
        orders = (1, 2) if self.stochastic else (1, 2, 3)
        if self.order not in orders:
            form = " for the SDE form, stochastic = True" if self.stochastic else ""
            raise InputError(f"order = {self.order}; it must be one of {orders}{form}")

    def init(self, x: Sample) -> History:
        """Return an empty history."""
        return History.empty(self.order - 1, x)

    def step(
        self, key: RandomKey, x_t: Sample, state: History, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, History]:
        check_times(t, s)
        process = require_gaussian(denoiser.process)
        schedule, x0 = process.schedule, denoiser(x_t, t).x0
        x0s, times = state.with_newest(x0, schedule.log_snr(t))
        slope, curvature = _differences(x0s, times, state.known)
        if self.stochastic:
            h, finite = _width(schedule, t, s)
            alpha_s, sigma_s, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.sigma(t)
            gone = jnp.where(finite, -jnp.expm1(-2 * h), 1.0)
            noise = process.sample_noise(key, x_t.shape)
            x_s = sigma_s / sigma_t * jnp.where(finite, jnp.exp(-h), 0.0) * x_t
            x_s += alpha_s * gone * (x0 + jnp.where(finite, h / 2, 0.0) * slope) + sigma_s * jnp.sqrt(gone) * noise
        else:
            # The step to s = 0 can be long in ℓ where σ_0 > 0, too long for a parabola.
            curvature = jnp.where(s > 0, curvature, 0)
            published = (self.order == 2) | jnp.asarray(s == 0)
            x_s = _advance(x_t, (x0, slope, curvature), schedule, t=t, s=s, published=published)
        return x_s, _remember(x0s, times, state.known)


class Unfinished(NamedTuple):
    """The last step, not yet corrected: the time t and the sample x it began with, and the estimates of x̂_0 up to t."""

    x: Sample
    t: Scalar
    past: History


@static_dataclass
class UniPC:
    """Second-order UniPC: a corrector raises each step to third order; one network call per step."""

    def init(self, x: Sample) -> Unfinished:
        """Return an empty history, after which nothing is corrected."""
        return Unfinished(x, jnp.ones((), x.dtype), History.empty(2, x))

    def step(
        self, key: RandomKey, x_t: Sample, state: Unfinished, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, Unfinished]:
        check_times(t, s)
        schedule, known = require_gaussian(denoiser.process).schedule, state.past.known
        x0s, times = state.past.with_newest(denoiser(x_t, t).x0, schedule.log_snr(t))
        slope, curvature = _differences(x0s, times, known)
        at_start = slope - 2 * curvature * jnp.where(known > 0, times[0] - times[1], 0.0)
        corrected = _advance(state.x, (x0s[1], at_start, curvature), schedule, t=state.t, s=t, published=known == 1)
        x_t = jnp.where(known > 0, corrected, x_t)
        slope, flat = _differences(x0s[:2], times[:2], known)
        x_s = _advance(x_t, (x0s[0], slope, flat), schedule, t=t, s=s, published=True)
        return x_s, Unfinished(x_t, jnp.asarray(t, x_t.dtype), _remember(x0s, times, known))


def _width(schedule: Schedule, t: Time, s: Time) -> tuple[Scalar, Bool[Array, ""]]:
    """Return h, or 1 if it is infinite, and whether it is finite."""
    h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
    return jnp.where(jnp.isfinite(h), h, 1.0), jnp.isfinite(h)


def _advance(
    x: Sample, polynomial: tuple[Sample, ...], schedule: Schedule, *, t: Time, s: Time, published: bool | Array
) -> Sample:
    """Return x_s from x at t and (D, D¹, D²) there; `published` takes ½ h I_0 for I_1."""
    h, finite = _width(schedule, t, s)
    # Over α_s: I_0 is 1 − e^{−h}, the share of the way from x_t to x̂_0, and 1 where h is infinite.
    first = jnp.where(finite, -jnp.expm1(-h), 1.0)
    second = jnp.where(finite, jnp.where(published, h / 2 * first, h - first), 0.0)
    third = jnp.where(finite, h**2 - 2 * second, 0.0)
    value, slope, curvature = polynomial
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return ratio * x + schedule.alpha(s) * (first * value + second * slope + third * curvature)


def _remember(x0s: Samples, times: Array, known: Int[Array, ""]) -> History:
    """Return the history without the oldest estimate; an empty one at α_t = 0, where ℓ is infinite."""
    exists, past = jnp.isfinite(times[0]), len(x0s) - 1
    return History(x0s[:past], jnp.where(exists, times, 0)[:past], jnp.where(exists, jnp.minimum(known + 1, past), 0))


def _differences(x0s: Samples, times: Array, past: Int[Array, ""]) -> tuple[Sample, Sample]:
    """Return slope and curvature, at the newest time, of the polynomial through it and the last `past` before it."""
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
