"""Long computations in pieces of seconds, so that a program can act between two of them, or stop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff.typing import PyTree

_SECONDS = 2.0  # aimed at for a piece
_MOST = 2**20  # steps in a piece

_between: ContextVar[Callable[[], object]] = ContextVar("between", default=lambda: None)


@contextmanager
def calling(function: Callable[[], object]) -> Iterator[None]:
    """Call `function` between the pieces of everything that is computed inside; it may raise to stop that."""
    token = _between.set(function)
    try:
        yield
    finally:
        _between.reset(token)


def pause() -> None:
    """Call the function that `calling` was given, if any; a long computation calls `pause` after each piece."""
    _between.get()()


def advance(
    take: Callable[[PyTree, tuple[Any, Any]], PyTree], carry: PyTree, stops: Sequence[int]
) -> Iterator[tuple[int, PyTree]]:
    """Take the steps up to the last of the increasing `stops`, and yield (steps taken, carry) after each piece.

    `take(carry, (first, last))` takes the steps first … last − 1. A piece ends at every stop. The first piece is one
    step, and the next ones are as long as the speed of the piece before suggests. Process 0 decides for all processes.
    """
    done, length = 0, 1
    for stop in stops:
        while done < stop:
            end, began = min(done + length, stop), time.perf_counter()
            carry = jax.block_until_ready(take(carry, (np.int32(done), np.int32(end))))
            fit = (end - done) * _SECONDS / max(time.perf_counter() - began, 1e-6)
            length = int(multihost_utils.broadcast_one_to_all(np.int32(np.clip(fit, 1, _MOST))))
            done = end
            pause()
            yield done, carry
