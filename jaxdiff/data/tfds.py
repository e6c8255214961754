"""A data set that TensorFlow Datasets prepared as an album: read by random access, without TensorFlow."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from jaxdiff.data.pictures import Pictures, Reading, Stored, from_album
from jaxdiff.typing import InputError

_SOME = 64  # pictures that the fingerprint is made of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """The pictures and labels of a data set."""

    name: str
    records: Any  # a data source of TensorFlow Datasets whose images are not decoded
    labelled: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Stored:
        record = self.records[i]
        return Stored(record["image"], int(record["label"]) if self.labelled else None, f"{self.name}[{i}]")

    def fingerprint(self) -> str:
        """Return a hash of the length and of 64 pictures with their labels."""
        found = hashlib.blake2b(str(len(self)).encode(), digest_size=16)
        for i in np.unique(np.linspace(0, len(self) - 1, _SOME).astype(int)).tolist():
            content, label, _ = self[i]
            found.update(f"{label}\0{len(content)}\0".encode())
            found.update(content)  # type: ignore[arg-type]
        return found.hexdigest()


def load(name: str, split: str, dir: str | None, reading: Reading) -> Pictures:
    """Return the pictures of "tfds:NAME", which TensorFlow Datasets has prepared in a format of random access.

    `split` is any one in its notation, `dir` its data folder; None is its default. The features "image" and "label" are
    read. Images of one channel are grey, and of others are colour, unless the reading says otherwise.

    Raises:
      InputError: if the library is missing, the set is not prepared, or has no image of 8 or 16 bits.
    """
    try:
        import tensorflow_datasets as tfds  # imported here because it is slow, and not always installed
    except ImportError as error:
        raise InputError(f'name = {name!r} needs TensorFlow Datasets: pip install "jaxdiff[tfds]"') from error
    tfds_name = name.removeprefix("tfds:")
    try:
        decoders = {"image": tfds.decode.SkipDecoding()}
        source = tfds.data_source(tfds_name, split=split, data_dir=dir, download=False, decoders=decoders)
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
    if image.np_dtype not in (np.uint8, np.uint16):
        raise InputError(f"name = {name!r} has images of {np.dtype(image.np_dtype)}; choose a set of uint8 or uint16")
    if reading.channels is None and image.shape[-1] is not None:
        reading = dataclasses.replace(reading, channels=1 if image.shape[-1] == 1 else 3)
    classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None
    album = Records(name=name, records=source, labelled=classes is not None)
    return from_album(name, album, reading, classes)
