"""The same pictures as PNG files, as IDX files and as an object give the same weights, bit for bit."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from test_folder import Pairs
from test_mnist import REAL_MNIST, idx_bytes

from jaxdiff import data

CHANGES = {"cond.label": 0.1, "train.batch_size": 8, "train.steps": 3, "model": {"name": f"{__name__}:Network"}}


class Network(nn.Module):
    """A convolution and a number for each label: it compiles in no time."""

    classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        label = jnp.zeros(len(x), int) if cond is None else cond + 1
        shift = nn.Embed(self.classes + 1, 1)(label) + t[:, None]
        return nn.Conv(x.shape[-1], (3, 3))(x) + shift[:, None, None]


def in_files(folder: Path, x: np.ndarray, labels: np.ndarray) -> Path:
    """A folder with the sub-folder `pictures` of PNG files by class, and the IDX files of their train split.

    A folder of pictures is sorted by class, and then by name: so must the others be to hold the same data.
    """
    assert (np.diff(labels) >= 0).all()
    for i, (pixels, label) in enumerate(zip(x, labels, strict=True)):
        path = folder / "pictures" / str(label) / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)
    for name, array in (("images-idx3", x), ("labels-idx1", labels)):
        content = gzip.compress(idx_bytes(array.astype(np.uint8)), 1)
        (folder / f"train-{name}-ubyte.gz").write_bytes(content)
    return folder


def check(folder: Path, x: np.ndarray, labels: np.ndarray, **changes: Any) -> None:
    """Compare the weights from the IDX files, kept on the device, with those from the others, read as `changes` say."""

    def weights(name: str, given: Any = None, **options: Any) -> Any:
        config = tiny.config({**CHANGES, "data.name": name, **options}, base=tiny.IMAGES)
        return tiny.train_without_picture(config, folder / "runs" / name[:6], data=given).params

    expected = weights("fashion_mnist", **changes | {"data.dir": str(folder), "data.on_device": True})
    tiny.assert_identical(weights(f"folder:{folder / 'pictures'}", **changes), expected)
    tiny.assert_identical(weights("object", Pairs(x[..., None], labels), **changes), expected)


@pytest.mark.thorough
def test_pictures_idx_files_and_an_object_give_the_same_weights(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    labels = np.sort(np.arange(300) % 10)
    folder = in_files(tmp_path, x, labels)
    whole = data.in_memory(data.load(f"folder:{folder / 'pictures'}"))
    np.testing.assert_array_equal(whole.x[..., 0], x)
    np.testing.assert_array_equal(whole.labels, labels)
    check(folder, x, labels, **{"data.on_device": False, "data.workers": 0})


@pytest.mark.thorough
@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="no copy of MNIST beside the repository")
def test_60_000_pictures_give_the_same_weights_as_their_idx_files(tmp_path: Path) -> None:
    real = data.load("mnist", dir=str(REAL_MNIST))
    order = np.argsort(real.labels, kind="stable")
    x, labels = real.x[order, ..., 0], real.labels[order]
    folder = in_files(tmp_path, x, labels)
    steps = {"train.batch_size": 256, "train.steps": 240, "every.checkpoint": 240}  # more than an epoch
    check(folder, x, labels, **{"data.on_device": False, "data.workers": 2, **steps})
    shutil.rmtree(folder / "pictures")
