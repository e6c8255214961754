"""Runs that train in a second: two-dimensional points and a small network, in this process or in others."""

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.config import Config

REPOSITORY = Path(__file__).parents[1]

POINTS: Mapping[str, Any] = {
    "data": {"name": "swissroll"},
    "model": {"name": "mlp", "width": 16, "depth": 1, "time_dim": 8},
    "schedule": {"name": "linear", "steps": 20},
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
        "from jaxdiff.config import Config\n\n\n"
        f"def get_config():\n    return Config.from_mapping({mapping(changes, base=base)!r}).to_config_dict()\n"
    )
    return path


def start(script: str, *arguments: str, cache: Path, devices: int = 1, **options: Any) -> subprocess.Popen[str]:
    """`python script arguments` in a process of its own, which reads and keeps compiled programs in `cache`."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finish(process: subprocess.Popen[str], *, seconds: float = 120) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a process; one that takes longer is killed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


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
