"""CIFAR-10 from its binary version, which holds plain records and no pickles.

A record has 3,073 bytes: the label, 0 to 9, then 1,024 bytes each of red, green and blue, row by row.

Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", and
https://www.cs.toronto.edu/~kriz/cifar.html, section "Binary version".
"""

import tarfile
import zlib

import numpy as np
from jaxtyping import Int32, UInt8

from jaxdiff.data.published import SETS
from jaxdiff.storage import AnyPath, opened
from jaxdiff.typing import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_ARCHIVE, _INSIDE = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_RECORD = 1 + 3 * 32 * 32
_MOST_BYTES = 2**25  # of a file; the published ones have 30.7 MB
_FIX = "Replace it with an intact copy (delete it, if it was downloaded, to fetch it again)."


def load(split: str, *, dir: str | None = None) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, "n"]]:
    """Return the images of "train" (50,000) or "test" (10,000), levels 0 to 255, and their labels 0 to 9.

    The folder `dir` holds the archive as published (cifar-10-binary.tar.gz), or its files (data_batch_1.bin), or these
    in the sub-folder that the archive unpacks to. None downloads the archive on the first call; it is never unpacked.
    Broken files raise an InputError; errors of `Published.download` pass through.
    """
    names, published = _FILES[split], SETS["cifar10"]
    folder = published.folder([_ARCHIVE], dir=dir)
    places = [place for place in (folder, folder / _INSIDE) if any((place / name).is_file() for name in names)]
    if places:
        paths = [places[0] / name for name in names]
        if absent := [path.name for path in paths if not path.is_file()]:
            raise published.missing(places[0], absent[:1])
        parts = {path: path.read_bytes() for path in paths}
    elif (folder / _ARCHIVE).is_file():
        parts = _unpacked(folder / _ARCHIVE, names)
    else:
        raise published.missing(folder, [_ARCHIVE, names[0]])
    for path, content in parts.items():
        if not content or len(content) % _RECORD:
            raise InputError(f"{path}: {len(content)} bytes; a file of CIFAR-10 has {_RECORD} for each image. {_FIX}")
    records = np.frombuffer(b"".join(parts.values()), np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise InputError(f"{folder}: label {labels.max()}; CIFAR-10's labels are 0 to 9. Give CIFAR-10 itself.")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _unpacked(path: AnyPath, names: list[str]) -> dict[AnyPath, bytes]:
    """The contents of these files of the archive, which are read into memory; nothing else of it is used."""
    found = {}
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.partition("/")
                if folder != _INSIDE or name not in names or name in found:
                    continue
                content = archive.extractfile(member) if member.isreg() and member.size <= _MOST_BYTES else None
                if content is None:
                    raise InputError(f"{path}: {member.name} is no plain file of at most {_MOST_BYTES} bytes. {_FIX}")
                found[name] = content.read()
                if len(found) == len(names):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the archive is damaged ({error}). {_FIX}") from error
    if absent := [name for name in names if name not in found]:
        raise InputError(f"{path}: the archive lacks {_INSIDE}/{absent[0]}. {_FIX}")
    return {path / name: found[name] for name in names}
