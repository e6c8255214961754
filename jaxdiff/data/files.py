"""Images from a user's files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image


def read_files(paths: Sequence[str | Path], *, n: int) -> Float32[np.ndarray, "n *shape"]:
    """The first n images of .npz files and pictures.

    Args:
      paths: a .npz holds one array, or one named "samples" as `sample.py` writes it, of shape (n, *shape), in the scale
        of the data set: [-1, 1] for images. Any other file is a picture, grey or RGB, of 256 levels: level k becomes
        2 k / 255 - 1.
      n: how many.

    Raises:
      ValueError: where a file can't be read, the images differ in shape, or there are fewer than n.
    """
    read = [_read(Path(path)) for path in paths]
    if len({part.shape[1:] for part in read}) > 1:
        shapes = ", ".join(f"{path}: {part.shape[1:]}" for path, part in zip(paths, read, strict=True))
        raise ValueError(f"images differ in shape ({shapes}); give images of one shape")
    images = np.concatenate(read)
    if len(images) < n:
        raise ValueError(f"{n} images are needed, but {', '.join(map(str, paths))} hold {len(images)}; give more files")
    return images[:n]


def read_mask(path: str | Path, shape: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """A mask from a picture: True where it is brighter than half.

    Raises:
      ValueError: where the file can't be read, or has not this height and width.
    """
    try:
        with Image.open(path) as file:
            mask = np.asarray(file.convert("L")) > 127
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error}); give a picture") from error
    if mask.shape != shape:
        raise ValueError(f"{path} is a mask of shape {mask.shape}; the images have {shape}: give one pixel for each")
    return mask


def _read(path: Path) -> Float32[np.ndarray, "n *shape"]:
    try:
        with np.load(path) if path.suffix == ".npz" else Image.open(path) as file:
            if isinstance(file, Image.Image):
                pixels = np.asarray(file if file.mode in ("L", "RGB") else file.convert("RGB"))
                return (np.atleast_3d(pixels)[None] / 127.5 - 1).astype(np.float32)
            name = "samples" if "samples" in file else ", ".join(file)
            return np.asarray(file[name], np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} can't be read ({error}); give a picture, or a .npz with one array or one named 'samples'"
        ) from error
