"""Small processes that watch over those that train: see `jaxdiff.training.hosts`.

Each process that trains has a sentinel, its child. All sentinels are connected to the hub, another child of process 0,
over TCP. The hub passes on what a process tells (its facts, its failure, its end) and that one is gone. Sentinels and
hub compute nothing, so they report while their process is stuck in a compilation or a collective, or dead.

A process that is gone is noticed when the system closes its connections. A host that is gone is noticed by its
silence, as sentinels and hub tell each other every few seconds that they are there.
"""

import dataclasses
import json
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jax._src import distributed  # JAX does not make it public

from jaxdiff.typing import first_line

START = 300  # seconds in which all processes must have started
_BEAT = 3.0  # seconds between signs of life
_SILENCE = 30.0  # seconds after which a host is lost
_END = 5.0  # seconds for a process to end when it is asked to
_NOTICE = 20.0  # seconds after which the processes that are missing are named
_MOST_BYTES = 2**24  # of a message


class Line:
    """Messages over a socket, each a line of JSON."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._rest = connected, b""
        self._told = self._heard = time.monotonic()
        connected.settimeout(_END)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Send a message; nothing happens if the other end is gone, which `receive` tells."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come, perhaps none; raise an EOFError if no more will come."""
        try:
            found = self._socket.recv(2**16)
            *lines, self._rest = (self._rest + found).split(b"\n")
            messages = [dict(json.loads(line)) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError, TypeError, RecursionError) as error:  # it may be a stranger's
            raise EOFError from error
        if not found or len(self._rest) > _MOST_BYTES:
            raise EOFError
        self._heard = time.monotonic()
        return [message for message in messages if message]

    def beat(self) -> None:
        """Give a sign of life if one is due; raise an EOFError if the other end has given none for long."""
        now = time.monotonic()
        if now > self._told + _BEAT:
            self._told = now
            self.send()
        if now > self._heard + _SILENCE:
            raise EOFError(f"has been silent for {_SILENCE:.0f} seconds")

    def close(self) -> None:
        self._socket.close()


def _ready(*files: Any, seconds: float = 0.5) -> list[Any]:
    """Return those from which something can be received."""
    return multiprocessing.connection.wait(files, seconds)


def say(text: str, way_on: Callable[[], str]) -> None:
    """Print one line, also while another thread is printing; with what `way_on` returns, if it does soon."""
    found: list[str] = []

    def read() -> None:
        with suppress(Exception):  # a bucket can't be asked from a fork
            found.append(way_on())

    reading = threading.Thread(target=read, daemon=True)  # a folder may hang with its server
    reading.start()
    reading.join(_END / 2)
    newline = "\n" if os.isatty(2) else ""  # below a bar
    os.write(2, f"{newline}error: {text}; {(*found, 'run the same command to go on')[0]}\n".encode())


def fork(run: Callable[[Line], None]) -> Line:
    """Call a function in a child of this process, with a connection to it; return the other end."""
    ours, theirs = socket.socketpair()
    for file in (sys.stdout, sys.stderr):
        file.flush()
    if os.fork():
        theirs.close()
        return Line(ours)
    try:
        ours.close()
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # whoever reads the output need not wait for this process
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal or a cluster sends them to all
            signal.signal(number, signal.SIG_IGN)
        run(Line(theirs))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class Sentinel:
    """It watches over its parent."""

    def __init__(self, own: Line, index: int, way_on: Callable[[], str]) -> None:
        self._own, self._index, self._way_on, self._parent = own, index, way_on, os.getppid()
        self._name = f"process {index} (pid {self._parent} on {socket.gethostname()})"
        self._hub = "process 0"  # its name, once it is known
        self._running = time.monotonic()  # when the process was last seen not to be stopped
        self._left = self._explained = False  # whether the process ends with all others; has told why it ends alone

    def run(self, host: str, port: int) -> None:
        """Pass messages on between the process and the hub, until one of them is gone."""
        if (hub := self._connect(host, port)) is not None:
            hub.send(index=self._index, name=self._name)
            while self._pass_on(hub):
                pass

    def _connect(self, host: str, port: int) -> Line | None:
        end = time.monotonic() + START
        while True:
            try:
                return Line(socket.create_connection((host, port), timeout=_END))
            except OSError as error:
                if time.monotonic() > end or self._is_gone():
                    text = f"process 0 can't be reached at {host}:{port} ({error}); start it, or correct --coordinator"
                    self._own.send(refused=text)
                    return None
                time.sleep(0.1)

    def _pass_on(self, hub: Line) -> bool:
        """Pass on what has come; return whether to go on."""
        ready = _ready(self._own, hub)
        try:
            hub.beat()
            for message in hub.receive() if hub in ready else []:
                if "end" in message:
                    self._tell(**message)
                    return False
                self._hub = message.get("hub", self._hub)
                self._left |= "refused" in message
                self._own.send(**message)
        except EOFError as error:
            if not self._left:
                self._tell(f"{self._hub} {str(error) or 'is lost'}")
            return False
        try:
            for message in self._receive():
                self._explained |= "failed" in message
                self._left |= "failed" in message or "bye" in message
                hub.send(**message)
        except EOFError as error:
            if _ready(hub, seconds=0.2):  # it may say why this process is gone
                return True
            if not self._left:
                self._tell(f"{self._name} {str(error) or 'is lost'}")
            return False
        if not self._is_stopped():
            self._running = time.monotonic()
        elif time.monotonic() > self._running + _SILENCE and not self._left:
            self._left = True
            hub.send(failed=f"it has been stopped, as by SIGSTOP, for {_SILENCE:.0f} seconds")
        return True

    def _is_gone(self) -> bool:
        return os.getppid() != self._parent

    def _is_stopped(self) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{self._parent}/stat").read_text().rpartition(") ")[2].startswith("T")
        return False

    def _receive(self) -> list[dict[str, Any]]:
        """As `Line.receive`, from the process; also if that is gone while its socket lives on in a fork of it."""
        gone = self._is_gone()
        if _ready(self._own, seconds=0):
            return self._own.receive()
        if gone:
            raise EOFError
        return []

    def _tell(self, end: str, failed: bool = False) -> None:
        """Let the process end and say why; if it can't, say so for it once it is gone."""
        self._own.send(end=end, failed=failed)
        until = time.monotonic() + _END
        with suppress(EOFError):
            while not self._explained and time.monotonic() < until:
                _ready(self._own)
                self._explained = any("said" in message or "failed" in message for message in self._receive())
        if not self._explained:
            if not self._is_gone():
                os.kill(self._parent, signal.SIGKILL)
            say(end, self._way_on)


