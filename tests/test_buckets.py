"""Runs and data in a bucket, against an emulator of Google Cloud Storage on this machine, in fine and bad weather."""

import importlib.util
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcs
import numpy as np
import PIL.Image
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import buckets, data, storage
from jaxdiff.experiment import workdir as folder
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.typing import InputError

ROOT = f"gs://{gcs.BUCKET}"
FEW = {"train.steps": 20, "every.checkpoint": 10, "every.log": 5}


@pytest.fixture(scope="module")
def emulator() -> Iterator[gcs.Bucket]:
    with gcs.running() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield bucket
    buckets.PATIENCE = 0.0  # what libraries still ask at the exit of this process


@pytest.fixture
def bucket(emulator: gcs.Bucket) -> Iterator[gcs.Bucket]:
    yield emulator
    emulator.weather(200)


def put(path: str, content: bytes) -> None:
    storage.user_path(path, what="path").write_bytes(content)


def metrics(text: str | bytes) -> list[dict[str, Any]]:
    """The lines without what depends on time."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [{key: line[key] for key in ("step", "loss", "grad_norm", "learning_rate")} for line in lines]


def test_a_run_in_a_bucket_is_trained_resumed_and_loaded_as_one_on_this_machine(bucket, tmp_path):
    workdir = f"{ROOT}/runs/first"
    tiny.train_without_picture(tiny.config({**FEW, "train.steps": 10}), workdir)
    state = tiny.train_without_picture(tiny.config(FEW), workdir)
    local = tiny.train_without_picture(tiny.config(FEW), tmp_path)
    tiny.assert_identical(state, local)
    run = jd.load(workdir)
    assert run.step == 20
    tiny.assert_identical(run.params, jd.load(tmp_path).params)
    assert metrics(bucket.read("runs/first/metrics.jsonl")) == metrics((tmp_path / "metrics.jsonl").read_text())
    names = {name.removeprefix("runs/first/").partition("/")[0] for name in bucket.names("runs/first/")}
    board = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(board) == 2
    assert names - board == {"config.json", "checkpoints", "metrics.jsonl", "samples"}
    taken = tiny.train_without_picture(
        tiny.config({**FEW, "train.steps": 1, "train.init_from": workdir}), tmp_path / "b"
    )
    assert int(taken.step) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("pattern", ["uploadType=multipart", "ocdbt", "."], ids=["gcsfs", "TensorStore", "all"])
def test_a_bucket_that_answers_503_for_a_while_is_survived(bucket, tmp_path, pattern, request):
    name = f"runs/bad-{request.node.callspec.id}"
    seen: list[int] = []

    def rain(step: int, *_: Any) -> None:
        seen.append(step)
        if step == 5:
            bucket.weather(503, seconds=4, pattern=pattern)

    before, began = bucket.refused(), time.monotonic()
    state = tiny.train_without_picture(tiny.config(FEW), f"{ROOT}/{name}", callbacks=[rain])
    assert bucket.refused() > before + 1
    assert time.monotonic() - began > 4
    tiny.assert_identical(state, tiny.train_without_picture(tiny.config(FEW), tmp_path))
    assert [line["step"] for line in metrics(bucket.read(f"{name}/metrics.jsonl"))] == [5, 10, 15, 20]
    assert jd.load(f"{ROOT}/{name}").step == 20


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up a bucket after two seconds; TensorStore has its own number of attempts."""
    from orbax.checkpoint._src.multihost import multihost
    from orbax.checkpoint._src.serialization import tensorstore_utils

    monkeypatch.setattr(buckets, "PATIENCE", 2.0)
    monkeypatch.setattr(multihost, "coordination_timeout", lambda: 10)  # of threads that are left behind
    retries = {"max_retries": 2, "initial_delay": "500ms", "max_delay": "1s"}
    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        monkeypatch.setitem(context, "gcs_request_retries", retries)


