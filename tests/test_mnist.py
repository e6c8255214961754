"""MNIST: IDX files, a folder of them, and the download from a server."""

import contextlib
import gc
import gzip
import hashlib
import http.server
import itertools
import math
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import idx, mnist
from jaxdiff.typing import InputError

# Pooch leaves the connection of a download that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

REAL_MNIST = Path(__file__).parents[2] / "shared/data/mnist"


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).reshape(3, 28, 28).astype(np.uint8)
LABELS = np.array([7, 0, 9], np.uint8)
TRAIN_FILES = {
    "train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(IMAGES)),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(LABELS)),
}
CHECKSUMS = {name: hashlib.sha256(content).hexdigest() for name, content in TRAIN_FILES.items()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("shape", [(5,), (2, 3), (3, 4, 5), (0, 4)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_round_trip(tmp_path, shape, pack):
    array = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    path = tmp_path / "array"
    path.write_bytes(pack(idx_bytes(array)))
    read = idx.read(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array, strict=True)


GOOD = idx_bytes(LABELS)
GOOD_GZ = gzip.compress(GOOD, mtime=0)  # the same test names in every worker


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "truncated, 0 bytes"),
        (GOOD[:3], "truncated, 3 bytes"),
        (GOOD[:6], "truncated, 6 bytes; the header of 1 dimensions alone takes 8"),
        (GOOD[:-1], r"truncated, 10 bytes; a file of shape \(3,\) has 11"),
        (GOOD + b"\0", r"trailing bytes, 12 bytes; a file of shape \(3,\) has 11"),
        (b"\x01" + GOOD[1:], "wrong magic number 0x01000801"),
        (b"<html>", "wrong magic number 0x3c68746d"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], r"element type 0x0d; only unsigned bytes \(0x08\)"),
        (GOOD_GZ[:-4], "the gzip stream is damaged"),
        (GOOD_GZ[:-8] + b"\0" * 8, "the gzip stream is damaged"),
        (GOOD_GZ + b"junk", "the gzip stream is damaged"),
        (GOOD_GZ[:10] + b"\xff" * 20, "the gzip stream is damaged"),
    ],
)
def test_idx_bad_file(tmp_path, content, message):
    path = tmp_path / "broken-idx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken-idx: {message}"):
        idx.read(path)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("infix", ["-idx", ".idx"])
def test_mnist_folder_spellings(tmp_path, infix, ending):
    for name, content in TRAIN_FILES.items():
        name = name.removesuffix(".gz").replace("-idx", infix) + ending
        (tmp_path / name).write_bytes(content if ending else gzip.decompress(content))
    images, labels = mnist.load("train", dir=str(tmp_path))
    np.testing.assert_array_equal(images, IMAGES[..., None], strict=True)
    np.testing.assert_array_equal(labels, LABELS.astype(np.int32), strict=True)


def test_mnist_splits_are_different_files(tmp_path):
    write(tmp_path, TRAIN_FILES)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES[:1]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:1]))
    train = data.load("mnist", dir=str(tmp_path))
    test = data.load("mnist", split="test", dir=str(tmp_path))
    assert (len(train.x), len(test.x)) == (3, 1)
    assert (train.levels, train.classes, train.shape) == (256, 10, (28, 28, 1))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train-images-idx3-ubyte": None}, "no MNIST file train-images-idx3-ubyte or"),
        ({"train-labels-idx1-ubyte": None}, "no MNIST file train-labels-idx1-ubyte or"),
        (
            {"train-images-idx3-ubyte": IMAGES[:, :27]},
            r"shape \(3, 27, 28\); MNIST images are \(n, 28, 28\)",
        ),
        ({"train-images-idx3-ubyte": LABELS}, r"shape \(3,\); MNIST images are"),
        ({"train-labels-idx1-ubyte": LABELS[:2]}, r"labels of shape \(2,\) for 3 images"),
        ({"train-labels-idx1-ubyte": IMAGES}, r"labels of shape \(3, 28, 28\) for 3 images"),
        ({"train-labels-idx1-ubyte": LABELS + 1}, "label 10; MNIST labels are 0 to 9"),
    ],
)
def test_mnist_bad_folder(tmp_path, files, message):
    arrays = {"train-images-idx3-ubyte": IMAGES, "train-labels-idx1-ubyte": LABELS} | files
    write(tmp_path, {name: idx_bytes(a) for name, a in arrays.items() if a is not None})
    with pytest.raises(InputError, match=message):
        mnist.load("train", dir=str(tmp_path))


