"""Images from a user's files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from jaxdiff.typing import HostSamples, InputError


def read_files(paths: Sequence[str | Path], *, n: int) -> HostSamples:
    """Read the first n images of .npz files and pictures.

    A .npz holds one array, or one named "samples" as `sample.py` writes it, of shape (n, *shape) and in the scale of
    the data set: [-1, 1] for images. Any other file is a picture, grey or RGB, of 256 levels: level k becomes
    2 k / 255 - 1.

    Raises:
      InputError: if a file can't be read, the images differ in shape, or there are fewer than n.
    """
    parts = [_read(Path(path)) for path in paths]
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = ", ".join(f"{path}: {part.shape[1:]}" for path, part in zip(paths, parts, strict=True))
        raise InputError(f"images differ in shape ({shapes}); give images of one shape")
    images = np.concatenate(parts)
    if len(images) < n:
        raise InputError(f"{n} images are needed, but {', '.join(map(str, paths))} hold {len(images)}; give more files")
    return images[:n]


def read_mask(path: str | Path, shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Read a mask from a picture: True where it is brighter than half.

    Raises:
      InputError: if the file can't be read or has another height and width than `shape`.
    """
    try:
        with Image.open(path) as file:
            mask = np.asarray(file.convert("L")) > 127
    except OSError as error:
        raise InputError(f"{path} can't be read ({error}); give a picture") from error
    if mask.shape != shape:
        raise InputError(f"{path} is a mask of shape {mask.shape}; the images have {shape}: give one pixel for each")
    return mask


def _read(path: Path) -> HostSamples:
    try:
        with np.load(path) if path.suffix == ".npz" else Image.open(path) as file:
            if isinstance(file, Image.Image):
                pixels = np.asarray(file if file.mode in ("L", "RGB") else file.convert("RGB"))
                return (np.atleast_3d(pixels)[None] / 127.5 - 1).astype(np.float32)
            name = "samples" if "samples" in file else ", ".join(file)
            return np.asarray(file[name], np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} can't be read ({error}); give a picture, or a .npz with one array or one named 'samples'"
        ) from error