@pytest.mark.thorough
@pytest.mark.parametrize("status", [403, 404, 503])
@pytest.mark.parametrize("pattern", [".", "ocdbt"], ids=["all", "TensorStore"])
def test_a_run_whose_bucket_is_lost_stops_and_names_the_last_checkpoint(bucket, impatient, status, pattern, capfd):
    name, forever = f"runs/lost-{status}-{len(pattern)}", {**FEW, "train.steps": 10**6, "train.steps_per_dispatch": 1}

    def lose(step: int, *_: Any) -> None:
        if f"{name}/checkpoints/20/commit_success.txt" in bucket.names(f"{name}/checkpoints/20/commit"):
            bucket.weather(status, pattern=pattern)

    began = time.monotonic()
    with pytest.raises(buckets.BucketError) as stopped:
        tiny.train_without_picture(tiny.config(forever), f"{ROOT}/{name}", callbacks=[lose])
    bucket.weather(200)
    assert time.monotonic() - began < 60
    last = folder.checkpoint_steps(storage.user_path(f"{ROOT}/{name}", what="workdir"))[0]
    assert f"step {last} is saved" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert "Traceback" not in capfd.readouterr().err
    assert jd.load(f"{ROOT}/{name}").step == last


@pytest.mark.thorough
def test_a_checkpoint_that_cannot_be_reached_is_not_taken_for_damaged(bucket, impatient):
    workdir = f"{ROOT}/runs/unreached"
    tiny.train_without_picture(tiny.config(FEW), workdir)
    before = bucket.names("runs/unreached/checkpoints")
    for pattern in ("manifest.ocdbt", "_METADATA"):
        bucket.weather(503, pattern=pattern, methods="GET")
        for read in (jd.load, lambda path: tiny.train_without_picture(tiny.config({**FEW, "train.steps": 30}), path)):
            with pytest.raises(buckets.BucketError):
                read(workdir)
        bucket.weather(200)
    assert bucket.names("runs/unreached/checkpoints") == before
    bucket.ask("DELETE", f"/storage/v1/b/{gcs.BUCKET}/o/{before[-1].replace('/', '%2F')}")


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(bucket, caplog):
    name = "runs/damaged"
    tiny.train_without_picture(tiny.config(FEW), f"{ROOT}/{name}")
    for object in bucket.names(f"{name}/checkpoints/20/training/"):
        if "ocdbt" in object or "/d/" in object:
            put(f"gs://{gcs.BUCKET}/{object}", b"damage")
    tiny.train_without_picture(tiny.config(FEW), f"{ROOT}/{name}")
    assert "step 20 is damaged" in caplog.text
    assert any(found.startswith(f"{name}/damaged/20-0/") for found in bucket.names(name))
    assert jd.load(f"{ROOT}/{name}").step == 20


def test_a_checkpoint_that_was_being_written_when_the_run_was_killed_is_written_again(bucket, tmp_path):
    name = "runs/cut-off"
    tiny.train_without_picture(tiny.config(FEW), f"{ROOT}/{name}")
    bucket.ask(
        "DELETE", f"/storage/v1/b/{gcs.BUCKET}/o/{name.replace('/', '%2F')}%2Fcheckpoints%2F20%2Fcommit_success.txt"
    )
    path = storage.user_path(f"{ROOT}/{name}", what="workdir")
    assert folder.checkpoint_steps(path) == [10]
    assert jd.load(path).step == 10
    state = tiny.train_without_picture(tiny.config(FEW), path)
    assert folder.checkpoint_steps(path) == [20, 10]
    tiny.assert_identical(state, tiny.train_without_picture(tiny.config(FEW), tmp_path))
    assert [line["step"] for line in metrics(bucket.read(f"{name}/metrics.jsonl"))] == [5, 10, 15, 20]


@pytest.mark.thorough
def test_lines_that_did_not_reach_the_bucket_are_in_the_checkpoint(bucket, impatient, tmp_path):
    name, forever = "runs/unsent", {**FEW, "train.steps": 10**6, "train.steps_per_dispatch": 1, "every.keep": 10**6}

    def lose(step: int, *_: Any) -> None:  # of all that is uploaded only the lines are, as are small objects of ours
        if step == 5:
            bucket.weather(503, pattern="uploadType=multipart", methods="POST")

    with pytest.raises(buckets.BucketError):
        tiny.train_without_picture(tiny.config(forever), f"{ROOT}/{name}", callbacks=[lose])
    bucket.weather(200)
    assert f"{name}/metrics.jsonl" not in bucket.names(name)
    last = folder.checkpoint_steps(storage.user_path(f"{ROOT}/{name}", what="workdir"))[0] + 10
    tiny.train_without_picture(tiny.config({**forever, "train.steps": last}), f"{ROOT}/{name}")
    tiny.train_without_picture(tiny.config({**forever, "train.steps": last}), tmp_path)
    assert metrics(bucket.read(f"{name}/metrics.jsonl")) == metrics((tmp_path / "metrics.jsonl").read_text())


