"""The times a sampler visits: 1 = t_0 > t_1 > … > t_N = 0.

    uniform     t_i = 1 − i/N
    quadratic   t_i = (1 − i/N)²       (Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", appendix D.2)
    log_snr     λ at equal spacing     (Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic …")
    karras      (σ/α)^{1/ρ} at equal spacing, ρ = 7     (Karras et al. 2022, equation 5)

The last two space t_0 … t_{N−1} between t = 1 and a last time before the data: 1/T on a discrete schedule, 1e-3 on a
continuous one. A last step goes to 0, where λ may be infinite. If λ_1 is infinite (α_1 = 0), they start from 0.999.

On a discrete schedule of T timesteps each rule's times are moved to the nearest distinct k/T, with the ends kept; on a
continuous one, by as little as makes them distinct in float32. Times given as a list are not moved: a discrete schedule
interpolates between its own.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, check_whole, is_traced, shown

Timesteps = str | Sequence[float] | Float[np.ndarray, " times"]

_EDGE = 1e-3  # the distance kept from an end of the path where λ may be infinite
_GAP = 2**-22  # between two times of a rule, so that float32 holds both; 4 roundings of the largest time


def uniform(steps: int, schedule: Schedule) -> Float[np.ndarray, " {steps}+1"]:
    """Return decreasing times with equal spacing."""
    return np.linspace(1, 0, steps + 1)


def quadratic(steps: int, schedule: Schedule) -> Float[np.ndarray, " {steps}+1"]:
    """Return decreasing times, closer together near the data."""
    return np.linspace(1, 0, steps + 1) ** 2


def log_snr(steps: int, schedule: Schedule) -> Float[np.ndarray | Array, " {steps}+1"]:
    """Return decreasing times at which the log-SNR has equal spacing, and 0."""
    first, last = _ends(schedule)
    return _at(_numpy(schedule).linspace(first, last, steps), schedule)


def karras(steps: int, schedule: Schedule, rho: float = 7.0) -> Float[np.ndarray | Array, " {steps}+1"]:
    """Return decreasing times at which (σ/α)^{1/ρ} has equal spacing, and 0."""
    xp = _numpy(schedule)
    first, last = (xp.exp(-end / (2 * rho)) for end in _ends(schedule))
    return _at(-2 * rho * xp.log(xp.linspace(first, last, steps)), schedule)


def _numpy(schedule: Schedule) -> Any:
    """Return jax.numpy for a schedule whose arrays `jax.jit` traces; otherwise numpy, which computes in float64."""
    return jnp if is_traced(schedule) else np


def _ends(schedule: Schedule) -> tuple[Any, Any]:
    """Return the log-SNR at the noisy and at the clean end of the spacing."""
    noisiest = schedule.log_snr(1.0)
    first = jnp.where(jnp.isfinite(noisiest), noisiest, schedule.log_snr(1 - _EDGE))
    ends = first, schedule.log_snr(1 / schedule.num_timesteps if schedule.num_timesteps else _EDGE)
    return ends if is_traced(ends) else (float(ends[0]), float(ends[1]))


def _at(log_snrs: Any, schedule: Schedule) -> Any:
    """Return the times of these log-SNRs and 0, the first of them set to 1."""
    times = schedule.time(jnp.asarray(log_snrs, float))
    if is_traced(times):
        return jnp.append(times.at[0].set(1.0), 0.0)
    return np.append([1.0, *np.asarray(times[1:], np.float64)], 0.0)


TIMESTEPS: dict[str, Callable[[int, Schedule], Any]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
}


def make(timesteps: Timesteps, steps: int | None, schedule: Schedule) -> Float[np.ndarray | Array, " times"]:
    """Return a sampler's decreasing times t_0 > … > t_N: those of a rule in `TIMESTEPS`, or given ones.

    They are in float64, unless the arrays of a learned schedule are traced by `jax.jit`.

    Raises:
      InputError: if the rule is unknown; if N = steps is below 1 or more than a discrete schedule has; if given times
        do not fall strictly, leave [0, 1], differ too little for the schedule, or are not steps + 1 (`steps` may be
        None).
    """
    if isinstance(timesteps, str):
        steps = check(timesteps, steps, schedule)
        with nullcontext() if is_traced(schedule) else jax.ensure_compile_time_eval():  # inside a user's own `jax.jit`
            times = TIMESTEPS[timesteps](steps, schedule)
        return _apart(times) if schedule.num_timesteps is None else _snap(times, schedule.num_timesteps)
    if is_traced(timesteps):
        raise InputError(
            "timesteps is traced by jax.jit; give a list of numbers or a NumPy array, or the name of a rule"
        )
    times = np.asarray(timesteps)
    if times.dtype.kind not in "fiu":
        raise InputError(f"timesteps = {shown(timesteps)}; give a list of numbers, or the name of a rule")
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"timesteps has shape {times.shape}; give a list of at least two times")
    times = times.astype(np.float64)
    if steps is not None and steps != len(times) - 1:
        raise InputError(
            f"steps = {steps}, but {len(times)} timesteps are given, which make {len(times) - 1} steps; leave steps out"
        )
    if not (times[0] <= 1 and times[-1] >= 0 and np.all(np.diff(times) < 0)):
        raise InputError(f"timesteps = {shown(times.tolist())}; the times must fall strictly and stay within [0, 1]")
    if not is_traced(schedule):
        with jax.ensure_compile_time_eval():
            log_snrs = np.array(schedule.log_snr(jnp.asarray(times, float)))
        log_snrs[log_snrs > -np.log(np.finfo(log_snrs.dtype).tiny)] = np.inf  # σ² underflows: no noise
        rises = log_snrs[1:] > log_snrs[:-1]
        if not rises.all():
            i = int(rises.argmin())
            raise InputError(
                f"timesteps[{i}] = {times[i]} and timesteps[{i + 1}] = {times[i + 1]} have the same noise in "
                f"{log_snrs.dtype} under the schedule {type(schedule).__name__}; leave one out"
            )
    return times


def check_name(timesteps: str) -> None:
    """Raise an `InputError` if no rule has this name."""
    if timesteps not in TIMESTEPS:
        raise InputError(f"timesteps = {timesteps!r}; the known ones are {', '.join(sorted(TIMESTEPS))}")


def check(timesteps: str, steps: int | None, schedule: Schedule) -> int:
    """Return the number of steps, or raise as `make` if the rule can't make so many for the schedule."""
    check_name(timesteps)
    if steps is None:
        raise InputError("steps is missing; a sampler needs at least 1 step")
    steps = check_whole("steps", steps)
    if schedule.num_timesteps is not None and steps > schedule.num_timesteps:
        raise InputError(
            f"steps = {steps}, but the schedule has {schedule.num_timesteps} timesteps; "
            f"use at most {schedule.num_timesteps} steps"
        )
    return steps


def _apart(times: Any) -> Any:
    """Move times down, by a few roundings of float32, where two of them are closer than that."""
    xp = jnp if is_traced(times) else np
    offsets = _GAP * xp.arange(len(times) - 1)
    below = times[:-1] + offsets
    below = (jax.lax.cummin(below) if xp is jnp else np.minimum.accumulate(below)) - offsets
    return xp.append(xp.where(times[:-1] - below > _GAP / 4, below, times[:-1]), 0.0)


def _snap(times: Float[np.ndarray, " n"], num_timesteps: int) -> Float[np.ndarray, " n"]:
    """Return the nearest distinct k/num_timesteps: round, then push apart from the data's end, where times crowd."""
    k = np.round(times * num_timesteps).astype(int)
    for i in range(len(k) - 2, -1, -1):
        k[i] = max(k[i], k[i + 1] + 1)
    k[0] = min(k[0], num_timesteps)
    for i in range(1, len(k)):
        k[i] = min(k[i], k[i - 1] - 1)
    return k / num_timesteps
