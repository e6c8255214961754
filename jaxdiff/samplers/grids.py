"""The times a sampler visits: 1 = t_0 > t_1 > … > t_N = 0.

    uniform     t_i = 1 − i/N
    quadratic   t_i = (1 − i/N)²       (Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", appendix D.2)

On a discrete schedule of T steps each of these times is moved to the nearest k/T, distinct and with the ends kept.
Times given as a list are taken as they are: between its steps a discrete schedule interpolates.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from jaxdiff.schedules import Schedule

Grid = str | Sequence[float] | Float[np.ndarray, " times"]


def uniform(steps: int) -> Float[np.ndarray, " {steps}+1"]:
    """Falling times with equal spacing."""
    return np.linspace(1, 0, steps + 1)


def quadratic(steps: int) -> Float[np.ndarray, " {steps}+1"]:
    """Falling times, closer together near the data."""
    return np.linspace(1, 0, steps + 1) ** 2


REGISTRY: dict[str, Callable[[int], Float[np.ndarray, " times"]]] = {
    "uniform": uniform,
    "quadratic": quadratic,
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
        if grid not in REGISTRY:
            raise ValueError(f"grid = {grid!r}; the known ones are {', '.join(sorted(REGISTRY))}")
        if steps is None or steps < 1:
            raise ValueError(f"steps = {steps}; a sampler needs at least 1 step")
        if schedule.steps is not None and steps > schedule.steps:
            raise ValueError(
                f"steps = {steps}, but the schedule has {schedule.steps} steps; ask for at most {schedule.steps}"
            )
        times = REGISTRY[grid](steps)
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


def _snap(times: Float[np.ndarray, " n"], steps: int) -> Float[np.ndarray, " n"]:
    """The nearest distinct k/steps: rounded, then pushed apart from the data's end, where grids crowd."""
    k = np.round(times * steps).astype(int)
    for i in range(len(k) - 2, -1, -1):
        k[i] = max(k[i], k[i + 1] + 1)
    k[0] = min(k[0], steps)
    for i in range(1, len(k)):
        k[i] = min(k[i], k[i - 1] - 1)
    return k / steps