def test_bad_paths_are_refused_before_slow_work(bucket, tmp_path, monkeypatch):
    config = tiny.write_config(tmp_path, FEW)

    def refusal(workdir: str) -> str:
        code, _, err = tiny.refused("train.py", f"--config={config}", f"--workdir={workdir}")
        assert code == 2
        assert len(err.splitlines()) == 1
        return err

    for scheme in ("ftp", "http", "s3", "GS"):
        err = refusal(f"{scheme}://{gcs.BUCKET}/runs")
        assert f"{scheme}:// is not read" in err
        assert "gs://BUCKET/NAME" in err
    for workdir in ("gs://", "gs:///runs", f"{ROOT}/a//b", f"{ROOT}/../b", f"{ROOT}/a[1]", f"{ROOT}/a#1", "gs://No!/a"):
        assert workdir in refusal(workdir)
    assert "no bucket 'no-such-bucket'" in refusal("gs://no-such-bucket/runs")
    buckets._reach.cache_clear()
    bucket.weather(403)
    assert "Forbidden" in refusal(f"{ROOT}/runs/forbidden")
    bucket.weather(403, methods="POST")  # may read and not write
    assert "can't be written" in refusal(f"{ROOT}/runs/forbidden")
    code, _, err = tiny.refused("sample.py", f"--workdir={ROOT}/runs/first", f"--out={ROOT}/new/out.png")
    assert (code, "--out" in err) == (2, True)
    bucket.weather(200)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gcsfs" else find(name, *rest))
    assert 'pip install "jaxdiff[gcs]"' in refusal(f"{ROOT}/runs/first")


def test_a_bucket_that_does_not_answer_is_refused_before_slow_work(bucket, impatient):
    buckets._reach.cache_clear()
    bucket.weather(503)
    began = time.monotonic()
    with pytest.raises(InputError, match="no answer for 2 s"):
        jd.load(f"{ROOT}/runs/first")
    assert time.monotonic() - began < 10
    # Whoever asks anew is not refused at once because nothing answered before.
    bucket.weather(503, seconds=0.5)
    with pytest.raises(InputError, match=r"no config\.json"):
        jd.load(f"{ROOT}/runs/nothing")


# Locks.


def write_lock(name: str, **changes: Any) -> dict[str, Any]:
    """The lock of a run on another host, renewed now."""
    content = {"host": "other", "pid": 1, "machine": "other", "token": "x", "time": time.time(), **changes}
    put(f"{ROOT}/{name}/lock", json.dumps(content).encode())
    return content


def test_a_folder_in_use_by_another_run_is_refused_until_its_lock_is_stale(bucket):
    path = storage.user_path(f"{ROOT}/runs/locked", what="workdir")
    here = {"host": socket.gethostname(), "machine": buckets._machine()}
    with (
        folder.lock(path),
        pytest.raises(InputError, match=f"process {os.getpid()} on {socket.gethostname()}"),
        folder.lock(path),
    ):
        pass
    assert bucket.names("runs/locked") == []
    for held in ({}, {"time": time.time() - 100}, {**here, "pid": os.getppid()}):
        write_lock("runs/locked", **held)
        with pytest.raises(InputError, match="in use by process"), folder.lock(path):
            pass
    ended = subprocess.Popen(["true"])
    ended.wait()
    for free in ({"time": time.time() - 200}, {**here, "pid": ended.pid}, {"time": None}):
        write_lock("runs/locked", **free)
        with folder.lock(path):
            assert json.loads(bucket.read("runs/locked/lock"))["pid"] == os.getpid()
    # The same name of a host, but another machine: its processes are not ours.
    write_lock("runs/locked", host=socket.gethostname(), pid=ended.pid)
    with pytest.raises(InputError, match="in use by process"), folder.lock(path):
        pass


def test_of_runs_that_take_a_lock_at_once_one_gets_it(bucket):
    path, got, refused = storage.user_path(f"{ROOT}/runs/raced", what="workdir"), [], []
    write_lock("runs/raced", time=0)
    gate = threading.Barrier(4)

    def take() -> None:
        held = buckets._Lock(path)
        gate.wait()
        try:
            held.take()
            got.append(held)
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)


