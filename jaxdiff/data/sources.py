"""The data sets, by name, each as plain arrays in memory; `load` lists them."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32, Num, UInt8

from jaxdiff import registry
from jaxdiff.data import mnist, toy
from jaxdiff.progress import tqdm
from jaxdiff.storage import user_path
from jaxdiff.typing import Count, InputError, Shape, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The properties of a data set that a model depends on."""

    shape: Shape  # of one example
    levels: int | None
    """Number of values that a coordinate can take, evenly spaced in [-1, 1]; None for continuous, unbounded data."""
    classes: Count | None = None  # None for data without labels

    def __post_init__(self) -> None:
        registry.check_types(self)
        if not 1 <= len(self.shape) <= 8 or min(self.shape) < 1 or math.prod(self.shape) > 2**26:
            raise InputError(f"shape = {shown(self.shape)}; it must be 1 to 8 sizes of at least 1, of product <= 2^26")
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise InputError(f"levels = {self.levels}; must satisfy 2 <= levels <= 256, or None for continuous data")
        if self.classes is not None and self.classes < 1:
            raise InputError(f"classes = {self.classes}; it must be 1 or more, or None for data without labels")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One split of a data set, whole and in memory."""

    name: str
    x: UInt8[np.ndarray, "n *shape"] | Float32[np.ndarray, "n *shape"]
    """Levels 0 .. levels - 1 as uint8, or continuous data as float32."""
    labels: Int32[np.ndarray, "n"] | None  # 0 .. classes - 1
    levels: int | None
    classes: int | None

    def __post_init__(self) -> None:
        """Raise an InputError that names the first example which breaks a rule above."""
        x, wanted = self.x, np.uint8 if self.levels is not None else np.float32
        what = f"data set {self.name!r}"
        if not isinstance(x, np.ndarray) or x.dtype != wanted or x.ndim < 2 or not x.size:
            found = f"{x.dtype}{x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise InputError(
                f"{what} has x = {found} with levels = {self.levels}; x must be a NumPy array (n, ...) of at least one "
                "example, uint8 with levels or float32 without"
            )
        if self.levels is None:
            _check_each(f"{what}: x", x, np.isfinite(x), "must be finite")
        elif not 2 <= self.levels <= 256:
            raise InputError(f"{what} has levels = {self.levels}; there must be 2 to 256, the values of uint8")
        elif x.max() >= self.levels:
            _check_each(f"{what}: x", x, x < self.levels, f"must be below levels = {self.levels}")
        labels, classes = self.labels, self.classes
        if labels is None and classes is None:
            return
        if not isinstance(labels, np.ndarray) or labels.shape != x.shape[:1] or labels.dtype != np.int32 or not classes:
            found = f"{labels.dtype}{labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise InputError(
                f"{what} has labels = {found} and classes = {classes} for {len(x)} examples; labels must be an int32 "
                f"array ({len(x)},) with classes >= 1, or both None"
            )
        _check_each(f"{what}: labels", labels, (labels >= 0) & (labels < classes), f"must lie in 0 ... {classes - 1}")

    @property
    def shape(self) -> Shape:
        """Shape of one example."""
        return self.x.shape[1:]

    @property
    def spec(self) -> DataSpec:
        return DataSpec(shape=self.shape, levels=self.levels, classes=self.classes)


def _check_each(what: str, values: np.ndarray, valid: np.ndarray, rule: str) -> None:
    if not valid.all():
        index = np.unravel_index(valid.argmin(), valid.shape)
        raise InputError(
            f"{what}[{index[0]}] holds {values[index]}; it {rule}: mend example {index[0]} or leave it out"
        )


def load(name: str, *, split: str = "train", dir: str | None = None, seed: int = 0) -> Dataset:
    """Load one split of a data set into memory.

    digits      scikit-learn's digits, uint8 (n, 8, 8, 1) of 17 levels, 10 classes; 1500 to train and 297 to test
    mnist       handwritten digits, uint8 (n, 28, 28, 1) of 256 levels, 10 classes
    swissroll, moons, checkerboard, mixture
                points in the plane, float32 (20000, 2) about in [-2, 2], drawn anew for each split; moons and mixture
                have the component as label (2 and 8 classes)
    tfds:NAME   any image set that TensorFlow Datasets prepared, uint8 (n, height, width, channels) of 256 levels
    package.module:function
                yours: called with split="train" or "test", it returns a `Dataset`, or (x, labels) with x uint8 of 256
                levels or float32, and integer labels or None

    Args:
      split: "train" or "test"; for "tfds:NAME" any split in TFDS's notation, "train[:90%]" too.
      dir: for "mnist" the folder of its files (None downloads them once), for "tfds:NAME" the TFDS data folder (None
        is TFDS's default). The other sets have no folder.
      seed: fixes the draw of the points in the plane; the other sets are fixed.

    Raises:
      InputError: if the name or split is unknown, a folder is given for a set without one, or data is missing,
        unprepared or broken.
      ConnectionError: if MNIST can't be downloaded.
    """
    if dir is not None and "://" not in dir:  # TensorFlow Datasets reads buckets, too
        dir = str(user_path(dir, what="dir"))
    if name.startswith("tfds:"):
        return _load_tfds(name, split, dir)
    if name not in DATASETS and ":" not in name:
        raise InputError(
            f"name = {name!r} is not a data set, tfds:NAME or package.module:function{registry.suggest(name, DATASETS)}"
        )
    if split != "train" and split != "test":
        raise InputError(f"split = {split!r}; {name} has the splits 'train' and 'test'")
    if dir is not None and not registry.takes("name", name, DATASETS, "dir"):
        raise InputError(f"dir = {dir!r}, but {name} is read from no folder; leave dir out")
    found = registry.make("name", name, DATASETS, split=split, dir=dir, seed=seed)
    return found if isinstance(found, Dataset) else _from_arrays(name, found)


def check_untrusted(name: str, config_dir: str | None, *, dir: str | None) -> None:
    """Raise an InputError if a data set that a stranger's config names may run code, or read a folder of its choice.

    `dir` is the folder that the user gives, `config_dir` the one that the config gives if it is to be read. TensorFlow
    Datasets imports what the files of a folder name, and takes options in names.
    """
    by_user = "give trust=True (--trust) if you trust whoever wrote the run's folder"
    plain_tfds = re.fullmatch(r"tfds:\w+(/[\w.-]+)?", name) is not None
    if config_dir is not None:
        found = f"data.dir = {shown(config_dir)} is what the config says"
        raise InputError(f"{found}; give dir=FOLDER (--dir) yourself, or {by_user}")
    if name not in DATASETS and not (plain_tfds and dir is not None):
        instead = "give dir=FOLDER (--dir) yourself, or " if plain_tfds else ""
        raise InputError(f"data.name = {shown(name)} may run code from outside jaxdiff; {instead}{by_user}")


def normalize(
    x: Num[np.ndarray, "*shape"] | Num[jax.Array, "*shape"], levels: int | None
) -> Float32[np.ndarray, "*shape"] | Float32[jax.Array, "*shape"]:
    """Map raw values 0 .. levels - 1 to float32 in [-1, 1]: 2 x / (levels - 1) - 1.

    Works inside jit too. With levels=None (continuous data) x is returned as it is.
    """
    if levels is None:
        return x
    # The numerator is exact, so neither end leaves [-1, 1] by rounding, whatever a compiler makes of the division.
    return (2 * x.astype(np.float32) - (levels - 1)) / (levels - 1)


def quantize(x: Float[np.ndarray, "*shape"], levels: int) -> Float32[np.ndarray, "*shape"]:
    """Round every value to the nearest level -1 + 2 k / (levels - 1), as `normalize` makes them."""
    nearest = np.clip(np.round((x + 1) * (levels - 1) / 2), 0, levels - 1)
    return np.asarray(normalize(nearest, levels))


def _digits(split: str) -> Dataset:
    part = slice(1500) if split == "train" else slice(1500, None)
    table = _digits_table()[part]
    x, labels = table[:, :64].reshape(-1, 8, 8, 1).astype(np.uint8), table[:, 64].astype(np.int32)
    return Dataset(name="digits", x=x, labels=labels, levels=17, classes=10)


def _digits_table() -> np.ndarray:
    """Return scikit-learn's digits (1797, 65), 64 levels and the label of each, without the second its import takes."""
    found = importlib.util.find_spec("sklearn")
    for folder in found.submodule_search_locations or () if found else ():
        if (path := Path(folder) / "datasets" / "data" / "digits.csv.gz").is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits  # another version of scikit-learn may keep its data elsewhere

    bunch = load_digits()
    return np.concatenate([bunch.data, bunch.target[:, None]], axis=1)


def _mnist(split: str, dir: str | None) -> Dataset:
    x, labels = mnist.load(split, dir=dir)
    return Dataset(name="mnist", x=x, labels=labels, levels=256, classes=10)


def _toy(draw: Callable[..., Any], classes: int | None, split: str, seed: int) -> Dataset:
    x, labels = draw(20_000, np.random.default_rng((seed, int(split == "test"))))
    return Dataset(name=draw.__name__, x=x, labels=labels, levels=None, classes=classes)


DATASETS: dict[str, Callable[..., Any]] = {
    "digits": _digits,
    "mnist": _mnist,
    "swissroll": partial(_toy, toy.swissroll, None),
    "moons": partial(_toy, toy.moons, 2),
    "checkerboard": partial(_toy, toy.checkerboard, None),
    "mixture": partial(_toy, toy.mixture, 8),
}


def _from_arrays(name: str, found: Any) -> Dataset:
    """Return the data set of the pair (x, labels) that a user's function returned."""
    rule = "it must return a jaxdiff.data.Dataset, or (x, labels): uint8 or float32 (n, ...), and integers (n,) or None"
    if not isinstance(found, tuple) or len(found) != 2:
        raise InputError(f"name = {name!r} returned a {type(found).__name__}; {rule}")
    x, labels = np.asarray(found[0]), None if found[1] is None else np.asarray(found[1])
    if x.ndim < 2 or not x.size or (x.dtype != np.uint8 and x.dtype.kind != "f"):
        raise InputError(f"name = {name!r} returned x as {x.dtype}{x.shape}; {rule}")
    if labels is not None and (labels.shape != x.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(f"name = {name!r} returned labels as {labels.dtype}{labels.shape}; {rule}")
    if labels is not None:
        _check_each(
            f"data set {name!r}: labels", labels, (labels >= 0) & (labels < 2**31), "must lie in 0 ... 2^31 - 1"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which a `Dataset` refuses
        x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return Dataset(
        name=name,
        x=x,
        labels=None if labels is None else labels.astype(np.int32),
        levels=256 if x.dtype == np.uint8 else None,
        classes=None if labels is None else int(labels.max()) + 1,
    )


def _load_tfds(name: str, split: str, dir: str | None) -> Dataset:
    try:
        import tensorflow_datasets as tfds  # imported here because it is slow, and not always installed
    except ImportError as error:
        raise InputError(f'name = {name!r} needs TensorFlow Datasets: pip install "jaxdiff[tfds]"') from error
    tfds_name = name.removeprefix("tfds:")
    try:
        source = tfds.data_source(tfds_name, split=split, data_dir=dir, download=False)
    except (AssertionError, LookupError, NotImplementedError, ValueError) as error:
        where = "" if dir is None else f" --data_dir={dir}"
        raise InputError(
            f"name = {name!r}, split = {split!r}, dir = {dir!r}: TensorFlow Datasets finds no such split on disk in a "
            'random-access format. To prepare the set, run: pip install "jaxdiff[tfds]" && '
            f"tfds build {tfds_name} --file_format=array_record{where}"
        ) from error
    features = dict(source.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image):
        raise InputError(f"name = {name!r} has the features {', '.join(features)}; choose a set that has an 'image'")
    if None in image.shape or image.np_dtype != np.uint8:
        raise InputError(
            f"name = {name!r} has images {np.dtype(image.np_dtype)} of shape {image.shape}; they must be uint8 and all "
            "of one fixed shape: choose another set, or resize it"
        )
    x = np.empty((len(source), *image.shape), np.uint8)
    classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else None
    labels = None if classes is None else np.empty(len(source), np.int32)
    for i, example in enumerate(tqdm(source, desc=f"Reading {name} {split}", unit=" images")):
        x[i] = example["image"]
        if labels is not None:
            labels[i] = example["label"]
    return Dataset(name=name, x=x, labels=labels, levels=256, classes=classes)
