"""Processes that train as one: they are refused if they differ, and if one is lost, all end and name it.

Each process forks a *sentinel* before JAX starts threads. The sentinel of process 0 accepts those of the others at the
coordinator's address, compares what the processes are about to do, and tells all when one is gone. A sentinel computes
nothing, so it reports while its process is stuck in a compilation or a collective, and after that process was killed.

The sentinel of process 0 also runs JAX's coordination service. JAX aborts every process as soon as the service is gone,
with a long stack and without the name of the lost process; in its own process the service outlives process 0.

A process that is gone is noticed when the system closes its connections; a host that is gone, by TCP's keepalive.
"""

import collections
import dataclasses
import json
import multiprocessing.connection
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any, NoReturn
from unittest import mock

import jax
from jax._src import clusters, distributed  # JAX offers neither to the public

from jaxdiff import __version__
from jaxdiff.training.signals import Interrupted
from jaxdiff.typing import InputError, first_line

_START = 300  # seconds in which all processes must have started
_ALIVE = (10, 5, 3)  # keepalive: seconds of silence, seconds between probes, probes; less than JAX's heartbeat
_HEARTBEAT = 60  # seconds; only a process that is stopped, as by SIGSTOP, is noticed by it first
_GRACE = 2.0  # seconds in which an error can turn out to be the consequence of a lost process
_END = 5.0  # seconds for a process to end when it is told to
_MOST_BYTES = 2**24  # of a message
_MANY = 2**31  # processes
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Return the versions that must be the same in all processes, by name."""
    found = {name: metadata.version(name) for name in _LIBRARIES}
    return {"jaxdiff": __version__, "Python": sys.version.split()[0], **found}


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
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*cluster, None, None, _START)
        address, count, index, local = found
        if address is None or count is None or index is None:
            raise ValueError("JAX knows no cluster here; give all three flags")
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"{address!r} is not HOST:PORT")
        _link = _Link(_fork(host.strip("[]"), int(port), index, way_on), way_on)
        with _failing():
            agree({"--num_processes": count, **facts})
            with mock.patch.object(distributed._jax, "get_distributed_runtime_service", _link.service):
                jax.distributed.initialize(address, count, index, local, heartbeat_timeout_seconds=_HEARTBEAT)
    except InputError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"--distributed can't start with {given}: {first_line(error)}") from error
    with _failing():
        try:
            yield
        except Interrupted:
            _link.leave()
            raise
        _link.leave()


def agree(facts: Mapping[str, Any]) -> None:
    """Raise an InputError on every process if these values, by name, are not the same on all; do nothing on one."""
    if _link is not None:
        _link.agree(facts)


def failing() -> Any:
    """Return a context in which an error ends the other processes before this one cleans up, which may need them."""
    return _failing()


@contextmanager
def exit_at_once() -> Iterator[None]:
    """Exit without waiting for other processes, as JAX would do for minutes, if the block raises after a failure."""
    try:
        yield
    except BaseException as error:
        if _link is None or not _link.failing:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


_link: "_Link | None" = None  # of this process to its sentinel


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except Interrupted:  # all processes agreed to stop
        raise
    except BaseException as error:
        if _link is not None and not _link.over and not _link.failing:
            _link.failing = True
            time.sleep(_GRACE)
            _link.line.send(failed=f"{type(error).__name__}: {first_line(error)}"[:500])
        raise


class _Line:
    """Messages over a socket, each a line of JSON."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._rest = connected, b""
        connected.settimeout(_END)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), _ALIVE, strict=True):
                if hasattr(socket, name):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Send a message; nothing happens if the other end is gone, which `receive` tells."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come; raise an EOFError if no more will."""
        try:
            found = self._socket.recv(2**16)
            *lines, self._rest = (self._rest + found).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError) as error:  # a stranger's bytes
            raise EOFError from error
        if not found or len(self._rest) > _MOST_BYTES or not all(isinstance(message, dict) for message in messages):
            raise EOFError
        return messages

    def close(self) -> None:
        self._socket.close()


