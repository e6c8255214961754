"""Continuous schedules: α and σ by formula, with the inverse of the log-SNR in closed form."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.schedules.base import (
    Schedule,
    Times,
    Values,
    VariancePreserving,
    as_float,
    as_time,
    interpolate,
    one_minus_exp,
)
from jaxdiff.typing import Extended, InputError, check_between, pytree, static


@pytree
class VP(VariancePreserving):
    """dx = −½β(t) x dt + √β(t) dw with β(t) linear from `beta_min` to `beta_max` (Song et al. 2021, equation 32).

    log α_t = −¼ t² (beta_max − beta_min) − ½ t beta_min.
    """

    beta_min: float = static(default=0.1)
    beta_max: float = static(default=20.0)

    def __post_init__(self) -> None:
        low, high = self.beta_min, self.beta_max
        if not 0 < low < high:
            raise InputError(f"beta_min = {low}, beta_max = {high}; must satisfy 0 < beta_min < beta_max")
        check_between(self, 0, 1e6, "beta_max")

    def log_alpha(self, t: Times) -> Values:
        t = as_time(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def time(self, log_snr: Times) -> Values:
        a, b = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        c = jnp.minimum(0.5 * jax.nn.softplus(-as_float(log_snr)), a + b)  # −log α; an infinite one would give inf/inf
        return jnp.clip(2 * c / (b + jnp.sqrt(b**2 + 4 * a * c)), 0, 1)


@pytree
class TruncatedCosine(VariancePreserving):
    """α = cos φ, σ = sin φ, λ = −2 log tan φ with φ linear in t (Ho & Salimans 2022, section 3).

    λ is `log_snr_max` at t = 0 and `log_snr_min` at t = 1, exactly; untruncated, it would be ±∞. So σ_0 =
    e^{−log_snr_max/2}, 4.5e-5 by default: too small to see, large enough to divide by.
    """

    log_snr_max: Extended = static(default=20.0)
    log_snr_min: Extended = static(default=-20.0)

    def __post_init__(self) -> None:
        low, high = self.log_snr_min, self.log_snr_max
        if not low < high:
            raise InputError(f"log_snr_min = {low}, log_snr_max = {high}; must satisfy log_snr_min < log_snr_max")

    def _angles(self, sign: int) -> list[float]:
        """φ at t = 0 and t = 1 for sign −1; π/2 − φ, without cancellation, for sign 1."""
        return [math.atan(math.exp(min(sign * end / 2, 700))) for end in (self.log_snr_max, self.log_snr_min)]

    def log_alpha(self, t: Times) -> Values:
        return jnp.log(self.alpha(t))

    def alpha(self, t: Times) -> Values:
        return jnp.sin(interpolate(as_time(t), *self._angles(1)))

    def sigma(self, t: Times) -> Values:
        return jnp.sin(interpolate(as_time(t), *self._angles(-1)))

    def log_snr(self, t: Times) -> Values:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Times) -> Values:
        first, last = self._angles(-1)
        angle = jnp.arctan(jnp.exp(-0.5 * as_float(log_snr)))
        return jnp.clip((angle - first) / (last - first), 0, 1)


@pytree
class Sigmoid(VariancePreserving):
    """ᾱ falls like a sigmoid from `start` to `end` (Jabri et al. 2022; Chen 2023, algorithm 1).

    The published schedule is, with s = start/τ, e = end/τ, w = e − s and S the sigmoid,

        ᾱ = (S(e) − S(u))/(S(e) − S(s)),      u = s + w r,    r from 0 to 1

    Published code clips ᾱ at 1e-9, which makes λ constant near r = 1. Here r = c t, where c < 1 makes λ equal to
    `log_snr_min` at t = 1 (1 − c = 7e-9 by default), so that α_1 > 0 and λ falls all the way. Both ᾱ and 1 − ᾱ are
    computed as products, without cancellation (q = u − s, p = e − u):

        ᾱ = S(−u)(1 − e^{−p})/(S(−s)(1 − e^{−w})),   1 − ᾱ = S(u)(1 − e^{−q})/(S(e)(1 − e^{−w}))
        q = log(1 + (A − B)/(e^λ + B)),              A = S(e)/S(s),  B = S(−e)/S(−s)
    """

    start: float = static(default=-3.0)
    end: float = static(default=3.0)
    tau: float = static(default=1.0)
    log_snr_min: float = static(default=-20.0)

    def __post_init__(self) -> None:
        ends = f"start = {self.start}, end = {self.end}; must satisfy"
        if not self.start < self.end:
            raise InputError(f"{ends} start < end")
        if not self.tau > 0 or max(abs(self.start), abs(self.end)) > 80 * self.tau:
            within = "start/tau and end/tau within ±80, where float32 still holds their sigmoids"
            raise InputError(f"tau = {self.tau} with {ends} tau > 0 with {within}")
        if self.end - self.start < 1e-3 * self.tau:
            raise InputError(f"tau = {self.tau} with {ends} end − start >= tau/1000, or float32 can't tell them apart")
        if not -80 <= self.log_snr_min <= 80:
            raise InputError(f"log_snr_min = {self.log_snr_min}; must satisfy −80 <= log_snr_min <= 80")

    def _constants(self) -> tuple[float, float, float, float]:
        """A > 1, B < 1, and q and p at t = 1; p is q with the ends swapped."""
        s, e = self.start / self.tau, self.end / self.tau
        a, b = _sigmoid(e) / _sigmoid(s), _sigmoid(-e) / _sigmoid(-s)
        odds = math.exp(self.log_snr_min)
        return a, b, math.log1p((a - b) / (odds + b)), math.log1p((1 / b - 1 / a) / (1 / odds + 1 / a))

    def _parts(self, t: Times) -> tuple[Values, Values]:
        """ᾱ and 1 − ᾱ."""
        s, e, (_, _, q_last, p_last) = self.start / self.tau, self.end / self.tau, self._constants()
        q, p = q_last * as_time(t), interpolate(t, e - s, p_last)
        whole = -math.expm1(s - e)
        content = jax.nn.sigmoid(-s - q) * one_minus_exp(-p) / (_sigmoid(-s) * whole)
        noise = jax.nn.sigmoid(s + q) * one_minus_exp(-q) / (_sigmoid(e) * whole)
        return jnp.where(noise < 0.5, 1 - noise, content), noise  # ᾱ_0 is exactly 1

    def log_alpha(self, t: Times) -> Values:
        return 0.5 * jnp.log(self._parts(t)[0])

    def alpha(self, t: Times) -> Values:
        return jnp.sqrt(self._parts(t)[0])

    def sigma(self, t: Times) -> Values:
        return jnp.sqrt(self._parts(t)[1])

    def log_snr(self, t: Times) -> Values:
        content, noise = self._parts(t)
        return jnp.log(content) - jnp.log(noise)

    def time(self, log_snr: Times) -> Values:
        a, b, q_last, _ = self._constants()
        odds = jnp.exp(jnp.maximum(as_float(log_snr), self.log_snr_min))
        return jnp.clip(jnp.log1p((a - b) / (odds + b)) / q_last, 0, 1)


class _Exploding(Schedule):
    """α = 1; `sigma_min` < `sigma_max`."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        low, high = self.sigma_min, self.sigma_max
        if not 0 < low < high:
            raise InputError(f"sigma_min = {low}, sigma_max = {high}; must satisfy 0 < sigma_min < sigma_max")
        check_between(self, 1e-9, 1e9, "sigma_min", "sigma_max")

    def alpha(self, t: Times) -> Values:
        return jnp.ones_like(as_time(t))


