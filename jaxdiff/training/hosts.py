"""Processes that train as one: they are refused if they differ, and if one is lost, all end and name it.

Each process has a sentinel: see `jaxdiff.training.sentinels`. That of process 0 has JAX's coordination service beside
it. JAX aborts every process as soon as the service is gone, with a long stack and without the name of the lost process;
there it outlives process 0 for as long as the others need to end.
"""

import os
import queue
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any
from unittest import mock

import jax
from jax._src import clusters, distributed  # JAX makes neither public

from jaxdiff.training import sentinels
from jaxdiff.training.signals import Interrupted
from jaxdiff.typing import InputError, first_line

_GRACE = 2.0  # seconds in which an error can turn out to be the consequence of a lost process
_LEAVE = 5.0  # seconds for JAX to leave the other processes
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Return the versions of Python and of libraries that must be the same in all processes, by name."""
    return {"Python": sys.version.split()[0], **{name: metadata.version(name) for name in _LIBRARIES}}


@contextmanager
def joined(
    cluster: tuple[str | None, int | None, int | None], facts: Mapping[str, Any], way_on: Callable[[], str]
) -> Iterator[None]:
    """Start `jax.distributed` for the block, if all processes agree on `facts`, and end with the others.

    If another process is lost or fails, this one prints a line that names it, followed by `way_on()`, and exits with
    code 1. If the block raises, the other processes do so.

    Args:
      cluster: the address of the coordinator, the number of processes and the index of this one, as for
        `jax.distributed.initialize`; JAX finds those that are None on a cluster that it knows.
      facts: values by name, also nested, which must be the same in all processes.

    Raises:
      InputError: if the processes can't meet or don't agree.
    """
    global _link
    names = ("coordinator", "num_processes", "process_id")
    given = ", ".join(f"--{name}={value}" for name, value in zip(names, cluster, strict=True))
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*cluster, None, None, sentinels.START)
        address, count, index, local = found
        if address is None or count is None or index is None:
            raise ValueError("JAX knows no cluster here; give all three flags")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"{address!r} is not HOST:PORT")
        _link = _Link(_watched(host.strip("[]"), int(port), index, way_on), way_on)
        with failing():
            agree({"--num_processes": count, **facts})
            # JAX has no other way to have the service in another process.
            with mock.patch.object(distributed._jax, "get_distributed_runtime_service", _link.service):
                jax.distributed.initialize(address, count, index, local)
    except InputError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"--distributed can't start with {given}: {first_line(error)}") from error
    with failing():
        try:
            yield
        except Interrupted:
            _link.leave()
            raise
        _link.leave()


def agree(facts: Mapping[str, Any]) -> None:
    """Raise an InputError on every process if these values, by name, are not the same on all; do nothing on one."""
    if _link is not None and not _link.over:
        _link.agree(facts)


@contextmanager
def failing() -> Iterator[None]:
    """End the other processes if the block raises, before this one cleans up, which may need them."""
    try:
        yield
    except Interrupted:  # all processes agreed to stop
        raise
    except BaseException as error:
        if _link is not None and not _link.over and not _link.failing:
            _link.failing = True
            time.sleep(_GRACE)
            kind, text = type(error).__name__, first_line(error)
            _link.line.send(failed=text if isinstance(error, InputError) or text == kind else f"{kind}: {text}")
        raise


@contextmanager
def exit_at_once() -> Iterator[None]:
    """Exit at the end of the block without waiting for others, as JAX would, if this process failed or JAX is stuck."""
    code: Any = 0
    try:
        yield
    except BaseException as error:
        if _link is None or not (_link.failing or _link.stuck):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        code = error.code if isinstance(error, SystemExit) else 1
    if _link is not None and (_link.failing or _link.stuck):
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


_link: "_Link | None" = None  # of this process to its sentinel


class _Link:
    """A process's side of the connection to its sentinel."""

    def __init__(self, line: sentinels.Line, way_on: Callable[[], str]) -> None:
        self.line, self._way_on = line, way_on
        self.failing = self.over = False  # whether this process has raised, or ends with all others
        self.stuck = False  # whether JAX has not come back from its shutdown
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raise an InputError if the facts of the processes differ."""
        self.line.send(facts=dict(facts))
        if (refused := self._answers.get().get("refused")) is not None:
            raise InputError(refused)

    def service(self, *arguments: Any, **options: Any) -> Any:
        """Start JAX's coordination service in the hub, in place of this process."""
        self.line.send(service=arguments, options=options)
        if (error := self._answers.get()["started"]) is not None:
            raise RuntimeError(error)
        return types.SimpleNamespace(shutdown=lambda: None)  # the hub ends it

    def leave(self) -> None:
        """Leave together with the others, so that none takes another for lost."""
        # JAX can wait for ever here, if SIGTERM comes in this moment: its two threads then wait for each other.
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(_LEAVE)
        self.stuck, self.over = shutdown.is_alive(), True
        self.line.send(bye=True)
        self._answers.get()

    def _listen(self) -> None:
        while True:
            try:
                messages = self.line.receive()
            except EOFError:
                if self.over or self.failing:
                    self._answers.put({})
                    return
                messages = [{"end": "the process that watches over this one is lost"}]
            for message in messages:
                if "end" not in message:
                    self.failing |= message.get("refused") is not None
                    self._answers.put(message)
                elif not (self.failing and message.get("failed")):  # else this process says itself why it ends
                    sentinels.say(message["end"], self._way_on)
                    self.line.send(said=True)
                    os._exit(1)


def _watched(host: str, port: int, index: int, way_on: Callable[[], str]) -> sentinels.Line:
    """Start a sentinel and, in process 0, the hub; return the connection to the sentinel."""
    if index == 0:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET  # as JAX does
        with socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024) as listener:
            sentinels.fork(lambda _: sentinels.lead(listener))
    return sentinels.fork(lambda own: sentinels.Sentinel(own, index, way_on).run(host, port))
