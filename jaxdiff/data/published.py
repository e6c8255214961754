"""Data sets that somebody publishes as files: where the files are, and how they are downloaded once, checked and kept.

Addresses, sizes and SHA-256 are those that TensorFlow Datasets 4.9.10 registers (tensorflow_datasets/url_checksums).
"""

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urljoin

from jaxdiff.storage import AnyPath, local_path, user_path
from jaxdiff.typing import InputError

# Seconds: to connect to each of a mirror's sixteen addresses in turn; for a read; until the last attempt may start.
# Together under 30.
_CONNECT, _READ, _GIVE_UP = 1.5, 10.0, 10.0
_WHOLE = 300.0  # seconds for a file that arrives, however slowly, or more for a large one:
_SLOWEST = 1e5  # bytes a second
_FIX = (
    "Give a folder that holds the files, as dir or with --config.data.dir=DIR, or train on configs/digits.py, which "
    "downloads nothing."
)


class File(NamedTuple):
    """What a published file must be."""

    size: int  # in bytes
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published data set."""

    name: str  # of its folder in the cache
    title: str
    url: str  # of the folder of its files
    files: Mapping[str, File]

    def folder(self, names: list[str], *, dir: str | None) -> AnyPath:
        """Return the folder `dir`, or the one that these files were downloaded into if it is None.

        Raises an InputError if there is no such folder; errors of `download` pass through.
        """
        folder = self.download(names) if dir is None else user_path(dir, what="dir")
        if not folder.is_dir():
            raise InputError(f"dir={dir!r}: no such folder; it must hold the {self.title} files. {_FIX}")
        return folder

    def missing(self, folder: AnyPath, names: list[str]) -> InputError:
        """Return the error about a folder without any of these files."""
        return InputError(f"{folder}: no {self.title} file {' or '.join(names)} in this folder. {_FIX}")

    def download(self, names: list[str]) -> Path:
        """Download these files unless they are there, and return their folder.

        The folder is $JAXDIFF_DATA/NAME, by default NAME in the user's cache folder (~/.cache/jaxdiff on Linux). A file
        appears under its name only when it is whole and its SHA-256 is right. Without a network the call fails within
        30 seconds, and with a slow one within 5 minutes a file, or below 100 kB/s if it is large.

        Raises:
          ConnectionError: if a file can't be fetched.
          InputError: if a fetched file has another SHA-256 (it is deleted), or the folder can't be written.
        """
        import pooch  # imported here, with requests, because it is slow and needed for published sets only
        import requests

        try:
            cache = os.environ.get("JAXDIFF_DATA") or pooch.os_cache("jaxdiff")
        except RuntimeError as error:
            raise InputError(f"there is no cache folder ({error}); set JAXDIFF_DATA to a folder") from error
        folder = local_path(cache, what="JAXDIFF_DATA") / self.name
        pooch.get_logger().setLevel("WARNING")
        hashes = {name: file.sha256 for name, file in self.files.items()}
        kept = pooch.create(folder, base_url=f"{self.url}/", registry=hashes, retry_if_failed=2)
        options = {"timeout": (_CONNECT, _READ), "hooks": {"response": partial(_refuse_http, self.url)}}
        inner = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), **options)
        for name in names:
            try:
                kept.fetch(name, downloader=_Downloader(inner, self.files[name].size))
            except requests.RequestException as error:
                raise ConnectionError(f"{self.url}/{name}: cannot be downloaded ({error}). {_FIX}") from error
            except OSError as error:
                raise InputError(f"{folder} can't be written ({error}); set JAXDIFF_DATA to another folder") from error
            except ValueError as error:
                raise InputError(
                    f"{self.url}/{name}: the download does not have the expected SHA-256 {hashes[name]} and was "
                    f"deleted; a proxy or a login page may have answered instead. {_FIX}"
                ) from error
        return folder


def _refuse_http(url: str, response: Any, **options: Any) -> None:
    """Raise, before it is followed, if a redirect leads from https to anything else."""
    import requests

    target = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and url.startswith("https:") and not target.startswith("https:"):
        raise requests.exceptions.InvalidURL(f"it redirects to {target[:200]}, which is not https")


class _Downloader:
    """One of pooch's downloaders with limits of time and size, for one file.

    An attempt after `_GIVE_UP` seconds repeats the last error. The download runs in a thread, as a server that sends a
    byte now and then keeps every single read within its timeout; one that takes too long is left behind.
    """

    def __init__(self, inner: Callable[..., None], size: int) -> None:
        self._inner, self._size, self._start = inner, size, time.monotonic()
        self._error: OSError | None = None

    def __call__(self, url: str, output: str, pooch: object) -> None:
        import requests

        if self._error and time.monotonic() - self._start > _GIVE_UP:
            raise self._error
        found: list[Exception] = []
        seconds = max(_WHOLE, self._size / _SLOWEST)
        with open(output, "wb") as file:
            limited = _Limited(file, self._size)
            thread = threading.Thread(target=self._run, args=(url, limited, pooch, found), daemon=True)
            thread.start()
            thread.join(seconds)
        if thread.is_alive():
            found = [requests.Timeout(f"it has not arrived within {seconds:g} seconds")]
        for error in found:
            self._error = error if isinstance(error, OSError) else None
            raise error

    def _run(self, url: str, file: "_Limited", pooch: object, found: list[Exception]) -> None:
        try:
            self._inner(url, file, pooch)
        except Exception as error:  # for the thread that waits
            found.append(error)


class _Limited:
    """A file that takes `most` bytes."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most, self._size = file, most, 0
        self.flush = file.flush

    def write(self, part: bytes) -> None:
        import requests

        self._size += len(part)
        if self._size > self._most:
            raise requests.exceptions.ContentDecodingError(f"it has more than the expected {self._most} bytes")
        self._file.write(part)


SETS = {
    found.name: found
    for found in (
        Published(
            name="mnist",
            title="MNIST",
            url="https://storage.googleapis.com/cvdf-datasets/mnist",
            files={
                "train-images-idx3-ubyte.gz": File(
                    9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
                ),
                "train-labels-idx1-ubyte.gz": File(
                    28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
                ),
                "t10k-images-idx3-ubyte.gz": File(
                    1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
                ),
                "t10k-labels-idx1-ubyte.gz": File(
                    4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
                ),
            },
        ),
        Published(
            name="fashion_mnist",
            title="Fashion-MNIST",
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",  # it answers no https
            files={
                "train-images-idx3-ubyte.gz": File(
                    26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
                ),
                "train-labels-idx1-ubyte.gz": File(
                    29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
                ),
                "t10k-images-idx3-ubyte.gz": File(
                    4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
                ),
                "t10k-labels-idx1-ubyte.gz": File(
                    5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
                ),
            },
        ),
        Published(
            name="cifar10",
            title="CIFAR-10",
            url="https://www.cs.toronto.edu/~kriz",
            files={
                "cifar-10-binary.tar.gz": File(
                    170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
                ),
            },
        ),
    )
}
