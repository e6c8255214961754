"""MNIST from its four IDX files (see `jaxdiff.data.idx`): from a folder, or downloaded once and kept."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

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
_WHOLE = 300.0  # seconds for a file that arrives, however slowly
_MOST_BYTES = 2**24  # of a file; the largest has 9.9 MB
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
    seconds, and with a slow one within 5 minutes a file.

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
    options = {"timeout": (_CONNECT, _READ), "hooks": {"response": _refuse_http}}
    inner = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), **options)
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


def _refuse_http(response: Any, **options: Any) -> None:
    """Raise, before it is followed, if a redirect leads from https to anything else."""
    import requests

    target = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and BASE_URL.startswith("https:") and not target.startswith("https:"):
        raise requests.exceptions.InvalidURL(f"it redirects to {target[:200]}, which is not https")


class _Downloader:
    """One of pooch's downloaders with limits of time and size.

    An attempt after `_GIVE_UP` seconds repeats the last error. The download runs in a thread, as a server that sends a
    byte now and then keeps every single read within its timeout; one that takes too long is left behind.
    """

    def __init__(self, inner: Callable[..., None]) -> None:
        self._inner, self._start = inner, time.monotonic()
        self._error: OSError | None = None

    def __call__(self, url: str, output: str, pooch: object) -> None:
        import requests

        if self._error and time.monotonic() - self._start > _GIVE_UP:
            raise self._error
        found: list[Exception] = []
        with open(output, "wb") as file:
            thread = threading.Thread(target=self._run, args=(url, _Limited(file), pooch, found), daemon=True)
            thread.start()
            thread.join(_WHOLE)
        if thread.is_alive():
            found = [requests.Timeout(f"it has not arrived within {_WHOLE:g} seconds")]
        for error in found:
            self._error = error if isinstance(error, OSError) else None
            raise error

    def _run(self, url: str, file: "_Limited", pooch: object, found: list[Exception]) -> None:
        try:
            self._inner(url, file, pooch)
        except Exception as error:  # for the thread that waits
            found.append(error)


class _Limited:
    """A file that takes `_MOST_BYTES` at most."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0
        self.flush = file.flush

    def write(self, part: bytes) -> None:
        import requests

        self._size += len(part)
        if self._size > _MOST_BYTES:
            raise requests.exceptions.ContentDecodingError(f"it has more than {_MOST_BYTES} bytes")
        self._file.write(part)


def _find(folder: Path, name: str) -> Path:
    names = [stem + end for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    raise InputError(f"{folder}: no MNIST file {' or '.join(names)} in this folder. {_FIX}")
