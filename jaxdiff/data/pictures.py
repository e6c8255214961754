"""A folder of pictures as a data set: any format, mode, size and aspect become examples of one shape.

A picture is cropped to the aspect of the examples and resized in one step by Pillow: with a box filter where it
shrinks, so that each pixel is the mean over its area, and with the bicubic one where it grows.
"""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image

from jaxdiff import registry
from jaxdiff.data.base import DataSpec, Examples
from jaxdiff.data.files import open_picture
from jaxdiff.storage import user_path
from jaxdiff.typing import InputError

_log = logging.getLogger(__name__)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_HEADERS = 1000  # pictures whose headers decide whether the set is grey
_MOST = 2**12  # pixels of a side of an example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures become examples of one shape."""

    size: int | tuple[int, int] | None = None  # of the examples, or (height, width); None: that of the first picture
    crop: Literal["center", "random"] = "center"  # which part is kept of a picture of another aspect
    flip: bool = False  # mirror half of the examples, chosen anew each time
    channels: Literal[1, 3] | None = None  # None: 1 if up to 1,000 pictures, evenly spread, are all grey, else 3
    background: Literal["black", "white"] = "black"  # behind transparent parts
    skip_broken: bool = False  # whether a picture that can't be read is replaced by the next one, with a warning

    def __post_init__(self) -> None:
        registry.check_types(self)
        if self.size is not None and not 1 <= min(self.pixels) <= max(self.pixels) <= _MOST:
            raise InputError(f"size = {self.size}; it must be 1 to {_MOST} pixels, or (height, width)")

    @property
    def pixels(self) -> tuple[int, int]:
        """The height and width, if `size` is given."""
        return self.size if isinstance(self.size, tuple) else (self.size or 0, self.size or 0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The pictures of a folder, decoded when they are asked for. `load` makes it."""

    name: str
    root: Path
    files: tuple[str, ...]  # below the root, sorted
    labels: Int32[np.ndarray, " n"] | None
    spec: DataSpec
    reading: Reading

    @property
    def varies(self) -> bool:
        """Whether examples depend on the seed and the step."""
        return self.reading.flip or self.reading.crop == "random"

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices, as step `step` of a run with this seed sees them.

        What is random about example i is drawn from (seed, step, i).

        Raises:
          InputError: if a picture can't be read and `skip_broken` is off, or has another size than the first where
            none is given, or colour in a set that is taken for grey.
        """
        x = np.empty((len(indices), *self.spec.shape), np.uint8)
        labels = None if self.labels is None else np.empty(len(indices), np.int32)
        for row, i in enumerate(indices):
            x[row], found = self._readable(int(i), seed, step)
            if labels is not None and self.labels is not None:
                labels[row] = self.labels[found]
        return Examples(x, labels)

    def fingerprint(self) -> str:
        """Return a hash of the names and sizes of the files."""
        found = hashlib.blake2b(digest_size=16)
        for file in self.files:
            found.update(f"{file}\0{(self.root / file).stat().st_size}\0".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def _readable(self, i: int, seed: int, step: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """Example i, or the next one that can be read, and its index."""
        for offset in range(len(self.files)):
            j = (i + offset) % len(self.files)
            try:
                rng = np.random.default_rng([seed, step, i]) if self.varies else None
                return self._example(Path(f"{self.root}/{self.files[j]}"), rng), j
            except InputError as error:
                if not self.reading.skip_broken:
                    raise
                _warn_once(str(error))
        raise InputError(f"name = {self.name!r}: none of the {len(self.files)} pictures can be read")

    def _example(self, path: Path, rng: np.random.Generator | None) -> UInt8[np.ndarray, "h w c"]:
        height, width, channels = self.spec.shape
        image = open_picture(path, channels=self.reading.channels, background=self.reading.background)
        if image.mode == "RGB" and channels == 1:
            raise InputError(f"{path} has colour, but other pictures are grey; set data.channels to 1 or 3")
        if self.reading.size is None and image.size != (width, height):
            raise InputError(
                f"{path} has {image.height}×{image.width} pixels and the first picture {height}×{width}; set "
                "data.size, to which all are resized"
            )
        top, left = rng.random(2).tolist() if rng is not None and self.reading.crop == "random" else (0.5, 0.5)
        image = fit(image, (height, width), (top, left))
        x = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
        return x[:, ::-1] if rng is not None and self.reading.flip and rng.random() < 0.5 else x


def fit(image: Image.Image, size: tuple[int, int], share: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Return the largest part of an image with the aspect of `size`, resized to it: (height, width).

    `share` says, of what is cut off in each direction, how much is above and how much to the left.
    """
    height, width = size
    if (image.height, image.width) == size:
        return image
    scale = min(image.height / height, image.width / width)
    top, left = share[0] * (image.height - scale * height), share[1] * (image.width - scale * width)
    method = Image.Resampling.BOX if scale >= 1 else Image.Resampling.BICUBIC
    return image.resize((width, height), method, box=(left, top, left + scale * width, top + scale * height))


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
    files = sorted(_files(root), key=lambda file: Path(file).parts)
    if not files:
        raise InputError(f"name = {name!r}: {root} holds no pictures; give a folder of {', '.join(_SUFFIXES)} files")
    folders = [Path(file).parts[0] if os.sep in file else None for file in files]
    names = sorted({folder for folder in folders if folder is not None})
    labelled = None not in folders
    labels = np.array([names.index(folder) for folder in folders if folder], np.int32) if labelled else None
    if reading.channels is None:
        reading = dataclasses.replace(reading, channels=None if _all_grey(root, files, reading) else 3)
    first = None if reading.size else open_picture(root / files[0], channels=reading.channels)
    height, width = reading.pixels if first is None else (first.height, first.width)
    spec = DataSpec(
        shape=(height, width, reading.channels or 1),
        levels=256,
        classes=len(names) if labelled else None,
        class_names=tuple(names) if labelled else None,
    )
    return Pictures(name=name, root=root, files=tuple(files), labels=labels, spec=spec, reading=reading)


def _files(root: Path) -> Iterator[str]:
    """Yield the pictures below a folder, each folder once, whatever links there are."""
    seen = {os.path.realpath(root)}
    for folder, below, files in os.walk(root, followlinks=True):
        new = [name for name in sorted(below) if not name.startswith(".")]
        places = {name: os.path.realpath(os.path.join(folder, name)) for name in new}
        below[:] = [name for name in new if places[name] not in seen]
        seen.update(places.values())
        for name in files:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def _all_grey(root: Path, files: list[str], reading: Reading) -> bool:
    """Whether up to `_HEADERS` pictures, evenly spread, are all without colour."""
    for i in np.unique(np.linspace(0, len(files) - 1, _HEADERS).astype(int)):
        try:
            with Image.open(root / files[i]) as image:
                if image.mode not in ("1", "L", "LA", "La", "I", "F") and not image.mode.startswith("I;16"):
                    return False
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if not reading.skip_broken:
                raise InputError(f"{root / files[i]} can't be read ({error}); remove it or set skip_broken") from error
    return True


@functools.cache
def _warn_once(line: str) -> None:
    _log.warning("skipped: %s", line)
