"""Two real processes with two or four devices each, which meet on the loopback interface."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from PIL import Image

from jaxdiff import data
from jaxdiff.loading import load
from jaxdiff.training import loop

CONFIG = {
    "optimizer.learning_rate": 1e-3,
    "train.steps": 100_000,
    "train.steps_per_dispatch": 2,
    "every.log": 2,
    "every.checkpoint": 10_000,
    "every.sample": 10_000,
}


def start_two(*arguments: str, cache: Path, devices: int = 2) -> list[tiny.Forked]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = ("--distributed", f"--coordinator={address}", "--num_processes=2")
    return [
        tiny.Forked("train.py", *arguments, *meeting, f"--process_id={i}", cache=cache / str(i), devices=devices)
        for i in range(2)
    ]


def finish_all(processes: list[tiny.Forked]) -> list[tuple[int, str]]:
    """The exit codes and standard errors."""
    try:
        ended = [tiny.finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, err) for code, _, err in ended]


def wait_for(happened: Callable[[], object], processes: list[tiny.Forked]) -> None:
    end = time.monotonic() + 100
    while not happened():
        assert all(process.poll() is None for process in processes), finish_all(processes)
        assert time.monotonic() < end
        time.sleep(0.01)


def metrics_of(workdir: Path) -> list[dict[str, float]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.mark.thorough
def test_two_processes_stop_together_go_on_and_train_as_one_would(tmp_path):
    config, workdir = tiny.write_config(tmp_path, CONFIG, base=tiny.IMAGES), tmp_path / "two"
    arguments = f"--config={config}", f"--workdir={workdir}"

    processes = start_two(*arguments, cache=tmp_path)
    wait_for(lambda: metrics_of(workdir), processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish_all(processes)
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    for code, err in ended:
        assert code == 128 + signal.SIGTERM, err
        assert f"stopped by SIGTERM; step {saved} is saved, run the same command to go on" in err
        assert "Traceback" not in err

    last = saved + 4
    processes = start_two(*arguments, f"--config.train.steps={last}", cache=tmp_path)
    alone = loop.train(tiny.config({**CONFIG, "train.steps": last}, base=tiny.IMAGES), tmp_path / "one")
    ended = finish_all(processes)
    for code, err in ended:
        assert code == 0, err

    together = load(workdir)
    assert together.step == last
    assert tiny.difference(together.params, alone.ema) < 1e-4
    lines = metrics_of(workdir)
    assert [line["step"] for line in lines] == list(range(2, last + 1, 2))
    for line, expected in zip(lines, metrics_of(tmp_path / "one"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 2
    assert "step " not in ended[1][1]
    with Image.open(workdir / "samples" / f"{last:08d}.png") as picture:
        assert picture.getextrema()[0][1] > 0


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_two_processes_read_a_folder_with_other_workers_after_a_stop_as_one_would(tmp_path):
    """Each reads what its four devices need. Two that were not stopped have the same weights bit for bit, and one
    process with eight devices but for the order of sums."""
    digits = data.load("digits")
    for i in range(96):
        path = tmp_path / "digits" / str(digits.labels[i]) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.x[i, ..., 0] * 15).save(path)
    pictures = {"data.name": f"folder:{tmp_path / 'digits'}", "data.flip": True, "cond.label": 0.1}
    config, workdir = tiny.write_config(tmp_path, {**CONFIG, **pictures}, base=tiny.IMAGES), tmp_path / "two"
    arguments = f"--config={config}", f"--workdir={workdir}"

    processes = start_two(*arguments, "--config.data.workers=2", cache=tmp_path, devices=4)
    wait_for(lambda: metrics_of(workdir), processes)
    processes[0].send_signal(signal.SIGTERM)
    for code, err in finish_all(processes):
        assert code == 128 + signal.SIGTERM, err
    (saved,) = tiny.steps_in(workdir)

    flags = arguments[0], f"--config.train.steps={saved + 4}", "--config.data.workers=0"
    runs = [
        start_two(*arguments, flags[1], "--config.data.workers=1", cache=tmp_path, devices=4),
        start_two(*flags, f"--workdir={tmp_path / 'whole'}", cache=tmp_path, devices=4),
        [tiny.Forked("train.py", *flags, f"--workdir={tmp_path / 'one'}", cache=tmp_path / "alone", devices=8)],
    ]
    for code, err in [ended for run in runs for ended in finish_all(run)]:
        assert code == 0, err
    two, whole, one = (load(folder, trust=True) for folder in (workdir, tmp_path / "whole", tmp_path / "one"))
    assert two.step == whole.step == one.step == saved + 4
    tiny.assert_identical(two.params, whole.params)
    assert tiny.difference(two.params, one.params) < 1e-6


@pytest.mark.thorough
def test_two_processes_abandon_a_picture_of_minutes_together(tmp_path):
    changes = {
        **CONFIG,
        "schedule.num_timesteps": 200_000,
        "sampling.steps": 200_000,
        "every.sample": 2,
    }
    config, workdir = tiny.write_config(tmp_path, changes, base=tiny.IMAGES), tmp_path / "two"
    processes = start_two(f"--config={config}", f"--workdir={workdir}", cache=tmp_path)
    wait_for((workdir / "checkpoints" / "2").exists, processes)  # written before the first picture is begun
    time.sleep(3)
    processes[1].send_signal(signal.SIGTERM)
    for code, err in finish_all(processes):
        assert code == 128 + signal.SIGTERM, err
        assert "stopped by SIGTERM; step 2 is saved, run the same command to go on" in err
        assert "Traceback" not in err
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]
    assert not (workdir / "samples").exists()


@pytest.mark.thorough
def test_what_one_process_refuses_stops_both(tmp_path):
    config, workdir = tiny.write_config(tmp_path), tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    first, second = finish_all(start_two(f"--config={config}", f"--workdir={workdir}", cache=tmp_path))
    assert (first[0], second[0]) == (2, 2)
    assert f"error: {workdir / 'config.json'} is damaged, or another version" in first[1]
    assert f"error: process 0 refuses workdir = {workdir}; its own message says why" in second[1]


CALLED = """
import sys
sys.path.insert(0, {tests!r})
import jax, tiny
import jaxdiff as jd
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
def stop(step, state, metrics):
    print("called", step, int(state.step), metrics["eval_loss"], flush=True)
    return step == 20 and jax.process_index() == 1
