"""Folders and files that are not as they should be, and data sets smaller than a batch."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_folder import load, noise, save
from test_same_data import CHANGES

from jaxdiff import data
from jaxdiff.data import pictures
from jaxdiff.training.batches import indices, make_batches
from jaxdiff.typing import InputError


def test_grey_and_colour_become_colour(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey := noise(4, 4))
    save(tmp_path / "b.png", colour := noise(4, 4, 3))
    found = load(tmp_path)
    assert found.spec.shape == (4, 4, 3)
    np.testing.assert_array_equal(found.take(np.arange(2)).x, [np.stack([grey] * 3, -1), colour])


def test_colour_in_a_set_that_is_taken_for_grey_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_HEADERS", 1)
    save(tmp_path / "a.png", noise(4, 4))
    save(tmp_path / "b.png", noise(4, 4, 3))
    with pytest.raises(InputError, match=r"b\.png has colour, but other .* set data\.channels to 1 or 3"):
        data.in_memory(load(tmp_path))
    assert load(tmp_path, channels=1).take(np.arange(2)).x.shape == (2, 4, 4, 1)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_pictures_smaller_than_the_crop_grow(tmp_path: Path, crop: Any) -> None:
    pixels = [noise(1, 1, 3), noise(2, 5, 3), noise(40, 3, 3)]
    for i, each in enumerate(pixels):
        save(tmp_path / f"{i}.png", each)
    x = load(tmp_path, size=(8, 12), crop=crop).take(np.arange(3), step=1).x
    np.testing.assert_array_equal(x[0], np.broadcast_to(pixels[0], (8, 12, 3)))
    assert x.shape == (3, 8, 12, 3)


def test_links_to_nowhere_and_to_themselves_are_refused_and_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 4))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    (tmp_path / "null.png").symlink_to(os.devnull)
    assert load(tmp_path).album.files == ("a.png",)
    for name, target in (("self.png", "self.png"), ("lost.png", "nowhere.png")):
        link = tmp_path / name
        link.symlink_to(target)
        with pytest.raises(InputError, match=rf"{name} can't be read .*skip_broken"):
            data.in_memory(load(tmp_path))
        link.unlink()


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", noise(16, 16))
    monkeypatch.setattr(data.files, "_MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"a\.png can't be read \(it has \d+ bytes, more than 100\)"):
        load(tmp_path)


def test_objects_in_a_npz_file_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    x = np.empty((2, 1), object)
    x[:] = Trap()
    for arrays in ({"x": x}, {"x": np.zeros((2, 1)), "labels": x[:, 0]}):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(InputError, match="of plain arrays"):
            data.load(f"npz:{tmp_path / 'x.npz'}")
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="of plain arrays"):
        data.load(f"npz:{tmp_path / 'x.npz'}")
    assert not (tmp_path / "sprung").exists()


def test_a_batch_larger_than_the_data_set_wraps_around() -> None:
    steps = indices(0, 0, (5, 16), 3)
    for epoch in steps.reshape(-1)[:78].reshape(-1, 3):  # each example once before any is seen again
        assert sorted(epoch) == [0, 1, 2]
    np.testing.assert_array_equal(indices(0, 3, (1, 16), 3)[0], steps[3])


@pytest.mark.thorough
def test_a_folder_with_one_picture_trains(tmp_path: Path) -> None:
    save(tmp_path / "in" / "only" / "a.png", noise(8, 8))
    config = tiny.config({**CHANGES, "data.name": f"folder:{tmp_path / 'in'}"}, base=tiny.IMAGES)
    state = tiny.train_without_picture(config, tmp_path / "run")
    assert int(state.step) == config.train.steps


def broken(folder: Path) -> Path:
    """A folder of three pictures, the last of which is truncated."""
    for i in range(3):
        path = save(folder / f"{i}.jpg", noise(64, 64))
    path.write_bytes(path.read_bytes()[:1000])
    return path


def test_a_truncated_picture_ends_a_run_with_its_path(tmp_path: Path) -> None:
    path = broken(tmp_path / "in")
    options = {"data.name": f"folder:{path.parent}", "data.size": 8, "cond.label": None}
    for how in ({}, {"data.on_device": False, "data.workers": 0}):
        config = tiny.config({**CHANGES, **options, **how}, base=tiny.IMAGES)
        with pytest.raises(InputError, match=rf"^{path} can't be read"):
            tiny.train_without_picture(config, tmp_path / f"run{len(how)}")


@pytest.mark.thorough
def test_a_worker_process_reports_a_truncated_picture(tmp_path: Path) -> None:
    path = broken(tmp_path)
    source = load(tmp_path, size=8)
    batches = make_batches(source, tiny.mesh_of(1), seed=0, batch_size=3, on_device=False, workers=1)
    with pytest.raises(InputError, match=rf"^{path} can't be read"):
        list(batches.stream(0, 3, 1))
