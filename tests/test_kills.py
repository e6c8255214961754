"""A run that is killed and stopped at random moments ends as one that was not."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.loading import load

KILLED = {
    "train.steps": 100,
    "train.steps_per_dispatch": 1,
    "every.log": 1,
    "every.checkpoint": 5,
    "every.keep": 2,
    "every.sample": 10_000,
    "every.evaluate": 4,  # between checkpoints, so that each of them may be the best
    "data.evaluated": 32,
}


def last_step(workdir: Path) -> int:
    """Of the last whole line of the metrics; 0 before there is one."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def wait_for(condition: Callable[[], bool], process: tiny.Process) -> None:
    """Return as soon as it holds; the process must be running until then."""
    end = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.thorough
def test_a_run_killed_and_stopped_at_any_moment_ends_as_an_unbroken_one(tmp_path):
    config = tiny.write_config(tmp_path, KILLED)
    workdir, rng = tmp_path / "killed", random.Random()

    def start(workdir: Path) -> tiny.Forked:
        return tiny.Forked("train.py", f"--config={config}", f"--workdir={workdir}", cache=tmp_path / "cache")

    def writing() -> bool:
        return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))

    unbroken = start(tmp_path / "unbroken")
    for stop in ("kill", "kill while writing", signal.SIGINT):
        process, begin = start(workdir), last_step(workdir)
        wait_for(lambda begin=begin: last_step(workdir) > begin + 5, process)
        if isinstance(stop, signal.Signals):
            process.send_signal(stop)
            code, _, err = tiny.finish(process)
            assert code == 128 + stop
            assert f"stopped by {stop.name}; step {tiny.steps_in(workdir)[-1]} is saved, run the same command to" in err
            assert "Traceback" not in err
        else:
            if stop == "kill while writing":
                wait_for(writing, process)
            else:
                time.sleep(rng.uniform(0, 0.2))
            process.kill()
            assert tiny.finish(process)[0] == -signal.SIGKILL
    assert last_step(workdir) < KILLED["train.steps"]
    code, _, err = tiny.finish(start(workdir))
    assert code == 0, err
    assert tiny.finish(unbroken)[0] == 0
    assert "damaged" not in err

    bests = [load(folder, weights="best") for folder in (tmp_path / "unbroken", workdir)]
    assert bests[0].step == bests[1].step
    tiny.assert_identical(bests[0].params, bests[1].params)

    states = []
    for folder in (tmp_path / "unbroken", workdir):
        checkpoints = Checkpoints(folder / "checkpoints", keep=2)
        states.append(tiny.restored(checkpoints, tiny.abstract_of(tiny.config(KILLED), tiny.mesh_of(1))))
        checkpoints.close()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 101))
    assert int(states[0].step) == 100
    tiny.assert_identical(*states)
