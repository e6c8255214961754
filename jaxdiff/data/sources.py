"""The data sets, by name, each as plain arrays in memory.

digits        8x8 handwritten digits in 17 grey levels, from scikit-learn: nothing to download
mnist         28x28 handwritten digits in 256 grey levels
swissroll, moons, checkerboard, mixture
              points in the plane, drawn from a seed
tfds:NAME     any image classification set prepared by TensorFlow Datasets, read without
              TensorFlow
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32, Num, UInt8

from jaxdiff.data import mnist, toy

_DIGITS_TRAIN = 1500
_TOY_POINTS = 20_000
# The function that draws the points, and the number of classes.
_TOYS: Mapping[str, tuple[Callable, int | None]] = {
    "swissroll": (toy.swissroll, None),
    "moons": (toy.moons, 2),
    "checkerboard": (toy.checkerboard, None),
    "mixture": (toy.mixture, 8),
}
_NAMES = ("digits", "mnist", *_TOYS)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One split of a data set, whole and in memory."""

    name: str
    x: UInt8[np.ndarray, "n *shape"] | Float32[np.ndarray, "n *shape"]
    """Grey or colour levels 0 .. levels - 1 as uint8, or continuous data as float32."""
    labels: Int32[np.ndarray, "n"] | None
    """Classes 0 .. num_classes - 1, where the set has classes."""
    levels: int | None
    """Number of levels of the raw values; None for continuous data."""
    num_classes: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x.shape[1:]


def load(name: str, *, split: str = "train", dir: str | None = None, seed: int = 0) -> Dataset:
    """Loads one split of a data set into memory.

    Args:
      name: "digits", "mnist", "swissroll", "moons", "checkerboard", "mixture" or "tfds:NAME".
      split: "train" or "test"; for "tfds:NAME" any split in TFDS's notation, "train[:90%]" too.
      dir: For "mnist" the folder of its files (None downloads them once), for "tfds:NAME" the
        TFDS data folder (None is TFDS's default). The other sets have no folder.
      seed: Fixes the draw of the 2-D sets; the other sets are what they are.

    Returns:
      digits: x uint8 (n, 8, 8, 1), 17 levels, 10 classes; the first 1500 images are the train
      split, the other 297 the test split. mnist: x uint8 (n, 28, 28, 1), 256 levels, 10 classes.
      2-D sets: x float32 (20000, 2) about in [-2, 2], a draw of its own for each split, with the
      component as label for moons (2) and mixture (8). tfds: x uint8 (n, height, width,
      channels), 256 levels.

    Raises:
      ValueError: An unknown name or split, a folder for a set that has none, or data that is
        missing, unprepared or broken.
      ConnectionError: MNIST cannot be downloaded.
    """
    if name.startswith("tfds:"):
        return _load_tfds(name, split, dir)
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name={name!r}: unknown data set; known are {', '.join(_NAMES)} and tfds:NAME.{hint}")
    if split != "train" and split != "test":
        raise ValueError(f"split={split!r}: {name} has the splits 'train' and 'test'. Give one.")
    if name == "mnist":
        images, labels = mnist.load(split, dir=dir)
        return Dataset(name=name, x=images, labels=labels, levels=256, num_classes=10)
    if dir is not None:
        raise ValueError(f"dir={dir!r}: {name} is read from no folder. Leave dir out.")
    if name == "digits":
        return _load_digits(split)
    draw, num_classes = _TOYS[name]
    x, labels = draw(_TOY_POINTS, np.random.default_rng((seed, int(split == "test"))))
    return Dataset(name=name, x=x, labels=labels, levels=None, num_classes=num_classes)


def normalize(
    x: Num[np.ndarray, "*shape"] | Num[jax.Array, "*shape"], levels: int | None
) -> Float32[np.ndarray, "*shape"] | Float32[jax.Array, "*shape"]:
    """Maps raw values 0 .. levels - 1 to float32 in [-1, 1]: 2 x / (levels - 1) - 1.

    Works on NumPy arrays and on JAX arrays, inside jit too. With levels=None (continuous data) x
    is returned as it is.
    """
    if levels is None:
        return x
    # The numerator is exact, so neither end leaves [-1, 1] by rounding, whatever a compiler makes
    # of the division.
    return (2 * x.astype(np.float32) - (levels - 1)) / (levels - 1)


def quantize(x: Float[np.ndarray, "*shape"], levels: int) -> Float32[np.ndarray, "*shape"]:
    """The nearest of the levels -1 + 2 k / (levels - 1) to every value, as `normalize` makes them."""
    nearest = np.clip(np.round((x + 1) * (levels - 1) / 2), 0, levels - 1)
    return np.asarray(normalize(nearest, levels))


def _load_digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits  # imported here because it takes long, and few runs need it

    bunch = load_digits()
    part = slice(_DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    return Dataset(
        name="digits",
        x=bunch.images[part, ..., None].astype(np.uint8),
        labels=bunch.target[part].astype(np.int32),
        levels=17,
        num_classes=10,
    )


def _load_tfds(name: str, split: str, dir: str | None) -> Dataset:
    # Imported here because they are slow, and needed for these sets only.
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    tfds_name = name.removeprefix("tfds:")
    try:
        source = tfds.data_source(tfds_name, split=split, data_dir=dir, download=False)
    except (AssertionError, LookupError, NotImplementedError, ValueError) as error:
        where = "" if dir is None else f" --data_dir={dir}"
        raise ValueError(
            f"name={name!r}, split={split!r}, dir={dir!r}: TensorFlow Datasets finds no such "
            "split on disk in a random-access format. Prepare the set once, with the tfds extra "
            f"(pip install jaxdiff[tfds]): tfds build {tfds_name} --file_format=array_record"
            f"{where}"
        ) from error

    features = dict(source.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image):
        raise ValueError(
            f"name={name!r}: its features are {', '.join(features)}; an image data set has an "
            "'image'. Choose an image classification set."
        )
    if None in image.shape or image.np_dtype != np.uint8:
        raise ValueError(
            f"name={name!r}: its images are {np.dtype(image.np_dtype)} of shape {image.shape}; "
            "they must be uint8 and all of one fixed shape. Choose another set, or resize it."
        )
    x = np.empty((len(source), *image.shape), np.uint8)
    num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else None
    labels = None if num_classes is None else np.empty(len(source), np.int32)
    for i, example in enumerate(tqdm(source, desc=f"Reading {name} {split}", unit=" images")):
        x[i] = example["image"]
        if labels is not None:
            labels[i] = example["label"]
    return Dataset(name=name, x=x, labels=labels, levels=256, num_classes=num_classes)