def test_a_lock_is_renewed_and_a_run_that_lost_it_writes_no_more(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "_RENEW", 0.1)
    path = storage.user_path(f"{ROOT}/runs/renewed", what="workdir")
    with folder.lock(path):
        first = json.loads(bucket.read("runs/renewed/lock"))["time"]
        wait_for(lambda: json.loads(bucket.read("runs/renewed/lock"))["time"] > first)
        write_lock("runs/renewed")
        wait_for(lambda: bool(buckets._held[str(path)].lost))
        with pytest.raises(buckets.BucketError, match="taken over by process 1 on other"):
            buckets.write(path / "config.json", b"{}")
        buckets.write(storage.user_path(f"{ROOT}/runs/renewed-too", what="path"), b"")  # another folder
    assert json.loads(bucket.read("runs/renewed/lock"))["host"] == "other"  # is left to its holder


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Objects that grow.


def test_lines_are_uploaded_in_the_background_and_rarely(bucket, monkeypatch):
    path = storage.user_path(f"{ROOT}/growing/metrics.jsonl", what="path")
    bucket.weather(503, seconds=1, methods="POST")
    lines, began = buckets.Growing(path), time.monotonic()
    for i in range(10):
        lines.write(b"%d\n" % i)
    lines.save()
    assert time.monotonic() - began < 0.5  # although the bucket did not answer
    assert lines.unstored() == b"".join(b"%d\n" % i for i in range(10))
    wait_for(lambda: not lines.unstored())
    before = bucket.refused()
    lines.write(b"more\n")
    assert lines.unstored() == b"more\n"  # the last upload was not long ago
    monkeypatch.setattr(buckets, "_UPLOAD", 0.0)
    lines.write(b"and more\n")
    wait_for(lambda: not lines.unstored())
    lines.write(b"end\n")
    lines.close()
    lines.close()
    assert bucket.read("growing/metrics.jsonl") == b"".join(b"%d\n" % i for i in range(10)) + b"more\nand more\nend\n"
    assert bucket.refused() == before


def test_an_upload_that_fails_is_raised_later(bucket):
    lines = buckets.Growing(storage.user_path(f"{ROOT}/growing/forbidden", what="path"))
    bucket.weather(403, methods="POST")
    lines.write(b"x")
    lines.save()
    with pytest.raises(buckets.BucketError, match="Forbidden"):
        lines.close()


# Data.


def test_data_are_read_from_a_bucket(bucket, tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(3):
            picture = PIL.Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
            picture.save(tmp_path / label / f"{i}.png")
            put(f"{ROOT}/pets/{label}/{i}.png", (tmp_path / label / f"{i}.png").read_bytes())
    put(f"{ROOT}/pets/notes.txt", b"no picture")
    put(f"{ROOT}/pets/.hidden/x.png", b"no picture")
    here, there = (data.load(f"folder:{place}") for place in (tmp_path, f"{ROOT}/pets"))
    assert there.spec == here.spec
    assert there.fingerprint() == here.fingerprint()
    tiny.assert_identical(there.take(np.arange(6)), here.take(np.arange(6)))
    np.testing.assert_array_equal(
        data.read_picture(f"{ROOT}/pets/cat/0.png"), data.read_picture(tmp_path / "cat" / "0.png")
    )
    np.savez(tmp_path / "a.npz", x=rng.random((5, 2), np.float32))
    put(f"{ROOT}/a.npz", (tmp_path / "a.npz").read_bytes())
    here, there = (data.load(f"npz:{place}") for place in (tmp_path / "a.npz", f"{ROOT}/a.npz"))
    tiny.assert_identical(there.x, here.x)
    assert there.fingerprint() == here.fingerprint()
    for name, wanted in (
        (f"folder:{ROOT}/nowhere", "no folder"),
        (f"npz:{ROOT}/nowhere.npz", "no such bucket or object|can't be read"),
        (f"hf:{ROOT}/set", "in a bucket"),
        ("folder:ftp://x/y", "gs://BUCKET/NAME"),
    ):
        with pytest.raises(InputError, match=wanted):
            data.load(name)


def test_mnist_is_read_from_a_bucket(bucket):
    for kind, content in (
        ("images-idx3", b"\0\0\x08\x03" + np.array([2, 28, 28], ">u4").tobytes() + bytes(2 * 784)),
        ("labels-idx1", b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + b"\x03\x04"),
    ):
        put(f"{ROOT}/mnist/train-{kind}-ubyte", content)
    assert data.load("mnist", dir=f"{ROOT}/mnist").labels.tolist() == [3, 4]
    with pytest.raises(InputError, match="no MNIST file"):
        data.load("mnist", split="test", dir=f"{ROOT}/mnist")


def test_bad_weather_is_no_broken_picture(bucket, impatient, tmp_path):
    for i in range(2):
        file = io.BytesIO()
        PIL.Image.new("RGB", (4, 4), (i, 0, 0)).save(file, "PNG")
        put(f"{ROOT}/weather/{i}.png", file.getvalue())
    found = data.load(f"folder:{ROOT}/weather", reading=data.Reading(skip_broken=True))
    bucket.weather(503)
    with pytest.raises(buckets.BucketError):
        found.take(np.arange(2))


@pytest.mark.thorough
def test_workers_read_pictures_from_a_bucket(bucket, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        picture = PIL.Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8))
        picture.save(tmp_path / f"{i}.png")
        put(f"{ROOT}/for-workers/{i}.png", (tmp_path / f"{i}.png").read_bytes())
    states = [
        tiny.train_without_picture(
            tiny.config(
                {"data": {"name": f"folder:{place}", "workers": workers, "on_device": False}, "train.batch_size": 4},
                base=tiny.IMAGES,
            ),
            tmp_path / f"run{workers}",
        )
        for place, workers in ((tmp_path, 0), (f"{ROOT}/for-workers", 1))
    ]
    tiny.assert_identical(*states)


