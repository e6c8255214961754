"""MNIST from its four IDX files: out of a folder, or downloaded once and kept.

Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits",
http://yann.lecun.com/exdb/mnist. TensorFlow Datasets could prepare MNIST too, but needs
TensorFlow for it; its download manager does not, and fetches the files here.
"""

import http.client
import os
import queue
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxdiff.data import idx


class Checksum(NamedTuple):
    """What a downloaded file must be: its size in bytes and its SHA-256 as hexadecimal digits."""

    size: int
    sha256: str


# The mirror that TensorFlow Datasets uses, and the sizes and digests that it registers for it in
# tensorflow_datasets/url_checksums/mnist.txt (version 4.9.10).
BASE_URL = "https://storage.googleapis.com/cvdf-datasets/mnist"
CHECKSUMS: Mapping[str, Checksum] = MappingProxyType(
    {
        "train-images-idx3-ubyte.gz": Checksum(
            9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": Checksum(
            28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": Checksum(
            1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": Checksum(4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    }
)

_PREFIX: Mapping[str, str] = {"train": "train", "test": "t10k"}
_ATTEMPTS = 3
_ANSWER_SECONDS = 8.0
_WAY_ON = (
    "Give a folder that holds the files, as dir or with --config.data.dir=DIR, or train on "
    "configs/digits.py, which downloads nothing."
)


def load(split: str, *, dir: str | None = None) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, "n"]]:
    """Reads one split of MNIST: 60,000 images for "train", 10,000 for "test".

    Args:
      split: "train" or "test".
      dir: The folder of the IDX files, gzipped or plain, named as published
        (train-images-idx3-ubyte) or in the other common spelling (train-images.idx3-ubyte).
        None downloads the two files of the split on the first call: see `download`.

    Returns:
      The images, grey levels 0 (background) to 255, and their labels 0 to 9.

    Raises:
      ValueError: The folder or a file is missing or broken, or images and labels do not match.
      ConnectionError: The files cannot be downloaded.
    """
    folder = download(split) if dir is None else Path(dir).expanduser()
    if not folder.is_dir():
        raise ValueError(f"dir={dir!r}: no such folder; it must hold the MNIST files. {_WAY_ON}")
    images_path = _find(folder, f"{_PREFIX[split]}-images-idx3-ubyte")
    labels_path = _find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
    images, labels = idx.read(images_path), idx.read(labels_path)
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path}: shape {images.shape}; MNIST images are (n, 28, 28). Give the folder of MNIST itself."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_path}: labels of shape {labels.shape} for {len(images)} images in "
            f"{images_path}; there must be one for each. Take both files from one copy of MNIST."
        )
    if labels.max(initial=0) > 9:
        raise ValueError(
            f"{labels_path}: label {labels.max()}; MNIST labels are 0 to 9. Give the folder of MNIST itself."
        )
    return images[..., None], labels.astype(np.int32)


def download(split: str, *, base_url: str = BASE_URL, checksums: Mapping[str, Checksum] = CHECKSUMS) -> Path:
    """Downloads the two files of a split that are not there yet, and checks size and SHA-256.

    The files go to downloads/mnist in the data folder of TensorFlow Datasets: $TFDS_DATA_DIR,
    else ~/tensorflow_datasets. A file appears there under its name only when it is whole and
    checked, so a file that is there needs no network. Without a network the call fails within
    30 seconds.

    Args:
      split: "train" or "test".
      base_url: The folder that serves the files over HTTP.
      checksums: What the files must be, by name.

    Returns:
      The folder of the files.

    Raises:
      ConnectionError: A file cannot be fetched, in three attempts.
      ValueError: A fetched file has another size or SHA-256; it is thrown away.
    """
    data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = Path(data_dir).expanduser() / "downloads" / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{_PREFIX[split]}-{kind}-ubyte.gz"
        if not (folder / name).is_file():
            _fetch(f"{base_url}/{name}", checksums[name], folder / name)
    return folder


def _find(folder: Path, name: str) -> Path:
    names = [stem + end for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    raise ValueError(f"{folder}: no MNIST file {' or '.join(names)} in this folder. {_WAY_ON}")


def _fetch(url: str, checksum: Checksum, path: Path) -> None:
    # Imported here because it is slow, and needed once in the life of a machine.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    expected = UrlInfo(size=checksum.size, checksum=checksum.sha256, filename=path.name)
    for attempt in range(_ATTEMPTS):
        try:
            _await_answer(url)
            # Whatever a failed attempt leaves behind goes with this folder.
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="incomplete.") as scratch:
                manager = tfds.download.DownloadManager(download_dir=scratch, url_infos={url: expected})
                os.replace(manager.download(url), path)
            return
        except NonMatchingChecksumError as error:
            raise ValueError(
                f"{url}: what was downloaded is not the expected {checksum.size} bytes of "
                f"SHA-256 {checksum.sha256}, and was thrown away; a proxy or a login page may "
                f"have answered instead. {_WAY_ON}"
            ) from error
        except (OSError, tfds.download.DownloadError) as error:
            failure = error
        if attempt + 1 < _ATTEMPTS:
            time.sleep(2**attempt)
    raise ConnectionError(
        f"{url}: cannot be downloaded, after {_ATTEMPTS} attempts ({failure}). {_WAY_ON}"
    ) from failure


def _await_answer(url: str) -> None:
    """Returns once the server answers for the URL; raises OSError if it does not, or not soon.

    The download manager sets no timeout and retries a dead connection for minutes, so it is
    started only towards a server that answers. A socket's timeout holds for each of the host's
    addresses in turn, and not for the look-up of its name: hence the thread, to be left behind.
    """
    request = urllib.request.Request(url, method="HEAD")
    answers: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=_ANSWER_SECONDS).close()
            answers.put(None)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the response
            answers.put(error)
        except OSError as error:
            answers.put(error)
        except http.client.HTTPException as error:
            answers.put(ConnectionError(f"not an HTTP answer: {error!r}"))

    threading.Thread(target=ask, daemon=True).start()
    try:
        failure = answers.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_ANSWER_SECONDS:g} s") from None
    if failure is not None:
        raise failure
