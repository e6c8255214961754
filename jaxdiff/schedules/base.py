"""The interface of a schedule, its derivatives, and the formulas that schedules share."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.typing import InputError, is_traced, shown

Times = Float[Array, "*batch"] | float
Values = Float[Array, "*batch"]


@runtime_checkable
class Schedule(Protocol):
    """α, σ and log-SNR as functions of t in [0, 1], and the inverse of the log-SNR. All are elementwise."""

    @property
    def num_timesteps(self) -> int | None:
        """T of a discrete schedule; None for a continuous one."""
        return None

    def alpha(self, t: Times) -> Values: ...
    def sigma(self, t: Times) -> Values: ...
    def log_snr(self, t: Times) -> Values: ...
    def time(self, log_snr: Times) -> Values:
        """Return the t at which the log-SNR has this value, clipped to [0, 1]."""


def rates(schedule: Schedule, t: Times) -> tuple[Values, Values]:
    """Return (dα/dt, dσ/dt) at t, exact to rounding. dσ/dt is +∞ where σ leaves 0 like a square root."""
    return _derivative(schedule.alpha, t), _derivative(schedule.sigma, t)


def log_snr_rate(schedule: Schedule, t: Times) -> Values:
    """Return dλ/dt < 0 at t; −∞ where λ is infinite. At a step of a discrete schedule, the derivative from below."""
    return _derivative(schedule.log_snr, t)


def known_log_snr(schedule: Schedule, t: float) -> float | None:
    """Return λ_t as a number, in a user's `jax.jit` too; None if the schedule's own arrays are traced."""
    if is_traced(schedule):
        return None
    with jax.ensure_compile_time_eval():
        return float(schedule.log_snr(t))


def _derivative(f: Callable[[Times], Values], t: Times) -> Values:
    t = as_time(t)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def as_float(x: Times) -> Values:
    return jnp.asarray(x, dtype=jnp.result_type(x, float))


def as_time(t: Times) -> Values:
    """Return t as an array of floats, or raise as `check_times`."""
    check_times(t)
    return as_float(t)


def _refuse_integers(name: str, t: Any) -> None:
    """Raise an InputError about times of an integer dtype, known even under `jax.jit`; the numbers 0 and 1 pass."""
    if not isinstance(t, int | float | np.ndarray | np.generic | jax.Array) or isinstance(t, bool):
        raise InputError(f"{name} = {shown(t)}; it must be a number in [0, 1], or an array of them")
    if isinstance(t, int | float):
        if isinstance(t, int) and t not in (0, 1):
            raise InputError(f"{name} = {t}; must satisfy 0 <= {name} <= 1: divide a step k by num_timesteps")
    elif not jnp.issubdtype(dtype := jnp.result_type(t), jnp.floating):
        raise InputError(
            f"{name} has the dtype {dtype}; times are floats in [0, 1]: divide steps k = 1 … T by T = num_timesteps"
        )


def check_times(t: Times, s: Times | None = None) -> None:
    """Raise an InputError unless all times are floats in [0, 1] and s < t. The values of traced times are not known."""
    times = {"t": t} if s is None else {"t": t, "s": s}
    for name, time in times.items():
        _refuse_integers(name, time)
    known = {name: np.asarray(time) for name, time in times.items() if not is_traced(time)}
    for name, value in known.items():
        if not np.all((value >= 0) & (value <= 1)):
            raise InputError(f"{name} = {value}; must satisfy 0 <= {name} <= 1, where 0 is data and 1 is noise")
    if len(known) == 2 and not np.all(known["s"] < known["t"]):
        raise InputError(f"t = {known['t']}, s = {known['s']}; must satisfy s < t, as a step goes towards 0: swap them")


def check_time(t: Any) -> None:
    """Raise an InputError unless t is the time of one sample: a float in [0, 1], as a scalar."""
    check_times(t)
    if np.ndim(t):
        raise InputError(f"t has shape {np.shape(t)}; one sample has one time, a scalar: map a batch with jax.vmap")


@jax.custom_jvp
def one_minus_exp(x: Values) -> Values:
    """Return 1 − e^x. JAX differentiates expm1 as (e^x − 1) + 1, which is 0 in float32 where e^x is below 6e-8."""
    return 0.0 - jnp.expm1(x)  # not −expm1(x), which is −0 at x = 0


one_minus_exp.defjvps(lambda dx, _, x: -jnp.exp(x) * dx)


def log_alpha_of(log_snr: Times) -> Values:
    """Return log α = −½ softplus(−λ) of a variance-preserving path; accurate at both ends."""
    return -0.5 * jax.nn.softplus(-as_float(log_snr))


def interpolate(t: Times, first: Any, last: Any) -> Values:
    """Return (1 − t) first + t last, exact at both ends."""
    t = as_float(t)
    return (1 - t) * first + t * last


@runtime_checkable
class VariancePreserving(Schedule, Protocol):
    """A schedule with σ² = 1 − α² = −expm1(2 log α). Subclasses define log α and `time`."""

    def log_alpha(self, t: Times) -> Values: ...

    def alpha(self, t: Times) -> Values:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        return jnp.sqrt(one_minus_exp(2 * self.log_alpha(t)))

    def log_snr(self, t: Times) -> Values:
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - jnp.log(one_minus_exp(2 * log_alpha))
