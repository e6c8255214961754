"""Requests to stop: SIGTERM and Ctrl-C."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """A signal stopped the run; its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; step {step} is saved, run the same command to go on")
        self.number = number


@contextmanager
def stop_requests() -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the number of the signal to stop for, or None; a second signal acts at once.

    If there are several processes, all of them must call the function at the same points of the run: it returns the
    same on all. They agree on one of its calls, which comes seconds after the signal (20 were seen); a second signal
    does not hurry them.
    """
    several = jax.process_count() > 1
    received: list[int] = []
    calls = itertools.count(1)

    def asked() -> int | None:
        # JAX counts calls, as it would count steps, and must be asked at each until it has said yes.
        if several and not received and multihost_utils.reached_preemption_sync_point(next(calls)):
            received.append(signal.SIGTERM)
        return received[0] if received else None

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # JAX itself handles SIGTERM if there are several processes, so Ctrl-C becomes one.
    numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    before = {int(number): signal.getsignal(number) for number in numbers}

    def note(number: int, _: Any) -> None:
        signal.signal(number, before[number])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            received.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
