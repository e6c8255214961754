"""The user's functions that a run calls: after each line of `metrics.jsonl`, on every process, in the order given.

    def callback(step: int, state: State, metrics: dict[str, float]) -> bool | None

`state` is the state after `step` optimizer steps, with the weights `state.params` and their average `state.ema`;
`metrics` are those of the line. The arrays are the live ones: they are valid during the call, and the next step reuses
their memory. Keep a copy of what is needed later, as with `jax.device_get`. The devices wait during the call.

A callback that returns True ends the run once its state is saved; the same call of `jaxdiff.train` goes on from there.
An error in a callback ends the run too, and is raised once the state is saved. With several processes all of them stop
if one does, and all must be given the same callbacks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from jaxdiff.training.step import State
from jaxdiff.typing import InputError, shown

Callback = Callable[[int, State, dict[str, float]], Any]


def check(callbacks: Sequence[Any]) -> None:
    """Raise an InputError if one of them can't be called."""
    if callable(callbacks):
        raise InputError(f"callbacks = {shown(callbacks)}; give a list of functions")
    for found in callbacks:
        if isinstance(found, type) or not callable(found):
            raise InputError(f"callbacks holds {shown(found)}; give functions of (step, state, metrics)")


def call(callbacks: Sequence[Callback], step: int, state: State, metrics: Mapping[str, float]) -> bool:
    """Call each of them; return whether one asks to stop, on any process. Raises what a callback raises."""
    stops, error = False, None
    try:
        for callback in callbacks:
            stops |= _is_true(callback(step, state, {**metrics}))
    except Exception as found:
        error = found
    anywhere = multihost_utils.process_allgather(np.array([stops, error is not None])).reshape(-1, 2).any(axis=0)
    if error is not None:
        raise error
    if anywhere[1]:
        raise RuntimeError("a callback failed on another process; its own message says why")
    return bool(anywhere[0])


def _is_true(value: Any) -> bool:
    """Whether it is the boolean True, of Python, NumPy or JAX: other values that count as true may be no answer."""
    return getattr(value, "dtype", type(value)) in (bool,) and bool(value)
