"""Runs that train in a second: two-dimensional points and a small network, in this process or in others."""

import atexit
import contextlib
import copy
import functools
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
import pytest
from absl.flags import FLAGS
from jax.sharding import AxisType, Mesh

from jaxdiff.cli import command, sample, train
from jaxdiff.data import DataSpec
from jaxdiff.experiment import Config, make_experiment
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.run import Run
from jaxdiff.training import loop
from jaxdiff.training.step import State, abstract_state

REPOSITORY = Path(__file__).parents[1]

POINTS: Mapping[str, Any] = {
    "data": {"name": "swissroll"},
    "model": {"name": "mlp", "width": 16, "depth": 1, "time_dim": 8},
    "schedule": {"name": "linear", "num_timesteps": 20, "beta_last": 0.01},
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 4},
    "train": {"steps": 30, "batch_size": 16, "ema_decay": 0.9, "steps_per_dispatch": 5},
    "sampling": {"steps": 4, "n": 8},
    "every": {"log": 10, "checkpoint": 10, "sample": 1000},
}
IMAGES: Mapping[str, Any] = {
    **POINTS,
    "data": {"name": "digits"},
    "model": {
        "name": "unet",
        "stem": 4,
        "down": [4],
        "middle": [],
        "up": [4],
        "attention": [False],
        "layers": 1,
        "heads": 1,
        "groups": 2,
        "time_dim": 8,
    },
    "optimizer": {"learning_rate": 0.01},
    "train": {"steps": 2, "batch_size": 16, "ema_decay": 0.9, "steps_per_dispatch": 1},
}


def mapping(changes: Mapping[str, Any] | None = None, *, base: Mapping[str, Any] = POINTS) -> dict[str, Any]:
    """A config as nested dicts: `base`, with changes given by path, as in {"train.steps": 5}."""
    result = copy.deepcopy(dict(base))
    for path, value in (changes or {}).items():
        *sections, name = path.split(".")
        section = result
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = value
    return result


def config(changes: Mapping[str, Any] | None = None, *, base: Mapping[str, Any] = POINTS) -> Config:
    """A config, with changes given by path."""
    return Config.from_mapping(mapping(changes, base=base))


def write_config(folder: Path, changes: Mapping[str, Any] | None = None, *, base: Mapping[str, Any] = POINTS) -> Path:
    """A config file for the command line."""
    path = folder / "config.py"
    path.write_text(
        "from jaxdiff.experiment import Config\n\n\n"
        f"def get_config():\n    return Config.from_mapping({mapping(changes, base=base)!r}).to_config_dict()\n"
    )
    return path


def start(
    script: str, *arguments: str, cache: Path, devices: int = 1, paths: tuple[Path, ...] = (), **options: Any
) -> subprocess.Popen[str]:
    """`python script arguments` in a process of its own, with compiled programs in `cache`; it imports from `paths`."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *paths))),
    }
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


# Imports once, then runs each script that it reads of in a fork of itself, whose exit code another fork waits for.
_SERVER = """
import gc, json, os, runpy, signal, sys
import jax, sklearn.datasets
import jaxdiff.cli.sample, jaxdiff.cli.train
gc.freeze()  # or a fork that ends goes through all of these modules
for line in sys.stdin:
    script, arguments, devices, cache, folder = json.loads(line)
    if os.fork():
        continue
    process = os.fork()
    if process:
        print(process, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with open(os.path.join(folder, "code.part"), "w") as file:
            file.write(str(code))
        os.replace(file.name, os.path.join(folder, "code"))
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"  # the last one counts
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    sys.exit()
try:
    while os.waitpid(-1, os.WNOHANG)[0]:
        pass
except ChildProcessError:
    pass
os.killpg(0, signal.SIGKILL)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """It ends, with all that it has started, when this process does and closes its standard input."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    atexit.register(server.communicate)
    return server


class Forked:
    """Like what `start` starts, but a fork of a process that has imported everything, and with XLA_FLAGS as here."""

    def __init__(self, script: str, *arguments: str, cache: Path, devices: int = 1) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=cache.parent))
        server, order = _server(), (str(REPOSITORY / script), arguments, devices, str(cache), str(self._folder))
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative of the signal that ended it; None while it runs."""
        path = self._folder / "code"
        return int(path.read_text()) if path.exists() else None

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 30) -> tuple[str, str]:
        end = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        return out, err


Process = subprocess.Popen[str] | Forked


def finish(process: Process, *, seconds: float = 120) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a process; one that takes longer is killed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def refused(script: str, *arguments: str) -> tuple[int, str, str]:
    """As `finish` of a process, but in this one: for command lines that are refused before slow work."""
    before, out, err = set(FLAGS), io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(action="ignore"),
    ):
        patch.setattr(sys, "argv", [str(REPOSITORY / script), *arguments])
        # What changes the whole process.
        patch.setattr(command, "_silence_threads", lambda: None)
        patch.setattr(command, "_choose_cache", lambda: None)
        patch.setattr(logging, "basicConfig", lambda **_: None)
        patch.setattr(absl.logging, "use_absl_handler", lambda: None)
        patch.chdir(REPOSITORY)
        try:
            with pytest.raises(SystemExit) as ended:
                {"train.py": train, "sample.py": sample}[script].main()
        finally:
            for name in set(FLAGS) - before:
                delattr(FLAGS, name)
            FLAGS.unparse_flags()
    return ended.value.code, out.getvalue(), err.getvalue()


def arrays(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree as NumPy arrays, keys as their numbers."""
    leaves = jax.tree.leaves(tree)
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.asarray(jax.random.key_data(leaf) if key else leaf) for leaf, key in zip(leaves, keys, strict=True)]


def assert_identical(a: Any, b: Any) -> None:
    """Every bit of two trees of arrays is the same."""
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


def difference(a: Any, b: Any) -> float:
    """The largest difference of two trees of arrays."""
    return max(float(np.abs(x - y).max()) for x, y in zip(arrays(a), arrays(b), strict=True))


def mesh_of(devices: int, fsdp: int = 1) -> Mesh:
    """A mesh of the first devices, of which `fsdp` split the weights."""
    shape = (devices // fsdp, fsdp)
    return jax.make_mesh(
        shape, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=jax.devices()[:devices]
    )


def train_without_picture(config: Config, folder: Path, **options: Any) -> State:
    """As `loop.train`, without the seconds that compiling a sampler takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))
        return loop.train(config, folder, **options)


def untrained(config: Config, spec: DataSpec) -> Run:
    """A run whose weights are those of its initialization."""
    experiment = make_experiment(config, spec)
    return Run(experiment=experiment, params=jax.jit(experiment.init)(jax.random.key(0)), step=0)


def restored(checkpoints: Checkpoints, abstract: State) -> State | None:
    """The newest whole state; damaged checkpoints are put aside, as training does."""
    found = checkpoints.restore(abstract.items(), repair=True)
    return None if found is None else State.from_items(found[1])


def abstract_of(config: Config, mesh: Mesh) -> State:
    """The shapes and layout of the state that a config of points trains."""
    return abstract_state(make_experiment(config, DataSpec(shape=(2,), levels=None)), mesh)


def steps_in(workdir: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
