"""The folder of a run: its lock, its path, and side files that are in the way."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdiff.experiment import workdir
from jaxdiff.experiment.checkpoint import Checkpoints, NoCheckpointError
from jaxdiff.loading import load
from jaxdiff.training import loop
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("forgotten_coroutines")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains without drawing, which takes longer than these runs."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 10 steps."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))
        loop.train(tiny.config({"train.steps": 10}), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of that run."""
    return shutil.copytree(trained, tmp_path / "run")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


HOLD = """
import sys
from pathlib import Path
from jaxdiff.experiment import workdir
with workdir.lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.thorough
def test_a_second_start_is_refused_untouched_until_the_first_is_dead(run):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)}
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    try:
        assert first.stdout.readline() == b"held\n"
        before = snapshot(run)
        with pytest.raises(InputError, match=rf"^workdir = .* process {first.pid} on {socket.gethostname()}; "):
            loop.train(tiny.config({"train.steps": 20}), run)
        assert snapshot(run) == before
    finally:
        first.kill()
        first.communicate()
    assert int(loop.train(tiny.config({"train.steps": 20}), run).step) == 20
    assert json.loads((run / "lock").read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    with workdir.lock(run):  # free again
        assert load(run).step == 20  # and not needed to read


FORKING = """
import os, sys, time
from pathlib import Path
from jaxdiff.experiment import workdir
with workdir.lock(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
"""


def test_a_fork_that_outlives_the_holder_does_not_hold_the_lock(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FORKING)
    run = tmp_path / "run"
    holder = tiny.start(str(script), str(run), cache=tmp_path / "cache")
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(InputError, match=f"process {holder.pid} "), workdir.lock(run):
            pass
        holder.kill()
        holder.wait()
        with workdir.lock(run):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
        holder.communicate()


@pytest.mark.thorough
def test_workers_that_outlive_their_run_do_not_hold_the_lock(tmp_path):
    for i in range(32):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    changes = {"data.name": f"folder:{tmp_path / 'pictures'}", "data.on_device": False, "data.workers": 1}
    config = tiny.write_config(tmp_path, {**changes, "train.steps": 100_000}, base=tiny.IMAGES)
    run = tmp_path / "run"
    command = f"--config={config}", f"--workdir={run}"
    first = tiny.Forked("train.py", *command, cache=tmp_path / "cache")
    end = time.monotonic() + 100
    while not (run / "checkpoints" / "10").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = []
    for task in Path(f"/proc/{first.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            workers += map(int, (task / "children").read_text().split())
    assert workers
    try:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)  # or they would soon end
        first.kill()
        assert tiny.finish(first)[0] == -signal.SIGKILL
        code, _, err = tiny.finish(
            tiny.Forked("train.py", *command, "--config.train.steps=20", cache=tmp_path / "cache")
        )
        assert code == 0, err
        for pid in workers:
            os.kill(pid, 0)  # they live
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(run, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(workdir.fcntl, "flock", refuse)
    assert int(loop.train(tiny.config({"train.steps": 15}), run).step) == 15
    assert "can't be locked" in caplog.text


@given(
    name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name not in (".", "..")
    )
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_only_paths_with_wildcards_are_refused(name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / name
    if set(name) & set("*?[]\\"):
        with pytest.raises(InputError, match=r"^workdir = (.|\n)* rename that folder or choose another$"):
            workdir.check_path(folder)
    else:
        workdir.check_path(folder)


@pytest.mark.parametrize("name", ["a[1]", "a]", "a*", "a?", "a\\b", "gs:", "x\udcff"])
def test_a_path_whose_checkpoints_could_not_be_read_is_refused_at_once(tmp_path, name, monkeypatch):
    with pytest.raises(InputError, match=r"^workdir = "):
        loop.train(tiny.config(), tmp_path / name / "run")
    assert not (tmp_path / name).exists()
    with pytest.raises(InputError, match=r"^workdir = "):
        load(tmp_path / name)
    if "\udcff" not in name:
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(InputError, match=r"^workdir = run "):
            loop.train(tiny.config(), Path("run"))


@pytest.mark.parametrize("name", ["a b", "ä{~}'\"", "%41#;&$!"])
def test_other_unusual_paths_hold_runs(trained, tmp_path, name):
    assert load(shutil.copytree(trained, tmp_path / name)).step == 10


def test_the_first_checkpoint_is_read_back(tmp_path, monkeypatch):
    wait = Checkpoints.wait

    def lose(self: Checkpoints) -> None:
        wait(self)
        for path in (tmp_path / "checkpoints" / "10" / "weights").rglob("d/*"):
            os.truncate(path, 0)

    monkeypatch.setattr(Checkpoints, "wait", lose)
    with pytest.raises(NoCheckpointError, match=r"^the checkpoint of step 10 .* choose a workdir elsewhere$"):
        loop.train(tiny.config(), tmp_path)


def test_checkpoints_without_a_config_are_not_trained_on(run):
    """They would be taken for those of any config."""
    (run / "config.json").unlink()
    before = snapshot(run)
    with pytest.raises(InputError, match=r"has checkpoints but no config\.json"):
        loop.train(tiny.config(), run)
    assert {name: content for name, content in snapshot(run).items() if name != "lock"} == {
        name: content for name, content in before.items() if name != "lock"
    }


def test_a_file_in_place_of_the_checkpoints_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(InputError, match=r"checkpoints is not a folder"):
        loop.train(tiny.config(), tmp_path)


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


METRICS = {
    "bad JSON": lambda path: path.write_bytes(b'{"step": 5}\n{"step"\n' + path.read_bytes()),
    "a line without a step": lambda path: path.write_bytes(b'{"loss": 5}\n[]\n3\n' + path.read_bytes()),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\n" + path.read_bytes()),
    "zeros": lambda path: path.write_bytes(path.read_bytes() + bytes(100) + b"\n"),
    "too deep": lambda path: path.write_bytes(path.read_bytes() + b"[" * 10**5 + b"\n"),
}


@pytest.mark.parametrize("damage", METRICS)
@pytest.mark.quick(damage=["not UTF-8", "zeros"])
def test_a_damaged_file_of_metrics_is_set_aside_and_its_whole_lines_are_kept(run, damage, caplog):
    METRICS[damage](run / "metrics.jsonl")
    content = (run / "metrics.jsonl").read_bytes()
    assert int(loop.train(tiny.config({"train.steps": 20}), run).step) == 20
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-2:] == [10, 20]
    assert (run / "metrics.jsonl.aside").read_bytes() == content
    assert "metrics.jsonl can't be used (line " in caplog.text


def test_what_is_in_the_way_of_side_files_is_set_aside(run, caplog):
    a_folder(run / "metrics.jsonl")
    shutil.rmtree(run / "samples")
    (run / "samples").write_text("a file")
    (run / "damaged").write_text("a file")
    (run / "samples.aside").write_text("there already")
    newest = run / "checkpoints" / "10"
    shutil.copytree(newest, run / "checkpoints" / "12")
    for path in (run / "checkpoints" / "12").rglob("d/*"):
        os.truncate(path, 0)
    assert int(loop.train(tiny.config({"train.steps": 20}), run).step) == 20
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [20]
    assert {path.name for path in (run / "samples").iterdir()} == {"00000020.png"}
    assert [path.name for path in (run / "damaged").iterdir()] == ["12-0"]
    assert {path.name for path in run.glob("*.aside*")} == {
        "metrics.jsonl.aside",
        "samples.aside",
        "samples.aside1",
        "damaged.aside",
    }
    assert caplog.text.count("can't be used") == 3
