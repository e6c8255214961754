"""The folder of a run. This module writes and reads the first two of its files.

config.json    the config, the `DataSpec`, whether x64 is on, and how the config changed on resumption, by step
lock           the host and the process that train in the folder, or did so last
examples.npy   examples of the data, raw as in `Dataset.x`, if the process is made from some
checkpoints/   see `jaxdiff.experiment.checkpoint`
damaged/       damaged checkpoints, if any were found
samples/       images sampled during training, NNNNNNNN.png by step
metrics.jsonl  one line per log, beside TensorBoard's event files
loggers.json   the names of the run at Weights & Biases and trackio, if it logs there
wandb/         the files of Weights & Biases
plugins/       traces of the profiler, by step
*.aside        what was in the way of a side file

The folder may be a stranger's: none of these may be a link that leads out of it. It may be in a bucket: see
`jaxdiff.buckets`.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import math
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxdiff import buckets, registry
from jaxdiff.data import DataSpec, Source
from jaxdiff.experiment import resumption
from jaxdiff.experiment.components import takes_examples
from jaxdiff.experiment.config import Config
from jaxdiff.registry import differences
from jaxdiff.storage import AnyPath, exists, is_bucket, make_folder, move, opened, replacing, size_of
from jaxdiff.typing import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

_EXAMPLES = "examples.npy"
_WRITTEN = (
    "config.json",
    "lock",
    _EXAMPLES,
    "checkpoints",
    "damaged",
    "samples",
    "metrics.jsonl",
    "loggers.json",
    "wandb",
    "plugins",
)
_MOST_BYTES = 2**22  # of a config.json
_MOST_EXAMPLES = 2048  # enough for a covariance of images; they become a constant of the compiled step

# Orbax looks for files by patterns that contain its own path, and takes some characters of that path for wildcards.
_WILDCARDS = "*?[]\\"


def check_path(workdir: AnyPath, *, what: str = "workdir") -> None:
    """Raise an InputError about the argument `what` if no checkpoint below this folder could be read back."""
    resolved: Any = workdir if is_bucket(workdir) else Path(os.path.realpath(workdir))
    try:
        str(resolved).encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} = {str(workdir)!r} is not valid UTF-8; rename the folder") from None
    schemes = [part for part in resolved.parts if part in ("gs:", "s3:", "az:") and not is_bucket(workdir)]
    if found := [*schemes, *(character for character in _WILDCARDS if character in str(resolved))]:
        raise InputError(
            f"{what} = {workdir} is the folder {resolved}, and checkpoints can't be read from a path that contains "
            f"{found[0]!r}; rename that folder or choose another"
        )


@contextmanager
def lock(workdir: AnyPath) -> Iterator[None]:
    """Make the folder, and hold its lock, so that no second run writes to it.

    The operating system holds the lock: it is free once this process has ended in any way, whatever children of it live
    on. Where a file system has no locks, this only warns. Raises an InputError if another process holds the lock, or
    the folder can't be written.
    """
    if is_bucket(workdir):
        with buckets.lock(workdir):
            yield
        return
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.ExitStack() as stack:
        make_folder(workdir, what=f"workdir = {workdir}")
        try:
            file = stack.enter_context(open(os.open(workdir / "lock", flags, 0o666), "r+"))
            if fcntl is None:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.append(file)
            stack.callback(_held.remove, file)
            file.truncate()
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
            file.flush()
        except BlockingIOError:
            raise InputError(
                f"workdir = {workdir} is in use by {_holder(workdir)}; wait for that run or stop it, or choose another "
                "folder"
            ) from None
        except OSError as error:
            _log.warning("%s can't be locked (%s): start no second run in it", workdir, error.strerror)
        yield


_held: list[IO[str]] = []


def _release() -> None:
    """Close the files of locks in a fork, which would hold them after the end of its parent, too."""
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release)


def _holder(workdir: AnyPath) -> str:
    try:
        held = json.loads((workdir / "lock").read_text())
        return f"process {held['pid']} on {held['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def set_aside(path: AnyPath, why: object) -> None:
    """Rename what is at a path and can't be used, with a warning; a run goes on without its side files."""
    names = (path.with_name(f"{path.name}.aside{n or ''}") for n in itertools.count())
    free = next(name for name in names if not exists(name))
    move(path, free)
    _log.warning("%s can't be used (%s); it is now %s, and the run goes on without it", path, why, free.name)