@pytree
class VE(_Exploding):
    """α = 1, σ_t² = σ_min² (r^{2t} − 1) with r = σ_max/σ_min: variance exploding.

    The SDE of Song et al. 2021 (equation 30) adds this variance from 0 to t; their own kernel has σ_min at t = 0.
    """

    sigma_min: float = static(default=0.01)
    sigma_max: float = static(default=50.0)

    def sigma(self, t: Times) -> Values:
        return self.sigma_min * jnp.sqrt(jnp.expm1(2 * as_time(t) * math.log(self.sigma_max / self.sigma_min)))

    def log_snr(self, t: Times) -> Values:
        return -2 * jnp.log(self.sigma(t))

    def time(self, log_snr: Times) -> Values:
        growth = jnp.log1p(jnp.exp(-as_float(log_snr)) / self.sigma_min**2)
        return jnp.clip(growth / (2 * math.log(self.sigma_max / self.sigma_min)), 0, 1)


@pytree
class EDM(_Exploding):
    """α = 1, σ_t = (σ_min^{1/ρ} + t (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ (Karras et al. 2022, equation 5).

    With the equation's i/(N − 1) = 1 − t, uniform timesteps are the paper's; its sampler adds one step to σ = 0. By
    default σ_0 = 0.002, a quarter of a grey level of 8 bits over [−1, 1]: too small to see, large enough to divide by.
    """

    sigma_min: float = static(default=0.002)
    sigma_max: float = static(default=80.0)
    rho: float = static(default=7.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, 0, 100, "rho")
        if max(abs(math.log(self.sigma_min)), abs(math.log(self.sigma_max))) > 80 * self.rho:
            raise InputError(f"rho = {self.rho}; sigma_min and sigma_max to the power 1/rho must be within e^±80")

    def _roots(self) -> tuple[float, float]:
        """σ^{1/ρ} at both ends."""
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def sigma(self, t: Times) -> Values:
        return interpolate(as_time(t), *self._roots()) ** self.rho

    def log_snr(self, t: Times) -> Values:
        return -2 * self.rho * jnp.log(interpolate(as_time(t), *self._roots()))

    def time(self, log_snr: Times) -> Values:
        first, last = self._roots()
        return jnp.clip((jnp.exp(as_float(log_snr) / (-2 * self.rho)) - first) / (last - first), 0, 1)


@pytree
class Flow(Schedule):
    """α = 1 − t, σ = t: the straight path of rectified flow (Liu et al. 2023). α_1 = 0 and σ_0 = 0 exactly."""

    def alpha(self, t: Times) -> Values:
        return 1 - as_time(t)

    def sigma(self, t: Times) -> Values:
        return as_time(t)

    def log_snr(self, t: Times) -> Values:
        t = as_time(t)
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, log_snr: Times) -> Values:
        return jax.nn.sigmoid(-0.5 * as_float(log_snr))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
