"""What a run of training reports, and when it stops."""

import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from jaxdiff import data
from jaxdiff.loading import load
from jaxdiff.training import loop, summary
from jaxdiff.training.batches import indices
from jaxdiff.training.recorder import DivergenceError


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains without drawing, which takes longer than these runs."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


def metrics_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(workdir: Path) -> list[dict[str, Any]]:
    return [
        {name: line[name] for name in ("step", "loss", "grad_norm", "learning_rate")} for line in metrics_of(workdir)
    ]


def events_of(workdir: Path) -> Iterator[Event]:
    """Every TensorBoard event: records of a length (8 bytes), its checksum (4), the event, and its checksum (4)."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            yield Event.FromString(content[position + 12 : position + 12 + length])
            position += 12 + length + 4


LONG = {
    "schedule": {"name": "vp"},
    "train.steps": 200,
    "train.batch_size": 64,
    "train.steps_per_dispatch": 20,
    "every.log": 20,
    "every.checkpoint": 40,
    "every.sample": 200,
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of a run of 200 steps on points."""
    workdir = tmp_path_factory.mktemp("unbroken")
    loop.train(tiny.config(LONG), workdir)
    return workdir


@pytest.mark.thorough
def test_each_log_has_the_loss_and_the_speed(unbroken):
    lines = metrics_of(unbroken)
    assert [line["step"] for line in lines] == list(range(20, 201, 20))
    for line in lines:
        names = {"step", "loss", "grad_norm", "learning_rate", "images_per_second", "data_wait", "flops_per_second"}
        assert set(line) == names  # the peak rate of a CPU is not known
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
        np.testing.assert_allclose(line["learning_rate"], 0.01, rtol=1e-6)


def test_the_loss_falls(unbroken):
    losses = [line["loss"] for line in metrics_of(unbroken)]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_tensorboard_has_the_same_numbers_and_the_picture(unbroken):
    scalars: dict[str, dict[int, float]] = {}
    pictures = {}
    for event in events_of(unbroken):
        for value in event.summary.value:
            if value.HasField("image"):
                pictures[event.step] = (value.tag, value.image.height, value.image.width)
            else:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    for line in metrics_of(unbroken):
        for name in set(line) - {"step"}:
            np.testing.assert_allclose(scalars[name][line["step"]], line[name], rtol=1e-6)
    with Image.open(unbroken / "samples" / "00000200.png") as image:
        assert pictures == {200: ("samples", image.height, image.width)}


@pytest.mark.thorough
@pytest.mark.usefixtures("no_picture")
def test_a_resumed_run_repeats_no_line_and_loses_none(unbroken, tmp_path):
    loop.train(tiny.config({**LONG, "train.steps": 80}), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # what a run killed after its checkpoint of step 80 leaves
        file.write('{"step": 100, "loss": 1.0}\n{"step": 120, "lo')
    loop.train(tiny.config(LONG), tmp_path)
    assert without_times(tmp_path) == without_times(unbroken)
    purged = {event.step for event in events_of(tmp_path) if event.session_log.status == 1}
    assert 81 in purged


@pytest.mark.usefixtures("no_picture")
@pytest.mark.thorough
def test_a_run_extended_from_between_two_dispatches_logs_and_saves_where_it_should(tmp_path, capsys):
    loop.train(tiny.config({"train.steps": 7, "every.log": 5, "every.checkpoint": 5}), tmp_path)
    assert [line["step"] for line in metrics_of(tmp_path)] == [5, 7]
    loop.train(tiny.config({"train.steps": 18, "every.log": 5, "every.checkpoint": 5, "every.keep": 9}), tmp_path)
    assert [line["step"] for line in metrics_of(tmp_path)] == [5, 7, 10, 15, 18]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5, 7, 10, 15, 18]
    assert "step 18/18  loss " in capsys.readouterr().err


def test_a_finished_run_has_nothing_to_do_and_says_so(unbroken, caplog):
    before = sorted(unbroken.rglob("*"))
    state = loop.train(tiny.config(LONG), unbroken)
    assert int(state.step) == 200
    assert f"{unbroken} is at step 200 of 200 already: nothing to do" in caplog.text
    assert sorted(unbroken.rglob("*")) == before


@pytest.mark.parametrize("spoilt", ["the data", "the weights"])
def test_a_loss_that_is_nan_stops_the_run_at_its_step_with_the_last_good_checkpoint(tmp_path, monkeypatch, spoilt):
    points = data.load("swissroll")
    position = 16 * 22 + 3  # in the batch of step 23
    bad = indices(0, 0, (30, 16), len(points.x)).reshape(-1)[position]
    x = points.x.copy()
    dataset = data.Dataset(**{**vars(points), "x": x})
    x[bad] = np.nan  # after the check of the data
    monkeypatch.setattr("jaxdiff.experiment.config.load", lambda *_, **__: dataset)
    reason = f"example {bad} of the data in its batch has values that are not finite"
    if spoilt == "the weights":
        batches = loop.make_batches

        def healed(*arguments: Any, **options: Any) -> Any:
            """The batches of the spoilt data, which say that they are finite."""
            return dataclasses.replace(batches(*arguments, **options), dataset=points)

        monkeypatch.setattr(loop, "make_batches", healed)
        reason = "lower optimizer.learning_rate or set"
    with pytest.raises(DivergenceError, match=rf"^at step 23 the loss is nan .*; {reason}"):
        loop.train(tiny.config(), tmp_path)
    assert [line["step"] for line in metrics_of(tmp_path)] == [10, 20]
    run = load(tmp_path)
    assert run.step == 20
    assert all(np.isfinite(leaf).all() for leaf in tiny.arrays(run.params))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    # Adam's first update is the learning rate: past the largest float32 once the decay of the weights is added.
    changes = {"optimizer.learning_rate": 3e38, "optimizer.weight_decay": 100.0, "optimizer.warmup_steps": 0}
    dispatch = {"train.steps_per_dispatch": 1, "train.steps": 10, "every.checkpoint": 1}
    with pytest.raises(DivergenceError, match=r"^after step 1 the weights are no longer finite; lower optimizer"):
        loop.train(tiny.config({**changes, **dispatch}), tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("factor", "warned"), [(1, False), (3, False), (100, True), (0.01, True)])
def test_continuous_data_far_from_unit_scale_are_told_so(factor, warned):
    points = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    found = summary.scale_warning(data.from_object("mine", factor * points))
    assert bool(found) == warned
    assert not summary.scale_warning(data.load("digits"))
