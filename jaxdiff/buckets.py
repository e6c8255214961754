"""Objects in buckets of Google Cloud Storage, by paths as gs://bucket/name.

An object is written whole or not at all, which is all that is relied on here: not on renaming, and not on the listing
of a folder. Every request is repeated until the bucket answers, for `PATIENCE` seconds without any answer. Orbax and
TensorStore, which write the arrays of checkpoints, repeat their own requests for about as long.
"""

import asyncio
import contextlib
import errno
import functools
import importlib.util
import json
import logging
import os
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from etils import epath

from jaxdiff.typing import InputError, causes, first_line

_log = logging.getLogger(__name__)

AnyPath: TypeAlias = Path | epath.Path

SCHEME = "gs://"
PATIENCE = 900.0  # seconds, as TensorStore's 32 attempts take by default
_FIRST = 30.0  # seconds of patience before a run
_UPLOAD = 30.0  # seconds between the beginnings of two uploads of a growing object
_RENEW, _STALE = 20.0, 180.0  # seconds until a lock is renewed, and until one that is not may be taken over

# By which TensorStore says that a bucket refuses or does not answer; a damaged checkpoint gives DATA_LOSS and others.
_WEATHER = "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|http_response_code|attempts failed"


class BucketError(ConnectionError):
    """A bucket refuses, or has not answered for a long time."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.strerror = text


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads into a bucket."""
    return os.fspath(path).startswith(SCHEME)


def path(text: str, *, what: str) -> epath.Path:
    """Return the path of an object or a folder in a bucket.

    Raises:
      InputError: about the argument `what`, if this is no such path, gcsfs is not installed, or the bucket does not
        exist, can't be reached or may not be read.
    """
    bucket, _, name = text.removeprefix(SCHEME).partition("/")
    parts = name.rstrip("/").split("/") if name else []
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", bucket) or {"", ".", ".."} & {*parts} or not text.isprintable():
        raise InputError(f"{what} = {text!r} is not a path in a bucket; give one as in gs://bucket/folder/name")
    if "#" in text:
        raise InputError(f"{what} = {text!r} contains '#', where TensorStore would cut the path; choose another name")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f'{what} = {text!r} needs gcsfs: pip install "jaxdiff[gcs]"')
    global _silent_since
    _silent_since = None  # whatever was before: somebody asks anew
    try:
        _reach(bucket, "/".join(parts))
    except FileNotFoundError:
        raise InputError(f"{what} = {text}: there is no bucket {bucket!r}; create it, or correct the name") from None
    except Exception as error:  # gcsfs promises no type
        fix = "check the credentials (gcloud auth application-default login), the permissions and the network"
        raise InputError(f"{what} = {text}: {bucket!r} can't be read ({_reason(error)}); {fix}") from error
    return epath.Path(f"{SCHEME}{'/'.join([bucket, *parts])}")


@functools.cache  # of what can be read
def _reach(bucket: str, name: str) -> None:
    global _patience
    _patience = _FIRST
    try:
        _call("GET", "b/{}/o", bucket, prefix=name, maxResults=1)
    finally:
        _patience = None


_patience: float | None = None  # instead of `PATIENCE`
_silent_since: float | None = None  # from when on no bucket has answered


@functools.cache
def _files() -> Any:
    """gcsfs's file system that etils, and so Orbax, uses, without its cache of listings and with our patience."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # or etils would use TensorFlow for gs:// where it is installed
    from etils.epath import backend
    from gcsfs.retry import is_retriable

    files: Any = backend.fsspec_backend.fs(SCHEME)
    files.dircache.use_listings_cache = False  # it misses what TensorStore and other processes write
    once = getattr(type(files)._request, "__wrapped__", type(files)._request)  # without gcsfs's own 6 attempts

    async def request(*arguments: Any, **options: Any) -> Any:
        global _silent_since
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                found = await once(files, *arguments, **options)
            except Exception as error:
                if not is_retriable(error) and not isinstance(error, TimeoutError):
                    raise
                patience = PATIENCE if _patience is None else min(_patience, PATIENCE)
                _silent_since = _silent_since or time.monotonic()
                # Once all has been silent for so long, what is asked next is asked only once.
                if time.monotonic() - min(began, _silent_since) >= patience:
                    raise BucketError(f"no answer for {patience:g} s: {_reason(error)}") from error
            else:
                _silent_since = None
                return found
            pause = min(2 * pause, 16, patience / 4)
            await asyncio.sleep(pause * (0.5 + random.random()))

    files._request = request
    return files


def _call(method: str, where: str, *arguments: str, **options: Any) -> Any:
    """The JSON that a request returns."""
    from fsspec.asyn import sync

    files = _files()
    _, content = sync(files.loop, files._call, method, where, *arguments, **options)
    return json.loads(content or b"{}")


def _reason(error: BaseException) -> str:
    return "there is no such bucket or object" if isinstance(error, FileNotFoundError) else first_line(error)


def read(path: str | AnyPath) -> bytes:
    """Return what an object holds; errors are gcsfs's, or a BucketError if the bucket does not answer."""
    try:
        found: bytes = _files().cat_file(os.fspath(path))
        return found
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such object", os.fspath(path)) from None


