"""Folders of pictures, `.npz` files and objects of users as data sets, and training on them."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import jaxdiff as jd
from jaxdiff import data
from jaxdiff.data import Reading
from jaxdiff.data.pictures import fit
from jaxdiff.training.batches import _apart, _Steps, indices, make_batches
from jaxdiff.training.sharding import make_mesh

RNG = np.random.default_rng(0)
DIGITS = data.in_memory(data.load("digits"))


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve colour pictures of mixed sizes in two sub-folders, and a file that is no picture."""
    for i in range(12):
        save(
            tmp_path / "cats" / f"{i:02}.png" if i % 2 else tmp_path / "dogs" / "deep" / f"{i:02}.png",
            noise(20 + i, 31, 3),
        )
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def load(folder: Path, split: str = "train", **options: Any) -> Any:
    return data.load(f"folder:{folder}", split=split, reading=Reading(**options))


def test_sub_folders_are_classes_and_files_are_sorted_by_their_paths(folder: Path) -> None:
    found = load(folder, size=(8, 12))
    assert (found.spec.shape, found.spec.levels) == ((8, 12, 3), 256)
    assert (found.spec.classes, found.spec.class_names) == (2, ("cats", "dogs"))
    assert found.album.labels.tolist() == [0] * 6 + [1] * 6
    assert list(found.album.files) == sorted(found.album.files, key=lambda file: Path(file).parts)
    x, labels, _ = found.take(np.array([11, 0]))
    assert (x.dtype, x.shape, labels.tolist()) == (np.uint8, (2, 8, 12, 3), [1, 0])


def test_a_picture_in_the_folder_itself_leaves_no_classes(folder: Path) -> None:
    save(folder / "x.jpg", noise(9, 9, 3))
    found = load(folder, size=8)
    assert (len(found), found.album.labels, found.spec.classes) == (13, None, None)


