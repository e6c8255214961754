"""Where a run reports to: the user's objects, services, and what becomes of those that fail."""

import json
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import jaxdiff as jd
from jaxdiff.experiment import workdir as folder
from jaxdiff.training import loggers, loop, recorder

PIXELS = np.zeros((2, 2, 3), np.uint8)


class Listed:
    """A logger that lists its calls; it fails in one method, or while it is made."""

    def __init__(self, *, workdir: Path | None = None, start: int = 0, fails: str | None = None) -> None:
        self.workdir, self.start, self.fails, self.calls = workdir, start, fails, []
        self._call("init")
        made.append(self)

    def _call(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method == self.fails:
            raise RuntimeError(f"no {method}\nand more")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call("log", step, dict(metrics))

    def picture(self, step: int, pixels: Any) -> None:
        self._call("picture", step, pixels.shape)

    def close(self) -> None:
        self._call("close")

    @property
    def methods(self) -> list[str]:
        return [call[0] for call in self.calls]


made: list[Listed] = []


@pytest.fixture(autouse=True)
def forgotten() -> None:
    made.clear()


def several(tmp_path: Path, *names: str, objects: Any = (), start: int = 0) -> loggers.Loggers:
    loggers.check(names, objects)
    return loggers.Loggers(names, objects, workdir=tmp_path, start=start, config={"train": {"steps": 3}})


def use(kept: loggers.Loggers) -> None:
    for step in (1, 2):
        kept.log(step, {"loss": 1.0 / step})
        kept.picture(step, PIXELS)
    kept.close()


def test_a_run_reports_to_objects_and_to_names_and_goes_on_without_those_that_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_picture", lambda *_: PIXELS)
    good, bad = Listed(), Listed(fails="log")
    names = ("test_loggers:Listed", "test_loggers:Listed:fails=picture", "test_loggers:Listed:fails=init")
    state = jd.train(tiny.config({"train.steps": 20, "loggers": names}), tmp_path, loggers=[bad, good])
    assert int(state.step) == 20
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [("log", line.pop("step"), line) for line in lines]
    assert good.calls == [("init",), *expected, ("picture", 20, (2, 2, 3)), ("close",)]
    assert bad.methods == ["init", "log"]
    named, unpictured = made[2:]
    assert named.calls == good.calls
    assert (named.workdir, named.start) == (tmp_path, 0)
    assert unpictured.methods == ["init", "log", "log", "picture"]
    found = [record.getMessage() for record in caplog.records if "logger" in record.name]
    assert [line.partition(" failed")[0].removeprefix("the logger ") for line in found] == [
        names[2],
        "Listed",
        names[1],
    ]
    for method, line in zip(("init", "log", "picture"), found, strict=True):
        assert line.endswith(f"RuntimeError: no {method}")
    assert not list(tmp_path.glob("events*"))  # "tensorboard" was not named


@pytest.mark.parametrize("fails", ["log", "picture", "close"])
def test_a_failure_in_any_method_leaves_out_that_logger_alone(tmp_path: Path, fails: str) -> None:
    bad, good = Listed(fails=fails), Listed()
    use(several(tmp_path, objects=[bad, good]))
    assert bad.methods.count(fails) == 1
    assert bad.methods[-1] == fails
    assert good.methods == ["init", "log", "picture", "log", "picture", "close"]


class Service:
    """What `wandb` and `trackio` have in common, as a module."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        return types.SimpleNamespace(log=lambda values, step: self.logged.append((values, step)), finish=self.finish)

    def finish(self) -> None:
        self.finished += 1

    def Image(self, pixels: Any) -> Any:  # noqa: N802
        return ("image", pixels.shape)


@pytest.mark.parametrize(("name", "identity"), [("wandb", "id"), ("trackio", "name")])
def test_a_service_gets_everything_and_a_resumed_run_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, identity: str
) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    for start in (0, 2):
        use(several(tmp_path, f"{name}:project=mine", start=start))
    first, second = service.begun
    assert first == second
    assert first["project"] == "mine"
    assert first["resume"] == "allow"
    assert first["config"] == {"train": {"steps": 3}}
    assert tmp_path.name in first["name"]
    assert service.logged[:2] == [({"loss": 1.0}, 1), ({"samples": ("image", (2, 2, 3))}, 1)]
    assert len(service.logged) == 8
    assert service.finished == 2
    for text in ("", "[]", '{"wandb": 3, "trackio": "a b"}'):  # a damaged file is a new run
        (tmp_path / "loggers.json").write_text(text)
        use(several(tmp_path, name))
        assert service.begun[-1][identity] != first[identity]
    use(several(tmp_path, name))
    assert service.begun[-1][identity] == service.begun[-2][identity]
    (tmp_path / "other").mkdir()
    use(several(tmp_path / "other", name))
    assert service.begun[-1][identity] != service.begun[-2][identity]


def test_a_service_that_is_out_of_reach_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(**_: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=unreachable))
    good = Listed()
    use(several(tmp_path, "wandb", objects=[good]))
    assert good.methods[-1] == "close"
    assert "the logger wandb failed and is left out" in caplog.text
    assert "no route to host" in caplog.text


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("names", "objects", "message"),
    [
        (("tensorbord",), (), r"^loggers = 'tensorbord'; the known ones are .*did you mean 'tensorboard'"),
        (("wandb:projekt=a",), (), r"^loggers = 'wandb:projekt=a' has no option 'projekt'.*did you mean 'project'"),
        (("wandb:mode=on",), (), r"^loggers\.mode = 'on' has the wrong type; it must be .*'offline'"),
        (("tensorboard:workdir=/tmp",), (), "has no option 'workdir'"),
        (("wandb",), (), r'^loggers = .wandb. is not installed: pip install "jaxdiff\[wandb\]"$'),
        ((), (print,), r"^loggers holds <built-in function print>; give an object with the methods log\("),
        ((), (Listed,), r"^loggers holds .*Listed.*; give an object"),
    ],
)
def test_what_is_no_logger_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Any, objects: Any, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(jd.InputError, match=message) as error:
        jd.train(tiny.config({"loggers": names}), tmp_path / "run", loggers=objects)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_read_without_the_code_of_its_loggers(tmp_path: Path) -> None:
    config = tiny.config({"loggers": ("stranger:Logger",)})
    folder.write(tmp_path, config, jd.data.DataSpec(shape=(2,), levels=None))
    assert folder.read(tmp_path)[0] == config
    folder.prepare(tmp_path, tiny.config())  # and gone on with others
    assert "stranger" not in sys.modules


@pytest.mark.parametrize("make", [dict, lambda items: types.MappingProxyType(dict(items))])
def test_each_logger_gets_metrics_of_its_own(tmp_path: Path, make: Callable[..., Any]) -> None:
    class Spoils(Listed):
        def log(self, step: int, metrics: Any) -> None:
            metrics.clear()

    good = Listed()
    kept, metrics = several(tmp_path, objects=[Spoils(), good]), make({"loss": 1.0})
    kept.log(1, metrics)
    assert kept.wait(30)
    assert good.calls[-1] == ("log", 1, {"loss": 1.0})


def test_the_steps_do_not_wait_for_a_slow_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first line is not taken before the last step is done."""
    monkeypatch.setattr(loop, "_picture", lambda *_: PIXELS)
    last = threading.Event()
    in_time: list[bool] = []

    class Slow(Listed):
        def log(self, step: int, metrics: Any) -> None:
            in_time.append(last.wait(timeout=60))
            super().log(step, metrics)

    def watch(step: int, *_: Any) -> None:
        if step == 30:
            last.set()

    slow = Slow()
    jd.train(tiny.config({"every.checkpoint": 30}), tmp_path, loggers=[slow], callbacks=[watch])
    assert in_time == [True, True, True]
    assert slow.methods == ["init", "log", "log", "log", "picture", "close"]


def test_a_logger_that_never_comes_back_stops_neither_a_checkpoint_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "_picture", lambda *_: PIXELS)
    monkeypatch.setattr(recorder, "_MOMENT", 0.01)
    monkeypatch.setattr(loggers, "_END", 0.01)
    ended = threading.Event()

    class Stuck(Listed):
        def log(self, step: int, metrics: Any) -> None:
            ended.wait()

    state = jd.train(tiny.config(), tmp_path, loggers=[Stuck()])
    ended.set()
    assert int(state.step) == 30
    assert (tmp_path / "checkpoints" / "10").exists()
    assert "the logger Stuck has not come back" in caplog.text


def test_a_logger_that_is_far_behind_misses_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "_MOST_WAITING", 2)
    begun, ended = threading.Event(), threading.Event()

    class Slow(Listed):
        def log(self, step: int, metrics: Any) -> None:
            begun.set()
            ended.wait()
            super().log(step, metrics)

    slow = Slow()
    kept = several(tmp_path, objects=[slow])
    kept.log(1, {"loss": 1.0})
    begun.wait()
    for step in (2, 3, 4):
        kept.log(step, {"loss": 1.0})
    ended.set()
    assert "Slow is 2 calls behind" in caplog.text
    kept.close()
    assert slow.methods[-1] == "close"
    assert [call[1] for call in slow.calls if call[0] == "log"] == [1, 2, 3]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_logger_can_not_end_the_run(tmp_path: Path, error: type[BaseException]) -> None:
    class Ends(Listed):
        def log(self, step: int, metrics: Any) -> None:
            raise error

    good = Listed()
    use(several(tmp_path, objects=[Ends(), good]))
    assert good.methods == ["init", "log", "picture", "log", "picture", "close"]
