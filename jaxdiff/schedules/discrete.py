"""Discrete schedules: a table of log α at T steps, linear between them.

ᾱ_k = Π_{i≤k} (1 − β_i),   α = √ᾱ_k at t = k/T,   ᾱ_0 = 1

β_T = 1 makes α_1 = 0 ("zero terminal SNR": Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are
Flawed"). Then α, not log α, is linear in the last of the T segments, so that dα/dt is finite at t = 1.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.schedules.base import Times, Values, VariancePreserving, as_time, interpolate, log_alpha_of
from jaxdiff.typing import Count, InputError, check_between, pytree, shown, static

Betas = Sequence[float] | Float[np.ndarray, " T"]


class _Table(VariancePreserving):
    """A schedule that interpolates the table of log α given by `_betas()`, β_1 … β_T in float64."""

    num_timesteps: int

    def _betas(self) -> Any: ...

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise InputError(f"num_timesteps = {self.num_timesteps}; must satisfy num_timesteps >= 1")
        _log_alphas(self)

    def _position(self, t: Values) -> tuple[Int[Array, "*batch"], Values]:
        """The segment of the table in which t lies, counted from 0, and the share of it that is passed."""
        T = self.num_timesteps
        position = t * T
        # k/T·T is not always k in floating point, but step k must give exactly entry k. The correction, a few roundings
        # of T, counts as constant, so that the derivative is the slope of the segment.
        nearest = jnp.round(position)
        near = jnp.abs(position - nearest) < 4 * jnp.finfo(t.dtype).eps * T
        position = position + jax.lax.stop_gradient(jnp.where(near, nearest - position, 0))
        left = jnp.clip(jnp.ceil(position).astype(int) - 1, 0, T - 1)
        return left, position - left.astype(t.dtype)

    def log_alpha(self, t: Times) -> Values:
        t = as_time(t)
        table = jnp.asarray(_log_alphas(self), t.dtype)
        left, passed = self._position(t)
        return interpolate(passed, table[left], table[left + 1])

    def time(self, log_snr: Times) -> Values:
        target = log_alpha_of(log_snr)
        table = jnp.asarray(_log_alphas(self), target.dtype)
        t = jnp.arange(self.num_timesteps + 1, dtype=target.dtype) / self.num_timesteps
        return jnp.interp(target, table[::-1], t[::-1])


@functools.cache
def _log_alphas(schedule: _Table) -> Float[np.ndarray, " n"]:
    """log α at k = 0…T in float64."""
    betas = schedule._betas()
    if (bad := np.flatnonzero(~((betas > 0) & (betas < 1)))).size:
        raise InputError(f"betas[{bad[0]}] = {betas[bad[0]]}; every β must lie strictly between 0 and 1")
    return 0.5 * np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])


@pytree(kw_only=False)
class Discrete(_Table):
    """The discrete schedule with these β_1 … β_T.

    Raises:
      InputError: unless every β is strictly between 0 and 1; the last one of at least two may be 1.
    """

    betas: Betas = static()

    def __post_init__(self) -> None:
        try:
            betas = np.asarray(self.betas, float)
        except (TypeError, ValueError):
            raise InputError(f"betas = {shown(self.betas)}; it must be a vector of numbers") from None
        if betas.ndim != 1 or not 1 <= len(betas) <= 10**6:
            raise InputError(f"betas has shape {betas.shape}; it must be a vector of 1 to 1,000,000 β")
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        super().__post_init__()

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        return len(self.betas)

    def _betas(self) -> Float[np.ndarray, " T"]:
        return np.array(self.betas[:-1] if self.ends_in_noise else self.betas)

    @property
    def ends_in_noise(self) -> bool:
        """Whether α_1 = 0: x_1 is noise alone, from which a network can't tell x_0 by predicting eps or the score."""
        return len(self.betas) > 1 and self.betas[-1] == 1

    def log_alpha(self, t: Times) -> Values:
        return jnp.log(self.alpha(t)) if self.ends_in_noise else super().log_alpha(t)

    def alpha(self, t: Times) -> Values:
        t = as_time(t)
        if not self.ends_in_noise:
            return super().alpha(t)
        known = _log_alphas(self)
        table = jnp.asarray(np.append(known, known[-1]), t.dtype)  # the last segment scales its start down to 0
        left, passed = self._position(t)
        return jnp.exp(interpolate(passed, table[left], table[left + 1])) * jnp.where(
            left == self.num_timesteps - 1, 1 - passed, 1
        )

    def sigma(self, t: Times) -> Values:
        if not self.ends_in_noise:
            return super().sigma(t)
        last = as_time(t) * self.num_timesteps > self.num_timesteps - 1
        before = super().sigma(jnp.where(last, 0.5 / self.num_timesteps, t))
        return jnp.where(last, jnp.sqrt(1 - jnp.where(last, self.alpha(t), 0) ** 2), before)

    def log_snr(self, t: Times) -> Values:
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t))) if self.ends_in_noise else super().log_snr(t)

    def time(self, log_snr: Times) -> Values:
        if not self.ends_in_noise:
            return super().time(log_snr)
        target, known, T = log_alpha_of(log_snr), _log_alphas(self), self.num_timesteps
        table = jnp.asarray(known, target.dtype)
        t = jnp.arange(T, dtype=target.dtype) / T
        last = (T - 1 - jnp.expm1(target - table[-1])) / T
        return jnp.where(target < table[-1], last, jnp.interp(target, table[::-1], t[::-1]))


