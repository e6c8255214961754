"""The folder of a run. This module writes and reads the first two of its files.

config.json    the config and the `DataSpec`
examples.npy   examples of the data, raw as in `Dataset.x`, if the process is made from some
checkpoints/   see `jaxdiff.experiment.checkpoint`
damaged/       damaged checkpoints, if any were found
samples/       images sampled during training, NNNNNNNN.png by step
metrics.jsonl  one line per log, beside TensorBoard's event files
"""

import dataclasses
import json
import os
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from jaxdiff import registry
from jaxdiff.data import Dataset, DataSpec
from jaxdiff.experiment.components import takes_examples
from jaxdiff.experiment.config import Config
from jaxdiff.registry import differences
from jaxdiff.typing import InputError

_EXAMPLES = "examples.npy"
_MOST_BYTES = 2**22  # of a config.json
_MOST_EXAMPLES = 2048  # enough for a covariance of images; they become a constant of the compiled step

# A resumed run may differ in these: they change its steps by rounding alone, or say where to stop (a cosine decay then
# ends at the new place).
_FREE = ("data.dir:", "data.on_device:", "train.steps", "train.fsdp:", "every.", "sampling.")


def prepare(workdir: Path, config: Config) -> None:
    """Make the folder; raise an InputError if it can't be written or holds a run of another config."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".write-test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(f"workdir = {workdir} can't be written ({error.strerror}); choose another folder") from error
    if not (workdir / "config.json").exists():
        return
    old = read(workdir, trust=registry.outside(config.to_mapping()))[0]
    lines = differences(old.to_mapping(), config.to_mapping())
    if found := [line for line in lines if not line.startswith(_FREE)]:
        listed = "\n  ".join(found)
        raise InputError(
            f"workdir = {workdir} holds a run of another config:\n  {listed}\n"
            "choose another folder, or set these back to go on with that run"
        )


def write(workdir: Path, config: Config, spec: DataSpec, examples: Num[np.ndarray, "n *shape"] | None = None) -> None:
    """Write the raw examples, if any, and then `config.json`, each whole or not at all."""
    if examples is not None:
        partial = workdir / f"{os.getpid()}.{_EXAMPLES}"
        np.save(partial, examples)
        partial.rename(workdir / _EXAMPLES)
    text = json.dumps({"config": config.to_mapping(), "data": dataclasses.asdict(spec)}, indent=2)
    partial = workdir / f"config.json.{os.getpid()}"
    partial.write_text(text + "\n")
    partial.rename(workdir / "config.json")


def read(workdir: Path, *, trust: bool | Collection[str] = False) -> tuple[Config, DataSpec]:
    """Return the config and the data's spec of the run in a folder, or raise an InputError if it holds none.

    `trust` is whether the config may name code from outside jaxdiff, which reading it imports, or which names it may.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"workdir = {workdir} is not a run: it has no config.json; give a folder that train.py wrote")
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes, more than {_MOST_BYTES}")
        content = json.loads(path.read_text(encoding="utf-8"))
        values, data = content["config"], content["data"]
        code = ", ".join(sorted(registry.outside(values)))
        fix = f"in all, {path} names {code[:1000]}; "
        if isinstance(trust, bool):
            fix += "give trust=True (--trust) if you trust whoever wrote this folder, or choose another one"
        else:
            fix += "the config of this run names other code: choose another folder"
        with nullcontext() if trust is True else registry.only(trust or (), fix):
            config = Config.from_mapping(values)
        with registry.named("data"):
            return config, registry.dataclass_from(DataSpec, data)
    except registry.UntrustedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged, or another version of jaxdiff wrote it ({error}); restore it from a copy, "
            "or train in another folder"
        ) from error


def choose_examples(workdir: Path, config: Config, dataset: Dataset) -> Num[np.ndarray, "n *shape"] | None:
    """Return the raw examples of the data that the process is built from, or None if it needs none.

    Every run on the same data set gets the same examples. Raises an InputError if the folder holds a run with others.
    """
    if not takes_examples(config.process):
        return None
    n, path = len(dataset.x), workdir / _EXAMPLES
    found = dataset.x[np.random.default_rng(0).permutation(n)[:_MOST_EXAMPLES]] if n > _MOST_EXAMPLES else dataset.x
    if path.exists() and (workdir / "config.json").exists():
        old: Any = read_examples(workdir, config, dataset.spec)
        if not np.array_equal(old, found):
            raise InputError(
                f"{path} holds examples of other data than {config.data.name!r} is here; go on with the data that the "
                "run was begun with, or choose another folder"
            )
    return found


def read_examples(workdir: Path, config: Config, spec: DataSpec) -> Num[np.ndarray, "n *shape"] | None:
    """Return the raw examples that the process of a folder's run is made from, None if it needs none.

    Raises an InputError if they are missing or damaged.
    """
    if not takes_examples(config.process):
        return None
    path = workdir / _EXAMPLES
    hint = "restore it from a copy, or delete it and run train.py on this folder again, which writes it from the data"
    if not path.is_file():
        raise InputError(f"{path} is missing, and the process of this run is made from it; {hint}")
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # reads the header only
        dtype = np.dtype(np.float32 if spec.levels is None else np.uint8)
        if mapped.dtype != dtype or mapped.shape[1:] != spec.shape or not 2 <= len(mapped) <= _MOST_EXAMPLES:
            rule = f"{dtype} (n, *{spec.shape}), 2 <= n <= {_MOST_EXAMPLES}"
            raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}, not {rule}")
        found = np.array(mapped)
        if not np.isfinite(found).all():
            raise ValueError("it holds values that are not finite")
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); {hint}") from error
    return found