class _Link:
    """A process's side of the connection to its sentinel."""

    def __init__(self, line: _Line, way_on: Callable[[], str]) -> None:
        self.line, self._way_on = line, way_on
        self.failing = self.over = False  # whether this process has raised, or ends with all others
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raise an InputError if the facts of the processes differ."""
        self.line.send(facts=dict(facts))
        if (refused := self._answers.get().get("refused")) is not None:
            raise InputError(refused)

    def service(self, *arguments: Any, **options: Any) -> Any:
        """Start JAX's coordination service in the sentinel."""
        self.line.send(service=arguments, options=options)
        if (error := self._answers.get()["started"]) is not None:
            raise RuntimeError(error)
        return mock.Mock(shutdown=lambda: None)  # the sentinel ends it

    def leave(self) -> None:
        """Leave the others, which leave too."""
        jax.distributed.shutdown()
        self.over = True
        self.line.send(bye=True)

    def _listen(self) -> None:
        while True:
            try:
                messages = self.line.receive()
            except EOFError:
                if self.over or self.failing:
                    return
                messages = [{"end": "the process that watches over this one is lost"}]
            for message in messages:
                if "end" not in message:
                    self.failing |= message.get("refused") is not None
                    self._answers.put(message)
                elif not (self.failing and message.get("failed")):  # else this process says itself why it ends
                    _say(message["end"], self._way_on)
                    self.line.send(said=True)
                    os._exit(1)


def _say(text: str, way_on: Callable[[], str]) -> None:
    """Print one line, also while another thread is printing."""
    newline = "\n" if os.isatty(2) else ""  # below a bar
    os.write(2, f"{newline}error: {text}; {way_on()}\n".encode())


def _fork(host: str, port: int, index: int, way_on: Callable[[], str]) -> _Line:
    """Start a sentinel; return the connection to it."""
    ours, theirs = socket.socketpair()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    if os.fork():
        theirs.close()
        return _Line(ours)
    try:
        ours.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal or a cluster sends them to all
            signal.signal(number, signal.SIG_IGN)
        sentinel = _Sentinel(_Line(theirs), index, way_on)
        if index == 0:
            sentinel.lead(port)
        else:
            sentinel.follow(host, port)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


@dataclasses.dataclass(eq=False)
class _Member:
    """A process, as the sentinel of process 0 knows it."""

    line: _Line
    index: int = -1
    name: str = ""  # empty until it has told
    facts: dict[str, Any] | None = None  # to agree on
    left: bool = False


