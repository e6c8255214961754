"""Which settings of a run may change when it is resumed, and that nothing else differs from an uninterrupted run."""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.experiment import Optimizer, Train, resumption, workdir
from jaxdiff.training import loop
from jaxdiff.typing import InputError

COSINE = {"optimizer.decay": "cosine", "train.steps": 10}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains without drawing, which takes longer than these runs."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 10 steps under a cosine decay."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))
        loop.train(tiny.config(COSINE), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of that run."""
    return shutil.copytree(trained, tmp_path / "run")


def content_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def refused(run: Path, changes: dict[str, Any], message: str, **options: Any) -> None:
    """Training with these changes is refused, and config.json stays as it is."""
    before = (run / "config.json").read_bytes()
    with pytest.raises(InputError, match=message):
        loop.train(tiny.config({**COSINE, **changes}), run, **options)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.thorough
def test_a_longer_cosine_decay_is_refused_with_its_jump_of_the_learning_rate_unless_allowed(run):
    schedules = [tiny.config(COSINE).optimizer.rate(steps) for steps in (10, 20)]
    jump = f"{float(schedules[0](9)):.2g} at step 10 to {float(schedules[1](10)):.2g}"
    refused(run, {"train.steps": 20}, rf"^train\.steps: 10 -> 20, but .* {re.escape(jump)} .*allow_change=train\.steps")
    state = loop.train(tiny.config({**COSINE, "train.steps": 20}), run, allow_change=["train.steps"])
    assert int(state.step) == 20
    assert content_of(run)["history"] == [{"step": 10, "changes": ["train.steps: 10 -> 20"]}]
    # The same command again goes on, and adds nothing.
    loop.train(tiny.config({**COSINE, "train.steps": 20}), run, allow_change=["train.steps"])
    assert len(content_of(run)["history"]) == 1


def test_fewer_steps_than_the_run_has_taken_are_refused(run):
    refused(run, {"train.steps": 5}, r"^train\.steps = 5, but .* is at step 10 already; set train\.steps to 10 or more")
    refused(run, {"train.steps": 5}, r"^train\.steps = 5, but ", allow_change=["train.steps"])


@pytest.mark.thorough
def test_x64_can_be_neither_switched_on_nor_off(run):
    with jax.enable_x64(True):
        refused(run, {}, r"^JAX_ENABLE_X64 is on, but .* off; set it back")
    content = content_of(run)
    (run / "config.json").write_text(json.dumps({**content, "x64": True}))
    refused(run, {}, r"^JAX_ENABLE_X64 is off, but .* on; set it back")
    del content["x64"]  # as an earlier version wrote it
    (run / "config.json").write_text(json.dumps(content))
    loop.train(tiny.config({**COSINE, "train.steps": 11}), run, allow_change="train.steps")
    assert content_of(run)["x64"] is False


def test_a_finished_run_is_left_as_it_is(run, caplog):
    before = (run / "config.json").read_text()
    loop.train(tiny.config({**COSINE, "optimizer.learning_rate": 0.5}), run, allow_change="optimizer.learning_rate")
    assert "nothing to do" in caplog.text
    assert (run / "config.json").read_text() == before


@pytest.mark.thorough
def test_the_learning_rate_changes_on_request_and_the_history_says_so(run):
    changes = {"optimizer.learning_rate": 0.002, "optimizer.decay": "constant", "train.steps": 20}
    allowed = ["optimizer.learning_rate", "optimizer.decay"]
    refused(run, changes, r"optimizer\.learning_rate: 0\.01 -> 0\.002", allow_change=["optimizer.decay"])
    refused(run, changes, r"allow_change=optimizer\.decay,optimizer\.learning_rate$")
    loop.train(tiny.config({**COSINE, **changes}), run, allow_change=[*allowed, "train.steps"])
    assert metrics_of(run)[-1]["learning_rate"] == pytest.approx(0.002)
    (entry,) = content_of(run)["history"]
    assert entry["step"] == 10
    assert "optimizer.learning_rate: 0.01 -> 0.002" in entry["changes"]


def test_a_change_that_needs_another_state_is_refused(run):
    for changes in ({"optimizer.clip_norm": None}, {"loss.times": "importance"}):
        message = r"^allow_change = .* the state of training has other parts than in the checkpoints"
        refused(run, changes, message, allow_change=list(changes))


@pytest.mark.parametrize(
    "name", ["model.width", "data.name", "cond.label", "loss.target", "optimizer.lr", "optimizer", ""]
)
def test_other_settings_cannot_be_allowed(run, name):
    refused(run, {}, rf"^allow_change = '{name}' ", allow_change=[name])


LEAVES = {
    "model": st.fixed_dictionaries({"model.width": st.sampled_from([4, 8])}),
    "optimizer": st.fixed_dictionaries({"optimizer.learning_rate": st.floats(0, 1)}),
    "train": st.fixed_dictionaries({"train.ema_decay": st.floats(0, 0.5)}),
    "free": st.fixed_dictionaries({"train.steps_per_dispatch": st.just(2), "sampling.steps": st.just(3)}),
}


@given(st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_what_differs_is_free_or_allowed_or_refused(data):
    changes = {
        key: item for kind in LEAVES if data.draw(st.booleans()) for key, item in data.draw(LEAVES[kind]).items()
    }
    allowed = data.draw(st.lists(st.sampled_from(["optimizer.learning_rate", "train.ema_decay"]), unique=True))
    old, new = tiny.config(), tiny.config(changes)
    free = ("train.steps_per_dispatch", "sampling.steps")
    left = [name for name in changes if name not in allowed and name not in free]
    if left:
        with pytest.raises(InputError) as error:
            resumption.check(old, new, 10, allowed, where="workdir = x")
        assert all(f"{name}: " in str(error.value) for name in left)
        assert all(f"{name}: " not in str(error.value) for name in allowed)
    else:
        resumption.check(old, new, 10, allowed, where="workdir = x")


def test_every_allowable_setting_is_a_field():
    config = tiny.config().to_mapping()
    for name in resumption.ALLOWABLE:
        section, field = name.split(".")
        assert field in config[section]
    fixed = sum(field.name.startswith("init_") for field in dataclasses.fields(Train))
    assert len(resumption.ALLOWABLE) == len(dataclasses.fields(Optimizer)) + len(dataclasses.fields(Train)) - fixed + 2


def stop_at(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Send this process a SIGTERM when the dispatch that starts at this step is pushed."""
    push = loop.Recorder.push

    def push_then_stop(self, dispatch, *rest):
        push(self, dispatch, *rest)
        if dispatch.first == first:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Recorder, "push", push_then_stop)


