"""Pictures that TensorFlow Datasets prepared."""

import pickle
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from jaxdiff import data
from jaxdiff.data import Reading
from jaxdiff.typing import InputError


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
        features["label"] = tfds.features.ClassLabel(names=["a", "b", "c", "d"])
        examples = [example | {"label": i % classes} for i, example in enumerate(examples)]
    prepare_tfds(tmp_path, features, examples)

    source = data.load("tfds:tiny", dir=str(tmp_path))
    assert isinstance(source, data.Pictures)  # by random access, not read at once
    assert source.spec.class_names == (("a", "b", "c", "d") if classes else None)
    train = data.in_memory(source)
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
    test = data.load("tfds:tiny", split="test", dir=str(tmp_path))
    assert (len(test), source.fingerprint() == test.fingerprint()) == (2, False)
    part = data.load("tfds:tiny", split="train[2:5]", dir=str(tmp_path))
    np.testing.assert_array_equal(data.in_memory(part).x, train.x[2:5])
    with pytest.raises(InputError, match=r"split = 'validation'.*finds no such split"):
        data.load("tfds:tiny", split="validation", dir=str(tmp_path))


def test_tfds_of_mixed_sizes_is_read_as_a_folder_of_pictures_is(tmp_path):
    """Resized, in worker processes too, and with the fingerprint wherever the files are."""
    images = [np.random.default_rng(i).integers(256, size=(8 + i, 9, 3)).astype(np.uint8) for i in range(5)]
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=5)}
    examples = [{"image": PIL.Image.fromarray(image), "label": i} for i, image in enumerate(images)]
    prepare_tfds(tmp_path / "here", features, examples)
    for i, image in enumerate(images):
        PIL.Image.fromarray(image).save(tmp_path / f"{i}.png")

    reading = Reading(size=(4, 6), crop="random", flip=True)
    source = data.load("tfds:tiny", dir=str(tmp_path / "here"), reading=reading)
    folder = data.load(f"folder:{tmp_path}", reading=reading)
    labels = source.take(np.arange(5)).labels
    assert sorted(labels) == list(range(5))
    for i, label in enumerate(labels.tolist()):
        np.testing.assert_array_equal(
            source._example(source.album[i], np.random.default_rng(3)),
            folder._example(folder.album[label], np.random.default_rng(3)),
        )

    sent = pickle.loads(pickle.dumps(source))  # as to a worker process
    np.testing.assert_array_equal(sent.take(np.arange(5), step=7).x, source.take(np.arange(5), step=7).x)
    (tmp_path / "here").rename(tmp_path / "there")
    assert data.load("tfds:tiny", dir=str(tmp_path / "there"), reading=reading).fingerprint() == source.fingerprint()
    with pytest.raises(InputError, match=r"tfds:tiny\[\d\] has .* pixels and the first picture .*; set data\.size"):
        data.in_memory(data.load("tfds:tiny", dir=str(tmp_path / "there")))


@pytest.mark.parametrize("name", ["tiny", "cifar10", "mnist"])
def test_tfds_unprepared(tmp_path, name):
    advice = rf'pip install "jaxdiff\[tfds\]" && tfds build {name} --file_format=array_record --data'
    with pytest.raises(InputError, match=rf"name = 'tfds:{name}'.*{advice}_dir={tmp_path}"):
        data.load(f"tfds:{name}", dir=str(tmp_path))


def test_tfds_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"^name = 'tfds:mnist' needs TensorFlow Datasets: pip install .jaxdiff"):
        data.load("tfds:mnist")


def test_tfds_unsuitable_sets(tmp_path):
    features = {"value": tfds.features.Scalar(np.int64)}
    prepare_tfds(tmp_path, features, [{"value": 3}] * 3)
    with pytest.raises(InputError, match="has the features value; choose a set that has an 'image'"):
        data.load("tfds:tiny", dir=str(tmp_path))