class _Sentinel:
    """It watches over one process, its parent."""

    def __init__(self, own: _Line, index: int, way_on: Callable[[], str]) -> None:
        self._own, self._index, self._way_on, self._parent = own, index, way_on, os.getppid()
        self._name = f"process {index} (pid {self._parent} on {socket.gethostname()})"
        self._explained = False  # whether the process has told why it ends
        self._service: Any = None

    def lead(self, port: int) -> None:
        """Watch over process 0, accept the other sentinels, and decide for all."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            listener = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
        except OSError as error:
            self._own.send(refused=f"--coordinator: port {port} can't be used ({error.strerror}); choose another one")
            return
        members, open_until = [_Member(self._own, 0, self._name)], time.monotonic() + _START
        while not all(member.left for member in members):
            ready = self._ready([*(member.line for member in members), *([listener] if open_until else [])])
            if listener in ready:
                members.append(_Member(_Line(listener.accept()[0])))
            for member in [member for member in members if member.line in ready]:
                self._hear(member, members)
            met = [member for member in members if member.facts]
            if open_until:
                counts = {member.facts["--num_processes"] for member in met if member.facts} or {_MANY}
                if len(counts) > 1:  # refused, but those on their way are to hear it
                    open_until = min(open_until, time.monotonic() + _END)
                complete = len(met) >= max(counts) or time.monotonic() > open_until
            else:
                complete = len(met) == len(members)
            if complete:
                refused = (_missing(met, *counts) if open_until and len(counts) == 1 else None) or _difference(met)
                members = [member for member in members if member.name]
                listener.close()
                open_until = 0.0
                for member in members:
                    member.facts = None
                    member.line.send(refused=refused, leader=self._name)
                if refused is not None:
                    self._await([member.line for member in members])
                    return

    def _hear(self, member: _Member, members: list[_Member]) -> None:
        """Take what a member says; end all if it is lost or fails."""
        try:
            messages = self._receive(member.line)
        except EOFError:
            members.remove(member)
            if member.name and not member.left:
                self._end(f"{member.name} is lost", members)
            return
        for message in messages:
            if "name" in message:
                member.index, member.name = message["index"], message["name"]
            elif "facts" in message:
                member.facts = message["facts"]
            elif "service" in message:
                member.line.send(started=self._start_service(*message["service"], **message["options"]))
            elif "failed" in message:
                members.remove(member)
                self._explained |= member.line is self._own
                self._end(f"{member.name} failed: {message['failed']}", members, failed=True)
            elif "bye" in message:
                member.left = True

    def _start_service(self, *arguments: Any, **options: Any) -> str | None:
        """Start JAX's coordination service; return why it can't."""
        try:
            self._service = distributed._jax.get_distributed_runtime_service(*arguments, **options)
        except Exception as error:
            return first_line(error)
        return None

    def follow(self, host: str, port: int) -> None:
        """Watch over another process than process 0, and stay connected to the sentinel of that one."""
        end, hub = time.monotonic() + _START, None
        while hub is None:
            try:
                hub = _Line(socket.create_connection((host, port), timeout=_END))
            except OSError as error:
                if time.monotonic() > end or os.getppid() != self._parent:
                    text = f"process 0 can't be reached at {host}:{port} ({error}); start it, or correct --coordinator"
                    self._own.send(refused=text)
                    return
                time.sleep(0.1)
        hub.send(index=self._index, name=self._name)
        leader, left = "process 0", False
        while True:
            for line in self._ready([self._own, hub]):
                try:
                    messages = self._receive(line)
                except EOFError:
                    if not left:
                        self._tell(f"{self._name if line is self._own else leader} is lost")
                    return
                for message in messages:
                    if line is self._own:
                        self._explained |= "failed" in message
                        left |= "bye" in message or "failed" in message
                        hub.send(**message)
                    elif "end" in message:
                        self._tell(message["end"], failed=message["failed"])
                        return
                    else:
                        leader = message["leader"]
                        self._own.send(**message)

    def _ready(self, lines: Sequence[Any], seconds: float = 0.5) -> list[Any]:
        """Return those with a message; the process's own, too, if that is gone while its socket lives on in a fork."""
        found: list[Any] = multiprocessing.connection.wait(lines, seconds)
        return [*found, *([self._own] if not found and self._own in lines and self._is_gone() else [])]

    def _is_gone(self) -> bool:
        return os.getppid() != self._parent

    def _receive(self, line: _Line) -> list[dict[str, Any]]:
        unread: Sequence[Any] = [line]
        if line is self._own and self._is_gone() and not multiprocessing.connection.wait(unread, 0):
            raise EOFError
        return line.receive()

    def _end(self, text: str, members: Sequence[_Member], *, failed: bool = False) -> NoReturn:
        """End all processes. The coordination service stays until they have ended."""
        others = [member.line for member in members if member.line is not self._own]
        for line in others:
            line.send(end=text, failed=failed)
        self._tell(text, failed=failed)
        self._await(others)
        os._exit(0)

    def _tell(self, text: str, *, failed: bool = False) -> None:
        """Let the process end and say why; if it can't, say so for it when it is gone."""
        self._own.send(end=text, failed=failed)
        end = time.monotonic() + _END
        while not self._explained and time.monotonic() < end and not self._is_gone():
            for line in self._ready([self._own]):
                with suppress(EOFError):
                    self._explained |= any("said" in message or "failed" in message for message in line.receive())
        if not self._explained:
            if not self._is_gone():
                os.kill(self._parent, signal.SIGKILL)
            _say(text, self._way_on)

    def _await(self, lines: Sequence[_Line]) -> None:
        """Wait until the other ends are closed."""
        end, left = time.monotonic() + 2 * _END, list(lines)
        while left and time.monotonic() < end:
            for line in self._ready(left):
                try:
                    self._receive(line)
                except EOFError:
                    left.remove(line)


def _missing(met: Sequence[_Member], count: int) -> str | None:
    """Return why these are not the processes 0, ..., count - 1, each once; None if they are."""
    names = collections.defaultdict(list)
    for member in met:
        names[member.index].append(member.name)
    for index, found in names.items():
        if len(found) > 1:
            return f"--process_id={index} was given to {' and to '.join(found)}; give each process its own"
    if absent := sorted({*range(count)} - {*names}):
        listed = ", ".join(map(str, absent[:10]))
        return f"--num_processes={count}, but no process {listed} came within {_START} seconds; start all processes"
    return None


def _difference(met: Sequence[_Member]) -> str | None:
    """Return in what these processes differ; None if they don't."""
    first, *others = sorted(met, key=lambda member: member.index)
    expected, found = _flat(first.facts), []
    for member in others:
        values = _flat(member.facts)
        for name in sorted({*expected, *values}):
            here, there = (facts.get(name, "(none)") for facts in (expected, values))
            if here != there:
                found.append(f"{name} is {there!r} in {member.name}, but {here!r} in {first.name}")
    more = f" and {len(found) - 3} more differences" if len(found) > 3 else ""
    return f"the processes differ: {'; '.join(found[:3])}{more}; start all in the same way" if found else None


def _flat(facts: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings, by path."""
    if not isinstance(facts, Mapping):
        return {path: facts}
    return {name: leaf for key in facts for name, leaf in _flat(facts[key], f"{path}.{key}".lstrip(".")).items()}
