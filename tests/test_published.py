"""Published data sets: their download from a server."""

import contextlib
import dataclasses
import gc
import hashlib
import http.server
import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import requests
from test_cifar import ARCHIVE
from test_mnist import IMAGES, LABELS, TRAIN_FILES

from jaxdiff import data
from jaxdiff.data import published
from jaxdiff.typing import InputError

# Pooch leaves the connection of a download that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

IMAGES_FILE = "train-images-idx3-ubyte.gz"
IMAGES_URL = f"/mnist/{IMAGES_FILE}"
FILES = {"mnist": TRAIN_FILES, "fashion_mnist": TRAIN_FILES, "cifar10": {"cifar-10-binary.tar.gz": ARCHIVE}}


def download(name: str = "mnist") -> Path:
    return published.SETS[name].download(list(FILES[name]))


def change(monkeypatch, name: str = "mnist", **changes) -> None:
    monkeypatch.setitem(published.SETS, name, dataclasses.replace(published.SETS[name], **changes))


class Server(http.server.ThreadingHTTPServer):
    """Serves FILES from 127.0.0.1, counting requests; the first answers can be spoilt."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/{name}/{file}": content for name, files in FILES.items() for file, content in files.items()}
        self.gets = 0
        self.unavailable = 0  # requests left to answer with 503
        self.cut = 0  # downloads left to break off halfway


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
        content = self.server.files.get(self.path)
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
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        for name, files in FILES.items():
            found = {file: published.File(len(part), hashlib.sha256(part).hexdigest()) for file, part in files.items()}
            change(monkeypatch, name, url=f"http://127.0.0.1:{server.server_address[1]}/{name}", files=found)
        yield server
        server.shutdown()
        thread.join()
    gc.collect()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_then_cache(server, tmp_path):
    folder = download()
    assert folder == tmp_path / "mnist"
    assert names_in(folder) == sorted(FILES["mnist"])  # nothing unfinished is left
    assert server.gets == 2

    server.unavailable = math.inf
    download()
    loaded = data.load("mnist")  # finds the same files, without a network
    assert server.gets == 2
    np.testing.assert_array_equal(loaded.x[..., 0], IMAGES)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    server.unavailable = 0
    download()
    assert server.gets == 3  # only what is missing


def test_download_of_other_content_is_thrown_away(server, tmp_path):
    good = server.files[IMAGES_URL]
    for content in (b"<html>Please log in</html>", good[:-1] + bytes([good[-1] ^ 1])):
        server.files[IMAGES_URL] = content
        with pytest.raises(InputError, match=rf"expected SHA-256 {hashlib.sha256(good).hexdigest()}.*dir=DIR"):
            download()
        assert names_in(tmp_path / "mnist") == []
    server.files[IMAGES_URL] = good
    download()


@pytest.mark.parametrize("fault", ["unavailable", "cut"])
def test_download_is_tried_again(server, fault):
    setattr(server, fault, 1)
    folder = download()
    assert server.gets == 3
    assert names_in(folder) == sorted(FILES["mnist"])


def test_download_of_a_missing_file(server):
    server.files.clear()
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(404 .*configs/digits\.py"):
        download()
    assert server.gets == 3


def test_download_from_a_dead_server(server):
    server.server_close()
    with pytest.raises(ConnectionError, match=r"refused.*--config\.data\.dir=DIR.*digits\.py"):
        download()


def test_download_from_a_silent_server(server, monkeypatch):
    """No further attempt is made once a server has been silent for long: 30 seconds are the limit in all."""
    assert 16 * published._CONNECT + 3 < 30
    assert published._GIVE_UP <= published._READ <= 10
    monkeypatch.setattr(published, "_READ", 0.1)
    monkeypatch.setattr(published, "_GIVE_UP", 0.05)
    asked, release = [], threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: asked.append(self.path) or release.wait())
    try:
        with pytest.raises(ConnectionError, match="timed out"):
            download()
    finally:
        release.set()
    assert len(asked) == 1


def test_download_into_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("JAXDIFF_DATA", "/dev/null")
    with pytest.raises(InputError, match=r"/dev/null/mnist can't be written .*; set JAXDIFF_DATA to another folder"):
        download()


def test_sizes_and_checksums_are_those_of_tfds():
    from tensorflow_datasets.core.download import checksums

    registered = checksums.get_all_url_infos()
    for found in published.SETS.values():
        assert found.files
        for name, file in found.files.items():
            expected = registered[f"{found.url}/{name}"]
            assert file == (expected.size, expected.checksum)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_the_other_sets_are_downloaded_too(server, tmp_path, name):
    found = data.load(name)
    assert (found.spec.classes, len(found.spec.class_names), found.levels) == (10, 10, 256)
    assert found.labels.tolist() == (LABELS.tolist() if name == "fashion_mnist" else list(range(10)))
    assert names_in(tmp_path / name) == sorted(FILES[name])
    server.unavailable = math.inf
    assert len(data.load(name)) == len(found)


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
    monkeypatch.setattr(published, "_WHOLE", 0.3)
    monkeypatch.setattr(published, "_GIVE_UP", 0.1)
    server.stopped = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", dripping(headers, b"0123456789"))
    try:
        with pytest.raises(ConnectionError, match=r"not arrived within 0\.3 seconds"):
            download()
    finally:
        server.stopped.set()
    assert names_in(tmp_path / "mnist") == []


def test_download_beyond_the_size_of_the_file_stops(server, tmp_path):
    size = published.SETS["mnist"].files[IMAGES_FILE].size
    server.files[IMAGES_URL] = bytes(2**20)
    with pytest.raises(ConnectionError, match=f"more than the expected {size} bytes"):
        download()
    assert names_in(tmp_path / "mnist") == []


@pytest.mark.parametrize("length", ["5", "99999999", "-1", "many"])
def test_download_whose_length_is_a_lie_is_not_kept(server, tmp_path, monkeypatch, length):
    content = TRAIN_FILES[IMAGES_FILE]

    def answer(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + content)

    monkeypatch.setattr(Handler, "do_GET", answer)
    of_nothing = published.File(len(content), hashlib.sha256(b"").hexdigest())
    change(monkeypatch, files=dict.fromkeys(TRAIN_FILES, of_nothing))
    with pytest.raises((ConnectionError, InputError), match="train-images"):
        download()
    assert names_in(tmp_path / "mnist") == []


def test_download_in_circles_ends(server, tmp_path, monkeypatch):
    def answer(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.0 302 Found\r\nLocation: {handler.path}\r\nContent-Length: 0\r\n\r\n".encode())

    monkeypatch.setattr(Handler, "do_GET", answer)
    with pytest.raises(ConnectionError, match="redirects"):
        download()
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
def test_a_redirect_away_from_https_is_not_followed(base, location, refused):
    response = requests.Response()
    response.url, response.status_code, response.headers["Location"] = f"{base}/file", 302, location
    with pytest.raises(requests.RequestException) if refused else contextlib.nullcontext():
        published._refuse_http(base, response)
