"""A data set of Hugging Face's library `datasets` as an album: memory-mapped, read by random access."""

import dataclasses
import hashlib
import os
from typing import Any

from jaxdiff import registry
from jaxdiff.buckets import SCHEME
from jaxdiff.data.pictures import Pictures, Reading, Stored, from_album
from jaxdiff.storage import local_path
from jaxdiff.typing import InputError, first_line


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The pictures and labels of a data set in two columns."""

    name: str
    rows: Any  # a `datasets.Dataset` with an image column that is not decoded
    image: str
    label: str | None
    own: str  # the fingerprint that the library gives the data set

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Stored:
        row, place = self.rows[i], f"{self.name}[{i}]"
        found, label = row[self.image] or {}, row[self.label] if self.label else None
        content = found.get("bytes")
        if content is None:  # not in the data set itself: a file, or nothing
            content = os.path.expanduser(found.get("path") or b"")
        return Stored(content, label, place)

    def fingerprint(self) -> str:
        """Return a hash of the data set's own fingerprint, its length and the names of the columns."""
        parts = f"{self.own}\0{len(self)}\0{self.image}\0{self.label}"
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def load(name: str, split: str, reading: Reading) -> Pictures:
    """Return the pictures of "hf:NAME", a data set of the hub, or "hf:DIR", a folder made by its `save_to_disk`.

    Options follow after a colon, as in "hf:NAME:image=img,label=fine_label,config=NAME". `image` and `label` are the
    columns: by default the one of images, and the one of `ClassLabel` if there is one; a label may also be a column of
    integers, from 0. `config` is the configuration of a data set that has several.

    Raises:
      InputError: if the library is missing, the data set can't be read, has no such split or columns, or several
        columns to choose from.
    """
    if name.startswith(f"hf:{SCHEME}"):
        raise InputError(f"name = {name!r} is in a bucket, from which folder:DIR and npz:FILE are read; copy it first")
    where = name.removeprefix("hf:").partition(":")[0]
    return registry.make("name", name, {f"hf:{where}": _load}, where=where, split=split, reading=reading)


def _load(
    *, where: str, split: str, reading: Reading, image: str | None = None, label: str | None = None, config: str = ""
) -> Pictures:
    name = f"hf:{where}"
    try:
        import datasets  # imported here because it is slow, and not always installed
    except ImportError as error:
        raise InputError(f'name = {name!r} needs Hugging Face datasets: pip install "jaxdiff[hf]"') from error
    found = _open(datasets, name, where, split, config)
    images = [key for key, feature in found.features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise InputError(f"name = {name!r} has no column of images but {', '.join(found.features)}; choose another set")
    image = _column(name, "image", image, images, images) or images[0]
    named = [key for key, feature in found.features.items() if isinstance(feature, datasets.ClassLabel)]
    numbers = [key for key, feature in found.features.items() if "int" in str(getattr(feature, "dtype", ""))]
    label = _column(name, "label", label, named, sorted({*named, *numbers}))
    classes: Any = None
    if label in named:
        classes = tuple(found.features[label].names)
    elif label is not None:
        import pyarrow.compute

        classes = (pyarrow.compute.max(found.data.column(label)).as_py() or 0) + 1
    columns = [image] if label is None else [image, label]
    rows = found.select_columns(columns).cast_column(image, datasets.Image(decode=False))
    album = Rows(name=name, rows=rows, image=image, label=label, own=found._fingerprint)
    return from_album(name, album, reading, classes)


def _open(datasets: Any, name: str, where: str, split: str, config: str) -> Any:
    """One split of a data set, as the library reads it."""
    folder = local_path(where, what="name")
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if not saved and (folder.is_dir() or folder.is_absolute() or where.startswith(".")):
        raise InputError(
            f"name = {name!r}: {folder} is no folder that save_to_disk of Hugging Face datasets made; give one, or the "
            "name of a data set of the hub"
        )
    try:
        if not saved:
            return datasets.load_dataset(where, config or None, split=split)
        found = datasets.load_from_disk(str(folder))
        if isinstance(found, datasets.DatasetDict):
            return found[split]
        if split == "train":
            return found
        raise KeyError(split)
    except ConnectionError as error:
        raise ConnectionError(f"name = {name!r} cannot be downloaded ({_line(error)})") from error
    except Exception as error:  # of a type that the library does not promise
        raise InputError(
            f"name = {name!r} can't be read ({_line(error)}); give a data set that has the split {split!r}, with the "
            "option config if it has several configurations"
        ) from error


def _line(error: Exception) -> str:
    return first_line(error)


def _column(name: str, option: str, chosen: str | None, likely: list[str], possible: list[str]) -> str | None:
    """The chosen column, which must be a possible one, or the only likely one, or None if there is none."""
    if chosen is not None and chosen not in possible:
        known = ", ".join(possible) or "none has a type that fits"
        raise InputError(f"name = {name!r} has no column {option} = {chosen!r}; choose one of those: {known}")
    if chosen is None and len(likely) > 1:
        raise InputError(f"name = {name!r} has the columns {', '.join(likely)}; choose one as {name}:{option}=COLUMN")
    return chosen if chosen is not None or not likely else likely[0]