jd.train(tiny.config({changes!r}), {workdir!r}, callbacks=[stop])
"""


@pytest.mark.thorough
def test_two_processes_evaluate_as_one_and_a_callback_of_either_stops_both(tmp_path):
    changes = {"every.evaluate": 10, "every.keep": 1, "every.checkpoint": 1000, "data.evaluated": 50}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script, workdir = tmp_path / "script.py", str(tmp_path / "two")
    tests = str(Path(__file__).parent)
    script.write_text(CALLED.format(tests=tests, address=address, changes=changes, workdir=workdir))
    processes = [tiny.start(str(script), str(i), cache=tmp_path / f"cache{i}", devices=2) for i in range(2)]
    ended = [tiny.finish(process, seconds=200) for process in processes]
    for code, _, err in ended:
        assert code == 0, err
    called = [[line for line in out.splitlines() if line.startswith("called")] for _, out, _ in ended]
    assert called[0] == called[1]
    assert [line.split()[1:3] for line in called[0]] == [["10", "10"], ["20", "20"]]
    loop.train(tiny.config({**changes, "train.steps": 20}), tmp_path / "one")
    for found, expected in zip(metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one"), strict=True):
        assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-3)
    assert load(workdir).step == 20
    assert load(workdir, weights="best").step == load(tmp_path / "one", weights="best").step
