"""MNIST and Fashion-MNIST: IDX files, and a folder of them."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import idx, mnist
from jaxdiff.typing import InputError

REAL_MNIST = Path(__file__).parents[2] / "shared/data/mnist"


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).reshape(3, 28, 28).astype(np.uint8)
LABELS = np.array([7, 0, 9], np.uint8)
TRAIN_FILES = {
    "train-images-idx3-ubyte.gz": gzip.compress(idx_bytes(IMAGES)),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(LABELS)),
}


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
    images, labels = mnist.load("mnist", "train", dir=str(tmp_path))
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
        mnist.load("mnist", "train", dir=str(tmp_path))


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


def test_fashion_mnist_has_the_same_files_and_names_for_its_classes(tmp_path):
    write(tmp_path, TRAIN_FILES)
    found = data.load("fashion_mnist", dir=str(tmp_path))
    np.testing.assert_array_equal(found.x, IMAGES[..., None], strict=True)
    assert (found.name, found.classes, found.class_names[9]) == ("fashion_mnist", 10, "Ankle boot")
    with pytest.raises(InputError, match="no Fashion-MNIST file t10k-images-idx3-ubyte or"):
        data.load("fashion_mnist", split="test", dir=str(tmp_path))
