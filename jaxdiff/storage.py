"""Paths that users give, and files that are written whole or not at all, on this machine and in buckets."""

import io
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jaxdiff import buckets
from jaxdiff.buckets import AnyPath, is_bucket
from jaxdiff.typing import InputError


def user_path(path: str | os.PathLike[str], *, what: str) -> AnyPath:
    """Return a path with ~ expanded, or one in a bucket.

    Raises:
      InputError: about the argument `what`, if the path can't name a file, or the bucket can't be read.
    """
    text = os.fspath(path)
    return (
        buckets.path(text, what=what) if is_bucket(text) else local_path(text, what=what, other=", or gs://BUCKET/NAME")
    )


def local_path(path: str | os.PathLike[str], *, what: str, other: str = "") -> Path:
    """Return a path on this machine with ~ expanded; raise an InputError as `user_path` if it can't name a file."""
    text = os.fspath(path)
    if not text or "\0" in text or "://" in text:
        kind = f" ({text.partition(':')[0]}:// is not read)" if "://" in text else ""
        fix = f"give the name of a file or folder on this machine{other}"
        raise InputError(f"{what} = {text!r} is not a path{kind}; {fix}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{what} = {text!r}: {error}; write the folder out instead of ~") from error


def absolute(path: AnyPath) -> AnyPath:
    """Return the path from the root, without links; a path in a bucket is one."""
    return path if is_bucket(path) else path.resolve()


def exists(path: AnyPath) -> bool:
    """Return whether anything is at a path, be it a link to nowhere."""
    return path.exists() if is_bucket(path) else os.path.lexists(path)


def size_of(path: AnyPath) -> int:
    """Return the size of a file in bytes."""
    found: Any = path.stat()
    return found.length if is_bucket(path) else found.st_size


@contextmanager
def opened(path: str | AnyPath) -> Iterator[BinaryIO]:
    """Open a file to read; an object in a bucket is read at once."""
    if is_bucket(path):
        yield io.BytesIO(buckets.read(path))
        return
    with open(path, "rb") as file:
        yield file


def move(path: AnyPath, to: AnyPath) -> None:
    """Rename a file or folder; see `jaxdiff.buckets.move` for buckets."""
    if is_bucket(path):
        buckets.move(path, to)
    else:
        path.rename(to)


def make_folder(folder: AnyPath, *, what: str) -> None:
    """Make a folder; raise an InputError that begins with `what` if no file can be written there."""
    if is_bucket(folder):
        buckets.check_writable(folder, what=what)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name, or with one that nobody can foresee
            pass
    except OSError as error:
        raise InputError(f"{what} can't be written ({error.strerror}); choose another folder") from error


@contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
    """Yield a new file beside `path`, which takes its place when the block ends and is removed if the block fails.

    An object in a bucket is written when the block ends; a BucketError says that it can't be.

    Whoever reads `path` sees the old content or the new one, never a part. The new file has an unpredictable name and
    is created exclusively, and a symbolic link at `path` is replaced: nothing is written through a link.
    """
    if is_bucket(path):
        whole = io.BytesIO()
        yield whole
        buckets.write(path, whole.getvalue())
        return
    beside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(beside, flags, 0o666), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
