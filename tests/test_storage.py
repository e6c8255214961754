"""Files that are written whole or not at all, and paths that users give."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import storage
from jaxdiff.typing import InputError


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail() -> None:
        with storage.replacing(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    with storage.replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with storage.replacing(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    with storage.replacing(tmp_path / "out") as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "out").is_symlink()


def test_user_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert storage.user_path("~/runs", what="workdir") == Path("/somewhere/runs")
    for text in ("", "a\0b", "~nobody-of-this-name/runs", "ftp://bucket/runs", "gs://a//b"):
        with pytest.raises(InputError, match="workdir"):
            storage.user_path(text, what="workdir")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=63))
def test_any_name_of_a_file_can_be_replaced(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if name in (".", ".."):
        return
    path = tmp_path_factory.mktemp("names") / name
    for content in (b"old", b"new"):
        with storage.replacing(path) as file:
            file.write(content)
    assert path.read_bytes() == b"new"
    assert len(list(path.parent.iterdir())) == 1


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    storage.make_folder(tmp_path / "a" / "b", what="workdir = x")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(InputError, match=r"^workdir = x can't be written \([^\n]*$"):
            storage.make_folder(folder, what="workdir = x")
