"""Data sets: IDX files, MNIST from a folder and over HTTP, digits, 2-D sets, yours, TFDS."""

import gc
import gzip
import hashlib
import http.server
import math
import struct
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from jaxdiff import data
from jaxdiff.data import idx, mnist
from jaxdiff.typing import InputError

# Pooch leaves the connection of a download that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

REAL_MNIST = Path(__file__).parents[2] / "shared/data/mnist"
TOYS = ("swissroll", "moons", "checkerboard", "mixture")


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


def test_digits():
    train, test = data.load("digits"), data.load("digits", split="test")
    assert train.x.shape == (1500, 8, 8, 1)
    assert test.x.shape == (297, 8, 8, 1)
    for part in (train, test):
        assert (part.name, part.levels, part.classes) == ("digits", 17, 10)
        assert (part.x.dtype, part.labels.dtype) == (np.uint8, np.int32)
        assert (part.x.min(), part.x.max()) == (0, 16)
        assert set(part.labels.tolist()) == set(range(10))
        assert part.labels.shape == part.x.shape[:1]
    assert train.labels[:10].tolist() == list(range(10))
    assert train.x[0, 0, :, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert not {image.tobytes() for image in train.x} & {image.tobytes() for image in test.x}


@pytest.mark.parametrize("name", TOYS)
def test_toys(name):
    train = data.load(name, seed=1)
    assert (train.x.shape, train.x.dtype) == ((20_000, 2), np.float32)
    assert (train.levels, train.shape) == (None, (2,))
    assert np.abs(train.x).max() < 2.3
    assert np.all(np.abs(train.x.mean(0)) < 0.3)
    assert np.all((train.x.std(0) > 0.4) & (train.x.std(0) < 1.4))
    if train.classes is None:
        assert train.labels is None
    else:
        assert train.labels.dtype == np.int32
        assert set(train.labels.tolist()) == set(range(train.classes))

    again, other = data.load(name, seed=1), data.load(name, seed=2)
    test = data.load(name, split="test", seed=1)
    np.testing.assert_array_equal(again.x, train.x)
    assert not set(map(tuple, test.x)) & set(map(tuple, train.x[:100]))
    assert not np.array_equal(other.x, train.x)


def test_toy_distributions():
    cells = np.floor(data.load("checkerboard").x)
    assert np.all(cells.sum(1) % 2 == 0)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert np.all(np.abs(counts - 2500) < 250)  # five standard deviations

    mixture = data.load("mixture")
    angles = np.arange(8) * np.pi / 4
    means = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    residual = mixture.x - means[mixture.labels]
    assert residual.std() == pytest.approx(0.1, rel=0.03)
    assert np.abs(residual).max() < 0.6

    moons = data.load("moons")
    assert moons.classes == 2
    assert moons.x[moons.labels == 0, 1].mean() > 0 > moons.x[moons.labels == 1, 1].mean()


@pytest.mark.parametrize("levels", [2, 17, 255, 256, 257])
def test_normalize(levels):
    raw = np.arange(levels).astype(np.uint8 if levels <= 256 else np.uint16)
    expected = 2 * raw.astype(np.float64) / (levels - 1) - 1
    jitted = jax.jit(data.normalize, static_argnums=1)(raw, levels)
    for x in (data.normalize(raw, levels), jitted):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-7)
        assert (x.min(), x.max()) == (-1, 1)
    assert isinstance(data.normalize(raw, levels), np.ndarray)
    np.testing.assert_array_equal(np.round((jitted + 1) * (levels - 1) / 2), raw)


