"""A folder of pictures as an album."""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jaxdiff import buckets
from jaxdiff.data.pictures import Pictures, Reading, Stored, from_album
from jaxdiff.storage import AnyPath, is_bucket, user_path
from jaxdiff.typing import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Folder:
    """The pictures of a folder."""

    root: str
    files: tuple[str, ...]  # below the root, sorted
    labels: Int32[np.ndarray, " n"] | None
    sizes: tuple[int, ...] | None = None  # of the files in a bucket

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Stored:
        path = f"{self.root}{os.sep}{self.files[i]}"
        return Stored(path, None if self.labels is None else int(self.labels[i]), path)

    def fingerprint(self) -> str:
        """Return a hash of the names below the folder and sizes of the files."""
        found = hashlib.blake2b(digest_size=16)
        for i, file in enumerate(self.files):
            size = self.sizes[i] if self.sizes else os.stat(os.path.join(self.root, file)).st_size
            found.update(f"{file}\0{size}\0".encode("utf-8", "surrogateescape"))
        return found.hexdigest()


def load(name: str, split: str, reading: Reading) -> Pictures:
    """Return the pictures of "folder:DIR": PNG, JPEG and WebP files at any depth, sorted by their paths.

    If DIR has the sub-folders train and test they are the splits; otherwise all pictures are the train split. If no
    picture lies in the folder itself its sub-folders are the classes, in the order of their names. Hidden files and
    other files are left out; links are followed.

    Raises:
      InputError: if the folder can't be read, has no pictures or no such split, or its first picture can't be read.
    """
    root = user_path(name.partition(":")[2], what="name")
    if not root.is_dir():
        raise InputError(
            f"name = {name!r}: there is no folder {root}; give one of pictures, as --config.data.name=folder:DIR"
        )
    if (root / "train").is_dir() and (root / "test").is_dir():
        root = root / split
    elif split == "test":
        raise InputError(f"name = {name!r} has no test split; put its pictures into sub-folders train and test")
    sizes = {name: size for name, size in buckets.sizes(root).items() if _is_picture(name)} if is_bucket(root) else None
    files = sorted(_files(root) if sizes is None else sizes, key=lambda file: Path(file).parts)
    if not files:
        raise InputError(f"name = {name!r}: {root} holds no pictures; give a folder of {', '.join(_SUFFIXES)} files")
    folders = [Path(file).parts[0] if os.sep in file else None for file in files]
    names = sorted({folder for folder in folders if folder is not None})
    labels = None
    if None not in folders:
        number = {name: i for i, name in enumerate(names)}
        labels = np.array([number[folder] for folder in folders if folder], np.int32)
    album = Folder(
        root=str(root),
        files=tuple(files),
        labels=labels,
        sizes=None if sizes is None else tuple(sizes[file] for file in files),
    )
    return from_album(name, album, reading, None if labels is None else tuple(names))


def _is_picture(file: str) -> bool:
    """Return whether a file is to be read, by its name and those of its folders."""
    return file.lower().endswith(_SUFFIXES) and not any(part.startswith(".") for part in file.split("/"))


def _files(root: AnyPath) -> Iterator[str]:
    """Yield the pictures below a folder, each folder once, whatever links there are."""
    seen = {os.path.realpath(root)}
    for folder, below, files in os.walk(root, followlinks=True):
        new = [name for name in sorted(below) if not name.startswith(".")]
        places = {name: os.path.realpath(os.path.join(folder, name)) for name in new}
        below[:] = [name for name in new if places[name] not in seen]
        seen.update(places.values())
        inside = "" if folder == str(root) else os.path.relpath(folder, root)
        for name in files:
            # Not what is no file, such as a pipe, which would never end; a link to nowhere is refused when it is read.
            if _is_picture(name) and not _is_special(os.path.join(folder, name)):
                yield os.path.join(inside, name)


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
