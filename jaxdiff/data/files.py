"""Images from a user's files."""

import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from jaxdiff import buckets
from jaxdiff.storage import AnyPath, is_bucket, opened, user_path
from jaxdiff.typing import HostSamples, InputError, check_whole, first_line

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as in Pillow's conversion to grey

_MOST_BYTES = 2**30  # of a picture's file
_TAGGED = ("JPEG", "PNG", "WEBP")  # formats with an orientation only in these parts of their information:
_ORIENTED_BY = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_SKIP = "mend it, or set data.skip_broken"

# What Pillow converts its modes of 8 bits into before they are read; modes that are not listed become RGB.
_READ_AS = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA"}


def read_files(paths: Sequence[str | AnyPath], *, n: int, channels: int | None = None) -> HostSamples:
    """Read the first n images of .npz files and pictures.

    A .npz holds one array, or one named "samples" as `sample.py` writes it, of shape (n, *shape) and in the scale of
    the data set: [-1, 1] for images. Any other file is a picture, whose values from black to white become -1 to 1;
    `read_picture` says how, and what `channels` does.

    Raises:
      InputError: if a file can't be read, n < 1, the images differ in shape, or there are fewer than n.
    """
    check_whole("n", n)
    parts = [_read(user_path(path, what="images"), channels) for path in paths]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(f"{path}: {part.shape[1:]}" for path, part in zip(paths, parts, strict=True))
        raise InputError(f"images differ in shape ({shapes}); give images of one shape")
    images = np.concatenate(parts)
    if len(images) < n:
        raise InputError(f"{n} images are needed, but {', '.join(map(str, paths))} hold {len(images)}; give more files")
    return images[:n]


def read_mask(path: str | AnyPath, shape: tuple[int, int]) -> Float32[np.ndarray, "height width"]:
    """Read a mask from a picture: 1 where it is white, 0 where it is black or transparent, and grey between.

    Raises:
      InputError: if the file can't be read or has another height and width than `shape`.
    """
    mask = read_picture(path, channels=1)[..., 0].astype(np.float32)
    if mask.shape != shape:
        raise InputError(f"{path} is a mask of shape {mask.shape}; the images have {shape}: give one pixel for each")
    return mask


def read_picture(
    path: str | AnyPath, *, channels: int | None = None, background: str = "black"
) -> Float64[np.ndarray, "height width channels"]:
    """Read a picture as values from 0 (black) to 1 (white).

    Each of Pillow's modes is converted by its own range. Grey of 12, 16 or 32 bits keeps its precision, and Pillow
    reads colour at 8 bits. Floating-point values must lie in [0, 1] already. Transparent parts are composited over
    the background, "black" or "white", an EXIF orientation is applied, and of an animation the first frame is read.

    Args:
      channels: 1 converts colour to its luminance, 3 repeats grey, None keeps grey (1) or colour (3) as it is.

    Raises:
      InputError: if the file is missing or damaged, not a picture, or too large for Pillow's limit.
    """
    path = user_path(path, what="path")
    with _reading(path, "give a picture with values from black to white") as file, Image.open(file) as image:
        return _values(image, channels, background)


def open_picture(
    content: str | bytes, place: str, *, channels: int | None = None, background: str = "black"
) -> Image.Image:
    """Read a picture of a data set as an image of 8 bits, of mode L or RGB; call it inside `quiet`.

    `content` is the path of its file, or what that would hold, and `place` names it in messages. Other arguments and
    errors are as for `read_picture`.
    """
    try:
        return _opened(content, channels, background)
    except (MemoryError, buckets.BucketError):
        raise
    except Exception as error:
        raise _refusal(place, error, _SKIP) from error


def is_grey(content: str | bytes, place: str) -> bool:
    """Return whether a picture has no colour, by its header; arguments and errors are as for `open_picture`."""
    if isinstance(content, str) and is_bucket(content):
        content = _content(content)
    file = content if isinstance(content, str) else io.BytesIO(content)
    with _refusing(place, _SKIP), Image.open(file) as image:
        return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