def test_mnist_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"dir='.*nowhere': no such folder.*--config\.data\.dir"):
        data.load("mnist", dir=str(tmp_path / "nowhere"))


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="no copy of MNIST beside the repository")
def test_real_mnist():
    train = data.load("mnist", dir=str(REAL_MNIST))
    test = data.load("mnist", split="test", dir=str(REAL_MNIST))
    assert train.x.shape == (60_000, 28, 28, 1)
    assert test.x.shape == (10_000, 28, 28, 1)
    assert train.labels[:6].tolist() == [5, 0, 4, 1, 9, 2]
    assert test.labels[:6].tolist() == [7, 2, 1, 0, 4, 1]
    # The mean grey level that every MNIST recipe standardizes with.
    assert train.x.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


class Server(http.server.ThreadingHTTPServer):
    """Serves TRAIN_FILES from 127.0.0.1, counting requests; the first answers can be spoilt."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(TRAIN_FILES)
        self.gets = 0
        self.unavailable = 0  # requests left to answer with 503
        self.cut = 0  # downloads left to break off halfway
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/mnist"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.gets += 1
        content = self.answer()
        if self.server.cut:
            self.server.cut -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def answer(self) -> bytes:
        content = self.server.files.get(self.path.removeprefix("/mnist/"))
        if self.server.unavailable:
            self.server.unavailable -= 1
            status, content = 503, b""
        else:
            status, content = (404, b"") if content is None else (200, content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(mnist, "CHECKSUMS", CHECKSUMS)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(mnist, "BASE_URL", server.base_url)
        yield server
        server.shutdown()
        thread.join()
    gc.collect()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_then_cache(server, tmp_path):
    folder = mnist.download("train")
    assert folder == tmp_path / "mnist"
    assert names_in(folder) == sorted(TRAIN_FILES)  # nothing unfinished is left
    assert server.gets == 2

    server.unavailable = math.inf
    mnist.download("train")
    loaded = data.load("mnist")  # finds the same files, without a network
    assert server.gets == 2
    np.testing.assert_array_equal(loaded.x[..., 0], IMAGES)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    server.unavailable = 0
    mnist.download("train")
    assert server.gets == 3  # only what is missing


def test_download_of_other_content_is_thrown_away(server, tmp_path):
    good = TRAIN_FILES["train-images-idx3-ubyte.gz"]
    for content in (b"<html>Please log in</html>", good[:-1] + bytes([good[-1] ^ 1])):
        server.files["train-images-idx3-ubyte.gz"] = content
        with pytest.raises(InputError, match=rf"expected SHA-256 {hashlib.sha256(good).hexdigest()}.*dir=DIR"):
            mnist.download("train")
        assert names_in(tmp_path / "mnist") == []
    server.files = dict(TRAIN_FILES)
    mnist.download("train")


@pytest.mark.parametrize("fault", ["unavailable", "cut"])
def test_download_is_tried_again(server, fault):
    setattr(server, fault, 1)
    folder = mnist.download("train")
    assert server.gets == 3
    assert names_in(folder) == sorted(TRAIN_FILES)


def test_download_of_a_missing_file(server):
    server.files.clear()
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(404 .*configs/digits\.py"):
        mnist.download("train")
    assert server.gets == 3


def test_download_from_a_dead_server(server):
    server.server_close()
    with pytest.raises(ConnectionError, match=r"refused.*--config\.data\.dir=DIR.*digits\.py"):
        mnist.download("train")


def test_download_from_a_silent_server(server, monkeypatch):
    """No further attempt is made once a server has been silent for long: 30 seconds are the limit in all."""
    assert 16 * mnist._CONNECT + 3 < 30
    assert mnist._GIVE_UP <= mnist._READ <= 10
    monkeypatch.setattr(mnist, "_READ", 0.1)
    monkeypatch.setattr(mnist, "_GIVE_UP", 0.05)
    asked, release = [], threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: asked.append(self.path) or release.wait())
    try:
        with pytest.raises(ConnectionError, match="timed out"):
            mnist.download("train")
    finally:
        release.set()
    assert len(asked) == 1


def test_download_into_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("JAXDIFF_DATA", "/dev/null")
    with pytest.raises(InputError, match=r"/dev/null/mnist can't be written .*; set JAXDIFF_DATA to another folder"):
        mnist.download("train")


def test_canonical_checksums_are_those_of_tfds():
    from tensorflow_datasets.core.download import checksums

    registered = checksums.get_all_url_infos()
    assert len(mnist.CHECKSUMS) == 4
    for name, checksum in mnist.CHECKSUMS.items():
        assert registered[f"{mnist.BASE_URL}/{name}"].checksum == checksum


def dripping(headers: str, content: bytes):
    """An answer that sends one byte at a time for ever, after its headers if these are whole."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(headers.encode())
        for byte in itertools.cycle(content):
            try:
                handler.wfile.write(bytes([byte]))
            except OSError:  # nobody reads any more
                return
            if handler.server.stopped.wait(0.05):
                return

    return answer


