"""MNIST from its four IDX files (see `jaxdiff.data.idx`): from a folder, or downloaded once and kept."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from jaxdiff.data import idx
from jaxdiff.storage import user_path
from jaxdiff.typing import InputError

# A mirror, and the SHA-256 of its files as TensorFlow Datasets registers them
# (tensorflow_datasets/url_checksums/mnist.txt, version 4.9.10).
BASE_URL = "https://storage.googleapis.com/cvdf-datasets/mnist"
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

_PREFIX = {"train": "train", "test": "t10k"}
_KINDS = ("images-idx3", "labels-idx1")
# Seconds: to connect to each of the mirror's sixteen addresses in turn; for a read; until the last attempt may start.
# Together under 30.
_CONNECT, _READ, _GIVE_UP = 1.5, 10.0, 10.0
_FIX = (
    "Give a folder that holds the files, as dir or with --config.data.dir=DIR, or train on configs/digits.py, which "
    "downloads nothing."
)


def load(split: str, *, dir: str | None = None) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, "n"]]:
    """Return the images of "train" (60,000) or "test" (10,000), levels 0 (background) to 255, and their labels 0 to 9.

    The files are in the folder `dir`, gzipped or plain, named as published (train-images-idx3-ubyte) or in the other
    common spelling (train-images.idx3-ubyte). None downloads the two files of the split on the first call. Broken files
    and files that do not match raise an InputError; errors of `download` pass through.
    """
    folder = download(split) if dir is None else user_path(dir, what="dir")
    if not folder.is_dir():
        raise InputError(f"dir={dir!r}: no such folder; it must hold the MNIST files. {_FIX}")
    images_path, labels_path = (_find(folder, f"{_PREFIX[split]}-{kind}-ubyte") for kind in _KINDS)
    images, labels = idx.read(images_path), idx.read(labels_path)
    if images.shape[1:] != (28, 28):
        raise InputError(
            f"{images_path}: shape {images.shape}; MNIST images are (n, 28, 28). Give the folder of MNIST itself."
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{labels_path}: labels of shape {labels.shape} for {len(images)} images in {images_path}; there must be "
            "one for each. Take both files from one copy of MNIST."
        )
    if labels.max(initial=0) > 9:
        raise InputError(
            f"{labels_path}: label {labels.max()}; MNIST labels are 0 to 9. Give the folder of MNIST itself."
        )
    return images[..., None], labels.astype(np.int32)


def download(split: str) -> Path:
    """Download the two files of a split unless they are there, and return their folder.

    The folder is $JAXDIFF_DATA/mnist, by default mnist in the user's cache folder (~/.cache/jaxdiff on Linux). A file
    appears under its name only when it is whole and its SHA-256 is right. Without a network the call fails within 30
    seconds.

    Raises:
      ConnectionError: if a file can't be fetched.
      InputError: if a fetched file has another SHA-256 (it is deleted), or the folder can't be written.
    """
    import pooch  # imported here, with requests, because it is slow and needed for this set only
    import requests

    try:
        cache = os.environ.get("JAXDIFF_DATA") or pooch.os_cache("jaxdiff")
    except RuntimeError as error:
        raise InputError(f"there is no cache folder ({error}); set JAXDIFF_DATA to a folder") from error
    folder = user_path(cache, what="JAXDIFF_DATA") / "mnist"
    pooch.get_logger().setLevel("WARNING")
    files = pooch.create(folder, base_url=f"{BASE_URL}/", registry=CHECKSUMS, retry_if_failed=2)
    inner = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=(_CONNECT, _READ))
    for kind in _KINDS:
        name = f"{_PREFIX[split]}-{kind}-ubyte.gz"
        try:
            files.fetch(name, downloader=_Downloader(inner))
        except requests.RequestException as error:
            raise ConnectionError(f"{BASE_URL}/{name}: cannot be downloaded ({error}). {_FIX}") from error
        except OSError as error:
            raise InputError(f"{folder} can't be written ({error}); set JAXDIFF_DATA to another folder") from error
        except ValueError as error:
            raise InputError(
                f"{BASE_URL}/{name}: the download does not have the expected SHA-256 {CHECKSUMS[name]} and was "
                f"deleted; a proxy or a login page may have answered instead. {_FIX}"
            ) from error
    return folder


class _Downloader:
    """One of pooch's downloaders with a time limit: an attempt after `_GIVE_UP` seconds repeats the last error."""

    def __init__(self, inner: Callable[..., None]) -> None:
        self._inner, self._start = inner, time.monotonic()
        self._error: OSError | None = None

    def __call__(self, url: str, output: str, pooch: object) -> None:
        if self._error and time.monotonic() - self._start > _GIVE_UP:
            raise self._error
        try:
            self._inner(url, output, pooch)
        except OSError as error:
            self._error = error
            raise


def _find(folder: Path, name: str) -> Path:
    names = [stem + end for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    raise InputError(f"{folder}: no MNIST file {' or '.join(names)} in this folder. {_FIX}")
