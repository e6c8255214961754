"""Noise schedules: the α_t and σ_t of x_t = α_t x_0 + σ_t n, for t in [0, 1].

    λ_t = log(α_t²/σ_t²)      log-SNR, strictly falling in t; t = 0 is data (σ_0 = 0, λ_0 = ∞ unless said otherwise)
    variance preserving       α² + σ² = 1, so that log α = −½ softplus(−λ) and σ² = −expm1(2 log α)

A discrete schedule of T steps (`linear`, `cosine`, `discrete`) puts its step k = 0…T at t = k/T with α = √ᾱ_k and
ᾱ_0 = 1. Between steps log α is interpolated linearly, so that it is a continuous schedule as well: it has a log-SNR,
an inverse and a (one-sided) derivative everywhere, and it is exact at every step.

Every schedule is a pytree: it passes through `jax.jit`, and arrays in it could be learned. It computes in the dtype of
`t` (float32 for a Python number, float64 under x64).

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (linear); Nichol & Dhariwal 2021, "Improved
Denoising Diffusion Probabilistic Models" (cosine); Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations" (variance preserving and exploding); Ho & Salimans 2022, "Classifier-Free Diffusion
Guidance" (the truncated cosine); Liu et al. 2023, "Flow Straight and Fast" (rectified flow).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Times = Float[Array, "*batch"] | float
Values = Float[Array, "*batch"]


@runtime_checkable
class Schedule(Protocol):
    """α, σ and log-SNR as functions of t in [0, 1], and the inverse of the log-SNR. All are elementwise."""

    @property
    def steps(self) -> int | None:
        """T of a discrete schedule; None for a continuous one."""

    def alpha(self, t: Times) -> Values: ...
    def sigma(self, t: Times) -> Values: ...
    def log_snr(self, t: Times) -> Values: ...
    def time(self, log_snr: Times) -> Values:
        """The t at which the log-SNR has this value; clipped to [0, 1] outside the schedule's range."""


def rates(schedule: Schedule, t: Times) -> tuple[Values, Values]:
    """(dα/dt, dσ/dt) at t, by forward-mode differentiation. dσ/dt is +∞ where σ leaves 0 like a square root."""
    t = _float(t)
    one = jnp.ones_like(t)
    return jax.jvp(schedule.alpha, (t,), (one,))[1], jax.jvp(schedule.sigma, (t,), (one,))[1]


def _float(t: Times) -> Values:
    return jnp.asarray(t, dtype=jnp.result_type(t, float))


@jax.custom_jvp
def _one_minus_exp(x: Values) -> Values:
    """1 − e^x. JAX differentiates expm1 as (e^x − 1) + 1, which is 0 in float32 where e^x is below 6e-8."""
    return 0.0 - jnp.expm1(x)  # 0 − 0, so that it is not −0 at x = 0


_one_minus_exp.defjvps(lambda dx, _, x: -jnp.exp(x) * dx)


def _log_alpha_of(log_snr: Times) -> Values:
    """log α of a variance-preserving path from its log-SNR; accurate at both ends."""
    return -0.5 * jax.nn.softplus(-_float(log_snr))


@runtime_checkable
class VariancePreserving(Schedule, Protocol):
    """A schedule with α² + σ² = 1. Only log α and its inverse are left to define."""

    def log_alpha(self, t: Times) -> Values: ...

    def alpha(self, t: Times) -> Values:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        return jnp.sqrt(_one_minus_exp(2 * self.log_alpha(t)))

    def log_snr(self, t: Times) -> Values:
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - jnp.log(_one_minus_exp(2 * log_alpha))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no hash, which `jax.jit` asks for
class Discrete(VariancePreserving):
    """T discrete steps, given by log α at k = 0…T. Make one with `linear`, `cosine` or `discrete`."""

    log_alphas: Any  # an array of shape (T + 1,), and whatever JAX puts in its place (axes, shapes, shardings)
    length: int = dataclasses.field(metadata={"static": True})  # T

    @property
    def steps(self) -> int:
        return self.length

    def log_alpha(self, t: Times) -> Values:
        t = _float(t)
        table = jnp.asarray(self.log_alphas, t.dtype)
        position = t * self.steps
        # k/T·T is not always k in floating point; a step must meet its own table entry. The correction is a few
        # roundings of T, and a constant to differentiation, so that the slope stays that of the segment.
        nearest = jnp.round(position)
        near = jnp.abs(position - nearest) < 4 * jnp.finfo(t.dtype).eps * self.steps
        snap = jnp.where(near, nearest - position, 0)
        position = position + jax.lax.stop_gradient(snap)
        left = jnp.clip(jnp.ceil(position).astype(int) - 1, 0, self.steps - 1)
        weight = position - left
        return (1 - weight) * table[left] + weight * table[left + 1]

    def time(self, log_snr: Times) -> Values:
        target = _log_alpha_of(log_snr)
        table = jnp.asarray(self.log_alphas, target.dtype)
        grid = jnp.arange(self.steps + 1, dtype=target.dtype) / self.steps
        return jnp.interp(target, table[::-1], grid[::-1])