class _Quiet:
    """Ignores the warnings of Pillow, except of decompression bombs, while any thread reads pictures.

    `warnings.catch_warnings` alone can't be left by two threads in any order.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


quiet = _Quiet()


def _opened(content: str | bytes, channels: int | None, background: str) -> Image.Image:
    """What `open_picture` returns. Each microsecond counts here: a small JPEG file is decoded in 100."""
    with Image.open(io.BytesIO(_content(content))) as image:
        if image.mode not in ("L", "RGB") or "transparency" in image.info:
            pixels = np.round(255 * _values(image, channels, background)).astype(np.uint8)
            return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        mode = {1: "L", 3: "RGB"}.get(channels or 0, image.mode)
        image.load()
        turned: Image.Image = image
        if image.format not in _TAGGED or not _ORIENTED_BY.isdisjoint(image.info):
            turned = ImageOps.exif_transpose(image)  # asked first, as looking for an orientation takes time
        return turned if turned.mode == mode else turned.convert(mode)


def _content(content: str | bytes) -> bytes:
    if isinstance(content, bytes):
        return content
    if is_bucket(content):
        return buckets.read(content)  # without asking for its size, as each request takes time and is billed
    with open(content, "rb", buffering=0) as file:
        if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes, more than {_MOST_BYTES}")
        return file.read()


def _read(path: AnyPath, channels: int | None) -> HostSamples:
    if path.suffix.lower() != ".npz":
        return (2 * read_picture(path, channels=channels) - 1).astype(np.float32)[None]
    fix = "give a picture, or a .npz with one array or one named 'samples'"
    with _reading(path, fix) as file, np.errstate(over="ignore"):
        arrays: Any = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz")
        found = arrays["samples" if "samples" in arrays else ", ".join(arrays)]
        if found.dtype.kind not in "fiu" or found.ndim < 2:
            raise ValueError(f"it holds {found.dtype} of shape {found.shape}, not numbers of shape (n, ...)")
        samples = found.astype(np.float32)
        if not np.isfinite(samples).all():
            raise ValueError("it holds values that are not finite")
    return samples


@contextmanager
def _reading(path: AnyPath, fix: str) -> Iterator[BinaryIO]:
    """Open a file of a user; errors are as for `_refusing`."""
    with _refusing(path, fix), quiet:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        # A file and not its name, since Pillow garbles some rotated TIFFs that it maps into memory by their name.
        with opened(path) as file:
            yield file


@contextmanager
def _refusing(place: str | AnyPath, fix: str) -> Iterator[None]:
    """Turn whatever the damage of a file raises into an InputError of one line."""
    try:
        yield
    except (MemoryError, buckets.BucketError):
        raise
    except Exception as error:  # neither Pillow nor NumPy promises a type
        raise _refusal(place, error, fix) from error


def _refusal(place: str | AnyPath, error: Exception, fix: str) -> InputError:
    reason = first_line(error)
    if isinstance(error, UnidentifiedImageError):  # its text names an object in place of the file
        reason = "cannot identify image file"
    return InputError(f"{place} can't be read ({reason}); {fix}")


def _values(image: Image.Image, channels: int | None, background: str) -> Float64[np.ndarray, "height width channels"]:
    """What `read_picture` returns, of an opened picture."""
    ends = _ends(image)  # asked first, because a rotated copy has lost the format
    values = _as_they_are(ImageOps.exif_transpose(image), ends, float(background == "white"))
    if channels == 1 and values.shape[-1] == 3:
        return values @ _LUMINANCE[:, None]
    return np.repeat(values, 3, axis=-1) if channels == 3 and values.shape[-1] == 1 else values


def _ends(image: Image.Image) -> tuple[int, int]:
    """The values of black and white in a picture of one channel of more than 8 bits, by the file's own depth."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, kind, white_is_zero = tags.get(258, (1,))[0], tags.get(339, (1,))[0], tags.get(262) == 0
        white = 1 if image.mode == "F" else 2 ** (bits - (kind == 2)) - 1  # of kind 2 are numbers with a sign
        return (white, 0) if white_is_zero else (0, white)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("the depth of its pixels of Pillow's mode I is not known: save it as PNG or TIFF")
    # Pillow's mode of 32 bits holds 16 of a PNG in its older versions, and 16 of a PGM in all.
    return 0, 1 if image.mode == "F" else 2**16 - 1


def _as_they_are(
    image: Image.Image, ends: tuple[int, int], background: float
) -> Float64[np.ndarray, "height width channels"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image, *ends, background)[..., None]
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    mode = _READ_AS.get(image.mode, "RGB")
    if "transparency" in image.info and mode in ("L", "RGB"):  # one value of the pixels is transparent
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    pixels = np.asarray(image.convert(mode), np.float64) / 255
    if mode in ("LA", "RGBA"):
        opacity = pixels[..., -1:]
        pixels = pixels[..., :-1] * opacity + background * (1 - opacity)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _deep_grey(image: Image.Image, black: int, white: int, background: float) -> Float64[np.ndarray, "height width"]:
    """The values of one channel of more than 8 bits, or of floating-point numbers."""
    pixels: Shaped[np.ndarray, "height width"] = np.asarray(image)
    if max(black, white) == 2**32 - 1:
        pixels = pixels.view(np.uint32)  # Pillow reads them as if they had a sign
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= max(black, white)):
        raise ValueError(f"its values lie in [{low:g}, {high:g}], not in [0, {max(black, white)}]")
    values = np.abs(pixels.astype(np.float64) - black) / abs(white - black)
    if isinstance(key := image.info.get("transparency"), int):
        values = np.where(pixels == key, background, values)
    return values