def test_pictures_are_read_from_a_bucket(bucket):
    file = io.BytesIO()
    PIL.Image.new("L", (4, 4), 255).save(file, "PNG")
    put(f"{ROOT}/public/white.png", file.getvalue())
    assert data.read_picture(f"{ROOT}/public/white.png").min() == 1
    assert data.read_files([f"{ROOT}/public/white.png"], n=1).min() == 1
    with pytest.raises(InputError, match="No such object"):
        data.read_picture(f"{ROOT}/public/black.png")


def test_examples_of_the_data_are_kept_in_the_bucket(bucket):
    changes = {**FEW, "train.steps": 2, "predicts": "x0", "process": {"name": "perturbed", "transform": ["overlap"]}}
    config = tiny.config(changes, base=tiny.IMAGES)
    workdir = f"{ROOT}/runs/examples"
    tiny.train_without_picture(config, workdir)
    assert "runs/examples/examples.npy" in bucket.names("runs/examples")
    assert jd.load(workdir).step == 2
    put(f"{workdir}/examples.npy", b"damage")
    with pytest.raises(InputError, match="damaged"):
        jd.load(workdir)


# Whole commands, each in a process of its own.


def command(script: str, *arguments: str, cache: Path) -> tuple[str, str]:
    code, out, err = tiny.finish(tiny.start(script, *arguments, cache=cache))
    assert code == 0, err
    assert "Traceback" not in err
    return out, err


@pytest.mark.thorough
def test_a_run_killed_in_a_bucket_ends_as_an_unbroken_one_on_this_machine(bucket, tmp_path):
    changes = {"train.steps": 400, "train.steps_per_dispatch": 1, "every.checkpoint": 20, "every.log": 5}
    config, cache = tiny.write_config(tmp_path, changes), tmp_path / "cache"
    flags = (f"--config={config}", f"--workdir={ROOT}/runs/killed")

    def last() -> int:
        found = [name.split("/")[3:] for name in bucket.names("runs/killed/checkpoints")]
        return max((int(step) for step, *rest in found if rest == ["commit_success.txt"]), default=0)

    for number in (signal.SIGKILL, signal.SIGTERM):
        begin, end = last(), time.monotonic() + 100
        process = tiny.start("train.py", *flags, cache=cache)
        while last() <= begin:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        if number == signal.SIGKILL:
            code, _, err = tiny.refused("train.py", *flags)
            assert code == 2
            assert f"in use by process {process.pid} on {socket.gethostname()}" in err
        process.send_signal(number)
        code, _, err = tiny.finish(process)
        if number == signal.SIGKILL:
            assert code == -number
        else:
            assert code == 128 + number
            assert f"step {last()} is saved" in err
            assert "runs/killed/lock" not in bucket.names("runs/killed")
    assert 0 < last() < changes["train.steps"]
    _, err = command("train.py", *flags, cache=cache)
    assert "(resumed)" in err
    command("train.py", f"--config={config}", f"--workdir={tmp_path / 'local'}", cache=cache)
    states = []
    for path in (storage.user_path(f"{ROOT}/runs/killed", what="workdir"), tmp_path / "local"):
        checkpoints = Checkpoints(path / "checkpoints", keep=3)
        states.append(tiny.restored(checkpoints, tiny.abstract_of(tiny.config(changes), tiny.mesh_of(1))))
        checkpoints.close()
    assert int(states[0].step) == 400
    tiny.assert_identical(*states)
    assert metrics(bucket.read("runs/killed/metrics.jsonl")) == metrics((tmp_path / "local/metrics.jsonl").read_text())
    out, _ = command("sample.py", f"--workdir={ROOT}/runs/killed", "--n=4", f"--out={ROOT}/out/s.png", cache=cache)
    assert f"{ROOT}/out/s.png" in out
    command("sample.py", f"--workdir={tmp_path / 'local'}", "--n=4", f"--out={tmp_path / 's.png'}", cache=cache)
    assert bucket.read("out/s.png") == (tmp_path / "s.png").read_bytes()
    command("sample.py", f"--workdir={ROOT}/runs/killed", "--n=4", f"--out={ROOT}/out/s.png", cache=cache)  # its own
    assert bucket.read("runs/killed/samples/00000400.png") == (tmp_path / "local/samples/00000400.png").read_bytes()


