"""Runs and data in a bucket, against an emulator of Google Cloud Storage on this machine, in fine and bad weather."""

import json
import time
from collections.abc import Iterator
from typing import Any

import gcs
import pytest
import tiny

import jaxdiff as jd
from jaxdiff import storage

ROOT = f"gs://{gcs.BUCKET}"
FEW = {"train.steps": 20, "every.checkpoint": 10, "every.log": 5}


@pytest.fixture(scope="module")
def emulator() -> Iterator[gcs.Bucket]:
    with gcs.running() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield bucket


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