@pytest.mark.parametrize(
    "headers",
    ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 900000\r\n\r\n", "HTTP/1.0 200 OK\r\nX: "],
)
def test_download_that_drips_ends_at_the_limit_of_a_file(server, tmp_path, monkeypatch, headers):
    monkeypatch.setattr(mnist, "_WHOLE", 0.3)
    monkeypatch.setattr(mnist, "_GIVE_UP", 0.1)
    server.stopped = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", dripping(headers, b"0123456789"))
    try:
        with pytest.raises(ConnectionError, match=r"not arrived within 0\.3 seconds"):
            mnist.download("train")
    finally:
        server.stopped.set()
    assert names_in(tmp_path / "mnist") == []


def test_download_without_end_stops_at_the_limit_of_its_size(server, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_MOST_BYTES", 5000)
    server.files["train-images-idx3-ubyte.gz"] = bytes(2**20)
    with pytest.raises(ConnectionError, match="more than 5000 bytes"):
        mnist.download("train")
    assert names_in(tmp_path / "mnist") == []


@pytest.mark.parametrize("length", ["5", "99999999", "-1", "many"])
def test_download_whose_length_is_a_lie_is_not_kept(server, tmp_path, monkeypatch, length):
    content = TRAIN_FILES["train-images-idx3-ubyte.gz"]

    def answer(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + content)

    monkeypatch.setattr(Handler, "do_GET", answer)
    monkeypatch.setattr(mnist, "CHECKSUMS", dict.fromkeys(mnist.CHECKSUMS, hashlib.sha256(b"").hexdigest()))
    with pytest.raises((ConnectionError, InputError), match="train-images"):
        mnist.download("train")
    assert names_in(tmp_path / "mnist") == []


def test_download_in_circles_ends(server, tmp_path, monkeypatch):
    def answer(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.0 302 Found\r\nLocation: {handler.path}\r\nContent-Length: 0\r\n\r\n".encode())

    monkeypatch.setattr(Handler, "do_GET", answer)
    with pytest.raises(ConnectionError, match="redirects"):
        mnist.download("train")
    assert names_in(tmp_path / "mnist") == []


@pytest.mark.parametrize(
    ("base", "location", "refused"),
    [
        ("https://a.org/mnist", "http://a.org/file", True),
        ("https://a.org/mnist", "HTTP://a.org/file", True),
        ("https://a.org/mnist", "//b.org/file", False),
        ("https://a.org/mnist", "/other", False),
        ("https://a.org/mnist", "ftp://a.org/file", True),
        ("http://127.0.0.1/mnist", "http://127.0.0.1/file", False),
    ],
)
def test_a_redirect_away_from_https_is_not_followed(monkeypatch, base, location, refused):
    import requests

    monkeypatch.setattr(mnist, "BASE_URL", base)
    response = requests.Response()
    response.url, response.status_code, response.headers["Location"] = f"{base}/file", 302, location
    with pytest.raises(requests.RequestException) if refused else contextlib.nullcontext():
        mnist._refuse_http(response)