def side_folder(path: AnyPath) -> AnyPath:
    """Make a folder for side files, and return its path; anything else at that path is set aside."""
    if is_bucket(path):  # where an object of this name would not be in the way, and a folder need not be made
        return path
    if os.path.lexists(path) and not path.is_dir():
        set_aside(path, "it is not a folder")
    path.mkdir(exist_ok=True)
    return path


def checkpoint_steps(workdir: AnyPath) -> list[int]:
    """Return the steps of the checkpoints in the folder, whole or damaged, the newest first."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    # In a bucket Orbax writes a checkpoint in its place, and this object last.
    return [step for step in steps if not is_bucket(folder) or (folder / str(step) / "commit_success.txt").exists()]


def last_step(workdir: AnyPath) -> int:
    """Return the step of the newest checkpoint in the folder, whole or damaged; 0 if there is none."""
    return max(checkpoint_steps(workdir), default=0)


def prepare(workdir: AnyPath, config: Config, allow_change: Collection[str] = ()) -> None:
    """Make the folder; raise an InputError if it can't be written or holds a run that can't go on with this config.

    `allow_change` names settings that may differ: see `jaxdiff.experiment.resumption`.
    """
    if not is_bucket(workdir):
        _check_folder(workdir)
    if not (workdir / "config.json").exists():
        if checkpoint_steps(workdir):
            raise InputError(
                f"workdir = {workdir} has checkpoints but no config.json, which says what they are of; restore it from "
                "a copy, or choose another folder"
            )
        return
    where = f"workdir = {workdir}"
    resumption.check(
        read(workdir, trust=registry.outside(config.to_mapping()))[0],
        config,
        last_step(workdir),
        allow_change,
        where=where,
    )
    begun, now = _content(workdir).get("x64"), _x64()
    if begun is not None and begun != now:
        raise InputError(
            f"JAX_ENABLE_X64 is {'on' if now else 'off'}, but the run in {where} was begun with it "
            f"{'on' if begun else 'off'}; set it back to go on with that run"
        )


def _check_folder(workdir: AnyPath) -> None:
    make_folder(workdir, what=f"workdir = {workdir}")
    for name in _WRITTEN:
        target = os.path.realpath(workdir / name)
        if not Path(target).is_relative_to(os.path.realpath(workdir)):
            raise InputError(f"workdir = {workdir}: {name} is a link to {target}, outside the folder; remove that link")
    folder = workdir / "checkpoints"
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"workdir = {workdir}: checkpoints is not a folder; remove it, or choose another workdir")


def _x64() -> bool:
    return jnp.result_type(float) == jnp.float64


def _content(workdir: AnyPath) -> dict[str, Any]:
    """The content of config.json, which `read` has found valid; {} if there is none."""
    path = workdir / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(
    workdir: AnyPath,
    config: Config,
    spec: DataSpec,
    examples: Num[np.ndarray, "n *shape"] | None = None,
    *,
    step: int = 0,
    fingerprint: str | None = None,
) -> None:
    """Write the raw examples, if any, and then `config.json`, each whole or not at all.

    If the folder holds a run that is at `step`, the history in `config.json` gets what the config changes.
    """
    if examples is not None:
        with replacing(workdir / _EXAMPLES) as file:
            np.save(file, examples)
    old = _content(workdir)
    history = old.get("history", [])
    if old and (
        changes := differences(
            read(workdir, trust=registry.outside(config.to_mapping()))[0].to_mapping(), config.to_mapping()
        )
    ):
        history = [*history, {"step": step, "changes": changes}]
    content = {"config": config.to_mapping(), "data": dataclasses.asdict(spec), "x64": _x64(), "history": history}
    content["fingerprint"] = fingerprint or old.get("fingerprint")
    text = json.dumps(content, indent=2)
    if json.loads(text) == old:
        return
    with replacing(workdir / "config.json") as file:
        file.write(f"{text}\n".encode())


def content_of(workdir: AnyPath) -> Any:
    """Return the unchecked values of config.json, or raise a ValueError or an OSError."""
    path = workdir / "config.json"
    if (size := size_of(path)) > _MOST_BYTES:
        raise ValueError(f"it has {size} bytes, more than {_MOST_BYTES}")
    return json.loads(path.read_text(encoding="utf-8"))


def read(workdir: AnyPath, *, trust: bool | Collection[str] = False) -> tuple[Config, DataSpec]:
    """Return the config and the data's spec of the run in a folder, or raise an InputError if it holds none.

    `trust` is whether the config may name code from outside jaxdiff, which reading it imports, or which names it may.
    """
    check_path(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(
            f"workdir = {workdir} is not a run: it has no config.json; give the folder of a training run, its --workdir"
        )
    try:
        content = content_of(workdir)
        values, data = content["config"], content["data"]
        code = ", ".join(sorted(registry.outside(values)))
        fix = f"in all, {path} names {code[:1000]}; "
        if isinstance(trust, bool):
            fix += "give trust=True (--trust) if you trust whoever wrote this folder, or choose another folder"
        else:
            fix += "the config of this run names other code: choose another folder"
        with nullcontext() if trust is True else registry.only(trust or (), fix):
            config = Config.from_mapping(values)
        with registry.named("data"):
            return config, registry.dataclass_from(DataSpec, data)
    except (registry.UntrustedError, registry.NotFoundError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged, or another version of jaxdiff wrote it ({error}); restore it from a copy, "
            "or train in another folder"
        ) from error


def check_data(workdir: AnyPath, name: str, fingerprint: str) -> None:
    """Raise an InputError if the data are not those that the run in the folder was begun with."""
    content = _content(workdir)
    begun = content.get("fingerprint")
    moved = bool(content) and content["config"]["data"]["name"] != name
    if begun != fingerprint and (begun is not None or moved):
        raise InputError(
            f"workdir = {workdir} holds a run on other data than {name!r} is now (fingerprint {begun}, now "
            f"{fingerprint}); go on with the data that it was begun with, or begin a new run in another folder"
        )


def examples_for(config: Config, dataset: Source) -> Num[np.ndarray, "n *shape"] | None:
    """Return the raw examples that the process of a new run is built from, or None if it needs none."""
    if not takes_examples(config.process):
        return None
    n = len(dataset)
    some = np.random.default_rng(0).permutation(n)[:_MOST_EXAMPLES] if n > _MOST_EXAMPLES else np.arange(n)
    return dataset.take(some).x


def choose_examples(workdir: AnyPath, config: Config, dataset: Source) -> Num[np.ndarray, "n *shape"] | None:
    """Return the raw examples of the data that the process is built from, or None if it needs none.

    Every run on the same data set gets the same examples. Raises an InputError if the folder holds a run with others.
    """
    found, path = examples_for(config, dataset), workdir / _EXAMPLES
    if found is not None and path.exists() and (workdir / "config.json").exists():
        old: Any = read_examples(workdir, config, dataset.spec)
        if not np.array_equal(old, found):
            raise InputError(
                f"{path} holds examples of other data than {config.data.name!r} is here; go on with the data that the "
                "run was begun with, or choose another folder"
            )
    return found


def read_examples(workdir: AnyPath, config: Config, spec: DataSpec) -> Num[np.ndarray, "n *shape"] | None:
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
        dtype = np.dtype(np.float32 if spec.levels is None else np.uint8)
        if is_bucket(path):
            if (size := size_of(path)) > (most := _MOST_EXAMPLES * math.prod(spec.shape) * dtype.itemsize + 4096):
                raise ValueError(f"it has {size} bytes, more than {most}")
            with opened(path) as file:
                mapped = np.load(file, allow_pickle=False)
        else:
            mapped = np.lib.format.open_memmap(path, mode="r")  # reads the header only
        if mapped.dtype != dtype or mapped.shape[1:] != spec.shape or not 2 <= len(mapped) <= _MOST_EXAMPLES:
            rule = f"{dtype} (n, *{spec.shape}), 2 <= n <= {_MOST_EXAMPLES}"
            raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}, not {rule}")
        found = np.array(mapped)
        if not np.isfinite(found).all():
            raise ValueError("it holds values that are not finite")
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); {hint}") from error
    return found
