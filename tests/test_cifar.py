"""CIFAR-10: the records of its binary version, in a folder and in the archive."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import cifar
from jaxdiff.typing import InputError

X = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 10
# Written by the description of the format: the label, and then all of red, green and blue.
RECORDS = [bytes([label]) + b"".join(x[..., c].tobytes() for c in range(3)) for x, label in zip(X, LABELS, strict=True)]
TRAIN = {f"data_batch_{i + 1}.bin": b"".join(RECORDS[2 * i : 2 * i + 2]) for i in range(5)}
FILES = {**TRAIN, "test_batch.bin": b"".join(RECORDS[10:])}
INSIDE = "cifar-10-batches-bin"


def archive(files: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A .tar.gz of files, in this order, and of other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as file:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def inside(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{INSIDE}/{name}": content for name, content in files.items()}


ARCHIVE = archive({f"{INSIDE}/batches.meta.txt": b"airplane\n", **inside(dict(reversed(FILES.items())))})


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", ["archive", "files", "sub-folder"])
def test_a_folder_of_cifar(tmp_path, form):
    if form == "archive":
        write(tmp_path, {"cifar-10-binary.tar.gz": ARCHIVE})
    else:
        write(tmp_path / INSIDE if form == "sub-folder" else tmp_path, FILES)
    train, test = (data.load("cifar10", split=split, dir=str(tmp_path)) for split in ("train", "test"))
    assert (train.levels, train.classes, train.class_names) == (256, 10, cifar.CLASSES)
    np.testing.assert_array_equal(train.x, X[:10], strict=True)
    np.testing.assert_array_equal(train.labels, LABELS[:10])
    np.testing.assert_array_equal(test.x, X[10:], strict=True)
    np.testing.assert_array_equal(test.labels, LABELS[10:])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no CIFAR-10 file cifar-10-binary\.tar\.gz or data_batch_1\.bin in this folder.*--config\.data\.dir"),
        ({**FILES, "data_batch_3.bin": None}, r"no CIFAR-10 file data_batch_3\.bin in this folder"),
        ({**FILES, "data_batch_2.bin": RECORDS[0][:-1]}, r"data_batch_2\.bin: 3072 bytes; .* has 3073 for each image"),
        ({**FILES, "data_batch_2.bin": b""}, r"data_batch_2\.bin: 0 bytes"),
        ({**FILES, "data_batch_5.bin": bytes([10]) * 3073}, "label 10; CIFAR-10's labels are 0 to 9"),
        ({"cifar-10-binary.tar.gz": ARCHIVE[:-2000]}, "the archive is damaged"),
        ({"cifar-10-binary.tar.gz": b"<html>"}, "the archive is damaged"),
        ({"cifar-10-binary.tar.gz": archive({})}, r"the archive lacks cifar-10-batches-bin/data_batch_1\.bin"),
        ({"cifar-10-binary.tar.gz": archive(FILES)}, "the archive lacks"),
    ],
)
def test_a_bad_folder_of_cifar(tmp_path, files, message):
    write(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(InputError, match=message) as error:
        cifar.load("train", dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_members_of_an_archive_reach_no_other_file(tmp_path):
    """Paths that lead out of the folder are not used, and links in place of a file are refused."""
    write(tmp_path, {"secret": b"".join(RECORDS[:2])})
    path = tmp_path / "in" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    others = {"../data_batch_1.bin": b"", "/tmp/data_batch_1.bin": b"", f"{INSIDE}/../../data_batch_1.bin": b""}
    path.write_bytes(archive(others | inside(TRAIN)))
    np.testing.assert_array_equal(cifar.load("train", dir=str(path.parent))[0], X[:10])
    assert {found.name for found in tmp_path.rglob("*")} == {"secret", "in", path.name}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        link = tarfile.TarInfo(f"{INSIDE}/data_batch_1.bin")
        link.type, link.linkname = kind, "../../secret"
        path.write_bytes(archive({"link": link, **inside(TRAIN)}))
        with pytest.raises(InputError, match=r"data_batch_1\.bin is no plain file"):
            cifar.load("train", dir=str(path.parent))


def test_a_member_of_another_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "_MOST_BYTES", 6000)
    write(tmp_path, {"cifar-10-binary.tar.gz": ARCHIVE})
    with pytest.raises(InputError, match="no plain file of at most 6000 bytes"):
        cifar.load("train", dir=str(tmp_path))
