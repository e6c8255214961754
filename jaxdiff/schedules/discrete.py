"""Discrete schedules: T steps with a table of log α, linear in log α between them.

ᾱ_k = Π_{i≤k} (1 − β_i),   α = √ᾱ_k at t = k/T,   ᾱ_0 = 1
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.schedules.base import Times, Values, VariancePreserving, as_float, log_alpha_of
from jaxdiff.typing import InputError, pytree, static

Betas = Sequence[float] | Float[np.ndarray, " T"]


class _Table(VariancePreserving, Protocol):
    """A schedule that interpolates the table of log α given by its β_1 … β_T."""

    num_timesteps: int

    def _betas(self) -> Float[np.ndarray, " T"]:
        """β_1 … β_T in float64."""

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise InputError(f"num_timesteps = {self.num_timesteps}; the rule is num_timesteps >= 1")
        _log_alphas(self)  # type: ignore[arg-type]

    def log_alpha(self, t: Times) -> Values:
        t = as_float(t)
        table, T = jnp.asarray(_log_alphas(self), t.dtype), self.num_timesteps  # type: ignore[arg-type]
        position = t * T
        # k/T·T is not always k in floating point, but a step must meet its own table entry. The correction is a few
        # roundings of T, and constant under differentiation, so that the slope stays that of the segment.
        nearest = jnp.round(position)
        near = jnp.abs(position - nearest) < 4 * jnp.finfo(t.dtype).eps * T
        position = position + jax.lax.stop_gradient(jnp.where(near, nearest - position, 0))
        left = jnp.clip(jnp.ceil(position).astype(int) - 1, 0, T - 1)
        weight = position - left
        return (1 - weight) * table[left] + weight * table[left + 1]

    def time(self, log_snr: Times) -> Values:
        target = log_alpha_of(log_snr)
        table = jnp.asarray(_log_alphas(self), target.dtype)  # type: ignore[arg-type]
        t = jnp.arange(self.num_timesteps + 1, dtype=target.dtype) / self.num_timesteps
        return jnp.interp(target, table[::-1], t[::-1])


@functools.cache
def _log_alphas(schedule: Any) -> Float[np.ndarray, " n"]:
    """log α at k = 0…T in float64; the same table for equal schedules."""
    betas = schedule._betas()
    if (bad := np.flatnonzero(~((betas > 0) & (betas < 1)))).size:
        raise InputError(f"betas[{bad[0]}] = {betas[bad[0]]}; every β must lie strictly between 0 and 1")
    return 0.5 * np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])


@pytree(kw_only=False)
class Discrete(_Table):
    """The discrete schedule with these β_1 … β_T: ᾱ_k = Π_{i≤k} (1 − β_i).

    Raises:
      InputError: if `betas` is not a vector of numbers strictly between 0 and 1.
    """

    betas: Betas = static()

    def __post_init__(self) -> None:
        if np.ndim(self.betas) != 1 or not len(self.betas):
            raise InputError(f"betas has shape {np.shape(self.betas)}; the rule is a vector of at least one β")
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        super().__post_init__()

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        return len(self.betas)

    def _betas(self) -> Float[np.ndarray, " T"]:
        return np.array(self.betas)


@pytree(kw_only=False)
class Linear(_Table):
    """β rises linearly from `beta_first` (k = 1) to `beta_last` (k = T) (Ho et al. 2020, section 4).

    The defaults are made for T = 1000, where ᾱ_T = 4.04e-5.
    """

    num_timesteps: int = static(default=1000)
    beta_first: float = static(default=1e-4)
    beta_last: float = static(default=0.02)

    def _betas(self) -> Float[np.ndarray, " T"]:
        return np.linspace(self.beta_first, self.beta_last, self.num_timesteps)


@pytree(kw_only=False)
class Cosine(_Table):
    """ᾱ_k = f(k/T)/f(0), f(u) = cos²(π/2·(u + offset)/(1 + offset)), with every β at most `beta_max`.

    The cap keeps ᾱ_T above 0 (Nichol & Dhariwal 2021, equation 17).
    """

    num_timesteps: int = static(default=1000)
    offset: float = static(default=0.008)
    beta_max: float = static(default=0.999)

    def _betas(self) -> Float[np.ndarray, " T"]:
        u = np.linspace(0, 1, self.num_timesteps + 1)
        f = np.cos(0.5 * np.pi * (u + self.offset) / (1 + self.offset)) ** 2
        return np.minimum(1 - f[1:] / f[:-1], self.beta_max)
