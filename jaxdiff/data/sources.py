"""The data sets, by name; `load` lists them."""

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import registry
from jaxdiff.data import cifar, folder, hub, mnist, tfds, toy
from jaxdiff.data.base import Dataset, Source
from jaxdiff.data.objects import from_object, load_npz
from jaxdiff.data.pictures import Reading
from jaxdiff.storage import user_path
from jaxdiff.typing import InputError, shown

_PICTURES = {"folder": folder.load, "hf": hub.load}


def load(
    name: str, *, split: str = "train", dir: str | None = None, seed: int = 0, reading: Reading | None = None
) -> Source:
    """Return one split of a data set. Pictures of folder:, hf: and tfds: are read when they are used, others at once.

    digits      scikit-learn's digits, uint8 (n, 8, 8, 1) of 17 levels, 10 classes; 1500 to train and 297 to test
    mnist, fashion_mnist
                handwritten digits, and pictures of clothing: uint8 (n, 28, 28, 1) of 256 levels, 10 classes; 60,000 to
                train and 10,000 to test
    cifar10     photographs, uint8 (n, 32, 32, 3) of 256 levels, 10 classes; 50,000 to train and 10,000 to test
    swissroll, moons, checkerboard, mixture
                points in the plane, float32 (20000, 2) about in [-2, 2], drawn anew for each split; moons and mixture
                have the component as label (2 and 8 classes)
    folder:DIR  the PNG, JPEG and WebP pictures of a folder, at any depth, uint8 (n, height, width, 1 or 3) of 256
                levels; its sub-folders are the classes, or its sub-folders train and test the splits
    npz:FILE    the arrays x and labels (x_test and labels_test) of a .npz file: uint8 of 256 levels or float32, and
                integers
    hf:NAME, hf:DIR
                pictures of Hugging Face's library datasets, by name or in a folder that its save_to_disk made, uint8 as
                those of a folder; "hf:NAME:image=img,label=fine_label,config=CONFIG" chooses columns, configuration
    tfds:NAME   pictures that TensorFlow Datasets prepared, uint8 as those of a folder
    package.module:function
                yours: called with split="train" or "test", it returns what `from_object` takes, such as (x, labels)

    Args:
      split: "train" or "test"; for "tfds:NAME" any split in TFDS's notation, "train[:90%]" too.
      dir: for "mnist", "fashion_mnist" and "cifar10" the folder of their files (None downloads them once), for
        "tfds:NAME" the TFDS data folder (None is TFDS's default). The other sets have no folder.
      seed: fixes the draw of the points in the plane; the other sets are fixed.
      reading: for "folder:DIR", "hf:NAME" and "tfds:NAME", how pictures become examples of one shape.

    Raises:
      InputError: if the name or split is unknown, a folder is given for a set without one, or data is missing,
        unprepared or broken.
      ConnectionError: if a data set can't be downloaded.
    """
    if dir is not None and "://" not in dir:  # TensorFlow Datasets reads buckets, too
        dir = str(user_path(dir, what="dir"))
    kind = name.partition(":")[0]
    if kind == "tfds":
        return tfds.load(name, split, dir, reading or Reading())
    if name not in DATASETS and ":" not in name:
        raise InputError(
            f"name = {name!r} is not a data set, folder:DIR, npz:FILE, hf:NAME, tfds:NAME or package.module:function"
            f"{registry.suggest(name, DATASETS)}"
        )
    if split != "train" and split != "test":
        raise InputError(f"split = {split!r}; {name} has the splits 'train' and 'test'")
    if dir is not None and names_place(name):
        raise InputError(f"dir = {dir!r}, but {name} names its place itself; leave dir out")
    if kind in _PICTURES:
        return _PICTURES[kind](name, split, reading or Reading())
    if reading is not None and reading != Reading():
        changed = [field.name for field in dataclasses.fields(Reading) if getattr(reading, field.name) != field.default]
        found = f"{changed[0]} = {getattr(reading, changed[0])!r}"
        raise InputError(f"{found} applies only to folder:DIR, hf:NAME and tfds:NAME, not to {name}")
    if kind == "npz":
        return load_npz(name, split)
    if dir is not None and not registry.takes("name", name, DATASETS, "dir"):
        raise InputError(f"dir = {dir!r}, but {name} is read from no folder; leave dir out")
    return from_object(name, registry.make("name", name, DATASETS, split=split, dir=dir, seed=seed))


def names_place(name: str) -> bool:
    """Return whether a name says where data are, as folder:DIR does; the same data may get another such name."""
    return name.startswith(("folder:", "npz:", "hf:"))


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
    if names_place(name):
        raise InputError(f"data.name = {shown(name)} is what the config says; {by_user}")
    if name not in DATASETS and not (plain_tfds and dir is not None):
        instead = "give dir=FOLDER (--dir) yourself, or " if plain_tfds else ""
        raise InputError(f"data.name = {shown(name)} may run code from outside jaxdiff; {instead}{by_user}")


def _digits(split: str) -> Dataset:
    part = slice(1500) if split == "train" else slice(1500, None)
    table = _digits_table()[part]
    x, labels = table[:, :64].reshape(-1, 8, 8, 1).astype(np.uint8), table[:, 64].astype(np.int32)
    return Dataset(name="digits", x=x, labels=labels, levels=17, classes=10)


def _digits_table() -> np.ndarray:
    """Return scikit-learn's digits (1797, 65), 64 levels and the label of each, without the second its import takes."""
    found = importlib.util.find_spec("sklearn")
    for place in found.submodule_search_locations or () if found else ():
        if (path := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits  # another version of scikit-learn may keep its data elsewhere

    bunch = load_digits()
    return np.concatenate([bunch.data, bunch.target[:, None]], axis=1)


def _mnist(name: str, class_names: tuple[str, ...] | None, split: str, dir: str | None) -> Dataset:
    x, labels = mnist.load(name, split, dir=dir)
    return Dataset(name=name, x=x, labels=labels, levels=256, classes=10, class_names=class_names)


def _cifar10(split: str, dir: str | None) -> Dataset:
    x, labels = cifar.load(split, dir=dir)
    return Dataset(name="cifar10", x=x, labels=labels, levels=256, classes=10, class_names=cifar.CLASSES)


def _toy(draw: Callable[..., Any], classes: int | None, split: str, seed: int) -> Dataset:
    x, labels = draw(20_000, np.random.default_rng((seed, int(split == "test"))))
    return Dataset(name=draw.__name__, x=x, labels=labels, levels=None, classes=classes)


DATASETS: dict[str, Callable[..., Any]] = {
    "digits": _digits,
    "mnist": partial(_mnist, "mnist", None),
    "fashion_mnist": partial(_mnist, "fashion_mnist", mnist.FASHION),
    "cifar10": _cifar10,
    "swissroll": partial(_toy, toy.swissroll, None),
    "moons": partial(_toy, toy.moons, 2),
    "checkerboard": partial(_toy, toy.checkerboard, None),
    "mixture": partial(_toy, toy.mixture, 8),
}
