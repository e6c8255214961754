"""Data sets of Hugging Face's library `datasets`, in folders that it saved."""

import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest

from jaxdiff import data
from jaxdiff.data import Reading
from jaxdiff.typing import InputError

IMAGES = [np.random.default_rng(i).integers(256, size=(8 + i, 9, 3)).astype(np.uint8) for i in range(6)]
LABELS = [2, 0, 1, 2, 0, 1]
NAMES = ["cat", "dog", "fish"]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def rows(**columns: Any) -> datasets.Dataset:
    """Pictures, labels with names, and other columns: (values, feature) each."""
    columns = {"img": (list(map(PIL.Image.fromarray, IMAGES)), datasets.Image()), **columns}
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    return datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)


LABEL = (LABELS, datasets.ClassLabel(names=NAMES))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rows(kind=LABEL, id=(list("abcdef"), datasets.Value("string"))).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_folder_is_read_as_a_folder_of_pictures_is(saved: Path, tmp_path: Path) -> None:
    for i, image in enumerate(IMAGES):
        PIL.Image.fromarray(image).save(tmp_path / f"{i}.png")
    for options in ({"size": 6}, {"size": (4, 6), "crop": "random", "flip": True, "channels": 1}):
        source, folder = (data.load(name, reading=Reading(**options)) for name in (f"hf:{saved}", f"folder:{tmp_path}"))
        assert (source.spec.classes, source.spec.class_names) == (3, tuple(NAMES))
        found, expected = (one.take(np.arange(6), seed=1, step=2) for one in (source, folder))
        np.testing.assert_array_equal(found.x, expected.x)
        assert found.labels.tolist() == LABELS
    with pytest.raises(InputError, match=r"hf:.*\[1\] has 9×9 pixels and the first picture 8×9; set data\.size"):
        data.in_memory(data.load(f"hf:{saved}"))


def test_rows_stay_in_their_files_and_reach_worker_processes(saved: Path) -> None:
    source = data.load(f"hf:{saved}", reading=Reading(size=4))
    assert type(source.album.rows.data).__name__ == "MemoryMappedTable"
    sent = pickle.dumps(source)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).take(np.arange(6)).x, source.take(np.arange(6)).x)


def test_splits_and_the_fingerprint_of_a_folder_that_moves(saved: Path, tmp_path: Path) -> None:
    found = data.load(f"hf:{saved}", reading=Reading(size=4))
    whole = rows(kind=LABEL)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(2))}).save_to_disk(tmp_path / "two")
    train, test = (
        data.load(f"hf:{tmp_path / 'two'}", split=split, reading=found.reading) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (6, 2)
    with pytest.raises(InputError, match="has the split 'test'"):
        data.load(f"hf:{saved}", split="test")
    saved.rename(tmp_path / "moved")
    assert data.load(f"hf:{tmp_path / 'moved'}", reading=found.reading).fingerprint() == found.fingerprint()
    assert len({found.fingerprint(), test.fingerprint(), train.fingerprint()}) == 3  # other columns, other rows


def test_columns_are_chosen_by_type_or_by_name(tmp_path: Path) -> None:
    where = tmp_path / "many"
    fine = (LABELS, datasets.ClassLabel(num_classes=5))
    other = ([PIL.Image.new("L", (4, 4), i) for i in range(6)], datasets.Image())
    rows(other=other, coarse=LABEL, fine=fine, number=([4] * 6, datasets.Value("int64"))).save_to_disk(where)
    refused = [
        ("", "has the columns img, other; choose one as hf:.*many:image=COLUMN"),
        (":image=other", "has the columns coarse, fine; choose one as hf:.*many:label=COLUMN"),
        (":image=fine", "has no column image = 'fine'; choose one of those: img, other"),
        (":image=img,label=other", "has no column label = 'other'; choose one of those: coarse, fine, number"),
        (":imag=img", "has no option 'imag'; .* did you mean 'image'"),
        (":split=test", "has no option 'split'"),
    ]
    for options, message in refused:
        with pytest.raises(InputError, match=message):
            data.load(f"hf:{where}{options}")
    found = data.load(f"hf:{where}:image=other,label=fine")
    assert (found.spec.shape, found.spec.classes) == ((4, 4, 1), 5)
    assert found.take(np.arange(6)).x[:, 0, 0, 0].tolist() == list(range(6))
    numbered = data.load(f"hf:{where}:image=other,label=number")
    assert (numbered.spec.classes, numbered.spec.class_names) == (5, None)
    assert numbered.fingerprint() != found.fingerprint()


def test_mistakes_in_a_saved_data_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, name: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message) as error:
            data.in_memory(data.load(f"hf:{name}", reading=Reading(size=4, **options)))
        assert "\n" not in str(error.value)

    refused("is no folder that save_to_disk .* made", str(tmp_path))
    refused("is no folder that save_to_disk", str(tmp_path / "none"))
    datasets.Dataset.from_dict({"id": [0]}).save_to_disk(tmp_path / "text")
    refused("has no column of images but id", str(tmp_path / "text"))
    rows(kind=([2, 0, -1, 2, 0, 1], datasets.ClassLabel(names=NAMES))).save_to_disk(tmp_path / "label")
    refused(r"label\[2\] has the label -1; it must lie in 0 \.\.\. 2", str(tmp_path / "label"))
    broken = [{"bytes": b"no picture", "path": None}, None]
    PIL.Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    whole = {"bytes": (tmp_path / "x.png").read_bytes(), "path": None}
    for i, row in enumerate(broken):
        where = str(tmp_path / f"broken{i}")
        table = {"img": [whole, row]}
        datasets.Dataset.from_dict(table, features=datasets.Features({"img": datasets.Image()})).save_to_disk(where)
        refused(r"\[1\] can't be read .*skip_broken", where)
        x = data.in_memory(data.load(f"hf:{where}", reading=Reading(size=4, skip_broken=True))).x
        np.testing.assert_array_equal(x[1], x[0])
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(r'needs Hugging Face datasets: pip install "jaxdiff\[hf\]"', "any")


def test_a_data_set_of_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        raise (ConnectionError if name == "away/from" else ValueError)(f"Couldn't reach {name}\non the Hub")

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(
        ConnectionError, match=r"^name = 'hf:away/from' cannot be downloaded \(Couldn't reach away/from\)"
    ):
        data.load("hf:away/from")
    with pytest.raises(InputError, match=r"^name = 'hf:some/set' can't be read .*the option config"):
        data.load("hf:some/set:config=small", split="test")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: rows(kind=LABEL).select([]))
    with pytest.raises(InputError, match="hf:some/set' has no pictures"):
        data.load("hf:some/set", reading=Reading(size=4))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: rows(kind=LABEL))
    assert len(data.load("hf:some/set", reading=Reading(size=4))) == 6
    assert asked == [("away/from", None, "train"), ("some/set", "small", "test")]