def discrete(betas: Float[np.ndarray, " T"] | Sequence[float]) -> Discrete:
    """A discrete schedule from β_1 … β_T, so that ᾱ_k = Π_{i≤k} (1 − β_i).

    Raises:
      ValueError: where `betas` is not a vector of numbers strictly between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas has shape {betas.shape}; give a vector of at least one β")
    if not np.all((betas > 0) & (betas < 1)):
        bad = int(np.argmax(~((betas > 0) & (betas < 1))))
        raise ValueError(f"betas[{bad}] = {betas[bad]}; every β must lie strictly between 0 and 1")
    return Discrete(log_alphas=0.5 * np.concatenate([[0.0], np.cumsum(np.log1p(-betas))]), length=betas.size)


def linear(steps: int = 1000, *, beta_first: float = 1e-4, beta_last: float = 0.02) -> Discrete:
    """β rising linearly from `beta_first` (k = 1) to `beta_last` (k = T) (Ho et al. 2020, section 4).

    The defaults are made for T = 1000, where ᾱ_T = 4.04e-5.
    """
    _check_steps(steps)
    return discrete(np.linspace(beta_first, beta_last, steps))


def cosine(steps: int = 1000, *, offset: float = 0.008, beta_max: float = 0.999) -> Discrete:
    """ᾱ_k = f(k/T)/f(0), f(u) = cos²(π/2·(u + offset)/(1 + offset)), with every β at most `beta_max`.

    The cap keeps ᾱ_T above 0 (Nichol & Dhariwal 2021, equation 17).
    """
    _check_steps(steps)
    u = np.linspace(0, 1, steps + 1)
    f = np.cos(0.5 * np.pi * (u + offset) / (1 + offset)) ** 2
    return discrete(np.minimum(1 - f[1:] / f[:-1], beta_max))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VP(VariancePreserving):
    """dx = −½β(t) x dt + √β(t) dw with β(t) linear from `beta_min` to `beta_max` (Song et al. 2021, equation 32).

    log α_t = −¼ t² (beta_max − beta_min) − ½ t beta_min.
    """

    beta_min: float = dataclasses.field(default=0.1, metadata={"static": True})
    beta_max: float = dataclasses.field(default=20.0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"beta_min = {self.beta_min}, beta_max = {self.beta_max}; the rule is 0 < beta_min < beta_max"
            )

    @property
    def steps(self) -> None:
        return None

    def log_alpha(self, t: Times) -> Values:
        t = _float(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def time(self, log_snr: Times) -> Values:
        a, b = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        c = jnp.minimum(-_log_alpha_of(log_snr), a + b)  # that of t = 1: an infinite c has no quotient
        return jnp.clip(2 * c / (b + jnp.sqrt(b**2 + 4 * a * c)), 0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedCosine(VariancePreserving):
    """α = cos φ, σ = sin φ with the angle φ linear in t, between the angles of two log-SNRs, λ = −2 log tan φ.

    The untruncated cosine has λ = ±∞ at its ends; the affine map of the angle meets `log_snr_max` at t = 0 and
    `log_snr_min` at t = 1 exactly and stays smooth (Ho & Salimans 2022, section 3). So σ_0 = e^{−log_snr_max/2},
    4.5e-5 by default: too small to see, large enough to divide by.
    """

    log_snr_max: float = dataclasses.field(default=20.0, metadata={"static": True})
    log_snr_min: float = dataclasses.field(default=-20.0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.log_snr_min < self.log_snr_max:
            raise ValueError(
                f"log_snr_min = {self.log_snr_min}, log_snr_max = {self.log_snr_max}; "
                "the rule is log_snr_min < log_snr_max"
            )

    @property
    def steps(self) -> None:
        return None

    def _angle(self, t: Times) -> Values:
        """φ, affine in t."""
        t = _float(t)
        return (1 - t) * math.atan(math.exp(-self.log_snr_max / 2)) + t * math.atan(math.exp(-self.log_snr_min / 2))

    def _complement(self, t: Times) -> Values:
        """π/2 − φ, without the cancellation."""
        t = _float(t)
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
        angle = jnp.arctan(jnp.exp(-0.5 * _float(log_snr)))
        return jnp.clip((angle - first) / (last - first), 0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VE:
    """α = 1, σ_t² = σ_min² (r^{2t} − 1) with r = σ_max/σ_min: variance exploding.

    This is the variance that the SDE of Song et al. 2021 (equation 30) adds from 0 to t, so that σ_0 = 0; their
    own kernel leaves σ_min at t = 0 and jumps.
    """

    sigma_min: float = dataclasses.field(default=0.01, metadata={"static": True})
    sigma_max: float = dataclasses.field(default=50.0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}; the rule is 0 < sigma_min < sigma_max"
            )

    @property
    def steps(self) -> None:
        return None

    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Times) -> Values:
        return jnp.ones_like(_float(t))

    def sigma(self, t: Times) -> Values:
        return self.sigma_min * jnp.sqrt(jnp.expm1(2 * _float(t) * self._log_ratio()))

    def log_snr(self, t: Times) -> Values:
        return -2 * jnp.log(self.sigma(t))

    def time(self, log_snr: Times) -> Values:
        variance = jnp.exp(-_float(log_snr))
        return jnp.clip(jnp.log1p(variance / self.sigma_min**2) / (2 * self._log_ratio()), 0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """α = 1 − t, σ = t: the straight path of rectified flow (Liu et al. 2023). α_1 = 0 and σ_0 = 0 exactly."""

    @property
    def steps(self) -> None:
        return None

    def alpha(self, t: Times) -> Values:
        return 1 - _float(t)

    def sigma(self, t: Times) -> Values:
        return _float(t)

    def log_snr(self, t: Times) -> Values:
        t = _float(t)
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, log_snr: Times) -> Values:
        return jax.nn.sigmoid(-0.5 * _float(log_snr))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps = {steps}; a discrete schedule needs at least 1")


REGISTRY: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "vp": VP,
    "truncated_cosine": TruncatedCosine,
    "ve": VE,
    "flow": Flow,
}
