"""Data sets: digits, 2-D sets, yours, TFDS, and images from files."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from jaxdiff import data
from jaxdiff.typing import InputError

TOYS = ("swissroll", "moons", "checkerboard", "mixture")


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


def test_digits_are_those_that_scikit_learn_loads(monkeypatch):
    bunch = sklearn.datasets.load_digits()
    parts = [data.load("digits", split=split) for split in ("train", "test")]
    np.testing.assert_array_equal(np.concatenate([part.x[..., 0] for part in parts]), bunch.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), bunch.target)
    monkeypatch.setattr(Path, "is_file", lambda path: False)  # a version that keeps them elsewhere
    np.testing.assert_array_equal(data.load("digits").x, parts[0].x)
    np.testing.assert_array_equal(data.load("digits").labels, parts[0].labels)


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
        ({"name": "digit"}, r"name = 'digit' is not a data set, folder:DIR, .* did you mean 'digits'\?$"),
        (
            {"name": "qqq"},
            r"name = 'qqq' is not a data set.*checkerboard, cifar10, digits, fashion_mnist, .*, moons, swissroll$",
        ),
        ({"name": "digits", "split": "valid"}, "split = 'valid'; digits has the splits"),
        ({"name": "mnist", "split": "validation"}, "split = 'validation'; mnist has the splits"),
        ({"name": "moons", "split": ""}, "split = ''; moons has the splits"),
        ({"name": "digits", "dir": "somewhere"}, "dir = 'somewhere', but digits is read from no folder"),
        ({"name": "mixture", "dir": "."}, r"dir = '\.', but mixture is read from no folder"),
        ({"name": "nowhere.at_all:load"}, "name = 'nowhere.at_all:load': No module named 'nowhere'"),
        ({"name": "test_data:absent"}, "name = 'test_data:absent': .* has no attribute 'absent'"),
        ({"name": "test_data:wrong:labels=3"}, r"labels=3' has labels = int64\(3,\); give"),
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


def test_import_is_light():
    heavy = {"tensorflow_datasets", "datasets", "pyarrow", "pooch", "requests"}
    code = f"import sys, jaxdiff.data; sys.exit(bool({heavy} & {{*sys.modules}}))"
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
