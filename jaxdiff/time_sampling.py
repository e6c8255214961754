"""At which times a batch is trained.

discrete     t = k/T, k uniform in {1, …, T}     (Ho et al. 2020, algorithm 1)
continuous   t uniform in (0, 1]
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
from jaxtyping import Array, Float, Key

from jaxdiff.schedules import Schedule

TimeSampler = Callable[[Key[Array, ""], int], Float[Array, " n"]]
Times = Literal["auto", "discrete", "continuous"]


def discrete(key: Key[Array, ""], n: int, *, steps: int) -> Float[Array, " n"]:
    """n independent times k/`steps` with k uniform in {1, …, steps}."""
    return jax.random.randint(key, (n,), 1, steps + 1) / steps


def continuous(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """n independent times uniform in (0, 1]; 0, where a target may be infinite, is never drawn."""
    return 1 - jax.random.uniform(key, (n,))


def time_sampler(times: Times, schedule: Schedule) -> TimeSampler:
    """The sampler of training times for a schedule.

    Args:
      times: "discrete", "continuous", or "auto": discrete where the schedule is.
      schedule: the noise schedule.

    Raises:
      ValueError: for an unknown name, and for "discrete" with a continuous schedule.
    """
    if times not in get_args(Times):
        raise ValueError(f"times = {times!r}; the known ones are {', '.join(get_args(Times))}")
    steps = schedule.steps
    if times == "discrete" and steps is None:
        raise ValueError("times = 'discrete', but the schedule is continuous; use 'continuous' or a discrete schedule")
    if steps is None or times == "continuous":
        return continuous
    return lambda key, n: discrete(key, n, steps=steps)
