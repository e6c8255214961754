"""Runs and data in a bucket, against an emulator of Google Cloud Storage on this machine, in fine and bad weather."""

import importlib.util
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcs
import jax
import numpy as np
import PIL.Image
import pytest
import tiny
from etils import epath

import jaxdiff as jd
from jaxdiff import buckets, data, storage
from jaxdiff.experiment import workdir as folder
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.training import loop
from jaxdiff.typing import InputError

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
