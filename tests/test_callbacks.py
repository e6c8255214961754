"""The user's functions in a run: when they are called, on what, and how they end it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff.training import callbacks, loop
from jaxdiff.training.recorder import DivergenceError
from jaxdiff.training.step import State

# Steps of dispatches of 5, lines at 10, 20, …; checkpoints are rare.
CHANGES = {"every.checkpoint": 1000}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains without drawing, which takes longer than these runs."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The last state of a run without callbacks."""
    return tiny.train_without_picture(tiny.config(CHANGES), tmp_path_factory.mktemp("unbroken"))


@pytest.mark.thorough
def test_they_see_the_state_of_each_line_while_it_is_live(tmp_path: Path, unbroken: Any) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    states: list[Any] = []

    def look(step: int, state: Any, metrics: dict[str, float]) -> None:
        seen.append((step, int(state.step), dict(metrics)))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        states.append((state, jax.device_get(state.ema)))
        metrics.clear()

    counted: list[int] = []
    last = jd.train(tiny.config(CHANGES), tmp_path, callbacks=[look, lambda step, *_: counted.append(step)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen == [(line["step"], line.pop("step"), line) for line in lines]
    assert counted == [10, 20, 30]
    tiny.assert_identical(last, unbroken)
    tiny.assert_identical(states[-1][1], last.ema)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[0][0].params))  # the next step has its memory
    assert tiny.difference(states[0][1], last.ema) > 0  # a copy stays


def test_true_ends_the_run_with_its_state_saved_and_it_goes_on(tmp_path: Path, unbroken: Any) -> None:
    def stop(step: int, state: Any, metrics: dict[str, float]) -> Any:
        return metrics["loss"] < 100 and step == 20

    later: list[int] = []
    state = jd.train(tiny.config(CHANGES), tmp_path, callbacks=[stop, lambda step, *_: later.append(step)])
    assert int(state.step) == 20
    assert later == [10, 20]  # the others are called all the same
    assert tiny.steps_in(tmp_path) == [20]
    tiny.assert_identical(jd.load(tmp_path).params, state.ema)
    tiny.assert_identical(jd.train(tiny.config(CHANGES), tmp_path), unbroken)


@pytest.mark.thorough
def test_an_error_ends_the_run_with_its_state_saved_and_it_goes_on(tmp_path: Path, unbroken: Any) -> None:
    def fail(step: int, *_: Any) -> None:
        if step == 20:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jd.train(tiny.config(CHANGES), tmp_path, callbacks=[fail])
    assert tiny.steps_in(tmp_path) == [20]
    tiny.assert_identical(jd.train(tiny.config(CHANGES), tmp_path, callbacks=[print]), unbroken)


def test_after_an_error_a_state_that_is_not_finite_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_finite", lambda state: False)

    def fail(*_: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jd.train(tiny.config(CHANGES), tmp_path, callbacks=[fail])
    assert tiny.steps_in(tmp_path) == []


STATE = State(step=jnp.zeros((), int), params={}, ema={}, opt_state=(), key=jax.random.key(0))
TRUE = [True, np.True_, np.array(True), jnp.array(True)]
OTHERS = [None, False, 1, 3.5, "x", [1], np.float32(1), jnp.ones(()), jnp.array(False), object()]


@pytest.mark.parametrize("value", [*TRUE, *OTHERS], ids=lambda value: type(value).__name__)
def test_only_true_ends_a_run(value: Any) -> None:
    found = callbacks.call([lambda *_: value, lambda *_: None], 1, STATE, {})
    assert found is any(value is true for true in TRUE)


def test_all_processes_stop_if_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [False, False]
    gather = "jax.experimental.multihost_utils.process_allgather"
    monkeypatch.setattr(gather, lambda own: np.stack([own, np.array(other)]))
    assert not callbacks.call([lambda *_: None], 1, STATE, {})
    other[0] = True
    assert callbacks.call([lambda *_: None], 1, STATE, {})
    other[1] = True
    with pytest.raises(RuntimeError, match="failed on another process"):
        callbacks.call([lambda *_: None], 1, STATE, {})
    with pytest.raises(ZeroDivisionError):
        callbacks.call([lambda *_: 1 / 0], 1, STATE, {})


@pytest.mark.parametrize("wrong", [3, dict, "print"])
def test_what_can_not_be_called_is_refused_before_the_run(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(jd.InputError, match=r"^callbacks holds .*; give functions of \(step, state, metrics\)$"):
        jd.train(tiny.config(), tmp_path / "run", callbacks=[wrong])
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_finite_from_the_start_is_not_blamed_on_the_learning_rate(tmp_path: Path) -> None:
    config = tiny.config({"model": "test_callbacks:nowhere"})
    with pytest.raises(DivergenceError, match=r"^at step 1 the loss is nan .* at the first weights") as error:
        jd.train(config, tmp_path)
    assert "learning_rate" not in str(error.value)
    assert tiny.steps_in(tmp_path) == []


class Nowhere:
    """A network whose output is not finite."""

    def init(self, key: Any, x: Any, t: Any) -> Any:
        return {"params": {"w": jnp.ones(())}}

    def apply(self, params: Any, x: Any, t: Any) -> Any:
        return params["params"]["w"] * jnp.full(x.shape, jnp.nan)


def nowhere() -> Nowhere:
    return Nowhere()