def test_normalize_leaves_continuous_data():
    x = np.array([[-2.5, 0.0], [1.0, 3.0]], np.float32)
    assert data.normalize(x, None) is x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, r"name = 'digit' is not a data set, tfds:NAME or package.*; did you mean 'digits'\?$"),
        ({"name": "qqq"}, r"name = 'qqq' is not a data set.*checkerboard, digits, mixture, mnist, moons, swissroll$"),
        ({"name": "digits", "split": "valid"}, "split = 'valid'; digits has the splits"),
        ({"name": "mnist", "split": "validation"}, "split = 'validation'; mnist has the splits"),
        ({"name": "moons", "split": ""}, "split = ''; moons has the splits"),
        ({"name": "digits", "dir": "somewhere"}, "dir = 'somewhere', but digits is read from no folder"),
        ({"name": "mixture", "dir": "."}, r"dir = '\.', but mixture is read from no folder"),
        ({"name": "nowhere.at_all:load"}, "name = 'nowhere.at_all:load': No module named 'nowhere'"),
        ({"name": "test_data:absent"}, "name = 'test_data:absent': .* has no attribute 'absent'"),
        (
            {"name": "test_data:wrong"},
            r"'test_data:wrong' returned a ndarray; it must return a jaxdiff.data.Data",
        ),
        ({"name": "test_data:wrong:labels=3"}, r"labels=3' returned labels as int64\(3,\); it must"),
        ({"name": "test_data:my_points", "dir": "x"}, "dir = 'x', but test_data:my_points is read from no folder"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        data.load(**arguments)


def my_points(split):
    n = {"train": 5, "test": 3}[split]
    return np.zeros((n, 2)), np.arange(n)


def my_images(split, shade: int = 1):
    return data.Dataset(
        name=split, x=np.full((4, 2, 2, 1), shade, np.uint8), labels=None, levels=shade + 1, classes=None
    )


def wrong(labels: int = 0):
    return (np.zeros((2, 2)), np.arange(labels)) if labels else np.zeros((2, 2))


def test_a_function_gives_a_data_set():
    train, test = data.load("test_data:my_points"), data.load("test_data:my_points", split="test")
    assert (len(train.x), train.x.dtype, train.labels.dtype) == (5, np.float32, np.int32)
    assert train.spec == data.DataSpec(shape=(2,), levels=None, classes=5)
    assert len(test.x) == 3
    images = data.load("test_data:my_images:shade=3", split="test")
    assert (images.name, images.x.max()) == ("test", 3)
    assert images.spec == data.DataSpec(shape=(2, 2, 1), levels=4)


def prepare_tfds(folder: Path, features: dict, examples: list[dict]) -> None:
    """Prepares a data set named "tiny" on disk, as TFDS does: real files, no TensorFlow."""

    # Unregistered: it is found by its files, as by someone who lacks the code that made it.
    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": enumerate(examples), "test": enumerate(examples[:2])}

        def _generate_examples(self):  # abstract in the base class; the splits are given above
            raise AssertionError

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [None, 4])
def test_tfds(tmp_path, channels, classes):
    shape = (4, 6, channels)
    images = np.random.default_rng(0).integers(256, size=(7, *shape)).astype(np.uint8)
    features = {"image": tfds.features.Image(shape=shape)}
    examples = [{"image": PIL.Image.fromarray(image.squeeze())} for image in images]
    if classes:
        features["label"] = tfds.features.ClassLabel(num_classes=classes)
        examples = [example | {"label": i % classes} for i, example in enumerate(examples)]
    prepare_tfds(tmp_path, features, examples)

    train = data.load("tfds:tiny", dir=str(tmp_path))
    assert (train.x.shape, train.x.dtype, train.levels) == ((7, *shape), np.uint8, 256)
    assert train.classes == classes
    # TFDS shuffles when it prepares.
    order = [int(np.flatnonzero((images == x).all((1, 2, 3)))[0]) for x in train.x]
    assert sorted(order) == list(range(7))
    if classes:
        assert train.labels.dtype == np.int32
        assert train.labels.tolist() == [i % classes for i in order]
    else:
        assert train.labels is None
    assert len(data.load("tfds:tiny", split="test", dir=str(tmp_path)).x) == 2
    part = data.load("tfds:tiny", split="train[2:5]", dir=str(tmp_path))
    np.testing.assert_array_equal(part.x, train.x[2:5])
    with pytest.raises(InputError, match=r"split = 'validation'.*finds no such split"):
        data.load("tfds:tiny", split="validation", dir=str(tmp_path))


@pytest.mark.parametrize("name", ["tiny", "cifar10", "mnist"])
def test_tfds_unprepared(tmp_path, name):
    advice = rf'pip install "jaxdiff\[tfds\]": tfds build {name} --file_format=array_record --data'
    with pytest.raises(InputError, match=rf"name = 'tfds:{name}'.*{advice}_dir={tmp_path}"):
        data.load(f"tfds:{name}", dir=str(tmp_path))


def test_tfds_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"^name = 'tfds:mnist' needs TensorFlow Datasets: pip install .jaxdiff"):
        data.load("tfds:mnist")


def test_tfds_unsuitable_sets(tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, 1))}
    image = PIL.Image.fromarray(np.zeros((4, 4), np.uint8))
    prepare_tfds(tmp_path, features, [{"image": image}] * 3)
    with pytest.raises(InputError, match=r"uint8 of shape \(None, None, 1\); they must be"):
        data.load("tfds:tiny", dir=str(tmp_path))

    other = tmp_path / "other"
    features = {"value": tfds.features.Scalar(np.int64)}
    prepare_tfds(other, features, [{"value": 3}] * 3)
    with pytest.raises(InputError, match="has the features value; choose a set that has an 'image'"):
        data.load("tfds:tiny", dir=str(other))


def test_import_is_light():
    code = "import sys, jaxdiff.data; sys.exit(bool({'tensorflow_datasets', 'pooch', 'requests'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_are_read_from_pictures_and_arrays(tmp_path):
    grey, colour = (np.arange(16 * c, dtype=np.uint8).reshape(4, 4, c) * 5 for c in (1, 3))
    PIL.Image.fromarray(grey[..., 0]).save(tmp_path / "grey.png")
    PIL.Image.fromarray(colour).save(tmp_path / "colour.png")
    expected = data.normalize(np.stack([grey, grey]), 256)
    np.savez(tmp_path / "two.npz", samples=expected, other=np.zeros(3))
    np.savez(tmp_path / "one.npz", anything=expected[:1])
    pictures = data.read_files([tmp_path / "grey.png", tmp_path / "grey.png"], n=2)
    np.testing.assert_allclose(pictures, expected, atol=1e-6)
    np.testing.assert_array_equal(data.read_files([tmp_path / "two.npz", tmp_path / "one.npz"], n=3)[1:], expected)
    np.testing.assert_allclose(
        data.read_files([tmp_path / "colour.png"], n=1), data.normalize(colour[None], 256), atol=1e-6
    )
    np.savez(tmp_path / "none.npz", a=expected, b=expected)
    (tmp_path / "no.png").write_text("no picture")
    for names, n, message in (
        (
            ["grey.png", "colour.png"],
            2,
            r"images differ in shape \(.*grey.png: \(4, 4, 1\), .*colour.png: \(4, 4, 3\)\)",
        ),
        (["two.npz"], 3, r"3 images are needed, but .*two.npz hold 2; give more files"),
        (["none.npz"], 1, r"none.npz can't be read \(.*a, b.*\); give a picture, or a .npz with one array"),
        (["no.png"], 1, r"no.png can't be read \(cannot identify image file"),
        (["nowhere.npz"], 1, r"nowhere.npz can't be read \(.*No such file"),
    ):
        with pytest.raises(InputError, match=message):
            data.read_files([tmp_path / name for name in names], n=n)
