"""Processes that train as one are refused if they differ, and end together when one is lost."""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny

from jaxdiff.loading import load
from jaxdiff.training import loop, sentinels

NAMES = ("process 0 (pid 70 on a)", "process 1 (pid 71 on b)", "process 2 (pid 72 on c)")


class Fake:
    """A process and its sentinel, as the hub sees them."""

    lines: ClassVar[list[sentinels.Line]] = []  # to close

    def __init__(self, address: tuple[str, int], index: int, facts: dict[str, Any]) -> None:
        connected = socket.create_connection(address)
        self.line = sentinels.Line(connected)
        connected.settimeout(5)
        self.lines.append(self.line)
        self.line.send(index=index, name=NAMES[index])
        self.line.send(facts={"--num_processes": 3, **facts})

    def hear(self) -> dict[str, Any]:
        """The next message; an error if none comes in 5 seconds."""
        (message,) = self.line.receive()
        return message

    def poll(self) -> list[dict[str, Any]]:
        """The messages that come within a moment."""
        return self.line.receive() if sentinels._ready(self.line, seconds=0.1) else []


@pytest.fixture
def patience() -> float:
    """Seconds in which all processes must have come."""
    return 60


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, patience: float) -> Iterator[tuple[str, int]]:
    """The address of a hub, which must end soon after the processes have."""
    monkeypatch.setattr(sentinels, "START", patience)
    listener = socket.create_server(("127.0.0.1", 0))
    hub = threading.Thread(target=sentinels.lead, args=(listener,))
    hub.start()
    yield listener.getsockname()
    for line in Fake.lines:
        line.close()
    hub.join(5)
    assert not hub.is_alive()


def meet(address: tuple[str, int], *facts: dict[str, Any]) -> list[Fake]:
    return [Fake(address, i, values) for i, values in enumerate(facts)]


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("train.steps", {"train": {"steps": 5, "seed": 0}}, {"train": {"steps": 6, "seed": 0}}),
        ("jax", {"jax": 5}, {"jax": 6}),
        ("data.dir", {"data": {"dir": 5}}, {"data": {"dir": 6}}),
        ("--num_processes", {"--num_processes": 5}, {"--num_processes": 6}),
    ],
)
def test_all_processes_hear_what_differs_and_where(address, monkeypatch, name, here, there):
    monkeypatch.setattr(sentinels, "_END", 0.5)
    fakes = meet(address, here, here, there)
    for fake in fakes:
        refused = fake.hear()["refused"]
        assert all(part in refused for part in (name, "5", "6", NAMES[0], NAMES[2]))
        assert NAMES[1] not in refused
        assert "seed" not in refused
        assert "\n" not in refused


def test_what_is_found_later_is_compared_too(address):
    fakes = meet(address, {}, {}, {})
    assert [fake.hear() for fake in fakes] == [{"hub": NAMES[0]}] * 3
    for i, fake in enumerate(fakes):
        fake.line.send(facts={"fingerprint": "other" if i == 1 else "same"})
    for refused in [fake.hear()["refused"] for fake in fakes]:
        assert all(part in refused for part in ("fingerprint", "'other'", "'same'", NAMES[1]))


@pytest.mark.parametrize("indices", [(0, 1), (0, 1, 1)])
@pytest.mark.parametrize("patience", [2])
def test_a_process_that_is_missing_or_one_too_many_refuses_all(address, indices, patience):
    fakes = [Fake(address, index, {}) for index in indices]
    for fake in fakes:
        assert re.search(r"--num_processes=3 .* no process 2 ", fake.hear()["refused"])


@pytest.mark.parametrize("lost", [0, 2])
def test_all_others_hear_of_a_lost_process(address, lost):
    fakes = meet(address, {}, {}, {})
    stranger = socket.create_connection(address)
    for fake in fakes:
        fake.hear()
    stranger.close()
    fakes.pop(lost).line.close()
    assert all(fake.hear()["end"] == f"{NAMES[lost]} is lost" for fake in fakes)


def test_a_process_that_leaves_is_not_lost_and_one_that_fails_is_quoted(address):
    fakes = meet(address, {}, {}, {})
    for fake in fakes:
        fake.hear()
    leaving = fakes.pop(1).line
    leaving.send(bye=True)
    leaving.close()
    time.sleep(0.2)
    fakes[1].line.send(failed="ValueError: 3")
    assert fakes[0].hear() == {"end": f"{NAMES[2]} failed: ValueError: 3", "failed": True}