@pytest.mark.thorough
def test_the_commands_of_the_page_work(bucket, tmp_path):
    page = (tiny.REPOSITORY / "docs" / "pods.md").read_text()
    section = page.partition("## A run in a bucket")[2].partition("\n## ")[0].replace("\\\n", " ")
    commands = [shlex.split(line) for line in section.splitlines() if line.startswith("    ")]
    points = tiny.write_config(tmp_path, {"train.steps": 2})
    (tmp_path / "pictures").mkdir()
    pictures = tiny.write_config(tmp_path / "pictures", {"model.groups": 1}, base=tiny.IMAGES)
    for i in range(4):
        file = io.BytesIO()
        PIL.Image.new("L", (8, 8), 20 * i).save(file, "PNG")
        put(f"{ROOT}/photos/{i}.png", file.getvalue())
    done = 0
    for words in commands:
        if words[0] != "python":
            assert words[0] in ("pip", "gcloud")
            continue
        flags = [word.replace("gs://my-bucket", ROOT).replace("configs/digits.py", str(points)) for word in words[2:]]
        flags = [flag.replace("configs/images.py", str(pictures)) for flag in flags]
        flags = [flag.replace("--workdir=runs", f"--workdir={tmp_path}/runs") for flag in flags]
        flags = [flag.replace("--out=digits", f"--out={tmp_path}/digits") for flag in flags]
        command(words[1], *flags, cache=tmp_path / "cache")
        done += 1
    assert done == 5
    assert bucket.read("samples/digits.png")[1:4] == b"PNG"
    assert (tmp_path / "digits.png").is_file()
    assert jd.load(tmp_path / "runs/more").step == jd.load(f"{ROOT}/runs/photos").step == 2


@pytest.mark.thorough
def test_two_processes_train_in_a_bucket_and_go_on(bucket, tmp_path):
    changes = {**FEW, "every.sample": 10**6}
    config, name = tiny.write_config(tmp_path, changes), "runs/two"

    def run(steps: int) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = (f"--config={config}", f"--workdir={ROOT}/{name}", f"--config.train.steps={steps}", "--distributed")
        meeting = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
        processes = [
            tiny.start("train.py", *flags, *meeting, f"--process_id={i}", cache=tmp_path / str(i)) for i in range(2)
        ]
        try:
            ended = [tiny.finish(process) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [code for code, *_ in ended] == [0, 0], ended
        return [err for *_, err in ended]

    run(10)
    assert "(resumed)" in run(20)[0]
    names = bucket.names(name)
    assert any("ocdbt.process_1" in found for found in names)  # each wrote its part of the arrays
    assert sum("tfevents" in found for found in names) == 2  # and only process 0 the rest
    assert [line["step"] for line in metrics(bucket.read(f"{name}/metrics.jsonl"))] == [5, 10, 15, 20]
    alone = tiny.train_without_picture(tiny.config(changes), tmp_path / "alone")
    assert tiny.difference(jd.load(f"{ROOT}/{name}").params, alone.ema) < 1e-5