@pytree(kw_only=False)
class Linear(_Table):
    """β linear from `beta_first` to `beta_last` (Ho et al. 2020, section 4), times 1000/T.

    `beta_first` and `beta_last` are those of T = 1000. The factor keeps the limit of continuous time, so that x_1 is
    noise for any T (Nichol & Dhariwal 2021). For other β use `Discrete`.

    Raises:
      InputError: unless every β is strictly between 0 and 1; with the defaults T must be 21 or more.
    """

    num_timesteps: Count = static(default=1000)
    beta_first: float = static(default=1e-4)
    beta_last: float = static(default=0.02)

    def __post_init__(self) -> None:
        check_between(self, 1e-12, 1, "beta_first", "beta_last")
        super().__post_init__()

    def _betas(self) -> Float[np.ndarray, " T"]:
        scale, ends = 1000 / self.num_timesteps, (self.beta_first, self.beta_last)
        betas = np.linspace(scale * ends[0], scale * ends[1], self.num_timesteps)
        if min(ends) > 0 and betas.max() >= 1:
            raise InputError(
                f"num_timesteps = {self.num_timesteps} with beta_first = {ends[0]}, beta_last = {ends[1]} gives "
                f"β = {betas.max():g}, since β is scaled by 1000/num_timesteps; it must be below 1: use "
                f"{math.floor(1000 * max(ends)) + 1} timesteps or more, the schedule cosine, or smaller ends"
            )
        return betas


@pytree(kw_only=False)
class Cosine(_Table):
    """ᾱ_k = f(k/T)/f(0), f(u) = cos²(½π (u + offset)/(1 + offset)), β ≤ `beta_max` (Nichol & Dhariwal 2021, eq. 17)."""

    num_timesteps: Count = static(default=1000)
    offset: float = static(default=0.008)
    beta_max: float = static(default=0.999)

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= 10:
            raise InputError(f"offset = {self.offset}; must satisfy 0 <= offset <= 10")
        check_between(self, 1e-12, 1, "beta_max")
        super().__post_init__()

    def _betas(self) -> Float[np.ndarray, " T"]:
        u = np.linspace(0, 1, self.num_timesteps + 1)
        f = np.cos(0.5 * np.pi * (u + self.offset) / (1 + self.offset)) ** 2
        return np.minimum(1 - f[1:] / f[:-1], self.beta_max)
