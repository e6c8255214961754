"""Discrete schedules: T steps with a table of log α, linear in log α between them.

ᾱ_k = Π_{i≤k} (1 − β_i),   α = √ᾱ_k at t = k/T,   ᾱ_0 = 1
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.schedules.base import Times, Values, VariancePreserving, as_float, log_alpha_of


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
        t = as_float(t)
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
        target = log_alpha_of(log_snr)
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


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps = {steps}; a discrete schedule needs at least 1")
