"""Continuous schedules: α and σ by formula, with the inverse of the log-SNR in closed form."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.schedules.base import Schedule, Times, Values, VariancePreserving, as_float, log_alpha_of, one_minus_exp
from jaxdiff.typing import InputError, pytree, static


@pytree
class VP(VariancePreserving):
    """dx = −½β(t) x dt + √β(t) dw with β(t) linear from `beta_min` to `beta_max` (Song et al. 2021, equation 32).

    log α_t = −¼ t² (beta_max − beta_min) − ½ t beta_min.
    """

    beta_min: float = static(default=0.1)
    beta_max: float = static(default=20.0)

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise InputError(
                f"beta_min = {self.beta_min}, beta_max = {self.beta_max}; the rule is 0 < beta_min < beta_max"
            )

    def log_alpha(self, t: Times) -> Values:
        t = as_float(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def time(self, log_snr: Times) -> Values:
        a, b = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        c = jnp.minimum(-log_alpha_of(log_snr), a + b)  # its value at t = 1, as an infinite c gives inf/inf
        return jnp.clip(2 * c / (b + jnp.sqrt(b**2 + 4 * a * c)), 0, 1)


@pytree
class TruncatedCosine(VariancePreserving):
    """α = cos φ, σ = sin φ with the angle φ linear in t, between the angles of two log-SNRs, λ = −2 log tan φ.

    The untruncated cosine has λ = ±∞ at its ends; the affine map of the angle meets `log_snr_max` at t = 0 and
    `log_snr_min` at t = 1 exactly and stays smooth (Ho & Salimans 2022, section 3). So σ_0 = e^{−log_snr_max/2},
    4.5e-5 by default: too small to see, large enough to divide by.
    """

    log_snr_max: float = static(default=20.0)
    log_snr_min: float = static(default=-20.0)

    def __post_init__(self) -> None:
        if not self.log_snr_min < self.log_snr_max:
            raise InputError(
                f"log_snr_min = {self.log_snr_min}, log_snr_max = {self.log_snr_max}; "
                "the rule is log_snr_min < log_snr_max"
            )

    def _angle(self, t: Times) -> Values:
        """φ, affine in t."""
        t = as_float(t)
        return (1 - t) * math.atan(math.exp(-self.log_snr_max / 2)) + t * math.atan(math.exp(-self.log_snr_min / 2))

    def _complement(self, t: Times) -> Values:
        """π/2 − φ, without cancellation."""
        t = as_float(t)
        return (1 - t) * math.atan(math.exp(self.log_snr_max / 2)) + t * math.atan(math.exp(self.log_snr_min / 2))

    def log_alpha(self, t: Times) -> Values:
        return jnp.log(self.alpha(t))

    def alpha(self, t: Times) -> Values:
        return jnp.sin(self._complement(t))

    def sigma(self, t: Times) -> Values:
        return jnp.sin(self._angle(t))

    def log_snr(self, t: Times) -> Values:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: Times) -> Values:
        first, last = math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(-self.log_snr_min / 2))
        angle = jnp.arctan(jnp.exp(-0.5 * as_float(log_snr)))
        return jnp.clip((angle - first) / (last - first), 0, 1)


@pytree
class Sigmoid(VariancePreserving):
    """ᾱ falls like a sigmoid from `start` to `end` (Jabri et al. 2022; Chen 2023, algorithm 1).

    The published schedule is, with s = start/τ, e = end/τ, w = e − s and S the sigmoid,

        ᾱ = (S(e) − S(u))/(S(e) − S(s)),      u = s + w r,    r from 0 to 1

    which is 1 at r = 0 and 0 at r = 1. Published code clips ᾱ at 1e-9, which leaves λ constant there. Here r = c t with
    the c < 1 (1 − c = 7e-9 by default) for which λ is `log_snr_min` at t = 1, so that α_1 > 0 and λ falls to the end.
    Both ᾱ and 1 − ᾱ are computed as products, without cancellation (q = u − s, p = e − u):

        ᾱ = S(−u)(1 − e^{−p})/(S(−s)(1 − e^{−w})),   1 − ᾱ = S(u)(1 − e^{−q})/(S(e)(1 − e^{−w}))
        q = log(1 + (A − B)/(e^λ + B)),              A = S(e)/S(s),  B = S(−e)/S(−s)
    """

    start: float = static(default=-3.0)
    end: float = static(default=3.0)
    tau: float = static(default=1.0)
    log_snr_min: float = static(default=-20.0)

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise InputError(f"start = {self.start}, end = {self.end}; the rule is start < end")
        if not self.tau > 0 or max(abs(self.start), abs(self.end)) > 80 * self.tau:
            raise InputError(
                f"tau = {self.tau} with start = {self.start}, end = {self.end}; the rule is tau > 0 with start/tau and "
                "end/tau within ±80, where float32 still holds their sigmoids"
            )
        if not -80 <= self.log_snr_min <= 80:
            raise InputError(f"log_snr_min = {self.log_snr_min}; the rule is −80 <= log_snr_min <= 80")

    def _odds(self) -> tuple[float, float]:
        """A > 1 and B < 1."""
        s, e = self.start / self.tau, self.end / self.tau
        return _sigmoid(e) / _sigmoid(s), _sigmoid(-e) / _sigmoid(-s)

    def _reach(self) -> tuple[float, float]:
        """q and p at t = 1; p is q with the ends swapped."""
        a, b = self._odds()
        odds = math.exp(self.log_snr_min)
        return math.log1p((a - b) / (odds + b)), math.log1p((1 / b - 1 / a) / (1 / odds + 1 / a))

    def _parts(self, t: Times) -> tuple[Values, Values]:
        """ᾱ and 1 − ᾱ."""
        t = as_float(t)
        s, e = self.start / self.tau, self.end / self.tau
        w, (q_last, p_last) = e - s, self._reach()
        q, p = q_last * t, w * (1 - t) + p_last * t
        whole = -math.expm1(-w)
        content = jax.nn.sigmoid(-s - q) * one_minus_exp(-p) / (_sigmoid(-s) * whole)
        noise = jax.nn.sigmoid(s + q) * one_minus_exp(-q) / (_sigmoid(e) * whole)
        return jnp.where(noise < 0.5, 1 - noise, content), noise  # so that ᾱ_0 is 1, and not 1 to rounding

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
        a, b = self._odds()
        odds = jnp.exp(jnp.maximum(as_float(log_snr), self.log_snr_min))
        return jnp.clip(jnp.log1p((a - b) / (odds + b)) / self._reach()[0], 0, 1)


@pytree
class VE(Schedule):
    """α = 1, σ_t² = σ_min² (r^{2t} − 1) with r = σ_max/σ_min: variance exploding.

    This is the variance that the SDE of Song et al. 2021 (equation 30) adds from 0 to t, so that σ_0 = 0. Their own
    kernel has σ_min at t = 0, and so a discontinuity.
    """

    sigma_min: float = static(default=0.01)
    sigma_max: float = static(default=50.0)

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Times) -> Values:
        return jnp.ones_like(as_float(t))

    def sigma(self, t: Times) -> Values:
        return self.sigma_min * jnp.sqrt(jnp.expm1(2 * as_float(t) * self._log_ratio()))

    def log_snr(self, t: Times) -> Values:
        return -2 * jnp.log(self.sigma(t))

    def time(self, log_snr: Times) -> Values:
        variance = jnp.exp(-as_float(log_snr))
        return jnp.clip(jnp.log1p(variance / self.sigma_min**2) / (2 * self._log_ratio()), 0, 1)


@pytree
class EDM(Schedule):
    """α = 1, σ_t = (σ_min^{1/ρ} + t (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ (Karras et al. 2022, equation 5).

    The equation's i/(N − 1) is 1 − t, so that uniform timesteps are the paper's. σ_0 = σ_min; the paper's sampler adds
    one step to σ = 0. By default σ_0 = 0.002, a quarter of a grey level of 8 bits over
    [−1, 1]: too small to see, large enough to divide by.
    """

    sigma_min: float = static(default=0.002)
    sigma_max: float = static(default=80.0)
    rho: float = static(default=7.0)

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        if not self.rho > 0:
            raise InputError(f"rho = {self.rho}; the rule is rho > 0")

    def _roots(self) -> tuple[float, float]:
        """σ^{1/ρ} at both ends."""
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def _root(self, t: Times) -> Values:
        t, (first, last) = as_float(t), self._roots()
        return (1 - t) * first + t * last

    def alpha(self, t: Times) -> Values:
        return jnp.ones_like(as_float(t))

    def sigma(self, t: Times) -> Values:
        return self._root(t) ** self.rho

    def log_snr(self, t: Times) -> Values:
        return -2 * self.rho * jnp.log(self._root(t))

    def time(self, log_snr: Times) -> Values:
        first, last = self._roots()
        return jnp.clip((jnp.exp(as_float(log_snr) / (-2 * self.rho)) - first) / (last - first), 0, 1)


@pytree
class Flow(Schedule):
    """α = 1 − t, σ = t: the straight path of rectified flow (Liu et al. 2023). α_1 = 0 and σ_0 = 0 exactly."""

    def alpha(self, t: Times) -> Values:
        return 1 - as_float(t)

    def sigma(self, t: Times) -> Values:
        return as_float(t)

    def log_snr(self, t: Times) -> Values:
        t = as_float(t)
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, log_snr: Times) -> Values:
        return jax.nn.sigmoid(-0.5 * as_float(log_snr))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise InputError(f"sigma_min = {sigma_min}, sigma_max = {sigma_max}; the rule is 0 < sigma_min < sigma_max")