def test_sub_folders_train_and_test_are_the_splits(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            save(tmp_path / split / "a" / f"{i}.png", noise(8, 8))
    assert [len(load(tmp_path, split)) for split in ("train", "test")] == [3, 2]
    assert load(tmp_path).spec.class_names == ("a",)


def test_shrinking_takes_the_mean_over_the_area_of_a_pixel() -> None:
    pixels = noise(24, 40, 3)
    found = np.asarray(fit(Image.fromarray(pixels), (6, 8)), float)  # 4 × 4 from the 24 × 32 in the middle
    expected = pixels[:, 4:36].reshape(6, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(found - expected).max() <= 1  # rounded twice
    corner = np.asarray(fit(Image.fromarray(pixels), (6, 8), (0.0, 1.0)), float)
    assert np.abs(corner - pixels[:, 8:].reshape(6, 4, 8, 4, 3).mean((1, 3))).max() <= 1


def test_growing_is_pillows_bicubic_filter_and_the_same_size_is_left_alone() -> None:
    image = Image.fromarray(noise(5, 7))
    np.testing.assert_array_equal(np.asarray(fit(image, (10, 14))), image.resize((14, 10), Image.Resampling.BICUBIC))
    assert fit(image, (5, 7)) is image


def test_pictures_of_every_mode_become_examples(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "L.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1)).save(tmp_path / "LA.png")
    turned = Image.fromarray(np.rot90(grey))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    found = load(tmp_path)
    assert found.spec.shape == (8, 8, 1)
    x = dict(zip(found.album.files, found.take(np.arange(4)).x[..., 0], strict=True))
    for name in ("L.png", "deep.png", "LA.png", "turned.png"):
        np.testing.assert_array_equal(x[name], grey, err_msg=name)
    Image.fromarray(np.stack([grey] * 3, -1)).convert("CMYK").save(tmp_path / "M.jpg", quality=100)
    palette = Image.frombytes("P", (8, 8), grey.tobytes())
    palette.putpalette([i for i in range(256) for _ in range(3)])
    palette.save(tmp_path / "P.png")
    colour = load(tmp_path)
    assert colour.spec.shape == (8, 8, 3)
    for file, pixels in zip(colour.album.files, colour.take(np.arange(6)).x, strict=True):
        assert np.abs(pixels.astype(int) - grey[..., None]).max() <= (16 if file == "M.jpg" else 1), file
    assert load(tmp_path, channels=1).take(np.arange(6)).x.shape == (6, 8, 8, 1)


def test_transparency_is_over_the_background_that_is_chosen(tmp_path: Path) -> None:
    save(tmp_path / "x.png", np.full((4, 4, 4), [200, 100, 0, 51], np.uint8))  # a fifth of it
    for background, expected in (("black", [40, 20, 0]), ("white", [244, 224, 204])):
        found = load(tmp_path, background=background).take(np.array([0])).x
        np.testing.assert_array_equal(found[0, 0, 0], expected)


def test_what_is_random_is_a_function_of_seed_step_and_index(folder: Path) -> None:
    found = load(folder, size=8, crop="random", flip=True)
    assert found.varies
    both = found.take(np.array([3, 7]), seed=1, step=5).x
    np.testing.assert_array_equal(found.take(np.array([7]), seed=1, step=5).x[0], both[1])
    for seed, step in ((2, 5), (1, 6)):
        assert (found.take(np.array([3, 7]), seed=seed, step=step).x != both).any()
    plain = load(folder, size=8, flip=True)
    still = load(folder, size=8).take(np.array([0])).x[0]
    seen = [plain.take(np.array([0]), step=step).x[0] for step in range(40)]
    mirrored = [bool((x == still[:, ::-1]).all()) for x in seen]
    assert all(m or (x == still).all() for m, x in zip(mirrored, seen, strict=True))
    assert 8 <= sum(mirrored) <= 32  # of 40; outside with probability 2e-4


def test_mistakes_in_a_folder_are_named(tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(jd.InputError, match=message):
            data.in_memory(load(tmp_path, **options))

    refused("holds no pictures")
    with pytest.raises(jd.InputError, match="there is no folder"):
        load(tmp_path / "none")
    save(tmp_path / "a.png", noise(8, 8))
    assert load(tmp_path).take(np.array([0])).x.shape == (1, 8, 8, 1)  # one picture is a data set
    with pytest.raises(jd.InputError, match="has no test split"):
        load(tmp_path, "test")
    save(tmp_path / "b.png", noise(6, 8))
    refused(r"b\.png has 6×8 pixels and the first picture 8×8; set data\.size")
    refused("size = 0; it must be 1 to 4096", size=0)
    whole = save(tmp_path / "c.jpg", noise(64, 64)).read_bytes()
    (tmp_path / "c.jpg").write_bytes(whole[: len(whole) // 2])
    refused(r"c\.jpg can't be read", size=8)
    (tmp_path / "d.png").write_text("no picture")
    refused(r"d\.png can't be read .*skip_broken", size=8)


def test_broken_pictures_are_skipped_where_that_is_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((4, 4), i, np.uint8))
    (tmp_path / "1.png").write_bytes(b"")
    found = load(tmp_path, size=4, skip_broken=True)
    assert found.take(np.arange(3)).x[:, 0, 0, 0].tolist() == [0, 2, 2]
    assert "1.png can't be read" in caplog.text
    for i in (0, 2):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(jd.InputError, match="none of the 3 pictures can be read"):
        found.take(np.array([0]))


def test_a_bomb_is_refused_and_loops_of_links_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.png", noise(8, 8))
    (tmp_path / "in" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert list(load(tmp_path).album.files) == [os.path.join("in", "a.png")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(jd.InputError, match=r"can't be read .*bomb"):
        load(tmp_path, size=8).take(np.array([0]))


def test_arrays_in_a_npz_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=DIGITS.x, labels=DIGITS.labels, x_test=DIGITS.x[:5])
    train, test = (data.load(f"npz:{path}", split=split) for split in ("train", "test"))
    assert (len(train), train.spec.classes, train.spec.levels) == (1500, 10, 256)
    assert (len(test), test.spec.classes) == (5, None)
    np.savez(path, only=np.zeros((3, 2)))
    assert data.load(f"npz:{path}").spec.shape == (2,)
    with pytest.raises(jd.InputError, match="holds only; the test split needs x_test"):
        data.load(f"npz:{path}", split="test")
    np.savez(path, x=np.array([object()]))
    with pytest.raises(jd.InputError, match=r"can't be read .*plain arrays"):
        data.load(f"npz:{path}")
    np.savez(path, x=np.array([[np.nan]]))
    with pytest.raises(jd.InputError, match="must be finite"):
        data.load(f"npz:{path}")


class Pairs:
    """A data set of one's own: random access to (example, label)."""

    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(self, x: np.ndarray = DIGITS.x, labels: np.ndarray = DIGITS.labels) -> None:
        self._x, self._labels = x, labels

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> Any:
        return self._x[i], int(self._labels[i])


def test_an_object_with_len_and_items_is_a_data_set() -> None:
    found = data.from_object("mine", Pairs())
    assert (found.spec.shape, found.spec.class_names) == ((8, 8, 1), Pairs.classes)
    whole = data.in_memory(found)
    np.testing.assert_array_equal(whole.x, DIGITS.x)
    np.testing.assert_array_equal(whole.labels, DIGITS.labels)
    assert found.fingerprint() == data.from_object("mine", Pairs()).fingerprint()
    assert found.fingerprint() != data.from_object("mine", Pairs(DIGITS.x[::-1])).fingerprint()
    mappings = [{"x": np.zeros(2, np.float32)}] * 3
    assert data.in_memory(data.from_object("mine", mappings)).x.shape == (3, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "has no examples"),
        ("text", "is a str"),
        (3, "is a int"),
        ([(np.zeros(2), 0)], "give it the attribute classes"),
        ([np.zeros(2), np.zeros(3)], r"example 1 is float32\(3,\) with no label; the first one is float32\(2,\)"),
        ([np.zeros(2), np.array([np.nan, 0])], "example 1 has values that are not finite"),
        ([{"y": 1}], "has the parts y"),
        ([(1, 2, 3)], "is a tuple of 3"),
        ([np.zeros(2, int)], "example 0 is int64"),
        (Pairs(labels=np.full(1500, 12)), "example 0 has the label 12; it must lie in 0 ... 9"),
        (Pairs(labels=np.full(1500, -1)), "example 0 has the label -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_objects_that_are_no_data_set_are_refused(given: Any, message: str) -> None:
    with pytest.raises(jd.InputError, match=message):
        data.in_memory(data.from_object("mine", given))


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 96 digits as pictures of their 17 levels, times 15, in sub-folders by label."""
    folder = tmp_path_factory.mktemp("digits")
    for i in range(96):
        save(folder / str(DIGITS.labels[i]) / f"{i:03}.png", DIGITS.x[i, ..., 0] * 15)
    return folder


CHANGES = {"cond.label": 0.1, "train.steps": 4, "every.checkpoint": 2}


def weights_of(workdir: Path, folder: Path, given: Any = None, *, steps: int = 4, **section: Any) -> Any:
    changes = {f"data.{name}": value for name, value in section.items()} | {"train.steps": steps}
    config = tiny.config({**CHANGES, "data.name": f"folder:{folder}", **changes}, base=tiny.IMAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdiff.training.loop._picture", lambda *_: np.zeros((2, 2, 3), np.uint8))
        return jd.train(config, workdir, data=given).params


@pytest.fixture(scope="module")
def weights(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What training on the folder gives."""
    return weights_of(tmp_path_factory.mktemp("whole"), digits_folder)


@pytest.mark.thorough
def test_a_folder_and_arrays_and_an_object_give_the_same_weights(
    digits_folder: Path, weights: Any, tmp_path: Path
) -> None:
    """Kept on the device, or read by threads, or by two processes: bit for bit."""
    source = data.load(f"folder:{digits_folder}")
    whole = data.in_memory(source)
    others = {
        "threads": weights_of(tmp_path / "1", digits_folder, on_device=False, workers=0),
        "processes": weights_of(tmp_path / "2", digits_folder, on_device=False, workers=2),
        "arrays": weights_of(tmp_path / "3", digits_folder, (whole.x, whole.labels)),
        "object": weights_of(tmp_path / "4", digits_folder, Pairs(whole.x, whole.labels), on_device=False, workers=0),
    }
    for found in others.values():
        tiny.assert_identical(found, weights)


@pytest.mark.thorough
def test_data_that_changed_are_refused(digits_folder: Path, tmp_path: Path) -> None:
    whole = data.in_memory(data.load(f"folder:{digits_folder}"))
    weights_of(tmp_path / "run", digits_folder, (whole.x, whole.labels))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["fingerprint"]
    with pytest.raises(jd.InputError, match="holds a run on other data"):
        weights_of(tmp_path / "run", digits_folder, (whole.x[::-1], whole.labels))


@pytest.mark.thorough
def test_a_run_goes_on_with_data_that_moved(digits_folder: Path, weights: Any, tmp_path: Path) -> None:
    weights_of(tmp_path / "run", shutil.copytree(digits_folder, tmp_path / "old"), steps=2)
    moved = (tmp_path / "old").rename(tmp_path / "new")
    tiny.assert_identical(weights_of(tmp_path / "run", moved), weights)
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["config"]["data"]["name"] == f"folder:{moved}"
    assert any("data.name" in change for change in content["history"][-1]["changes"])

    next(moved.rglob("*.png")).unlink()
    with pytest.raises(jd.InputError, match=r"holds a run on other data than 'folder:.*new' is now"):
        weights_of(tmp_path / "run", moved, steps=6)
    (tmp_path / "run" / "config.json").write_text(json.dumps({**content, "fingerprint": None}))
    with pytest.raises(jd.InputError, match=r"holds a run on other data than 'folder:.*digits"):
        weights_of(tmp_path / "run", digits_folder, steps=6)


def test_fingerprints_do_not_depend_on_the_place(digits_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(digits_folder, tmp_path / "deep" / "copy"))
    assert load(copy).fingerprint() == load(digits_folder).fingerprint()
    np.savez(tmp_path / "a.npz", x=DIGITS.x)
    shutil.copy(tmp_path / "a.npz", tmp_path / "deep" / "b.npz")
    here, there = (data.load(f"npz:{path}").fingerprint() for path in (tmp_path / "a.npz", tmp_path / "deep" / "b.npz"))
    assert here == there
    (copy / "0").rename(copy / "10")  # the classes are other ones
    assert load(copy).fingerprint() != load(digits_folder).fingerprint()


@pytest.mark.usefixtures("eight_devices")
def test_each_device_gets_its_own_examples(digits_folder: Path) -> None:
    source, mesh = data.load(f"folder:{digits_folder}", reading=Reading(size=8, flip=True)), make_mesh(2, 16)
    batches = make_batches(source, mesh, seed=3, batch_size=16, on_device=None, kinds=("label",), workers=0)
    for dispatch in batches.stream(1, 4, 2):
        for i in range(dispatch.count):
            chosen = indices(3, dispatch.first + i, (1, 16), 96)[0]
            expected = source.take(chosen, seed=3, step=dispatch.first + i)
            np.testing.assert_array_equal(dispatch.batch.x[i], expected.x)
            np.testing.assert_array_equal(dispatch.batch.labels[i], expected.labels)
    assert len(dispatch.batch.x.sharding.device_set) == 8
    with pytest.raises(jd.InputError, match=r"data\.on_device = True, but data\.crop or data\.flip"):
        make_batches(source, mesh, seed=0, batch_size=16, on_device=True)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_workers_send_several_steps_at_once(digits_folder: Path, size: int) -> None:
    source, rows = load(digits_folder, size=8, flip=True), np.array([0, 2, 5])
    steps = _Steps(source, None, rows, 3, 6, ("label",), 4, 9, size)
    assert len(steps) == -(-5 // size)
    apart = [step for i in range(len(steps)) for step in _apart(steps[i])]
    assert len(apart) == 5
    for step, found in enumerate(apart, start=4):
        expected = source.take(indices(3, step, (1, 6), 96)[0][rows], seed=3, step=step)
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_options_of_pictures_apply_to_folders_only() -> None:
    with pytest.raises(jd.InputError, match="size = 8 applies only to folder:DIR, hf:NAME and tfds:NAME, not"):
        data.load("digits", reading=Reading(size=8))
    with pytest.raises(jd.InputError, match="leave dir out"):
        data.load("npz:x.npz", dir="y")


@pytest.mark.thorough
def test_a_killed_run_goes_on_with_another_number_of_workers(digits_folder: Path, tmp_path: Path) -> None:
    changes = {**CHANGES, "train.steps": 40, "every.checkpoint": 5, "data.name": f"folder:{digits_folder}"}
    changes |= {"data.on_device": False, "data.flip": True}
    config, run = tiny.write_config(tmp_path, changes, base=tiny.IMAGES), tmp_path / "run"
    flags = f"--config={config}", f"--workdir={run}"
    process = tiny.start("train.py", *flags, "--config.data.workers=2", cache=tmp_path / "cache")
    end = time.monotonic() + 120
    while not (run / "checkpoints" / "10").is_dir() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, _, err = tiny.finish(tiny.start("train.py", *flags, "--config.data.workers=1", cache=tmp_path / "cache"))
    assert code == 0, err
    whole = tmp_path / "whole"
    other = tiny.start("train.py", flags[0], f"--workdir={whole}", "--config.data.workers=0", cache=tmp_path / "cache")
    assert tiny.finish(other)[0] == 0
    tiny.assert_identical(jd.load(run, trust=True).params, jd.load(whole, trust=True).params)
    assert jax.tree.leaves(jd.load(run, trust=True).params)


class Bad(Pairs):
    """A data set whose example 77 is bad in one way."""

    def __init__(self, bad: object) -> None:
        super().__init__(np.zeros((100, 2), np.float32), np.zeros(100, np.int32))
        self.bad = bad

    def __getitem__(self, i: int) -> object:
        if i == 77 and isinstance(self.bad, Exception):
            raise self.bad
        return self.bad if i == 77 else super().__getitem__(i)


@pytest.mark.parametrize("bad", [(np.full(2, np.nan, np.float32), 0), (np.zeros(2, np.float32), 99), np.zeros(3)])
def test_a_bad_example_of_an_object_is_named_by_its_index(bad: object) -> None:
    with pytest.raises(jd.InputError, match="example 77 "):
        data.from_object("mine", Bad(bad)).take(np.array([3, 77]))


def test_what_an_object_raises_says_for_which_example() -> None:
    with pytest.raises(KeyError) as error:
        data.from_object("mine", Bad(KeyError(5))).take(np.array([3, 77]))
    assert "[77] of data 'mine'" in error.value.__notes__[0]