def write(path: AnyPath, content: bytes) -> None:
    """Write an object, whole or not at all; raise a BucketError if it can't be written."""
    check_held(path)
    try:
        _files().pipe_file(os.fspath(path), content)
    except BucketError:
        raise
    except Exception as error:  # gcsfs promises no type
        raise BucketError(f"{path} can't be written ({_reason(error)})") from error


def check_writable(folder: AnyPath, *, what: str) -> None:
    """Raise an InputError that begins with `what` if no object can be written to a folder."""
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        write(probe, b"")
        probe.unlink()
    except Exception as error:  # as in `write`
        fix = "get the permission, or choose another folder"
        raise InputError(f"{what} can't be written ({_reason(error)}); {fix}") from error


def move(path: AnyPath, to: AnyPath) -> None:
    """Copy the objects at or below a path to another, and then delete them; if it is ended halfway both are there."""
    parts = [path / name for name in sizes(path)] if path.is_dir() else [path]
    _files().copy([os.fspath(part) for part in parts], [os.fspath(to / part.relative_to(path)) for part in parts])
    _files().rm([os.fspath(part) for part in parts])


def sizes(folder: AnyPath) -> dict[str, int]:
    """Return the size of each object below a folder, by its path from there."""
    root = os.fspath(folder).removeprefix(SCHEME) + "/"
    found = _files().find(os.fspath(folder), detail=True)
    return {name.removeprefix(root): info["size"] for name, info in found.items()}


class Growing:
    """An object that grows: kept here, and uploaded as a whole in the background, at most every 30 s.

    `save` uploads it now, in the background too. An upload that fails raises a BucketError at a later call.
    """

    def __init__(self, path: AnyPath, content: bytes = b"") -> None:
        self._path, self._content, self._began = path, bytearray(content), time.monotonic()
        self._stored = len(content)  # bytes that are known to be in the bucket
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, part: bytes) -> None:
        """Append bytes."""
        check_held(self._path)
        self._content += part
        if time.monotonic() - self._began >= _UPLOAD:
            self.save()

    def flush(self) -> None:
        """Do nothing: `save` uploads."""

    def save(self) -> None:
        """Begin to upload what there is, unless an upload is under way."""
        if self._pool is None or (self._pending is not None and not self._pending.done()):
            return
        pool, self._pool = self._pool, None  # after a failure nothing more is uploaded
        if self._pending is not None:
            self._pending.result()  # raises what it raised
        self._pool, self._began, self._pending = pool, time.monotonic(), pool.submit(self._upload)

    def unstored(self) -> bytes:
        """Return what may not be in the bucket yet."""
        return bytes(self._content[self._stored :])

    def close(self) -> None:
        """Upload the rest and wait for it."""
        if (pool := self._pool) is None:
            return
        self._pool, last = None, pool.submit(self._upload)
        pool.shutdown()
        last.result()

    def _upload(self) -> None:
        content = bytes(self._content)
        if len(content) > self._stored:
            write(self._path, content)
            self._stored = len(content)


_held: dict[str, "_Lock"] = {}


def check_held(path: AnyPath) -> None:
    """Raise a BucketError if another run has taken over the lock of a folder above this path."""
    for folder, held in list(_held.items()):
        if held.lost and os.fspath(path).startswith(f"{folder}/"):
            raise BucketError(held.lost)


