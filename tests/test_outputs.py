"""The files of commands: whole or not at all, never over an input or a stranger's file, never through a link."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import data
from jaxdiff.cli import outputs
from jaxdiff.experiment import plots, workdir
from jaxdiff.training.batches import Batches, make_batches
from jaxdiff.training.loggers import Loggers
from jaxdiff.training.recorder import Recorder
from jaxdiff.training.sharding import make_mesh
from jaxdiff.typing import InputError

IMAGE = np.zeros((3, 4, 3), np.uint8)
ARRAYS = {"samples": np.arange(8, dtype=np.float32).reshape(4, 2)}


def check(out: Path, *inputs: Path, runs: tuple[Path, ...] = (), overwrite: bool = False) -> None:
    outputs.check(out, inputs=inputs, runs=runs, overwrite=overwrite)


def refused(match: str, out: Path, *inputs: Path, runs: tuple[Path, ...] = (), overwrite: bool = False) -> None:
    with pytest.raises(InputError, match=rf"^--out = [^\n]*{match}[^\n]*$"):
        check(out, *inputs, runs=runs, overwrite=overwrite)


def test_what_sample_wrote_may_be_replaced_and_reads_as_before(tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.png"
    for _ in range(2):
        check(out)
        outputs.write(out, IMAGE, ARRAYS)
    assert sorted(os.listdir(out.parent)) == ["a.npz", "a.png"]
    np.testing.assert_array_equal(data.read_picture(out), IMAGE / 255)
    np.testing.assert_array_equal(data.read_files([out.with_suffix(".npz")], n=4), ARRAYS["samples"])
    with np.load(out.with_suffix(".npz")) as file:
        assert list(file) == ["samples"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(size=st.integers(1, 40), n=st.integers(1, 300), seed=st.integers(0, 9))
def test_any_output_is_recognized(size: int, n: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng, out = np.random.default_rng(seed), tmp_path_factory.mktemp("any") / "a.png"
    outputs.write(out, rng.integers(256, size=(size, size, 3), dtype=np.uint8), {"a": rng.random((n, size)), "b": n})
    check(out)


@pytest.mark.parametrize("suffix", [".png", ".npz"])
@pytest.mark.parametrize("content", ["picture", "arrays", "text", "empty", "link"])
def test_a_file_of_another_origin_is_refused_unless_overwrite_is_given(
    suffix: str, content: str, tmp_path: Path
) -> None:
    out, path = tmp_path / "a.png", tmp_path / f"a{suffix}"
    outputs.write(out, IMAGE, ARRAYS)
    path.unlink()
    if content == "picture":
        plots.save(path, IMAGE)
    elif content == "arrays":
        with open(path, "wb") as file:
            np.savez(file, **ARRAYS)
    elif content == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("notes" * (content == "text"))
    refused(f"a{suffix}.*--overwrite", out)
    check(out, overwrite=True)


def test_an_input_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not under another spelling, by a symbolic or a hard link, or because it is an output of another command."""
    out = tmp_path / "a.png"
    outputs.write(out, IMAGE, ARRAYS)
    picture, arrays = out, out.with_suffix(".npz")
    (tmp_path / "link.png").symlink_to(picture)
    os.link(arrays, tmp_path / "hard.npz")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    spellings = (Path("a.npz"), Path("./a.npz"), tmp_path / "folder" / "a.npz", tmp_path / "hard.npz", arrays)
    for file in (*spellings, picture, tmp_path / "link.png"):
        for overwrite in (False, True):
            refused("reads", out, tmp_path / "other.png", file, overwrite=overwrite)
    refused("reads", tmp_path / "hard.png", arrays, overwrite=True)
    refused("reads", tmp_path / "folder" / "a.png", arrays, overwrite=True)
    refused("reads", tmp_path / "link.png", picture, overwrite=True)
    refused("reads", tmp_path / "missing.png", tmp_path / "folder" / "missing.npz")


def test_a_run_keeps_its_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    plots.save(run / "samples" / "00000010.png", IMAGE)
    (run / "examples.npz").write_text("")
    (tmp_path / "link").symlink_to(run)
    for folder in (run, tmp_path / "link"):
        refused("run", folder / "samples" / "00000010.png", runs=(tmp_path / "else", run), overwrite=True)
        refused("run", folder / "examples.png", runs=(run,), overwrite=True)
        refused("run", folder / "checkpoints" / "12" / "a.png", runs=(run,), overwrite=True)
    assert not (run / "checkpoints").exists()
    for _ in range(2):  # beside them is room
        check(run / "mine.png", runs=(run,))
        outputs.write(run / "mine.png", IMAGE, ARRAYS)


