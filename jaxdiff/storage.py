"""Paths that users give, and files that are written whole or not at all."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jaxdiff.typing import InputError


def user_path(path: str | os.PathLike[str], *, what: str) -> Path:
    """Return a path with ~ expanded; raise an InputError about the argument `what` if it can't name a file."""
    text = os.fspath(path)
    if not text or "\0" in text or "://" in text:
        raise InputError(f"{what} = {text!r} is not a path; give the name of a file or folder on this machine")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{what} = {text!r}: {error}; write the folder out instead of ~") from error


def make_folder(folder: Path, *, what: str) -> None:
    """Make a folder; raise an InputError that begins with `what` if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name, or with one that nobody can foresee
            pass
    except OSError as error:
        raise InputError(f"{what} can't be written ({error.strerror}); choose another folder") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file beside `path`, which takes its place when the block ends and is removed if the block fails.

    Whoever reads `path` sees the old content or the new one, never a part. The new file has an unpredictable name and
    is created exclusively, and a symbolic link at `path` is replaced: nothing is written through a link.
    """
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
