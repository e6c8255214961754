"""What a schedule is, and what all of them share.

dα/dt, dσ/dt, dλ/dt    by forward-mode differentiation of the schedule itself, so that they are exact to rounding
variance preserving    log α = −½ softplus(−λ),  σ² = −expm1(2 log α)
"""

from typing import Protocol, runtime_checkable

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
    t = as_float(t)
    one = jnp.ones_like(t)
    return jax.jvp(schedule.alpha, (t,), (one,))[1], jax.jvp(schedule.sigma, (t,), (one,))[1]


def log_snr_rate(schedule: Schedule, t: Times) -> Values:
    """dλ/dt at t, below 0; −∞ where λ is infinite. A discrete schedule's, at a step, is that of the segment before."""
    t = as_float(t)
    return jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))[1]


def as_float(t: Times) -> Values:
    return jnp.asarray(t, dtype=jnp.result_type(t, float))


def check_times(t: Times, s: Times | None = None) -> None:
    """Raises a ValueError for times, as far as they are known already, outside [0, 1] or with s not below t.

    Under a transformation like `jax.jit` times that are arguments have no values yet, and pass.
    """
    known = {name: value for name, time in (("t", t), ("s", s)) if (value := _known(time)) is not None}
    for name, value in known.items():
        if not np.all((value >= 0) & (value <= 1)):
            raise ValueError(f"{name} = {value}; the rule is 0 <= {name} <= 1, where 0 is data and 1 is noise")
    if len(known) == 2 and not np.all(known["s"] < known["t"]):
        raise ValueError(f"t = {known['t']}, s = {known['s']}; a jump goes from t to an earlier s < t: exchange them")


def _known(time: Times | None) -> np.ndarray | None:
    return None if time is None or isinstance(time, jax.core.Tracer) else np.asarray(time)


@jax.custom_jvp
def one_minus_exp(x: Values) -> Values:
    """1 − e^x. JAX differentiates expm1 as (e^x − 1) + 1, which is 0 in float32 where e^x is below 6e-8."""
    return 0.0 - jnp.expm1(x)  # 0 − 0, so that it is not −0 at x = 0


one_minus_exp.defjvps(lambda dx, _, x: -jnp.exp(x) * dx)


def log_alpha_of(log_snr: Times) -> Values:
    """log α of a variance-preserving path from its log-SNR; accurate at both ends."""
    return -0.5 * jax.nn.softplus(-as_float(log_snr))


@runtime_checkable
class VariancePreserving(Schedule, Protocol):
    """A schedule with α² + σ² = 1. Only log α and its inverse are left to define."""

    def log_alpha(self, t: Times) -> Values: ...

    def alpha(self, t: Times) -> Values:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        return jnp.sqrt(one_minus_exp(2 * self.log_alpha(t)))

    def log_snr(self, t: Times) -> Values:
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - jnp.log(one_minus_exp(2 * log_alpha))