@dataclasses.dataclass(eq=False)
class _Member:
    """What the hub knows of a process."""

    line: Line
    index: int = -1
    name: str = ""  # empty until its sentinel has told
    facts: dict[str, Any] | None = None  # to agree on
    left: bool = False

    def fileno(self) -> int:
        return self.line.fileno()


class _Ended(Exception):  # noqa: N818
    """All processes end; the message to them is the argument."""


def lead(listener: socket.socket) -> None:
    """Be the hub: accept the sentinels, let their processes agree, and end all of them if one is lost."""
    members: list[_Member] = []
    try:
        _meet(listener, members)
        while not all(member.left for member in members):
            _hear(members)
            if members and all(member.facts for member in members):
                _agree(members)
        message = {"over": True}
    except _Ended as ended:
        message = ended.args[0]
    for member in members:
        member.line.send(**message)
    # JAX's coordination service, which is in this process, stays until the others have ended.
    until = time.monotonic() + 2 * _END
    while members and time.monotonic() < until:
        with suppress(_Ended):
            _hear(members)
    for member in members:
        member.line.close()


def _meet(listener: socket.socket, members: list[_Member]) -> None:
    """Wait for all processes, and let them agree that they are all and the same."""
    met: list[_Member] = []
    until, notice, counts = time.monotonic() + START, time.monotonic() + _NOTICE, {1}
    while len(met) < max(counts) and time.monotonic() < until:
        if _hear(members, [listener]):
            members.append(_Member(Line(listener.accept()[0])))
        met = [member for member in members if member.facts]
        counts = {member.facts["--num_processes"] for member in met if member.facts} or {1}
        if len(counts) > 1:  # they are refused; those that are still to come shall hear why
            until = min(until, time.monotonic() + _END)
        if time.monotonic() > notice and (absent := _absent(met, max(counts))):
            notice = until
            os.write(2, f"waiting for process {', '.join(map(str, absent[:10]))} of {max(counts)} ...\n".encode())
    listener.close()
    for stranger in [member for member in members if not member.name]:
        members.remove(stranger)
        stranger.line.close()
    _agree(met, min(counts) if len(counts) == 1 else None)


def _hear(members: list[_Member], others: Sequence[socket.socket] = ()) -> list[Any]:
    """Take what the members say; return which of the others are ready. Raises _Ended if a member is lost or fails."""
    ready = _ready(*members, *others)
    for member in list(members):
        try:
            messages = member.line.receive() if member in ready else []
            member.line.beat()
        except EOFError as error:
            members.remove(member)
            member.line.close()
            if member.name and not member.left:
                raise _Ended({"end": f"{member.name} {str(error) or 'is lost'}"}) from None
            continue
        for message in messages:
            if not member.name and not (isinstance(message.get("name"), str) and isinstance(message.get("index"), int)):
                members.remove(member)  # a stranger
                member.line.close()
                break
            if "name" in message:
                member.index, member.name = message["index"], message["name"]
            elif "facts" in message:
                member.facts = message["facts"]
            elif "service" in message:
                member.line.send(started=_start_service(*message["service"], **message["options"]))
            elif "failed" in message:
                member.left = True
                raise _Ended({"end": f"{member.name} failed: {message['failed']}", "failed": True})
            elif "bye" in message:
                member.left = True
    return [other for other in others if other in ready]


def _start_service(*arguments: Any, **options: Any) -> str | None:
    """Start JAX's coordination service in this process; return why it can't."""
    global _service
    try:
        _service = distributed._jax.get_distributed_runtime_service(*arguments, **options)
    except Exception as error:
        return first_line(error)
    return None


_service: Any = None  # kept until this process ends


def _agree(members: Sequence[_Member], count: int | None = None) -> None:
    """Tell the members that they agree, or raise _Ended with the difference. They should be `count` processes."""
    members = sorted(members, key=lambda member: member.index)
    refused = None if count is None else _miscounted(members, count)
    refused = refused or _difference(members)
    if refused is not None:
        raise _Ended({"refused": refused})
    for member in members:
        member.facts = None
        member.line.send(hub=members[0].name)


def _absent(members: Sequence[_Member], count: int) -> list[int]:
    return sorted({*range(count)} - {member.index for member in members})


def _miscounted(members: Sequence[_Member], count: int) -> str | None:
    wrong = [f"no process {index} came" for index in _absent(members, count)[:5]]
    indices = [member.index for member in members]
    for i, member in enumerate(members):
        if member.index in indices[:i] or not 0 <= member.index < count:
            wrong.append(f"{member.name} is one too many")
    rule = f"--num_processes={count} needs each --process_id from 0 to {count - 1} once"
    return f"{rule}, but {', '.join(wrong[:8])}; start them so, within {START} seconds" if wrong else None


def _difference(members: Sequence[_Member]) -> str | None:
    first, *others = members
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
