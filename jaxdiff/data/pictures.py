"""Pictures as a data set: any format, mode, size and aspect become examples of one shape.

A picture is cropped to the aspect of the examples and resized in one step by Pillow: with a box filter where it
shrinks, so that each pixel is the mean over its area, and with the bicubic one where it grows.
"""

import dataclasses
import functools
import logging
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxdiff import registry
from jaxdiff.data.base import DataSpec, Examples
from jaxdiff.data.files import is_grey, open_picture, quiet
from jaxdiff.typing import InputError

_log = logging.getLogger(__name__)

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


class Stored(NamedTuple):
    """A picture as it is kept, and its label."""

    content: str | bytes  # the path of its file, or what that would hold
    label: int | None
    place: str  # what messages call it


class Album(Protocol):
    """Pictures and labels by index, not decoded: a folder, or a data set of another library."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Stored: ...

    def fingerprint(self) -> str:
        """Return a text that changes when the pictures or labels change, and not when they move."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The pictures of an album, decoded when they are asked for. `load` of a kind of album makes it."""

    name: str
    album: Album
    spec: DataSpec
    reading: Reading

    @property
    def varies(self) -> bool:
        """Whether examples depend on the seed and the step."""
        return self.reading.flip or self.reading.crop == "random"

    def __len__(self) -> int:
        return len(self.album)

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices, as step `step` of a run with this seed sees them.

        What is random about example i is drawn from (seed, step, i).

        Raises:
          InputError: if a picture can't be read and `skip_broken` is off, or has another size than the first where
            none is given, or colour in a set that is taken for grey; or a label is outside the classes.
        """
        x = np.empty((len(indices), *self.spec.shape), np.uint8)
        labels = None if self.spec.classes is None else np.empty(len(indices), np.int32)
        with quiet:
            for row, i in enumerate(indices.tolist()):
                x[row], label = self._readable(i, seed, step)
                if labels is not None and label is not None:
                    labels[row] = label
        return Examples(x, labels)

    def fingerprint(self) -> str:
        """Return that of the album."""
        return self.album.fingerprint()

    def _readable(self, i: int, seed: int, step: int) -> tuple[UInt8[np.ndarray, "h w c"], int | None]:
        """Example i, or the next one that can be read, and its label."""
        n = len(self.album)
        for offset in range(n):
            found = self.album[(i + offset) % n]
            try:
                rng = np.random.default_rng([seed, step, i]) if self.varies else None
                x = self._example(found, rng)
            except InputError as error:
                if not self.reading.skip_broken:
                    raise
                _warn_once(str(error))
                continue
            classes = self.spec.classes
            if classes is not None and (found.label is None or not 0 <= found.label < classes):
                raise InputError(f"{found.place} has the label {found.label}; it must lie in 0 ... {classes - 1}")
            return x, found.label
        raise InputError(f"name = {self.name!r}: none of the {n} pictures can be read")

    def _example(self, found: Stored, rng: np.random.Generator | None) -> UInt8[np.ndarray, "h w c"]:
        height, width, channels = self.spec.shape
        reading, place = self.reading, found.place
        image = open_picture(found.content, place, channels=reading.channels, background=reading.background)
        if image.mode == "RGB" and channels == 1:
            raise InputError(f"{place} has colour, but other pictures are grey; set data.channels to 1 or 3")
        if reading.size is None and image.size != (width, height):
            raise InputError(
                f"{place} has {image.height}×{image.width} pixels and the first picture {height}×{width}; set "
                "data.size, to which all are resized"
            )
        top, left = rng.random(2).tolist() if rng is not None and reading.crop == "random" else (0.5, 0.5)
        image = fit(image, (height, width), (top, left))
        if channels == 3 and image.mode == "L":
            image = image.convert("RGB")
        x = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
        return x[:, ::-1] if rng is not None and reading.flip and rng.random() < 0.5 else x


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


def from_album(name: str, album: Album, reading: Reading, classes: tuple[str, ...] | int | None) -> Pictures:
    """Return the data set of an album. `classes` are the names of the labels, or their number, or None.

    Raises:
      InputError: if there are no pictures, or one of those that decide on the channels and the size can't be read.
    """
    if not len(album):
        raise InputError(f"name = {name!r} has no pictures; give a set or a split that has some")
    height, width = reading.pixels
    with quiet:
        if reading.channels is None:
            reading = dataclasses.replace(reading, channels=None if _all_grey(album, reading) else 3)
        if reading.size is None:
            first = _first(name, album, reading)
            height, width = first.height, first.width
    spec = DataSpec(
        shape=(height, width, reading.channels or 1),
        levels=256,
        classes=len(classes) if isinstance(classes, tuple) else classes,
        class_names=classes if isinstance(classes, tuple) else None,
    )
    return Pictures(name=name, album=album, spec=spec, reading=reading)


def _first(name: str, album: Album, reading: Reading) -> Image.Image:
    """The first picture, or the first that can be read."""
    for i in range(len(album)):
        content, _, place = album[i]
        try:
            return open_picture(content, place, channels=reading.channels, background=reading.background)
        except InputError:
            if not reading.skip_broken:
                raise
    raise InputError(f"name = {name!r}: none of the {len(album)} pictures can be read")


def _all_grey(album: Album, reading: Reading) -> bool:
    """Whether up to `_HEADERS` pictures, evenly spread, are all without colour."""
    for i in np.unique(np.linspace(0, len(album) - 1, _HEADERS).astype(int)).tolist():
        content, _, place = album[i]
        try:
            if not is_grey(content, place):
                return False
        except InputError:
            if not reading.skip_broken:
                raise
    return True


@functools.cache
def _warn_once(line: str) -> None:
    _log.warning("skipped: %s", line)