def test_a_place_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.npz").mkdir()
    (tmp_path / "file").write_text("")
    for out in ("a.png", "b.png", "file/c.png", "c.jpg", "c", ".png"):
        refused("", tmp_path / out)
        refused("", tmp_path / out, overwrite=True)


def test_a_full_disk_leaves_what_was_there_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.png"
    outputs.write(out, IMAGE, ARRAYS)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((np, "savez"), (PIL.Image.Image, "save"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(InputError, match=r"^--out = .*No space left"):
                outputs.write(out, IMAGE + 1, {"samples": np.ones((1, 2))})
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_picture_of_a_run_goes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    for name in ("a.png", "a.png.part"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    plots.save(tmp_path / "a.png", IMAGE)
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "a.png").is_symlink()


@pytest.mark.parametrize("name", [".write-test", "config.json.PID", "PID.examples.npy"])
def test_a_run_is_prepared_through_no_link(name: str, tmp_path: Path) -> None:
    """Names that earlier versions wrote, which a stranger's folder may hold as links."""
    name = name.replace("PID", str(os.getpid()))
    (tmp_path / "victim").write_text("untouched")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / "victim")
    config = tiny.config()
    workdir.prepare(run, config)
    workdir.write(run, config, data.DataSpec(shape=(2,), levels=None), np.zeros((3, 2), np.float32))
    assert (tmp_path / "victim").read_text() == "untouched"
    assert (run / name).is_symlink()
    assert {path.name for path in run.iterdir()} == {name, "config.json", "examples.npy"}


@pytest.mark.parametrize(
    "name", ["config.json", "examples.npy", "metrics.jsonl", "samples", "checkpoints", "damaged", "wandb"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_run_whose_files_lead_out_of_its_folder_is_refused(name: str, exists: bool, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    if exists:
        target.mkdir()
    (run / name).symlink_to(target)
    with pytest.raises(InputError, match=rf"^workdir = .*{name}.* link .*elsewhere"):
        workdir.prepare(run, tiny.config())
    (run / name).unlink()
    (run / "within").mkdir()
    (run / name).symlink_to("within") if name == "samples" else None
    (tmp_path / "linked").symlink_to(run)
    workdir.prepare(tmp_path / "linked", tiny.config())


def batches() -> Batches:
    dataset = data.Dataset(name="points", x=np.zeros((8, 2), np.float32), labels=None, levels=None, classes=None)
    return make_batches(dataset, make_mesh(1, 8), seed=0, batch_size=8, on_device=False)


def test_the_records_of_a_run_go_through_no_link_that_can_be_foreseen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "victim").write_text("untouched")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 9}\n{"st')
    (run / "metrics.jsonl.part").symlink_to(tmp_path / "victim")
    for _ in range(2):
        loggers = Loggers(["tensorboard"], [], workdir=run, start=5, config={})
        Recorder(run, batches(), start=5, steps=10, every=1, loggers=loggers).close()
    assert (tmp_path / "victim").read_text() == "untouched"
    assert (run / "metrics.jsonl").read_text() == '{"step": 1}\n'
    events = [path.name for path in run.iterdir() if "tfevents" in path.name]
    assert len({name.rpartition(".")[2] for name in events}) == 2
    assert min(len(name.rpartition(".")[2]) for name in events) == 16


@pytest.mark.parametrize("name", ["a[b]*?{c,d}", "gs:x", "s3:x", "é, %d $HOME", "-x"])
def test_a_folder_of_any_name_takes_records(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(name)
    workdir.prepare(run, tiny.config())
    loggers = Loggers(["tensorboard"], [], workdir=run, start=0, config={})
    recorder = Recorder(run, batches(), start=0, steps=10, every=1, loggers=loggers)
    recorder.picture(3, IMAGE)
    recorder.close()
    np.testing.assert_array_equal(data.read_picture(run / "samples" / "00000003.png"), IMAGE / 255)
    assert len(list(run.iterdir())) == 3


def test_an_npz_bears_its_mark_as_a_comment(tmp_path: Path) -> None:
    outputs.write(tmp_path / "a.png", None, ARRAYS)
    with zipfile.ZipFile(io.BytesIO((tmp_path / "a.npz").read_bytes())) as archive:
        assert archive.comment == b"jaxdiff sample.py"
        assert archive.testzip() is None
    assert not (tmp_path / "a.png").exists()
