"""MNIST and Fashion-MNIST from their four IDX files (see `jaxdiff.data.idx`)."""

import numpy as np
from jaxtyping import Int32, UInt8

from jaxdiff.data import idx
from jaxdiff.data.published import SETS, Published
from jaxdiff.storage import AnyPath
from jaxdiff.typing import InputError

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

_PREFIX = {"train": "train", "test": "t10k"}
_KINDS = ("images-idx3", "labels-idx1")


def load(
    name: str, split: str, *, dir: str | None = None
) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, "n"]]:
    """Return the images of "train" (60,000) or "test" (10,000), levels 0 (background) to 255, and their labels 0 to 9.

    `name` is "mnist" or "fashion_mnist". The files are in the folder `dir`, gzipped or plain, named as published
    (train-images-idx3-ubyte) or in the other common spelling (train-images.idx3-ubyte). None downloads the two files of
    the split on the first call. Broken files and files that do not match raise an InputError; errors of
    `Published.download` pass through.
    """
    published = SETS[name]
    title, itself = published.title, f"Give the folder of {published.title} itself."
    stems = [f"{_PREFIX[split]}-{kind}-ubyte" for kind in _KINDS]
    folder = published.folder([f"{stem}.gz" for stem in stems], dir=dir)
    images_path, labels_path = (_find(published, folder, stem) for stem in stems)
    images, labels = idx.read(images_path), idx.read(labels_path)
    if images.shape[1:] != (28, 28):
        raise InputError(f"{images_path}: shape {images.shape}; {title} images are (n, 28, 28). {itself}")
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{labels_path}: labels of shape {labels.shape} for {len(images)} images in {images_path}; there must be "
            f"one for each. Take both files from one copy of {title}."
        )
    if labels.max(initial=0) > 9:
        raise InputError(f"{labels_path}: label {labels.max()}; {title} labels are 0 to 9. {itself}")
    return images[..., None], labels.astype(np.int32)


def _find(published: Published, folder: AnyPath, stem: str) -> AnyPath:
    names = [name + end for name in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise published.missing(folder, names)