def test_processes_leave_when_all_do(address):
    fakes = meet(address, {}, {}, {})
    for fake in fakes:
        fake.hear()
    for fake in fakes:
        assert not sentinels._ready(fakes[0].line, seconds=0.2)
        fake.line.send(bye=True)
    assert [fake.hear() for fake in fakes] == [{"over": True}] * 3


def test_a_silent_host_is_lost(address, monkeypatch):
    monkeypatch.setattr(sentinels, "_BEAT", 0.1)
    monkeypatch.setattr(sentinels, "_SILENCE", 1.0)
    fakes = meet(address, {}, {}, {})
    end = time.monotonic() + 2
    while time.monotonic() < end and not (told := [m for fake in fakes[:2] for m in fake.poll() if "end" in m]):
        for fake in fakes[:2]:
            fake.line.beat()
    assert told[0]["end"].startswith(NAMES[2])


def test_strangers_are_ignored(address):
    stranger = socket.create_connection(address)
    stranger.send(b"GET / HTTP/1.1\r\n\r\n")
    fakes = meet(address, {}, {}, {})
    assert all("end" not in fake.hear() for fake in fakes)
    for fake in fakes:
        fake.line.send(bye=True)
    stranger.close()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


SCRIPT = """
import os, re, signal, sys, time
from jaxdiff.training import hosts, sentinels
sentinels._BEAT, sentinels._SILENCE, sentinels._END = 0.5, 3.0, 2.0
address, index, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with hosts.exit_at_once(), hosts.joined((address, 3, index), {}, lambda: "step 7 is saved"):
    print("joined", flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "raise":
        raise ValueError("bad data")
    elif how == "stop":
        time.sleep(60)
    elif how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "stuck":
        re.match("(a+)+$", "a" * 60 + "b")  # it keeps Python's lock for longer than anyone lives
"""


@pytest.mark.parametrize(
    "hows",
    ["kill stop stuck", "stop stop kill", "raise stop stop", "stop raise stop", "stop stop stopped", "end end end"],
    ids=str,
)
def test_processes_end_together(tmp_path, hows):
    script, address = tmp_path / "script.py", free_address()
    script.write_text(SCRIPT)
    processes = [
        tiny.Forked(str(script), address, str(i), how, cache=tmp_path / "cache") for i, how in enumerate(hows.split())
    ]
    ended = [tiny.finish(process, seconds=30) for process in processes]
    first = next((i for i, how in enumerate(hows.split()) if how in ("kill", "raise", "stopped")), None)
    for i, (how, (code, out, err)) in enumerate(zip(hows.split(), ended, strict=True)):
        assert out == "joined\n"
        if how == "end":
            assert (code, err) == (0, "")
        elif how == "raise":
            assert code == 1
            assert err.splitlines()[-1] == "ValueError: bad data"
        elif how == "stop":
            assert code == 1
            what = "is lost" if "kill" in hows else "failed: (ValueError: bad data|it has been stopped, .*)"
            said = rf"error: process {first} \(pid {processes[first].pid} on \S+\) {what}; step 7 is saved\n"
            assert re.fullmatch(said, err), (i, err)
        else:
            assert code == -signal.SIGKILL


CHANGES = {
    "model.width": 64,
    "train.steps": 100_000,
    "train.batch_size": 32,
    "every.log": 5,
    "every.checkpoint": 20,
    "every.sample": 100_000,
}


def start(n: int, *arguments: str, cache: Path) -> list[tiny.Forked]:
    """A run on n processes with a device each."""
    meeting = ("--distributed", f"--coordinator={free_address()}", f"--num_processes={n}")
    return [
        tiny.Forked("train.py", *arguments, *meeting, f"--process_id={i}", cache=cache / f"{i} of {n}")
        for i in range(n)
    ]


