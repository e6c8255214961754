"""Paths that users give: ~ is expanded wherever one is read, and an empty one is refused."""

import os
import pwd
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import data
from jaxdiff.cli import command
from jaxdiff.data.published import SETS
from jaxdiff.training import loop
from jaxdiff.typing import InputError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run in the folder `run`."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        loop.train(tiny.config({"train.steps": 5}), Path("~/run"))
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user whom the system does not know."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


@pytest.mark.thorough
def test_a_run_is_trained_and_loaded_in_the_home(home: Path) -> None:
    assert (home / "run" / "config.json").is_file()
    assert jd.load("~/run").step == jd.load(Path("~/run")).step == 5
    for bad in ("", "~nobody-of-this-name/run"):
        with pytest.raises(InputError, match=r"^workdir = "):
            jd.load(bad)
        if bad:
            with pytest.raises(InputError, match=r"^workdir = "):
                loop.train(tiny.config(), Path(bad))


@pytest.mark.thorough
def test_sample_expands_every_path(home: Path) -> None:
    np.savez(home / "a,b.npz", samples=np.full((2, 2), 0.5, np.float32))
    flags = ("--workdir=~/run", "--reconstruct=2", "--images=~/a,b.npz", "--out=~/new/b.png")
    code, out, err = tiny.finish(tiny.start("sample.py", *flags, cache=home / "cache"))
    assert code == 0, err
    assert str(home / "new" / "b.png") in out
    assert {path.name for path in (home / "new").iterdir()} == {"b.png", "b.npz"}
    assert os.listdir() == []


def test_pictures_and_data_are_read_from_the_home(home: Path) -> None:
    PIL.Image.new("L", (3, 2), 255).save(home / "white.png")
    assert data.read_picture("~/white.png").min() == 1
    assert data.read_mask("~/white.png", (2, 3)).min() == 1
    assert data.read_files(["~/white.png"], n=1).min() == 1
    with pytest.raises(InputError, match=f"{home}.*no MNIST file"):
        data.load("mnist", dir="~")
    for bad in ("", "~nobody-of-this-name/mnist"):
        with pytest.raises(InputError, match=r"^dir = "):
            data.load("mnist", dir=bad)


def test_a_data_set_of_the_users_gets_the_expanded_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def points(split: str, dir: str) -> tuple[np.ndarray, None]:
        seen.append(dir)
        return np.zeros((4, 2), np.float32), None

    monkeypatch.setitem(sys.modules, "paths_of_a_user", SimpleNamespace(points=points))
    for dir in ("~/points", "gs://bucket/points"):
        data.load("paths_of_a_user:points", dir=dir)
    assert seen == [str(home / "points"), "gs://bucket/points"]


def test_the_folder_of_downloads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: object, name: str, **_: object) -> None:
        asked.append(Path(self.path))

    asked: list[Path] = []
    monkeypatch.setattr("pooch.Pooch.fetch", fetch)
    monkeypatch.setenv("JAXDIFF_DATA", "~/downloads")
    assert SETS["mnist"].download(["t10k-images-idx3-ubyte.gz"]) == home / "downloads" / "mnist"
    monkeypatch.setenv("JAXDIFF_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "caches"))
    assert SETS["mnist"].download(["t10k-images-idx3-ubyte.gz"]) == home / "caches" / "jaxdiff" / "mnist"
    monkeypatch.setenv("JAXDIFF_DATA", "~nobody-of-this-name/x")
    with pytest.raises(InputError, match=r"^JAXDIFF_DATA = "):
        SETS["mnist"].download(["t10k-images-idx3-ubyte.gz"])
    assert set(asked) == {home / "downloads" / "mnist", home / "caches" / "jaxdiff" / "mnist"}


@pytest.mark.usefixtures("no_home")
def test_without_a_home_downloads_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAXDIFF_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(InputError, match="JAXDIFF_DATA"):
        SETS["mnist"].download(["t10k-images-idx3-ubyte.gz"])


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The chosen folder of compiled programs, None at first; JAX's own is left as it is."""
    chosen: list[str | None] = [None]

    def update_folder(name: str, value: Any) -> None:
        if name == "jax_compilation_cache_dir":
            chosen.append(value)

    values = {**jax.config.values, "jax_compilation_cache_dir": None}
    update = SimpleNamespace(values=values, update=update_folder)
    monkeypatch.setattr(command.jax, "config", update)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return chosen


def test_compiled_programs_are_kept_in_the_users_cache(
    home: Path, cache: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command._choose_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    command._choose_cache()
    command.jax.config.values["jax_compilation_cache_dir"] = "~/mine"
    command._choose_cache()
    assert cache[1:] == [str(home / ".cache/jaxdiff/xla"), str(home / "caches/jaxdiff/xla"), str(home / "mine")]
    for untouched in ("gs://bucket/folder", "relative"):
        command.jax.config.values["jax_compilation_cache_dir"] = untouched
        command._choose_cache()
    assert len(cache) == 4


@pytest.mark.parametrize("folder", [None, "/proc/nowhere", "~nobody-of-this-name/x"])
def test_without_a_place_nothing_is_kept(
    folder: str | None, cache: list[str | None], no_home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
    command._choose_cache()
    assert cache == [None]


def test_the_config_file_may_lie_in_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_config(home).rename(home / "mine.py")
    parsed: list[list[str]] = []
    options = {"usage": "", "module": ""}

    class Flags:
        def __contains__(self, name: str) -> bool:
            return name == "config"

        def __call__(self, arguments: list[str]) -> list[str]:
            parsed.append(arguments)
            return arguments

    monkeypatch.setattr(command, "FLAGS", Flags())
    given = (["--config=~/mine.py", "--workdir=x"], ["--config", "~/mine.py", "--workdir=x"])
    for arguments in given:
        command._parse(["train.py", *arguments], **options)
    assert parsed == [["train.py", f"--config={home / 'mine.py'}", "--workdir=x"]] * 2
    for arguments in (["--config"], ["--config="], ["--config=~/nowhere.py"], ["--config=~nobody-of-this-name/x.py"]):
        with pytest.raises(SystemExit):
            command._parse(["train.py", *arguments], **options)