@contextlib.contextmanager
def lock(folder: AnyPath) -> Iterator[None]:
    """Hold the object "lock" in a folder, so that no second run writes there.

    It says which process on which host holds it and when that was last renewed, every 20 s. It may be taken over if the
    process has ended, as its own host sees at once, or if it was not renewed for 180 s by this host's clock, which
    should not be wrong by minutes. It is written only if its generation is the one that was read, so that of several
    runs one gets it. A run that did not renew it in time, and finds it taken, stops at its next write; a checkpoint
    that it is writing then is the only thing that may still arrive.

    Raises an InputError if another process holds the lock, or it can't be written.
    """
    held = _Lock(folder)
    try:
        held.take()
    except InputError:
        raise
    except Exception as error:  # gcsfs promises no type
        raise InputError(f"workdir = {folder} can't be written ({_reason(error)}); choose another folder") from error
    _held[os.fspath(folder)] = held
    ended = threading.Event()
    thread = threading.Thread(target=held.renew_until, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_FIRST)
        del _held[os.fspath(folder)]
        with contextlib.suppress(Exception):  # it will be taken over
            held.release()


class _Lock:
    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        place: str = os.fspath(folder / "lock").removeprefix(SCHEME)
        self._bucket, _, self._name = place.partition("/")
        self._generation = "0"
        self._mine = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
        self._mine["token"] = secrets.token_hex(8)
        self.lost = ""  # who holds it now, if that is another run

    def take(self) -> None:
        for _ in range(5):  # others may take it between reading and writing
            generation, found = self._read()
            if found.get("token") != self._mine["token"] and _alive(found):
                raise InputError(
                    f"workdir = {self._folder} is in use by process {found['pid']} on {found['host']}; wait for that "
                    "run or stop it, or choose another folder"
                )
            with contextlib.suppress(FileExistsError):
                return self._write(generation)
        raise InputError(f"workdir = {self._folder} is being taken by other runs; choose another folder")

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEW) and not self.lost:
            try:
                self._write(self._generation)
            except FileExistsError:
                # It was taken over, or the answer to an earlier request was lost.
                with contextlib.suppress(Exception):
                    self._generation, found = self._read()
                    if found.get("token") != self._mine["token"]:
                        holder = f"process {found.get('pid')} on {found.get('host')}"
                        self.lost = f"{self._folder} was taken over by {holder}"
            except Exception as error:  # as long as it is not stale all is well
                _log.debug("the lock of %s can't be renewed: %s", self._folder, error)

    def release(self) -> None:
        if not self.lost:
            _call("DELETE", "b/{}/o/{}", self._bucket, self._name, ifGenerationMatch=self._generation)

    def _read(self) -> tuple[str, dict[str, Any]]:
        generation = "0"
        with contextlib.suppress(FileNotFoundError, ValueError):
            generation = _call("GET", "b/{}/o/{}", self._bucket, self._name)["generation"]
            found = json.loads(read(self._folder / "lock"))
            return generation, found if isinstance(found, dict) else {}
        return generation, {}

    def _write(self, generation: str) -> None:
        content = json.dumps({**self._mine, "time": time.time()}).encode()
        where = f"{_files()._location}/upload/storage/v1/b/{quote(self._bucket)}/o"
        options: Any = {"uploadType": "media", "name": self._name, "ifGenerationMatch": generation}
        self._generation = _call("POST", where, data=content, **options)["generation"]


def _machine() -> str:
    """Something that another host, and a container with other processes, does not have."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _alive(found: dict[str, Any]) -> bool:
    """Whether the holder of a lock with this content may still run."""
    try:
        pid, renewed = int(found["pid"]), float(found["time"])
        here = (found["host"], found["machine"]) == (socket.gethostname(), _machine())
        if here:
            os.kill(pid, 0)
    except (KeyError, TypeError, ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:  # of another user
        pass
    return time.time() - renewed < _STALE


def is_weather(error: BaseException) -> bool:
    """Return whether an error comes from a bucket that refuses or does not answer."""
    return any(
        isinstance(found, BucketError)
        or type(found).__module__.partition(".")[0] in ("gcsfs", "aiohttp", "google")
        or str(found).startswith("Forbidden: ")  # gcsfs
        or (SCHEME in str(found) and re.search(_WEATHER, str(found)) is not None)
        for found in causes(error)
    )


@contextlib.contextmanager
def explained(folder: AnyPath, saved: Callable[[], int]) -> Iterator[None]:
    """Turn what a bucket raises that refuses or does not answer into a BucketError that names the last checkpoint."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_bucket(folder) or not is_weather(error):
            raise
        kept = f"step {saved()} is saved" if saved() else "no step is saved yet"
        fix = f"{kept}, run the same command to go on"
        raise BucketError(f"{folder} can't be used any more ({_reason(error)}); {fix}") from error