def finish(processes: list[tiny.Forked], *, seconds: float = 200) -> list[tuple[int, str]]:
    """The exit codes and standard errors."""
    try:
        return [tiny.finish(process, seconds=seconds)[::2] for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(happened: Callable[[], object], processes: list[tiny.Forked]) -> None:
    end = time.monotonic() + 200
    while not happened():
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < end, finish(processes, seconds=0)
        time.sleep(0.01)


def saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_four_processes_that_lose_some_go_on_as_if_they_had_not(tmp_path):
    config, workdir = tiny.write_config(tmp_path, CHANGES), tmp_path / "run"
    command = f"--config={config}", f"--workdir={workdir}"
    # One while the others set up and compile, process 0 between checkpoints, then a preemption.
    for lost, number, since in ((3, signal.SIGKILL, None), (0, signal.SIGKILL, 20), (2, signal.SIGTERM, 60)):
        processes = start(4, *command, cache=tmp_path)
        if since is None:
            wait_for((workdir / "metrics.jsonl").exists, processes)
        else:
            wait_for(lambda since=since: max(saved(workdir), default=0) >= since, processes)
        processes[lost].send_signal(number)
        begin, ended = time.monotonic(), finish(processes, seconds=60)
        step = max(saved(workdir), default=0)
        if number == signal.SIGTERM:
            for code, err in ended:
                assert code == 128 + number, err
                assert (
                    err.splitlines()[-1] == f"stopped by SIGTERM; step {step} is saved, run the same command to go on"
                )
            continue
        assert time.monotonic() - begin < 60
        code, _ = ended.pop(lost)
        assert code == -number
        for code, err in ended:
            assert code == 1, err
            name = rf"process {lost} \(pid {processes[lost].pid} on \S+\)"
            way_on = f"step {step} is saved, run the same command to go on" if step else "no step is saved yet, .*"
            assert re.fullmatch(f"error: {name} is lost; {way_on}", err.splitlines()[-1])
            assert "Traceback" not in err
            assert "***" not in err  # a stack of C++
    last = f"--config.train.steps={max(saved(workdir)) + 10}"
    for code, err in finish(start(4, *command, last, cache=tmp_path)):
        assert code == 0, err
    unbroken = tmp_path / "unbroken"
    for code, err in finish(start(4, command[0], f"--workdir={unbroken}", last, cache=tmp_path)):
        assert code == 0, err
    assert load(workdir).step == load(unbroken).step > 60
    tiny.assert_identical(load(workdir).params, load(unbroken).params)
    assert losses(workdir) == losses(unbroken)


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_fewer_processes_and_devices(tmp_path):
    config, workdir = tiny.write_config(tmp_path, CHANGES), tmp_path / "run"
    for n, last in ((4, 10), (2, 20), (1, 30), (4, 40)):
        command = f"--config={config}", f"--workdir={workdir}", f"--config.train.steps={last}"
        for code, err in finish(start(n, *command, cache=tmp_path)):
            assert code == 0, err
    loop.train(tiny.config({**CHANGES, "train.steps": 40}), tmp_path / "alone")
    found, expected = losses(workdir), losses(tmp_path / "alone")
    assert list(found) == list(expected) == list(range(5, 41, 5))
    for step, loss in found.items():
        assert loss == pytest.approx(expected[step], rel=1e-6)


@pytest.mark.thorough
def test_slurm_says_where_the_other_processes_are(tmp_path, monkeypatch):
    config = tiny.write_config(tmp_path, {"train.steps": 10, "train.batch_size": 32})
    port = int(free_address().rpartition(":")[2])
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(port),
    }
    processes = []
    for i in range(2):
        for name, value in {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}.items():
            monkeypatch.setenv(name, value)
        command = f"--config={config}", f"--workdir={tmp_path / 'run'}", "--distributed"
        processes.append(tiny.start("train.py", *command, cache=tmp_path / f"cache {i}"))
    ended = [tiny.finish(process, seconds=200) for process in processes]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert saved(tmp_path / "run") == [10]
    assert "2 × cpu of 2 processes" in ended[0][2]


@pytest.mark.parametrize("message", ['{"name": "x"}', '{"facts": {"a": 1}}', '{"failed": "no"}', "[" * 200_000])
def test_a_stranger_does_no_harm(address, message):
    stranger = socket.create_connection(address)
    stranger.sendall(message.encode() + b"\n")
    fakes = meet(address, {}, {}, {})
    assert [fake.hear() for fake in fakes] == [{"hub": NAMES[0]}] * 3
    stranger.close()


def test_a_process_leaves_though_jax_does_not_come_back(tmp_path):
    """As if SIGTERM had come in the last moment, in which JAX's threads can wait for each other for ever."""
    script, address = tmp_path / "script.py", free_address()
    stuck = "import jax\nfrom jaxdiff.training import hosts\nhosts._LEAVE = 0.5\n"
    stuck += "import time\njax.distributed.shutdown = lambda: time.sleep(100)\n"
    script.write_text(stuck + SCRIPT)
    processes = [tiny.Forked(str(script), address, str(i), "end", cache=tmp_path / "cache") for i in range(3)]
    for code, out, _ in [tiny.finish(process, seconds=30) for process in processes]:
        assert (code, out) == (0, "joined\n")
