"""The best checkpoint by the loss on held-out examples: that it is kept, and which weights of a run are loaded."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff.experiment.checkpoint import Checkpoints, Evaluated
from jaxdiff.training import loop
from jaxdiff.training.step import State

pytestmark = pytest.mark.usefixtures("forgotten_coroutines")

# The best is step 10, whose checkpoint is not one of the newest.
LOSSES = {5: 3.0, 10: 1.0, 15: 2.0, 20: math.nan, 25: 1.5, 30: 1.5}
CHANGES = {"every.keep": 1, "every.checkpoint": 1000, "every.log": 5, "every.evaluate": 5, "data.evaluated": 16}


def train(workdir: Path, changes: Mapping[str, Any] | None = None, *, losses: Any = LOSSES, on: str = "a") -> State:
    """A run whose losses on held-out examples are given."""

    def evaluate(self: Any, step: int, state: State) -> Evaluated | None:
        return Evaluated(losses[step], on) if step in losses else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "evaluate", evaluate)
        patch.setattr(loop, "make_evaluation", lambda *_: None)
        return tiny.train_without_picture(tiny.config({**CHANGES, **(changes or {})}), workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State, State]:
    """The folder of a run, its state at the best step, and its last one."""
    workdir = tmp_path_factory.mktemp("finished")
    best = train(workdir, {"train.steps": 10})
    best = best._replace(params=None, opt_state=None, ema=tiny.arrays(best.ema))
    return workdir, best, train(workdir)


@pytest.fixture
def workdir(finished: tuple[Path, State, State], tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.mark.thorough
def test_the_best_is_kept_beside_the_newest_also_when_the_run_is_resumed(finished: Any) -> None:
    folder, best, last = finished
    assert tiny.steps_in(folder) == [10, 30]
    runs = {weights: jd.load(folder, weights=weights) for weights in ("ema", "raw", "best")}
    assert {name: (run.step, run.weights) for name, run in runs.items()} == {
        "ema": (30, "ema"),
        "raw": (30, "raw"),
        "best": (10, "best"),
    }
    tiny.assert_identical(runs["ema"].params, last.ema)
    tiny.assert_identical(runs["raw"].params, last.params)
    tiny.assert_identical(runs["best"].params, best.ema)
    tiny.assert_identical(jd.load(folder, step=10).params, best.ema)
    assert jd.load(folder, step=10, weights="raw").step == 10
    assert tiny.difference(runs["raw"].params, runs["ema"].params) > 0


@pytest.mark.thorough
def test_a_better_step_replaces_the_best_and_no_other_is_saved(tmp_path: Path) -> None:
    train(tmp_path, {"train.steps": 20}, losses={5: 3.0, 10: 2.0, 15: 2.5, 20: 4.0})
    assert tiny.steps_in(tmp_path) == [10, 20]
    train(tmp_path, losses={25: 1.0, 30: 1.0})
    assert tiny.steps_in(tmp_path) == [25, 30]
    assert jd.load(tmp_path, weights="best").step == 25


def test_losses_that_are_measured_in_another_way_are_not_compared(workdir: Path) -> None:
    train(workdir, {"train.steps": 35}, losses={35: 9.0}, on="b")
    assert tiny.steps_in(workdir) == [35]
    assert jd.load(workdir, weights="best").step == 35


def test_a_run_that_is_no_longer_evaluated_keeps_the_best_so_far(workdir: Path) -> None:
    train(workdir, {"train.steps": 40, "every.evaluate": None}, losses={})
    assert tiny.steps_in(workdir) == [10, 40]
    assert jd.load(workdir, weights="best").step == 10


def spoil(folder: Path) -> None:
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[::-1])


def lose(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [spoil, lose])
def test_a_damaged_best_is_reported_and_the_next_one_taken(
    workdir: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(workdir / "checkpoints" / "10" / "weights")
    assert jd.load(workdir, weights="best").step == 30
    assert "the checkpoint of step 10 is damaged and is not used" in caplog.text
    with pytest.raises(jd.InputError, match=r"\(steps 10\) is whole"):
        jd.load(workdir, step=10)


@pytest.mark.parametrize("step", [30, 10])
def test_a_checkpoint_set_aside_is_forgotten(workdir: Path, step: int) -> None:
    """What is repaired is the newest; if it was the best it is written again as that."""
    best = json.loads((workdir / "checkpoints" / "10" / "notes" / "metadata").read_text())
    assert best == {"eval_loss": 1.0, "eval_on": "a"}
    spoil(workdir / "checkpoints" / str(step) / "training")
    state = train(workdir)
    assert int(state.step) == 30
    assert tiny.steps_in(workdir) == [10, 30]
    assert jd.load(workdir, weights="best").step == 10


NOTES = ["[]", "3", "{", '{"eval_loss": "x", "eval_on": 3}', '{"eval_loss": 1e999, "eval_on": "a"}', '{"eval_loss": 1}']


@pytest.mark.parametrize("text", NOTES)
def test_notes_that_say_nothing_of_a_loss_are_passed_over(workdir: Path, text: str) -> None:
    (workdir / "checkpoints" / "10" / "notes" / "metadata").write_text(text)
    assert jd.load(workdir, weights="best").step == 30


@pytest.mark.usefixtures("unchecked")
def test_what_a_folder_does_not_keep_is_refused_in_one_line(workdir: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(jd.InputError, match=message) as error:
            jd.load(workdir, **options)
        assert "\n" not in str(error.value)

    refused(r"^step = 20 is not kept in .*; the kept ones are 10, 30$", step=20)
    refused(r"^step = 10, but weights = 'best' chooses the step itself; leave one out$", step=10, weights="best")
    refused(r"^weights = 'emma' is unknown.*'ema'", weights="emma")
    refused(r"^step = 'x'; it must be a whole number", step="x")
    for step in (10, 30):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "notes")
    refused(r"^weights = 'best', but no checkpoint in .* was evaluated; train with every\.evaluate", weights="best")
    for flag, message in {"--step=20": "step = 20 is not kept", "--weights=best": "weights = 'best', but no"}.items():
        code, out, err = tiny.refused("sample.py", f"--workdir={workdir}", flag, f"--out={tmp_path / 'x.png'}")
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"error: {message}")


def test_only_a_smaller_loss_that_is_measured_in_the_same_way_is_better(tmp_path: Path) -> None:
    items = {"weights": {"w": np.zeros(2, np.float32)}}
    with closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        assert checkpoints.improves(Evaluated(5.0, "a"))
        for step, loss in ((1, 2.0), (2, 3.0), (3, 1.0)):
            checkpoints.save(step, items, evaluated=Evaluated(loss, "a"))
        checkpoints.wait()
        assert checkpoints.steps() == [3]
        assert checkpoints.improves(Evaluated(0.9, "a"))
        assert not checkpoints.improves(Evaluated(1.0, "a"))
        assert not checkpoints.improves(Evaluated(math.nan, "b"))
        assert checkpoints.improves(Evaluated(7.0, "b"))
