"""Traces of what the devices do, and the arithmetic of a run in its metrics."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from jax.profiler import ProfileData

from jaxdiff.training import chips, loop
from jaxdiff.training.profile import Profile
from jaxdiff.typing import InputError


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


def test_a_run_writes_traces_of_its_steps_where_tensorboard_looks_for_them(tmp_path: Path) -> None:
    loop.train(tiny.config({"train.steps": 60, "every.checkpoint": 60, "every.profile": 20}), tmp_path)
    traces = tmp_path / "plugins" / "profile"
    assert {path.name for path in traces.iterdir()} == {"00000020", "00000040"}  # the call of step 0 compiles
    (path,) = (traces / "00000020").iterdir()
    assert path.name.endswith(".xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(path)).planes for line in plane.lines]
    assert any("steps" in event.name for line in lines for event in line.events)  # the compiled step


def test_a_trace_of_the_last_steps_is_kept(tmp_path: Path) -> None:
    profile = Profile(tmp_path, 10)
    profile.begin(10)
    assert profile.end(12, ()) is None
    profile.close()
    assert len(list((tmp_path / "plugins" / "profile" / "00000010").iterdir())) == 1
    profile.begin(20)  # and another can begin
    assert profile.end(25, ()) == tmp_path / "plugins" / "profile" / "00000020"
    profile.close()


def test_a_trace_that_somebody_else_ends_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile = Profile(tmp_path, 10)
    profile.begin(10)
    jax.profiler.stop_trace()
    profile.end(20, ())
    assert "the trace of step 10 is lost" in caplog.text


def test_a_run_goes_on_where_another_trace_is_being_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with jax.profiler.trace(str(tmp_path / "mine")):
        profile = Profile(tmp_path / "run", 10)
        profile.begin(10)
        assert profile.end(20, ()) is None
        profile.close()
    assert "step 10 is not traced" in caplog.text


def test_traces_begin_at_the_first_step_of_a_call() -> None:
    with pytest.raises(InputError, match="profile"):
        tiny.config({"every.profile": 12})
    config = tiny.config({"every.profile": 15, "train.steps_per_dispatch": None})
    assert config.steps_per_dispatch(on_cpu=False) == 5


def test_the_arithmetic_of_a_step_and_its_share_of_the_peak_are_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's four layers take 2·n operations for n weights and as many for each gradient, but that of x."""
    peak = chips.Chip(flops=1e6, memory=1, bandwidth=1, links=1)
    monkeypatch.setattr(chips, "chip", lambda devices: peak)
    state = loop.train(tiny.config({"train.steps": 10}), tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    matrices = [leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2]
    products = [2 * 16 * rows * columns for rows, columns in matrices]
    flops = line["flops_per_second"] / line["images_per_second"] * 16
    assert 2 * sum(products) < flops <= 3 * sum(products)
    assert line["share_of_peak"] == pytest.approx(line["flops_per_second"] / 1e6)
