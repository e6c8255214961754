"""The times a sampler visits: 1 = t_0 > t_1 > … > t_N = 0.

    uniform     t_i = 1 − i/N
    quadratic   t_i = (1 − i/N)²       (Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", appendix D.2)
    log_snr     λ at equal spacing     (Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic …")
    karras      (σ/α)^{1/ρ} at equal spacing, ρ = 7     (Karras et al. 2022, equation 5)

The last two space t_0 … t_{N−1} between t = 1 and a last time before the data, 1/T on a discrete schedule and 1e-3 on a
continuous one, and then jump to 0, where λ may be infinite. Where it is so at t = 1 (α_1 = 0), they start from 0.999.

On a discrete schedule of T steps each of these times is moved to the nearest k/T, distinct and with the ends kept.
Times given as a list are taken as they are: between its steps a discrete schedule interpolates.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.schedules import Schedule

Grid = str | Sequence[float] | Float[np.ndarray, " times"]


_EDGE = 1e-3  # how near to an end of the path, where λ may be infinite, a continuous schedule is visited


def uniform(steps: int, schedule: Schedule) -> Float[np.ndarray, " {steps}+1"]:
    """Falling times with equal spacing."""
    return np.linspace(1, 0, steps + 1)


def quadratic(steps: int, schedule: Schedule) -> Float[np.ndarray, " {steps}+1"]:
    """Falling times, closer together near the data."""
    return np.linspace(1, 0, steps + 1) ** 2


def log_snr(steps: int, schedule: Schedule) -> Float[np.ndarray, " {steps}+1"]:
    """Falling times at which the log-SNR has equal spacing, and 0."""
    first, last = _ends(schedule)
    return _at(np.linspace(first, last, steps), schedule)


def karras(steps: int, schedule: Schedule, rho: float = 7.0) -> Float[np.ndarray, " {steps}+1"]:
    """Falling times at which (σ/α)^{1/ρ} has equal spacing, and 0."""
    first, last = _ends(schedule)
    roots = np.linspace(np.exp(-first / (2 * rho)), np.exp(-last / (2 * rho)), steps)
    return _at(-2 * rho * np.log(roots), schedule)


def _ends(schedule: Schedule) -> tuple[float, float]:
    """The log-SNR at the noisy and at the clean end of the spacing."""
    last = 1 / schedule.steps if schedule.steps else _EDGE
    noisiest = float(schedule.log_snr(1.0))
    return noisiest if np.isfinite(noisiest) else float(schedule.log_snr(1 - _EDGE)), float(schedule.log_snr(last))


def _at(log_snrs: Float[np.ndarray, " steps"], schedule: Schedule) -> Float[np.ndarray, " {len(log_snrs)}+1"]:
    """The times of these log-SNRs, with the ends at 1 and 0."""
    times = np.append(np.asarray(schedule.time(jnp.asarray(log_snrs, float)), np.float64), 0.0)
    times[0] = 1.0
    return times


REGISTRY: dict[str, Callable[[int, Schedule], Float[np.ndarray, " times"]]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
}


def make(grid: Grid, steps: int | None, schedule: Schedule) -> Float[np.ndarray, " times"]:
    """The falling times t_0 > … > t_N of a sampler.

    Args:
      grid: the name of a rule (a key of `REGISTRY`), or the times themselves.
      steps: N, the number of jumps; with times given, None or their number less one.
      schedule: a discrete one is visited at its own steps by every rule.

    Returns:
      float64 times.

    Raises:
      ValueError: for an unknown rule; for steps < 1 or more than a discrete schedule has; for times that do not
        fall strictly, or leave [0, 1].
    """
    if isinstance(grid, str):
        steps = check(grid, steps, schedule)
        times = REGISTRY[grid](steps, schedule)
        return times if schedule.steps is None else _snap(times, schedule.steps)
    times = np.asarray(grid, np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"grid has shape {times.shape}; give a list of at least two times")
    if steps is not None and steps != len(times) - 1:
        raise ValueError(
            f"steps = {steps}, but the grid of {len(times)} times makes {len(times) - 1} jumps; leave steps out"
        )
    if not (times[0] <= 1 and times[-1] >= 0 and np.all(np.diff(times) < 0)):
        raise ValueError(f"grid = {times.tolist()}; times must fall strictly and stay within [0, 1]")
    return times


def check(grid: str, steps: int | None, schedule: Schedule) -> int:
    """The number of steps, if a rule of this name can make so many of this schedule; computes nothing.

    Raises:
      ValueError: as `make` does.
    """
    if grid not in REGISTRY:
        raise ValueError(f"grid = {grid!r}; the known ones are {', '.join(sorted(REGISTRY))}")
    if steps is None or steps < 1:
        raise ValueError(f"steps = {steps}; a sampler needs at least 1 step")
    if schedule.steps is not None and steps > schedule.steps:
        raise ValueError(
            f"steps = {steps}, but the schedule has {schedule.steps} steps; ask for at most {schedule.steps}"
        )
    return steps


def _snap(times: Float[np.ndarray, " n"], steps: int) -> Float[np.ndarray, " n"]:
    """The nearest distinct k/steps: rounded, then pushed apart from the data's end, where grids crowd."""
    k = np.round(times * steps).astype(int)
    for i in range(len(k) - 2, -1, -1):
        k[i] = max(k[i], k[i + 1] + 1)
    k[0] = min(k[0], steps)
    for i in range(1, len(k)):
        k[i] = min(k[i], k[i - 1] - 1)
    return k / steps