@pytest.mark.thorough
def test_the_first_line_after_a_resumption_is_that_of_an_uninterrupted_run(tmp_path, monkeypatch):
    config = tiny.config({"train.steps": 20, "every.log": 20, "every.checkpoint": 20})
    loop.train(config, tmp_path / "unbroken")
    for first in (0, 10):
        with monkeypatch.context() as patch:
            stop_at(patch, first)
            with pytest.raises(loop.Interrupted):
                loop.train(config, tmp_path / "broken")
    loop.train(config, tmp_path / "broken")
    (expected,), (found,) = (metrics_of(tmp_path / name) for name in ("unbroken", "broken"))
    for name in ("step", "loss", "grad_norm", "learning_rate"):
        assert found[name] == expected[name]


@pytest.mark.thorough
def test_a_checkpoint_without_its_window_is_resumed(tmp_path, monkeypatch):
    config = tiny.config({"train.steps": 20, "every.log": 20, "every.checkpoint": 20})
    stop_at(monkeypatch, 5)
    with pytest.raises(loop.Interrupted):
        loop.train(config, tmp_path)
    notes = tmp_path / "checkpoints" / "10" / "notes"
    for path in [path for path in notes.rglob("*") if path.is_file()]:
        path.write_text('{"loss": 3')
    assert int(loop.train(config, tmp_path).step) == 20


@pytest.mark.thorough
def test_a_picture_that_a_signal_prevented_is_drawn_on_resumption(tmp_path, monkeypatch, caplog):
    config = tiny.config({"train.steps": 10})
    with monkeypatch.context() as patch:
        stop_at(patch, 5)  # the last dispatch
        with pytest.raises(loop.Interrupted, match="step 10 is saved"):
            loop.train(config, tmp_path)
    assert not (tmp_path / "samples").exists()
    for _ in range(2):
        loop.train(config, tmp_path)
        assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000010.png"]
    assert caplog.text.count("nothing to do") == 1


def test_steps_are_counted_by_checkpoints(tmp_path):
    assert workdir.last_step(tmp_path) == 0
    for name in ("3", "20", "30.orbax-checkpoint-tmp", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert workdir.last_step(tmp_path) == 20
